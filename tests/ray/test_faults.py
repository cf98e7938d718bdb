"""Workers, nodes and memory that fail under a run on a cluster of several nodes; and runs that stand still.

Real are Ray, its nodes (raylets of their own on this machine), the drain notice, the memory monitor, the store and the
kills. Faked is only the cloud: nobody takes a node away after its notice but the test, which kills its raylet. Nodes
are missed after a second, not after ten.
"""

from __future__ import annotations

import logging
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import failing_networks
import pytest
import ray
from processes import descendants, is_alive, wait_until
from ray._common.utils import get_system_memory
from ray._private.utils import get_used_memory
from ray._raylet import GcsClient
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason
from small_runs import MLP, all_samples, assert_same_models, dataset, small_config

from ray_sisa.config import Scaling
from ray_sisa.engine.local_runner import LocalRunner
from ray_sisa.engine.ray_runner import RayRunner
from ray_sisa.engine.runner import Placed
from ray_sisa.engine.work import ChainEnded, Ending, Event, StageDone
from ray_sisa.errors import TrainingError
from ray_sisa.run import Run

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RECIPE = MLP | {"model": "failing_networks:disturbed"}
NUM_STAGES = 9
FAST_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "500",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
LEAVE_S = 30.0  # a killed process takes a moment to be gone, more on a busy machine


@pytest.fixture(scope="module")
def module_notes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("notes")


@pytest.fixture
def notes(module_notes: Path) -> Iterator[Path]:
    """Where a test tells `failing_networks.Disturbed` what to do; empty before each."""
    for path in module_notes.iterdir():
        path.unlink()
    yield module_notes


@pytest.fixture(scope="module")
def cluster(module_notes: Path) -> Iterator[Cluster]:
    """A head on which nothing is trained, with the driver; each test adds the nodes that it needs."""
    folder = tempfile.mkdtemp(prefix="rs")  # short: Ray's sockets lie in it, and their paths are limited
    others = descendants(os.getpid()).keys()
    with pytest.MonkeyPatch.context() as environment:
        for name, value in FAST_HEALTH_CHECKS.items():
            environment.setenv(name, value)
        environment.setenv(failing_networks.FOLDER, str(module_notes))
        environment.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, "temp_dir": folder}
        )
        ray.init(address=cluster.address, log_to_driver=False)
        try:
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
        wait_until(lambda: not any(is_alive(pid) for pid in descendants(os.getpid()).keys() - others), LEAVE_S)


@pytest.fixture
def add_node(cluster: Cluster) -> Iterator[Callable[[], Any]]:
    """Adds a node of one CPU; all are removed after the test."""

    def add() -> Any:
        return cluster.add_node(num_cpus=1)

    yield add
    for node in list(cluster.worker_nodes):
        cluster.remove_node(node, allow_graceful=False)
    wait_until(lambda: sum(node["Alive"] for node in ray.nodes()) == 1)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, module_notes: Path) -> Run:
    """The run that nothing disturbs."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(failing_networks.FOLDER, str(module_notes))
        run = make_run(tmp_path_factory.mktemp("expected"))
        run.train(runner=LocalRunner())
    return run


def make_run(folder: Path, **scaling: Any) -> Run:
    return Run.create(small_config(folder, recipe=RECIPE, scaling=scaling), dataset=dataset(all_samples()))


class Observed:
    """A runner on Ray that notes who has which shard, and who trained which stage."""

    def __init__(self, scaling: Scaling) -> None:
        self._runner = RayRunner(scaling)
        self.at: dict[int, Placed] = {}
        self.trained: list[tuple[int, int, str]] = []
        """Shard, slice and the id of the node."""
        self.endings: list[tuple[int, Ending]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def poll(self, timeout_s: float) -> Sequence[Event | Placed]:
        events = self._runner.poll(timeout_s)
        for event in events:
            if isinstance(event, Placed):
                self.at[event.number] = event
            elif isinstance(event, StageDone):
                record = event.record
                self.trained.append((record.shard, record.slice, self.at[record.shard].node_id))
            elif isinstance(event, ChainEnded):
                self.endings.append((event.shard, event.ending))
                del self.at[event.shard]
        return events

    @property
    def losses(self) -> list[Ending]:
        return [ending for _, ending in self.endings if ending != "finished"]

    def shard_of(self, pid: int) -> int:
        (shard,) = (shard for shard, place in self.at.items() if place.pid == pid)
        return shard


@contextmanager
def observed() -> Iterator[Observed]:
    runner = Observed(Scaling())
    try:
        yield runner
    finally:
        runner.close()


@contextmanager
def meanwhile(action: Callable[[], object]) -> Iterator[None]:
    """Does something while the block runs; what it raises fails the test."""
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(action)
        yield
        done.result(60)


def taken_by(notes: Path, name: str) -> int:
    """The process that took the file of this name, once one has."""
    wait_until(lambda: any(notes.glob(f"{name}-*")))
    (taken,) = notes.glob(f"{name}-*")
    return int(taken.name.rpartition("-")[2])


def kill_raylet(node: Any) -> None:
    os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)


def node_with_id(cluster: Cluster, node_id: str) -> Any:
    (node,) = (node for node in cluster.worker_nodes if node.node_id == node_id)
    return node


def assert_undisturbed(run: Run, runner: Observed, expected: Run) -> None:
    """The same bytes as if nothing had happened, and nothing that was committed was trained again."""
    assert_same_models(run, expected)
    stages = [(shard, number) for shard, number, _ in runner.trained]
    assert sorted(stages) == [(s, r) for s in range(3) for r in (1, 2, 3)]


# --- nodes and workers that are lost


def test_a_shard_goes_on_elsewhere_when_its_node_is_lost(
    cluster: Cluster,
    add_node: Callable[[], Any],
    notes: Path,
    expected: Run,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    add_node(), add_node()
    run = make_run(tmp_path, max_failures=1)
    (notes / "waits").touch()
    lost: list[tuple[int, str]] = []
    with observed() as runner:

        def lose_node() -> None:
            shard = runner.shard_of(taken_by(notes, "waits"))
            lost.append((shard, runner.at[shard].node_id))
            kill_raylet(node_with_id(cluster, runner.at[shard].node_id))

        with meanwhile(lose_node), caplog.at_level(logging.WARNING, "ray_sisa"):
            run.train(runner=runner)
        ((shard, victim),) = lost
        assert_undisturbed(run, runner, expected)
        assert runner.losses == ["worker"]
        of_shard = [(number, node == victim) for s, number, node in runner.trained if s == shard]
        assert of_shard == [(1, True), (2, False), (3, False)]
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("ray_sisa.engine")]
    assert line.startswith(f"shard {shard}, slice 2: retry (worker failure 1 of 1 allowed): process ")
    assert "died with its node" in line or "is out of reach" in line


@pytest.mark.parametrize("seed", [0])
def test_workers_killed_at_any_moment_one_by_one_and_all_at_once(
    seed: int, add_node: Callable[[], Any], notes: Path, expected: Run, tmp_path: Path
) -> None:
    add_node(), add_node()
    run = make_run(tmp_path, max_failures=-1)
    (notes / "slow").touch()
    (notes / "held").touch()  # a process trains one stage at most: six of nine, until all kills have struck
    draw, killed = random.Random(seed), list[int]()
    with observed() as runner:

        def kill() -> None:
            try:
                for number in (1, 2, 1):
                    wait_until(lambda: len(alive()) == 2)
                    time.sleep(draw.uniform(0, 0.5))
                    for pid in draw.sample(alive(), number):
                        os.kill(pid, signal.SIGKILL)
                        killed.append(pid)
            finally:
                (notes / "held").unlink()

        def alive() -> list[int]:
            return sorted({place.pid for place in list(runner.at.values())} - set(killed))

        with meanwhile(kill):
            run.train(runner=runner)
        assert_undisturbed(run, runner, expected)
        assert len(killed) == 4 and 2 <= len(runner.losses) <= 4  # two at once may have had one shard
        assert set(runner.losses) == {"worker"}


def test_a_node_that_comes_during_the_run_is_used(
    add_node: Callable[[], Any], notes: Path, expected: Run, tmp_path: Path
) -> None:
    first, run = add_node(), make_run(tmp_path)
    (notes / "held").touch()  # the first worker trains one stage, and no other, until a second one has come up
    added: list[Any] = []

    def listen(event: Event) -> None:
        if isinstance(event, StageDone) and not added:
            added.append(add_node())

    def let_go() -> None:
        wait_until(lambda: len({place.node_id for place in list(runner.at.values())}) == 2, 120)
        (notes / "held").unlink()

    with observed() as runner:
        with meanwhile(let_go):
            run.train(runner=runner, tell=listen)
        assert_undisturbed(run, runner, expected)
        assert {node for _, _, node in runner.trained} == {first.node_id, added[0].node_id}


# --- preemption


def drain(cluster: Cluster, node_id: str, seconds: int) -> float:
    """Gives notice, as `ray drain-node` does, that a node will be taken away; the instant from which it may be."""
    deadline = time.time() + seconds
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, why_not = GcsClient(address=cluster.address).drain_node(
        node_id, reason, "spot is taken", int(deadline * 1000)
    )
    assert accepted, why_not
    return deadline


def test_a_preemption_is_no_failure_of_the_worker(
    cluster: Cluster, add_node: Callable[[], Any], notes: Path, expected: Run, tmp_path: Path
) -> None:
    """No worker may fail. A node taken before its deadline is to Ray one that died, but its notice was heard."""
    add_node(), add_node()
    run = make_run(tmp_path, max_failures=0)
    (notes / "waits").touch()

    def preempt() -> None:
        node_id = runner.at[runner.shard_of(taken_by(notes, "waits"))].node_id
        drain(cluster, node_id, 3600)
        wait_until(lambda: runner.capacity() == 1)  # of two
        kill_raylet(node_with_id(cluster, node_id))

    with observed() as runner, meanwhile(preempt):
        run.train(runner=runner)
        assert_undisturbed(run, runner, expected)
        assert runner.losses == ["preemption"]


def test_preemptions_have_a_limit_of_their_own(
    cluster: Cluster, add_node: Callable[[], Any], notes: Path, expected: Run, tmp_path: Path
) -> None:
    add_node(), add_node()
    run = make_run(tmp_path, max_failures=5, max_preemption_failures=0)
    (notes / "waits").touch()

    def preempt() -> None:
        node_id = runner.at[runner.shard_of(taken_by(notes, "waits"))].node_id
        deadline = drain(cluster, node_id, 1)
        wait_until(lambda: time.time() > deadline)
        kill_raylet(node_with_id(cluster, node_id))

    with observed() as runner:
        with meanwhile(preempt), pytest.raises(TrainingError) as failed:
            run.train(runner=runner)
        assert runner.losses == ["preemption"]
    message = str(failed.value)
    assert "failed (preemption, 1 since its last commit where scaling.max_preemption_failures allows 0)" in message
    assert "was preempted with its node (spot is taken)" in message
    run.train(runner=LocalRunner())
    assert_same_models(run, expected)


# --- memory


def test_a_worker_killed_for_memory_says_so_and_what_to_change(
    add_node: Callable[[], Any], notes: Path, expected: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threshold = (get_used_memory() + 2 * 2**30) / get_system_memory()  # as Ray counts, containers included
    monkeypatch.setenv("RAY_memory_usage_threshold", f"{threshold:.4f}")  # of the node that is added next
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "50")
    node, run = add_node(), make_run(tmp_path, max_failures=0)
    (notes / "hungry").touch()
    with observed() as runner:
        with pytest.raises(TrainingError) as failed:
            run.train(runner=runner)
        assert runner.losses == ["worker"]
    message = str(failed.value)
    where, amount = re.escape(f"node {node.node_ip_address}"), r"[\d.]+ GB"
    in_use = rf"{where} had {amount} of {amount} in use, {amount} of it by this process"
    assert re.search(rf"process \d+ on {where} was killed for memory: {in_use}", message)
    for field in ("scaling.resources_per_worker", "scaling.max_concurrent_shards", "recipe.batch_size"):
        assert field in message
    run.train(runner=LocalRunner())
    assert_same_models(run, expected)


# --- standing still


def test_a_stopped_worker_fails_the_run_by_name_and_does_not_survive(
    add_node: Callable[[], Any], notes: Path, expected: Run, tmp_path: Path
) -> None:
    add_node()
    run = make_run(tmp_path, no_progress_timeout_s=3)
    with observed() as runner:
        # Of another run, so that nothing is slow for the first time while the clock of the guard runs.
        make_run(tmp_path / "before").train(runner=runner)
        (notes / "stops").touch()
        with pytest.raises(TrainingError, match="nothing moved for") as failed:
            run.train(runner=runner)
        pid = taken_by(notes, "stops")
        place = runner.at[runner.shard_of(pid)]
        assert failed.value.field == "waiting for shards"
        assert failed.value.value == f"[{place.number}]"
        assert f"{place.number} is with process {pid} on node {place.node}" in failed.value.rule
        wait_until(lambda: not is_alive(pid))
        # The same command; only that a worker may now take as long as it takes to start.
        patient = Run.open(run.store.uri, Scaling())
        patient.train(runner=runner)
    assert_same_models(patient, expected)


def test_workers_that_never_come_fail_the_run(add_node: Callable[[], Any], notes: Path, tmp_path: Path) -> None:
    add_node()
    run = make_run(tmp_path, no_progress_timeout_s=1)
    hold: Any = ray.remote(num_cpus=1)(Hold)
    held = hold.remote()
    ray.get(held.ready.remote())
    with observed() as runner:
        with pytest.raises(TrainingError, match=r"for shards = \[0, 1, 2\]: .* taken up \[0, 1, 2\]: others"):
            run.train(runner=runner)
        impatient = RayRunner(run.record.config.scaling)
        with pytest.raises(TrainingError, match=r"for items = \[0, 1, 2\]: .* taken up \[0, 1, 2\]: others"):
            impatient.map(failing_networks.add, 1, range(3))
        impatient.close()
    ray.kill(held)


class Hold:
    """Another job's worker."""

    def ready(self) -> bool:
        return True
