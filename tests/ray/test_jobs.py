"""jobs/*.py submitted to a real head with the very command line that they open with, from a bare copy of the checkout.

The head is a process of this test with ports, token and folder of its own, so it meets no other Ray of the machine.
That workers run the copy, installed package or not, shows in the version that they record: the copy has another one.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from ray_sisa.run import Run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
VERSION = "0.0.0+bare"
CONTENT = {
    "name": "job",
    "data": {"source": "digits"},
    "placement": {"shards": 2, "slices": 2},
    "recipe": {"model": "mlp", "epochs_per_slice": 1},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    address: str
    environment: dict[str, str]
    checkout: Path

    def submit(self, *entrypoint: str) -> str:
        """Submits a job as the jobs say, from the checkout, and returns its logs once it has succeeded."""
        command = ["ray", "job", "submit", "--address", self.address, "--working-dir", ".", "--", "python", *entrypoint]
        done = subprocess.run(
            command, cwd=self.checkout, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "succeeded" in done.stdout
        return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("ray_sisa", "jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    init = folder / "ray_sisa" / "__init__.py"
    init.write_text(init.read_text() + f'__version__ = "{VERSION}"\n')
    return folder


@pytest.fixture(scope="module")
def head(checkout: Path) -> Iterator[Head]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "RAY_"))}
    environment |= {
        "PATH": f"{BIN}{os.pathsep}{environment['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
    }
    folder = tempfile.mkdtemp(prefix="rs")  # short: Ray's sockets lie in it, and their paths are limited
    ports = _free_ports(5)
    names = ["port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port"]
    options = [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    command = ["ray", "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats", f"--temp-dir={folder}"]
    with (Path(folder) / "head.log").open("wb") as log:
        process = subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log, cwd=folder)
        try:
            address = f"http://127.0.0.1:{ports[1]}"
            _wait_until_up(address, process, Path(folder) / "head.log")
            yield Head(address=address, environment=environment, checkout=checkout)
        finally:
            process.terminate()  # `--block` ends what it started, and nothing else
            process.wait(60)
            shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _wait_until_up(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=5).close()
        except urllib.error.HTTPError as error:
            error.close()
            return  # it answers, if only to ask for the token
        except OSError:
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"the head did not start:\n{log.read_text()}")


def _json(logs: str) -> dict[str, object]:
    (line,) = [line for line in logs.splitlines() if line.startswith("{")]
    fields: dict[str, object] = json.loads(line)
    return fields


def test_the_checkout_is_bare(checkout: Path) -> None:
    assert sorted(path.name for path in checkout.iterdir()) == ["jobs", "ray_sisa"]


def test_train_again_unlearn_evaluate(head: Head, tmp_path: Path) -> None:
    content = CONTENT | {"storage_path": str(tmp_path / "runs")}
    (head.checkout / "config.yaml").write_text(yaml.safe_dump(content))
    uri = str(tmp_path / "runs" / "job")

    first = _json(head.submit("jobs/train.py", "--config", "config.yaml", "--json"))
    assert (first["stages_trained"], first["stages_reused"]) == (4, 0)
    again = _json(head.submit("jobs/train.py", "--config", "config.yaml", "--json"))
    assert (again["stages_trained"], again["stages_reused"]) == (0, 4)
    assert again["ensemble_digest"] == first["ensemble_digest"]

    run = Run.open(uri)
    assert {stage.environment.ray_sisa for stage in run.stages()} == {VERSION}
    run.forget(samples=run.sample_ids(0, 2)[:1])
    done = _json(head.submit("jobs/unlearn.py", "--run", uri, "--json"))
    assert (done["requests"], done["stages_retrained"]) == ([1], 1)
    assert run.status().complete

    logs = head.submit("jobs/evaluate.py", "--run", uri, "--forget", "1")
    assert "forget" in logs
    assert len(run.evaluations()) == 1


@pytest.mark.parametrize("job", ["train", "unlearn", "evaluate"])
def test_a_job_is_thin_and_opens_with_its_command_lines(job: str) -> None:
    lines = (ROOT / "jobs" / f"{job}.py").read_text().splitlines()
    assert len(lines) < 40
    option = "--config CONFIG.yaml" if job == "train" else "--run RUN"
    submit = "ray job submit --address http://HEAD:8265 --working-dir . --"
    assert f"    {submit} python jobs/{job}.py {option}" in lines
    assert any(line.startswith(f"    python jobs/{job}.py {option} --runner local") for line in lines)


def test_on_a_laptop_from_a_bare_checkout_and_any_folder(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONTENT))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for job, arguments in (
        ("train", ["--config", "config.yaml"]),
        ("unlearn", ["--run", "runs/job", "--runner", "local"]),
        ("evaluate", ["--run", "runs/job", "--runner", "local"]),
    ):
        command = [sys.executable, str(checkout / "jobs" / f"{job}.py"), *arguments, "--json"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["head"] == 1
    assert {stage.environment.ray_sisa for stage in Run.open(str(tmp_path / "runs" / "job")).stages()} == {VERSION}
