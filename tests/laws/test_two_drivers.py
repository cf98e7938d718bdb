"""Law: one driver at a time, and one that was overtaken commits nothing that counts.

Real processes are stopped (SIGSTOP, by a crash point) beside each kind of write for longer than their lease, overtaken
by another process, and woken (SIGCONT). Nothing is faked; only the lease is shorter than by default.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from small_runs import RECIPES, assert_same_models, small_config, without

from ray_sisa.location import join_run
from ray_sisa.run import Run
from ray_sisa.samples import Samples

LEASE_S = "0.5"
POINTS = (
    "before create heads",  # the rolled-back one
    "before put slices",
    "before delete slices",
    "before delete stages/stage",
    "before put stages/weights",
    "before create stages/stage",
    "after create stages/stage",
    "before create heads 2",  # the full one
)
# Where it was about to write samples or weights, it writes what the second request has tainted meanwhile.
LATE = ("before put slices", "before put stages/weights", "before create stages/stage")


def objects(run: Run) -> set[str]:
    """Paths of all that holds samples or weights."""
    return run.store.sizes("slices").keys() | run.store.sizes("stages").keys()


def command(verb: str, run: Run, **environment: str) -> subprocess.Popen[str]:
    arguments = ("-m", "ray_sisa.cli", verb, run.store.uri, "--runner", "local", "--quiet")
    return python(*arguments, **{"RAY_SISA_LEASE_S": LEASE_S} | environment)


def python(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": paths} | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def stopped(point: str, run: Run) -> Iterator[subprocess.Popen[str]]:
    """A process that unlearns and has stopped at a point; killed at the end if it still lives."""
    process = command("unlearn", run, RAY_SISA_CRASH_AT=f"stop {point}")
    try:
        assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1]), process.communicate()
        yield process
    finally:
        process.kill()
        process.communicate()


# A driver whose workers are processes of their own, as on Ray, told on standard output what the first one is to do.
DRIVER = """
import base64, pickle, sys
from ray_sisa.engine.local_runner import LocalRunner
from ray_sisa.run import Run

class Elsewhere(LocalRunner):
    def start(self, work):
        print(base64.b64encode(pickle.dumps(work)).decode(), flush=True)
        sys.stdin.read()

Run.open(sys.argv[1]).unlearn(runner=Elsewhere())
"""
WORKER = """
import base64, pickle, sys
from ray_sisa.engine.worker import train_chain

events = train_chain(pickle.loads(base64.b64decode(sys.argv[1])))
print(type(next(events)).__name__, flush=True)
sys.stdin.readline()
print(*[type(event).__name__ for event in events], "and no more")
"""


@contextmanager
def worker_of_the_dead(run: Run) -> Iterator[subprocess.Popen[str]]:
    """A worker that is within a stage, waiting for a line to go on, and whose driver has been killed."""
    with script(DRIVER, run.store.uri, RAY_SISA_LEASE_S="600") as driver:
        assert driver.stdout
        work = driver.stdout.readline().strip()
        with script(WORKER, work) as worker:
            assert worker.stdout
            assert worker.stdout.readline() == "EpochDone\n"
            driver.kill()
            driver.wait()
            yield worker


@contextmanager
def script(code: str, argument: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    with python("-c", code, argument, **environment) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("point", POINTS)
def test_a_paused_driver_commits_nothing_that_counts(
    point: str, samples: Samples, copied: Callable[..., Run], from_scratch: Callable[[Samples, str], Run]
) -> None:
    run = copied()
    first, second = run.sample_ids(0, 1)[:2]
    run.forget(samples=[first])
    with stopped(point, run) as paused:
        run.forget(samples=[second])
        run.unlearn(runner="local", wait_s=60)
        served, head = run.ensemble().constituents, run.status().head
        wanted = objects(run)
        paused.send_signal(signal.SIGCONT)
        _, told = paused.communicate(timeout=60)
    assert paused.returncode == 1, told
    assert "took over this run" in told or "was written by another process" in told
    assert (run.ensemble().constituents, run.status().head) == (served, head)
    late = objects(run) - wanted
    assert bool(late) == (point in LATE)
    assert {finding.path for finding in run.check().findings} == late
    run.unlearn(runner="local")
    assert run.check().ok
    assert objects(run) == wanted
    assert_same_models(run, from_scratch(without(samples, [first, second]), "mlp"))
    assert [certificate.request for certificate in run.certificates()] == [1, 2]


def test_a_dead_holder_is_not_waited_for(copied: Callable[..., Run]) -> None:
    run = copied()
    run.forget(samples=run.sample_ids(0, 1)[:1])
    killed = command("unlearn", run, RAY_SISA_CRASH_AT="before create certificates", RAY_SISA_LEASE_S="600")
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    done = run.unlearn(runner="local", wait_s=0)
    assert (done.requests, done.stages_trained) == ((1,), 0)


def test_a_worker_that_outlives_its_driver_writes_nothing_that_counts(
    samples: Samples, copied: Callable[..., Run], from_scratch: Callable[[Samples, str], Run]
) -> None:
    """The driver dies with most of its lease to go and is taken over at once, while its worker is within a stage."""
    run = copied()
    first, second = run.sample_ids(0, 1)[:2]
    run.forget(samples=[first])
    with worker_of_the_dead(run) as worker:
        run.forget(samples=[second])
        run.unlearn(runner="local", wait_s=0)
        served, wanted = run.ensemble().constituents, objects(run)
        out, err = worker.communicate("\n", timeout=60)
    assert (worker.returncode, "StageDone" in out, out.endswith("and no more\n")) == (0, False, True), (out, err)
    assert (run.ensemble().constituents, objects(run)) == (served, wanted)
    assert run.check().ok
    assert_same_models(run, from_scratch(without(samples, [first, second]), "mlp"))


def test_the_second_says_who_has_it_or_waits(copied: Callable[..., Run]) -> None:
    run = copied()
    run.forget(samples=run.sample_ids(0, 1)[:1])
    with stopped("before put stages/weights", run) as first:
        first.send_signal(signal.SIGCONT)
        second = command("unlearn", run)
        answers = [process.communicate(timeout=60) for process in (first, second)]
    assert first.returncode == 0, answers[0]
    assert second.returncode == 0 or f"/{first.pid}/" in answers[1][1]
    assert run.status().complete
    assert len(run.certificates()) == 1


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_two_that_create_one_run_leave_nothing_of_the_one_that_lost(
    how: str, parquet: dict[str, str], tmp_path: Path
) -> None:
    """Each draws a placement key, and so writes slices and indexes of its own; one has, or gets, its run.json."""
    config = small_config(tmp_path, recipe=RECIPES["mlp"], data=parquet, placement={"key": None})
    (tmp_path / "config.yaml").write_text(config.model_dump_json())  # JSON is YAML
    arguments = ("-m", "ray_sisa.cli", "train", str(tmp_path / "config.yaml"), "--runner", "local", "--quiet")
    point = "stop before create run.json" if how == "stop" else "before create run.json"
    first = python(*arguments, RAY_SISA_CRASH_AT=point)
    try:
        os.waitpid(first.pid, os.WUNTRACED)
        second = python(*arguments)
        _, told = second.communicate(timeout=120)
        assert (second.returncode, "must not exist" in told) == (0, False), told
        if how == "stop":
            first.send_signal(signal.SIGCONT)
            _, told = first.communicate(timeout=120)
            assert (first.returncode, "must not exist" in told) == (0, False), told
    finally:
        first.kill()
        first.communicate()
    run = Run.open(join_run(config.storage_path, config.name))
    assert run.check().ok, run.check().findings
    assert run.verify(runner="local", sample=1).ok
