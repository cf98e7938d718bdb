"""The runner on Ray: same bytes as the local one, errors that reach the user whole, workers that die and are replaced.

Real are Ray, its worker processes, the store and the kills; nothing is faked.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import failing_networks
import pytest
import ray
import torch
from processes import wait_until
from small_runs import (
    CNN,
    FORGET_SETS,
    MLP,
    PRIVATE,
    all_samples,
    assert_same_models,
    dataset,
    digits,
    files_of,
    folder_of,
    frozen_recipe,
    small_config,
    without,
    write_parquet,
)

from ray_sisa import activity
from ray_sisa.approximate.methods import make_method
from ray_sisa.config import Scaling
from ray_sisa.engine import turns
from ray_sisa.engine.local_runner import LocalRunner
from ray_sisa.engine.ray_cluster import satisfies
from ray_sisa.engine.ray_runner import RayRunner
from ray_sisa.engine.runner import Runner, WorkerNews
from ray_sisa.engine.work import ChainEnded, ChainWork, EpochDone, Event, StageDiverged, StageDone
from ray_sisa.errors import DataError, ResourcesError, TrainingError
from ray_sisa.layout import FEATURES
from ray_sisa.run import Run
from ray_sisa.samples import Samples

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where `failing_networks` writes what it did."""
    folder = tmp_path_factory.mktemp("notes")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(failing_networks.FOLDER, str(folder))
        yield folder


@pytest.fixture(scope="module")
def cluster(notes: Path) -> Iterator[None]:
    """A Ray of two CPUs on this machine, whose workers inherit `notes` and find `failing_networks`.

    It says that it has two GPUs, as `--num-gpus=2` does on a machine without a driver.
    """
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        ray.init(address="local", num_cpus=2, num_gpus=2, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def on_ray(cluster: None) -> Iterator[RayRunner]:
    """One runner for all tests, so that its workers are started once."""
    runner = RayRunner(Scaling())
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def samples() -> Samples:
    """D."""
    return all_samples()


def train(folder: Path, name: str, runner: Runner, samples: Samples, recipe: dict[str, Any], **scaling: Any) -> Run:
    run = Run.create(small_config(folder, name=name, recipe=recipe, scaling=scaling), dataset=dataset(samples))
    run.train(runner=runner)
    return run


class _Wrapped:
    """A runner that is another one, but for what subclasses change."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)


class _Counts(_Wrapped):
    """Counts the chains in flight."""

    in_flight = most = 0

    def start(self, work: ChainWork) -> None:
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        self._runner.start(work)

    def poll(self, timeout_s: float) -> Sequence[Event | WorkerNews]:
        events = self._runner.poll(timeout_s)
        self.in_flight -= sum(isinstance(event, ChainEnded) for event in events)
        return events


class _OneAtATime(_Counts):
    """Has one worker at most, so that chains come one after another."""

    def want(self, num_waiting: int) -> None:
        self._runner.want(min(num_waiting, 1 - self.in_flight))

    def free(self) -> int:
        return min(self._runner.free(), 1 - self.in_flight)


# --- the same bytes


def test_private_training_gives_the_same_on_ray_and_here(samples: Samples, on_ray: RayRunner, tmp_path: Path) -> None:
    there = train(tmp_path, "there", on_ray, samples, PRIVATE)
    assert_same_models(there, train(tmp_path, "here", LocalRunner(), samples, PRIVATE))
    assert there.verify(runner=on_ray).ok


def test_a_frozen_backbone_gives_the_same_on_ray_and_here(samples: Samples, on_ray: RayRunner, tmp_path: Path) -> None:
    recipe = frozen_recipe(tmp_path / "backbone.safetensors")
    unlearned = train(tmp_path, "unlearned", on_ray, samples, recipe)
    ids = FORGET_SETS["a block over two shards"](unlearned)
    unlearned.forget(samples=ids)
    unlearned.unlearn(runner=on_ray)
    never = train(tmp_path, "never", LocalRunner(), without(samples, ids), recipe)
    assert_same_models(unlearned, never)
    assert unlearned.store.sizes(FEATURES) == never.store.sizes(FEATURES)
    assert unlearned.verify(runner=on_ray).ok
    assert unlearned.evaluate(runner=on_ray).test == never.evaluate(runner=LocalRunner()).test


def test_a_divergence_comes_back_as_an_error_or_is_passed_over(
    samples: Samples, on_ray: RayRunner, tmp_path: Path
) -> None:
    hopeless = MLP | {"optimizer": {"name": "sgd", "lr": 1e30}}
    with pytest.raises(TrainingError, match=r"shard \d, slice 1: diverged: .* recipe\.on_divergence"):
        train(tmp_path, "fails", on_ray, samples, hopeless)
    run = Run.create(
        small_config(tmp_path, name="goes-on", recipe=hopeless | {"on_divergence": "exclude"}),
        dataset=dataset(samples),
    )
    told: list[Event] = []
    run.train(runner=on_ray, tell=told.append)
    assert sum(isinstance(event, StageDiverged) for event in told) == 3
    assert run.in_force() == () and run.status().complete and run.verify(runner=on_ray).ok


@pytest.mark.parametrize("forget", FORGET_SETS)
def test_unlearned_on_ray_is_never_trained_here(
    forget: str, samples: Samples, on_ray: RayRunner, tmp_path: Path
) -> None:
    unlearned = train(tmp_path, "unlearned", on_ray, samples, MLP)
    before = {record.key for record in unlearned.stages()}
    ids = FORGET_SETS[forget](unlearned)
    unlearned.forget(samples=ids)
    unlearned.unlearn(runner=on_ray)
    assert {record.key for record in unlearned.stages()} != before  # else this would prove nothing
    assert_same_models(unlearned, train(tmp_path, "never", LocalRunner(), without(samples, ids), MLP))


def test_unlearned_is_never_trained_on_ray_and_across_runners(
    samples: Samples, on_ray: RayRunner, tmp_path: Path
) -> None:
    unlearned = train(tmp_path, "unlearned", on_ray, samples, CNN)
    assert_same_models(unlearned, train(tmp_path, "here", LocalRunner(), samples, CNN))
    ids = FORGET_SETS["a block over two shards"](unlearned)
    unlearned.forget(samples=ids)
    unlearned.unlearn(runner=on_ray)
    rest = without(samples, ids)
    assert_same_models(unlearned, train(tmp_path, "never-here", LocalRunner(), rest, CNN))
    assert_same_models(unlearned, train(tmp_path, "never-on-ray", on_ray, rest, CNN))


@pytest.mark.parametrize("between", ["unlearn between them", "unlearn after both"])
def test_two_requests_are_as_good_as_one(between: str, samples: Samples, on_ray: RayRunner, tmp_path: Path) -> None:
    apart = train(tmp_path, "apart", on_ray, samples, MLP)
    # The second touches a slice of the first, an earlier one of the same shard, and another shard.
    first = apart.sample_ids(0, 2)[:4]
    second = [*apart.sample_ids(0, 2)[4:6], *apart.sample_ids(0, 1)[:1], *apart.sample_ids(2, 3)[:2]]
    apart.forget(samples=first)
    if between == "unlearn between them":
        apart.unlearn(runner=on_ray)
    apart.forget(samples=second)
    apart.unlearn(runner=on_ray)
    together = train(tmp_path, "together", on_ray, samples, MLP)
    together.forget(samples=first + second)
    together.unlearn(runner=on_ray)
    assert_same_models(apart, together)
    assert_same_models(apart, train(tmp_path, "never", LocalRunner(), without(samples, first + second), MLP))
    assert [c.request for c in apart.certificates()] == [1, 2]


def test_trained_here_and_unlearned_on_ray(samples: Samples, on_ray: RayRunner, tmp_path: Path) -> None:
    mixed = train(tmp_path, "mixed", LocalRunner(), samples, MLP)
    ids = FORGET_SETS["one sample in the first slice"](mixed)
    mixed.forget(samples=ids)
    events: list[Event] = []
    done = mixed.unlearn(runner=on_ray, tell=events.append)
    assert done.stages_trained == len([e for e in events if isinstance(e, StageDone)]) == 3
    assert_same_models(mixed, train(tmp_path, "never", LocalRunner(), without(samples, ids), MLP))


def test_a_request_stops_what_it_taints_and_nothing_else(samples: Samples, on_ray: RayRunner, tmp_path: Path) -> None:
    """Real are the workers, and the request that comes while both of them train a stage of several seconds."""
    recipe, layout = MLP | {"epochs_per_slice": 200, "batch_size": 4}, {"shards": 2, "slices": 1}
    run = Run.create(small_config(tmp_path, recipe=recipe, placement=layout), dataset=dataset(samples))
    ids, events = run.sample_ids(0, 1)[:1], list[Event]()
    (tainted,), (kept,) = (run.live.chain(shard, set()).keys for shard in (0, 1))

    def forget_at_once(event: Event) -> None:
        events.append(event)
        if isinstance(event, EpochDone) and event.stage.key == tainted and not run.status().requests:
            Run.open(run.store.uri).forget(samples=ids)

    run.train(runner=on_ray, tell=forget_at_once)
    committed = [event.record.key for event in events if isinstance(event, StageDone)]
    assert tainted not in committed
    assert committed.count(kept) == 1
    epochs = [event.stage.key for event in events if isinstance(event, EpochDone)]
    assert 0 < epochs.count(tainted) < 200
    assert (run.status().complete, run.status().pending_requests) == (True, ())
    assert_same_models(run, scratch_of(tmp_path, on_ray, without(samples, ids), recipe, layout))


def scratch_of(folder: Path, runner: Runner, samples: Samples, recipe: dict[str, Any], layout: dict[str, int]) -> Run:
    config = small_config(folder, name="scratch", recipe=recipe, placement=layout)
    run = Run.create(config, dataset=dataset(samples))
    run.train(runner=runner)
    return run


def test_evaluate_and_verify_measure_the_same_on_both(samples: Samples, on_ray: RayRunner, tmp_path: Path) -> None:
    source = {
        "train": write_parquet(tmp_path / "train.parquet", samples),
        "test": write_parquet(tmp_path / "test.parquet", digits(240, 60)),
    }
    run = Run.create(small_config(tmp_path, data=source))
    run.train(runner=on_ray)
    ids = FORGET_SETS["samples spread over all shards"](run)
    here, there = (run.evaluate(forget=ids, runner=runner) for runner in (LocalRunner(), on_ray))
    assert here.test.num_samples == 60
    # All but the time of day: the same head, numbers and shards.
    assert _numbers(here) == _numbers(there)
    assert run.verify(runner=LocalRunner()) == run.verify(runner=on_ray)
    assert run.verify(runner=on_ray).ok

    key = next(r.slice_digest for r in run.stages() if (r.shard, r.slice) == (2, 2))
    (folder_of(run) / f"slices/{key}.arrow").write_bytes(b"not an Arrow file")
    here_, there_ = run.verify(runner=LocalRunner()), run.verify(runner=on_ray)
    assert not there_.ok
    assert here_ == there_


def test_approximate_methods_make_the_same_on_both(samples: Samples, on_ray: RayRunner, tmp_path: Path) -> None:
    methods = [make_method("dampening"), make_method("scrub", ["epochs=3"]), make_method("neg_grad", ["epochs=2"])]
    whole: dict[str, Any] = {"placement": {"shards": 1, "slices": 1}}
    made: list[list[tuple[str, str]]] = []
    for name, runner in (("here", LocalRunner()), ("there", on_ray)):
        run = Run.create(small_config(tmp_path, name=name, recipe=MLP, **whole), dataset=dataset(samples))
        run.train(runner=runner)
        ids = run.sample_ids(0, 1)[:30]
        found = run.approximate_all(methods, forget=ids, runner=runner)
        made.append([(one.key, one.weights_digest) for one in found])
    assert made[0] == made[1]


def _numbers(evaluation: Any) -> tuple[Any, ...]:
    fields = ("ensemble_digest", "test", "shards", "ensemble_membership", "shard_memberships", "forget", "retain")
    return tuple(getattr(evaluation, name) for name in fields)


def test_as_many_chains_at_a_time_as_the_cluster_holds(samples: Samples, on_ray: RayRunner, tmp_path: Path) -> None:
    runner = _Counts(on_ray)
    assert on_ray.capacity() == 2
    train(tmp_path, "run", runner, samples, MLP)
    assert runner.most == 2


# --- failures


def test_status_says_which_shard_is_where_and_which_waits(
    samples: Samples, on_ray: RayRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_ray.close()  # gives its CPUs back; the next test starts other workers
    monkeypatch.setattr(activity, "WRITE_EVERY_S", 0.0)
    monkeypatch.setattr(activity, "SLOWEST_S", 0.0)
    monkeypatch.setattr(turns, "TICK_S", 0.0)
    run = Run.create(small_config(tmp_path, recipe=MLP), dataset=dataset(samples))
    seen = []

    def tell(event: Event) -> None:
        if isinstance(event, EpochDone) and (work := Run.open(run.store.uri).status().work) and work.activity:
            seen.append({(shard.state, bool(shard.node and shard.pid)) for shard in work.activity.shards})

    runner = RayRunner(Scaling(max_concurrent_shards=1))
    with contextlib.closing(runner):
        run.train(runner=runner, tell=tell)
    assert ("training", True) in set().union(*seen)  # by its node and process
    assert any(("waiting", False) in states for states in seen)  # for the one worker that there may be
    assert {("waiting", True), ("training", False)}.isdisjoint(set().union(*seen))


def test_an_error_of_the_users_code_comes_back_whole_and_is_not_tried_again(
    samples: Samples, on_ray: RayRunner, notes: Path, tmp_path: Path
) -> None:
    recipe = MLP | {"model": "failing_networks:raises"}
    with pytest.raises(TrainingError) as failed:
        train(tmp_path, "run", _OneAtATime(on_ray), samples, recipe, max_failures=5)
    message = str(failed.value)
    assert "ZeroDivisionError: this network divides by zero" in message
    assert "failing_networks.py" in message
    assert 'raise ZeroDivisionError("this network divides by zero")' in message  # the line, as a traceback shows it
    assert "failed (application" in message
    attempts = (notes / "raised").read_text().splitlines()
    assert len(attempts) == 1
    assert int(attempts[0]) != os.getpid()
    # The worker outlives the error: another run goes on in it.
    assert train(tmp_path, "next", on_ray, samples, MLP).status().complete


def test_a_traceback_comes_back_whole_however_long_and_chained(
    samples: Samples, on_ray: RayRunner, notes: Path, tmp_path: Path
) -> None:
    """Ray itself could not carry this error: it cannot be made anew from its arguments."""
    with pytest.raises(TrainingError) as failed:
        train(tmp_path, "run", _OneAtATime(on_ray), samples, MLP | {"model": "failing_networks:raises_deep_down"})
    message = str(failed.value)
    assert "KeyError: 'the first cause'" in message
    assert "The above exception was the direct cause of the following exception:" in message
    assert f"failing_networks.Unpicklable: {failing_networks.LONG}" in message
    assert len(failing_networks.LONG) > 10_000
    assert re.search(r"Previous line repeated 4\d more times", message)  # as Python prints it
    assert all(function in message for function in ("in train_chain", "in train_stage", "in forward"))
    assert str(pickle.loads(pickle.dumps(failed.value))) == message


def test_a_model_that_exits_is_an_application_error(samples: Samples, on_ray: RayRunner, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"failed \(application\)[^$]*SystemExit: 7"):
        train(tmp_path, "run", on_ray, samples, MLP | {"model": "failing_networks:exits"})


class _Killer:
    """Kills the process that writes its id to the pipe of `failing_networks.Waits`; once."""

    def __init__(self, notes: Path) -> None:
        self._pipe = notes / "waits"
        os.mkfifo(self._pipe)
        self.killed: list[int] = []
        self._thread = threading.Thread(target=self._kill, daemon=True)
        self._thread.start()

    def _kill(self) -> None:
        process = int(self._pipe.read_text())  # blocks until a worker writes
        self._pipe.unlink()
        os.kill(process, signal.SIGKILL)
        self.killed.append(process)

    def join(self) -> int:
        self._thread.join(60)
        (process,) = self.killed
        return process


def test_a_killed_worker_is_replaced_and_the_end_is_the_same(
    samples: Samples, on_ray: RayRunner, notes: Path, tmp_path: Path
) -> None:
    recipe = MLP | {"model": "failing_networks:waits"}
    expected = train(tmp_path, "expected", LocalRunner(), samples, recipe)
    run = Run.create(
        small_config(tmp_path, name="killed", recipe=recipe, scaling={"max_failures": 1}), dataset=dataset(samples)
    )
    killer, events = _Killer(notes), list[Event]()
    run.train(runner=_OneAtATime(on_ray), tell=events.append)
    assert killer.join() != os.getpid()
    assert_same_models(run, expected)
    endings = [event.ending for event in events if isinstance(event, ChainEnded)]
    assert sorted(endings) == ["finished", "finished", "finished", "worker"]
    trained = [event.record.key for event in events if isinstance(event, StageDone)]
    assert len(trained) == len(set(trained)) == 9  # nothing that was committed was trained again


def test_a_killed_worker_counts_against_max_failures(
    samples: Samples, on_ray: RayRunner, notes: Path, tmp_path: Path
) -> None:
    recipe = MLP | {"model": "failing_networks:waits"}
    config = small_config(tmp_path, recipe=recipe, scaling={"max_failures": 0})
    run = Run.create(config, dataset=dataset(samples))
    killer = _Killer(notes)
    with pytest.raises(
        TrainingError, match=r"failed \(worker, 1 since its last commit where scaling.max_failures allows 0\)"
    ):
        run.train(runner=_OneAtATime(on_ray))
    killer.join()
    committed = files_of(folder_of(run) / "stages")
    run.train(runner=LocalRunner())  # the same command goes on; here, since no worker is left
    assert run.status().complete
    after = files_of(folder_of(run) / "stages")
    assert all(after[name] == state for name, state in committed.items() if _was_committed(name, committed))
    assert_same_models(run, train(tmp_path, "expected", LocalRunner(), samples, recipe))


def _was_committed(name: str, files: dict[str, Any]) -> bool:
    return f"{name.split('/')[0]}/stage.json" in files


DRIVER = """
import sys
from ray_sisa.run import Run
Run.open(sys.argv[1], allow_models=["failing_networks:waits"]).train(runner="ray")
"""


def test_a_killed_driver_is_replaced_and_the_end_is_the_same(samples: Samples, notes: Path, tmp_path: Path) -> None:
    """Its workers wait in their second stage, so that something is committed and much is not when it is killed."""
    data = {
        "train": write_parquet(tmp_path / "train.parquet", samples),
        "test": write_parquet(tmp_path / "test.parquet", digits(240, 60)),
    }
    recipe = MLP | {"model": "failing_networks:waits"}
    expected = Run.create(small_config(tmp_path, name="expected", recipe=recipe, data=data))
    expected.train(runner="local")
    run = Run.create(small_config(tmp_path, name="killed", recipe=recipe, data=data))
    waiting = tmp_path / "waiting"
    waiting.mkdir()
    os.mkfifo(waiting / "waits")
    environment = os.environ | {
        failing_networks.FOLDER: str(waiting),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        "RAY_ADDRESS": "local",
        "RAY_SISA_LEASE_S": "2",  # a killed process blocks the next for as long
    }
    command = [sys.executable, "-c", DRIVER, run.store.uri]
    driver = subprocess.Popen(command, env=environment, start_new_session=True)
    try:
        wait_until(lambda: driver.poll() is not None or bool(run.store.committed_stages()))
        assert driver.poll() is None
        worker = int((waiting / "waits").read_text())
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        wait_until(lambda: not Path(f"/proc/{worker}").exists())  # Ray ends with its driver
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
    committed = run.store.committed_stages()
    assert 0 < len(committed) < 9
    events: list[Event] = []
    run.train(runner="local", tell=events.append, wait_s=60)
    trained = {event.record.key for event in events if isinstance(event, StageDone)}
    assert trained | committed == {record.key for record in expected.stages()}
    assert not trained & committed
    assert_same_models(run, expected)


# --- mapping


def test_mapped_results_come_in_order_and_all_workers_are_used_again(on_ray: RayRunner) -> None:
    assert on_ray.map(failing_networks.add, 100, range(20)) == list(range(100, 120))
    assert on_ray.map(failing_networks.add, 0, []) == []


def test_what_a_mapped_generator_yields_is_told_by_number(
    on_ray: RayRunner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[int, str]] = []
    assert on_ray.map(failing_networks.counts, str(tmp_path), [2, 3], lambda *heard: told.append(heard)) == [2, 3]
    assert [what for number, what in told if number == 0] == ["0 of 2", "1 of 2"]
    # The worker of the other died: its item told again, from the start.
    again = [what for number, what in told if number == 1]
    assert again[-3:] == ["0 of 3", "1 of 3", "2 of 3"]
    assert "0 of 3" in again[:-3]
    assert (tmp_path / "died").exists()
    there = LocalRunner().map(failing_networks.counts, str(tmp_path), [2, 3], lambda *heard: told.append(heard))
    assert there == [2, 3]
    assert told[-5:] == [(0, "0 of 2"), (0, "1 of 2"), (1, "0 of 3"), (1, "1 of 3"), (1, "2 of 3")]


def test_a_mapped_item_outlives_its_worker(cluster: None, on_ray: RayRunner, tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert on_ray.map(failing_networks.dies_once, folder, range(5)) == [0, 1, 4, 9, 16]
    assert (tmp_path / "died-3").exists()
    # Gone is one worker; the others and its successor are idle.
    assert on_ray.map(failing_networks.add, 1, range(3)) == [1, 2, 3]


def test_a_mapped_item_that_kills_its_workers_fails_by_number(on_ray: RayRunner) -> None:
    with pytest.raises(TrainingError, match=r"worker = item 1: was lost 4 times \(worker\), where 3 are allowed"):
        on_ray.map(failing_networks.kills, 1, range(3))
    assert on_ray.map(failing_networks.add, 1, range(3)) == [1, 2, 3]


def test_what_a_mapped_function_raises_comes_back_as_it_was_raised(on_ray: RayRunner) -> None:
    with pytest.raises(DataError) as refused:
        on_ray.map(failing_networks.refuses, "the rule", range(3))
    assert (refused.value.field, refused.value.rule) == ("item", "the rule")
    with pytest.raises(TypeError, match="cannot pickle"):
        on_ray.map(failing_networks.add, 1, [threading.Lock()])
    assert on_ray.map(failing_networks.add, 1, range(3)) == [1, 2, 3]


def test_a_worker_that_died_in_idleness_is_charged_to_nobody(
    samples: Samples, on_ray: RayRunner, tmp_path: Path
) -> None:
    on_ray.map(failing_networks.add, 1, range(3))
    for process in set(on_ray.map(failing_networks.process_id, None, range(8))):
        os.kill(process, signal.SIGKILL)
    assert train(tmp_path, "run", on_ray, samples, MLP, max_failures=0).status().complete


# --- resources


@pytest.mark.parametrize(
    ("rule", "label", "chosen"),
    [
        ("spot", "spot", True),
        ("spot", "on-demand", False),
        ("spot", None, False),
        ("!spot", "on-demand", True),
        ("!spot", "spot", False),
        ("!spot", None, True),
        ("in(a, b)", "b", True),
        ("in(a, b)", "c", False),
        ("!in(a,b)", "c", True),
        ("!in(a,b)", "a", False),
    ],
)
def test_labels_are_chosen_as_ray_does(rule: str, label: str | None, chosen: bool) -> None:
    assert satisfies(label, rule) is chosen


def test_memory_is_asked_for_in_bytes(samples: Samples, on_ray: RayRunner, tmp_path: Path) -> None:
    on_ray.close()  # gives its CPUs back; the next test starts other workers
    config = small_config(tmp_path, scaling={"resources_per_worker": {"CPU": 1, "memory": 2**20}})
    run = Run.create(config, dataset=dataset(samples))
    run.train(runner="ray")
    assert run.status().complete


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA can use what this machine says that it has")
@pytest.mark.parametrize("fraction", [1, 0.5])
def test_a_gpu_that_cuda_cannot_use_is_an_application_error(
    fraction: float, samples: Samples, cluster: None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config(tmp_path, scaling={"resources_per_worker": {"CPU": 1, "GPU": fraction}, "max_failures": 3})
    run = Run.create(config, dataset=dataset(samples))
    with caplog.at_level("WARNING", "ray_sisa.engine"), pytest.raises(TrainingError) as failed:
        run.train(runner="ray")
    assert re.search(r"^shard \d, slice 1.*failed \(application\).*(NVIDIA|CUDA)", str(failed.value), re.DOTALL)
    assert [record.message for record in caplog.records if "not tried again" not in record.message] == []


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("scaling", "numbers"),
    [
        ({"resources_per_worker": {"CPU": 64}}, ("64", "2.0")),
        ({"resources_per_worker": {"CPU": 1, "accelerator_of_tomorrow": 1}}, ("accelerator_of_tomorrow", "1 node")),
        ({"resources_per_worker": {"CPU": 1, "memory": 1e15}}, ("1000000000000000.0", "1 node")),
        ({"label_selector": {"zone": "nowhere"}}, ("nowhere", "1 node")),
    ],
    ids=["cpus", "custom resource", "memory", "label"],
)
def test_what_the_cluster_cannot_hold_fails_at_once_with_numbers(
    scaling: dict[str, Any], numbers: tuple[str, ...], samples: Samples, cluster: None, tmp_path: Path
) -> None:
    run = Run.create(small_config(tmp_path, scaling=scaling), dataset=dataset(samples))
    before = files_of(folder_of(run))
    with pytest.raises(ResourcesError) as refused:
        run.train(runner="ray")
    assert all(number in str(refused.value) for number in ("resources_per_worker", *numbers))
    assert files_of(folder_of(run)) == before


# Last, since it ends the workers that the other tests share.
def test_no_more_chains_at_a_time_than_allowed(samples: Samples, on_ray: RayRunner, tmp_path: Path) -> None:
    on_ray.close()  # gives its CPUs back; were it used again, it would start other workers
    allowed_one = RayRunner(Scaling(max_concurrent_shards=1))
    runner = _Counts(allowed_one)
    try:
        assert allowed_one.capacity() == 1
        train(tmp_path, "run", runner, samples, MLP)
    finally:
        allowed_one.close()
    assert runner.most == 1
