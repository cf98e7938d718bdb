"""Runs on clusters that have less free than they hold: they end, by workers that can be had.

Real are the head and the node (`ray start`, one CPU each, with a token), the jobs (`ray job submit`), the other job
that holds a CPU, and the kills. A run that stands still for a minute fails, so none of these tests passes by patience.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import wait_until
from real_head import Head, answer_of, bare_checkout, started_head, started_node

from ray_sisa.run import Run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

NUM_STAGES = 24
HEALTH_CHECKS = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}  # a lost node shows soon
HOLDER = """
import sys, time
import ray

ray.init(address=sys.argv[1], logging_level="ERROR", log_to_driver=False)

@ray.remote(num_cpus=1)
class Hold:
    def ready(self):
        return True

held = Hold.remote()
print(ray.get(held.ready.remote()), flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    with started_head(bare_checkout(tmp_path_factory.mktemp("checkout")), HEALTH_CHECKS, num_cpus=1) as head:
        yield head


@pytest.fixture
def node(head: Head) -> Iterator[int]:
    with started_node(head) as pid:
        yield pid


@contextmanager
def a_cpu_is_held(head: Head) -> Iterator[None]:
    command = [sys.executable, "-c", HOLDER, head.gcs_address]
    holder = subprocess.Popen(command, env=head.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout and holder.stdin
    try:
        assert holder.stdout.readline() == "True\n"
        yield
    finally:
        holder.communicate("", timeout=60)


def write_config(head: Head, folder: Path, epochs: int) -> Path:
    content: dict[str, Any] = {
        "name": "slow",
        "storage_path": str(folder),
        "data": {"source": "digits"},
        "placement": {"shards": 6, "slices": 4, "key": "stalls"},
        "recipe": {"model": "mlp", "epochs_per_slice": epochs, "batch_size": 16},
        "scaling": {"resources_per_worker": {"CPU": 1}, "no_progress_timeout_s": 60},
    }
    (head.checkout / "config.yaml").write_text(yaml.safe_dump(content))
    return folder / "slow"


def submit(head: Head, *entrypoint: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
    done = head.run(*head.command(*entrypoint, "--json", options=options))
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(answer_of(done.stdout))


TRAIN = ("jobs/train.py", "--config", "config.yaml")


@pytest.mark.usefixtures("node")
def test_its_own_driver_has_a_cpu(head: Head, tmp_path: Path) -> None:
    """The README's own way to keep a head free of drivers."""
    write_config(head, tmp_path, epochs=2)
    assert submit(head, *TRAIN, options=("--entrypoint-num-cpus", "1"))["stages_trained"] == NUM_STAGES


@pytest.mark.usefixtures("node")
def test_another_job_has_a_cpu(head: Head, tmp_path: Path) -> None:
    """Train, unlearn and evaluate; the digits' test set makes six items of one evaluation."""
    folder = write_config(head, tmp_path, epochs=2)
    with a_cpu_is_held(head):
        assert submit(head, *TRAIN)["stages_trained"] == NUM_STAGES
        run = Run.open(str(folder))
        run.forget(samples=[run.sample_ids(shard, 2)[0] for shard in range(6)])
        assert submit(head, "jobs/unlearn.py", "--run", str(folder))["stages_retrained"] == 18
        submit(head, "jobs/evaluate.py", "--run", str(folder))
    assert run.status().complete
    assert run.verify(runner="local", sample=2).ok


@pytest.mark.parametrize("comes_another", [False, True], ids=["one of two", "and another comes"])
def test_a_node_is_lost(head: Head, comes_another: bool, tmp_path: Path) -> None:
    folder = write_config(head, tmp_path, epochs=8)
    with ExitStack() as nodes:
        raylet = nodes.enter_context(started_node(head))

        def lose_node() -> None:
            wait_until(lambda: len(list(folder.glob("stages/*/stage.json"))) >= 2, 120)
            os.kill(raylet, signal.SIGKILL)
            if comes_another:
                nodes.enter_context(started_node(head))

        losing = threading.Thread(target=lose_node)
        losing.start()
        answer = submit(head, *TRAIN)
        losing.join()
    assert answer["stages_trained"] == NUM_STAGES
    assert Run.open(str(folder)).verify(runner="local", sample=2).ok
