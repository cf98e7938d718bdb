"""A job that is stopped, and a driver that is told to end, on a real head: quietly, and with the run given back."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from processes import wait_until
from real_head import Head, bare_checkout, logs_of, started_head

from ray_sisa.lease import hold_lease
from ray_sisa.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

SAID = "terminated: run the same command again to continue"
TRACE = "SIGTERM received"  # of Ray's native stack trace


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, runs: Path) -> Iterator[Head]:
    checkout = bare_checkout(tmp_path_factory.mktemp("checkout"))
    for name in ("job", "driver"):
        content = {
            "name": name,
            "storage_path": str(runs),
            "data": {"source": "digits"},
            "placement": {"shards": 1, "slices": 1},
            "recipe": {"model": "small_cnn", "epochs_per_slice": 100_000},  # longer than anybody waits
        }
        (checkout / f"{name}.yaml").write_text(yaml.safe_dump(content))
    with started_head(checkout) as head:
        yield head


def is_free(run: Path) -> bool:
    """Whether the run can be had at once, though somebody had it."""
    with hold_lease(Store(str(run)), wait_s=0):
        return any((run / "lease").iterdir())


def test_a_driver_that_is_told_to_end(head: Head, runs: Path, tmp_path: Path) -> None:
    """By SIGTERM in the midst of training, as batch systems and containers do it."""
    log = tmp_path / "log"
    environment = head.environment | {"RAY_ADDRESS": head.gcs_address}
    command = [sys.executable, "jobs/train.py", "--config", "driver.yaml", "--json"]
    with log.open("wb") as err:
        driver = subprocess.Popen(command, cwd=head.checkout, env=environment, stdout=subprocess.PIPE, stderr=err)
        wait_until(lambda: "epoch 2" in log.read_text() or driver.poll() is not None, timeout_s=120)
        driver.send_signal(signal.SIGTERM)
        out, _ = driver.communicate(timeout=60)
    told = log.read_text()
    assert (driver.returncode, out) == (143, b""), told
    assert SAID in told.splitlines()
    assert TRACE not in told
    assert "Traceback" not in told
    assert is_free(runs / "driver")


def test_a_job_that_is_stopped(head: Head, runs: Path) -> None:
    submit = head.command("jobs/train.py", "--config", "job.yaml")
    separator = submit.index("--")
    done = head.run(*submit[:separator], "--submission-id", "stopped", "--no-wait", *submit[separator:])
    assert done.returncode == 0, done.stdout + done.stderr
    wait_until(lambda: "epoch 2" in logs_of(head, "stopped"), timeout_s=240)
    stopped = head.run("ray", "job", "stop", "--address", head.address, "stopped")
    assert "was stopped" in stopped.stdout, stopped.stdout + stopped.stderr
    told = logs_of(head, "stopped")
    assert SAID in told
    assert TRACE not in told
    assert "Traceback" not in told
    assert is_free(runs / "job")
