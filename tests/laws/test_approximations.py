"""Law: an approximate model lives as long as the stage that it was made from, never longer, and is never served.

Runs are of one shard and one slice, real, and trained in this process; who is to be killed runs in one of its own.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import MLP, all_samples, dataset, files_of, folder_of, small_config

from ray_sisa import approximating, approximations
from ray_sisa.approximate.methods import METHODS, make_method
from ray_sisa.check import check, repair
from ray_sisa.digests import digest_tensors
from ray_sisa.errors import BusyError, RequestError, StoreError, TrainingError
from ray_sisa.layout import approximation_record, approximation_weights, stage_record, stage_weights
from ray_sisa.lease import hold_lease
from ray_sisa.records import Approximation
from ray_sisa.run import Run

ONE: dict[str, Any] = {"shards": 1, "slices": 1}
FAST = make_method("fine_tune", ["epochs=1", "optimizer.lr=0.01"])
DAMPENING = make_method("dampening", ["alpha=2"])


@pytest.fixture(scope="module")
def trained_one(tmp_path_factory: pytest.TempPathFactory, parquet: dict[str, str]) -> Run:
    """One whole model, never to be changed."""
    run = Run.create(small_config(tmp_path_factory.mktemp("one"), recipe=MLP, placement=ONE, data=parquet))
    run.train(runner="local")
    return run


@pytest.fixture
def run(trained_one: Run, tmp_path: Path) -> Run:
    """A copy that a test may change."""
    shutil.copytree(trained_one.store.uri, tmp_path / "run")
    return Run.open(str(tmp_path / "run"))


def some(run: Run, count: int = 30) -> list[str]:
    return run.sample_ids(0, 1)[:count]


def approximate_files(run: Run) -> list[str]:
    return [name for name in files_of(folder_of(run)) if "approximate" in name]


def test_made_once_found_again_and_the_same_in_another_copy(run: Run, trained_one: Run, tmp_path: Path) -> None:
    first = run.approximate(FAST, forget=some(run), runner="local")
    assert approximate_files(run) == sorted(
        [approximation_record(first.stage, first.key), approximation_weights(first.stage, first.key)]
    )
    before = files_of(folder_of(run))
    assert run.approximate(FAST, forget=some(run)[::-1], runner="local") == first
    assert files_of(folder_of(run)) == before
    assert run.approximations() == (first,)
    assert (first.num_forget, first.num_retained) == (30, 210)

    shutil.copytree(trained_one.store.uri, tmp_path / "other")
    other = Run.open(str(tmp_path / "other")).approximate(FAST, forget=some(run), runner="local")
    assert (other.key, other.weights_digest) == (first.key, first.weights_digest)


def test_each_cause_gives_another_name(run: Run) -> None:
    one = run.approximate(FAST, forget=some(run), runner="local")
    other_dial = run.approximate(make_method("fine_tune", ["epochs=1"]), forget=some(run), runner="local")
    other_samples = run.approximate(FAST, forget=some(run, 29), runner="local")
    by_subject = run.approximate(FAST, subjects=["person-000"], runner="local")
    assert by_subject.num_forget == 3
    assert len({a.key for a in (one, other_dial, other_samples, by_subject)}) == 4
    assert set(run.approximations()) == {one, other_dial, other_samples, by_subject}


def test_every_method_in_one_go(run: Run) -> None:
    methods = [make_method(name, [] if name == "dampening" else ["epochs=3"]) for name in METHODS]
    made = run.approximate_all(methods, forget=some(run), runner="local")
    assert [a.method for a in made] == methods
    assert len({a.key for a in made}) == len(METHODS)
    assert set(run.approximations()) == set(made)
    assert check(run.store).ok
    for one in made:
        assert digest_tensors(approximations.load(run.store, one)) == one.weights_digest


def test_no_file_names_a_sample(run: Run) -> None:
    run.approximate(FAST, forget=some(run), runner="local")
    run.evaluate(approximation="fine_tune", forget=some(run), runner="local")
    files = files_of(folder_of(run))
    named = [name for name in files if any(i.encode() in files[name].content for i in some(run))]
    assert {name.split("/")[0] for name in named} == {"index", "slices"}


# Its stage's life is its own.


def test_work_that_retires_no_stage_leaves_it_alone(run: Run) -> None:
    run.approximate(FAST, forget=some(run), runner="local")
    before = {name: state for name, state in files_of(folder_of(run)).items() if name.startswith("stages/")}
    run.train(runner="local")
    assert {n: s for n, s in files_of(folder_of(run)).items() if n.startswith("stages/")} == before
    assert run.verify(runner="local").ok


def test_from_the_instant_of_a_request_it_is_not_found_and_then_it_is_purged(run: Run) -> None:
    ids = some(run)
    run.approximate(FAST, forget=ids, runner="local")
    run.approximate(DAMPENING, forget=ids, runner="local")
    run.evaluate(approximation="dampening", forget=ids, runner="local")
    run.forget(samples=ids[:1])
    assert run.approximations() == ()
    with pytest.raises(StoreError, match="a request is pending"):
        run.evaluate(approximation="fine_tune", forget=ids[1:], runner="local")
    with pytest.raises(StoreError, match="a request is pending"):
        run.approximate(FAST, forget=ids[1:], runner="local")
    assert check(run.store).ok
    run.unlearn(runner="local")
    assert approximate_files(run) == []
    assert check(run.store).ok
    assert run.evaluations() == []  # it was of what is purged
    with pytest.raises(RequestError, match="none of the 0"):
        run.evaluate(approximation="fine_tune", forget=ids[1:], runner="local")
    with pytest.raises(RequestError, match="deleted already"):
        run.approximate(FAST, forget=ids, runner="local")
    assert run.approximate(FAST, forget=ids[1:], runner="local").num_retained == 240 - 30


def test_a_backup_restored_over_the_run_brings_none_back(run: Run, tmp_path: Path) -> None:
    ids = some(run)
    run.approximate(FAST, forget=ids, runner="local")
    shutil.copytree(folder_of(run) / "stages", tmp_path / "backup")
    run.forget(samples=ids[:1])
    run.unlearn(runner="local")
    shutil.copytree(tmp_path / "backup", folder_of(run) / "stages", dirs_exist_ok=True)
    assert run.approximations() == ()
    assert not check(run.store).ok
    run.unlearn(runner="local")
    assert approximate_files(run) == []


def test_a_request_that_comes_while_it_is_made_leaves_it_unwritten(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real method runs; the request is real too, sent by the listener between two epochs."""
    forgotten = []

    def forget(*_: object) -> None:
        if not forgotten:
            forgotten.append(run.forget(samples=some(run, 1)))

    monkeypatch.setattr(approximating, "_tell", forget)
    with pytest.raises(TrainingError, match="retired meanwhile"):
        run.approximate(FAST, forget=some(run)[1:], runner="local")
    assert forgotten
    assert approximate_files(run) == []


def test_it_is_no_constituent_and_changes_no_answer(run: Run) -> None:
    before = run.status()
    run.approximate(FAST, forget=some(run), runner="local")
    assert run.status() == before
    assert {c.key for c in run.ensemble().constituents} == {before.shards[0].stage}


def test_a_commit_waits_for_who_works_on_the_run(run: Run) -> None:
    with hold_lease(run.store), pytest.raises(BusyError):
        run.approximate(FAST, forget=some(run), runner="local", wait_s=0)
    assert approximate_files(run) == []


# Killed at any write.

KILLED = """
import sys
from ray_sisa.approximate.methods import make_method
from ray_sisa.run import Run
run = Run.open(sys.argv[1])
method = make_method("fine_tune", ["epochs=1", "optimizer.lr=0.01"])
run.approximate(method, forget=run.sample_ids(0, 1)[:30], runner="local")
"""


def run_killed(run: Run, at: str) -> None:
    environment = os.environ | {
        "RAY_SISA_CRASH_AT": at,
        "RAY_SISA_LEASE_S": "0.2",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    done = subprocess.run([sys.executable, "-c", KILLED, run.store.uri], env=environment, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize(
    ("at", "left"),
    [
        ("before put approximate/weights", 0),
        ("after put approximate/weights", 1),
        ("after create approximate/record", 2),
    ],
)
def test_killed_at_a_write_the_same_call_ends_in_the_same_bytes(run: Run, at: str, left: int, tmp_path: Path) -> None:
    shutil.copytree(run.store.uri, tmp_path / "undisturbed")
    undisturbed = Run.open(str(tmp_path / "undisturbed")).approximate(FAST, forget=some(run), runner="local")
    run_killed(run, at)
    assert len(approximate_files(run)) == left
    assert len(run.approximations()) == (left == 2)
    found = check(run.store)
    assert found.ok, found.findings
    assert any("left inside" in note for note in found.notes) == (left == 1)
    shutil.copytree(run.store.uri, tmp_path / "swept")
    swept = Run.open(str(tmp_path / "swept"))
    swept.train(runner="local", wait_s=10)
    assert len(approximate_files(swept)) == (2 if left == 2 else 0)
    made = run.approximate(FAST, forget=some(run), runner="local", wait_s=10)
    assert (made.key, made.weights_file_digest) == (undisturbed.key, undisturbed.weights_file_digest)
    assert len(approximate_files(run)) == 2
    assert check(run.store).ok


# Damage.


def damage_weights(run: Run, made: Approximation) -> str:
    path = approximation_weights(made.stage, made.key)
    run.store.put(path, run.store.get(path)[:-1] + b"x")
    return path


def damage_record(run: Run, made: Approximation) -> str:
    run.store.put(made.path, run.store.get(made.path).replace(b"num_forget", b"num_forgot"))
    return made.path


def lose_weights(run: Run, made: Approximation) -> str:
    path = approximation_weights(made.stage, made.key)
    run.store.delete([path])
    return path


def claim_another_method(run: Run, made: Approximation) -> str:
    run.store.put(made.path, made.model_copy(update={"method": FAST}).to_bytes())
    return made.path


def claim_another_digest(run: Run, made: Approximation) -> str:
    run.store.put(made.path, made.model_copy(update={"weights_digest": "ab" * 32}).to_bytes())
    return approximation_weights(made.stage, made.key)


@pytest.mark.parametrize(
    "damage", [damage_weights, damage_record, lose_weights, claim_another_method, claim_another_digest]
)
def test_damage_is_named_and_repaired_and_it_can_be_made_again(
    run: Run, damage: Callable[[Run, Approximation], str]
) -> None:
    kept = run.approximate(FAST, forget=some(run), runner="local")
    made = run.approximate(DAMPENING, forget=some(run), runner="local")
    path = damage(run, made)
    found = check(run.store)
    assert [finding.path for finding in found.findings] == [path]
    assert found.findings[0].repairable
    run.repair(found, runner="local")
    assert check(run.store).ok
    assert run.approximations() == (kept,)
    again = run.approximate(DAMPENING, forget=some(run), runner="local")
    assert again.weights_digest == made.weights_digest
    assert check(run.store).ok


def test_damaged_weights_are_not_measured(run: Run) -> None:
    made = run.approximate(FAST, forget=some(run), runner="local")
    damage_weights(run, made)
    with pytest.raises(StoreError, match="is not what was committed"):
        run.evaluate(approximation="fine_tune", forget=some(run), runner="local")


def test_a_stage_that_is_trained_again_keeps_what_was_made_of_it(run: Run) -> None:
    made = run.approximate(FAST, forget=some(run), runner="local")
    run.store.delete([stage_record(made.stage)])
    run.store.delete([stage_weights(made.stage)])
    assert run.approximations() == ()
    found = check(run.store)
    repair(run.store, found)
    run.train(runner="local")
    assert run.approximations() == (made,)
    assert check(run.store).ok


def test_only_a_run_of_one_model_has_approximations(tmp_path: Path) -> None:
    run = Run.create(small_config(tmp_path), dataset=dataset(all_samples()))
    with pytest.raises(RequestError, match=r"3 shard\(s\) of 3 slice\(s\)") as caught:
        run.approximate(FAST, forget=some(run), runner="local")
    assert "placement.shards=1" in caught.value.remedy
    one = Run.create(small_config(tmp_path, name="one", placement=ONE), dataset=dataset(all_samples()))
    with pytest.raises(StoreError, match="its training has not ended"):
        one.approximate(FAST, forget=some(one), runner="local")
    assert one.approximations() == run.approximations() == ()


def test_ids_that_are_none_or_all_are_refused(run: Run) -> None:
    for ids, message in (([], "names no sample"), (["nobody"], "1 not in this run"), (some(run, 240), "to retain")):
        with pytest.raises(RequestError, match=message):
            run.approximate(FAST, forget=ids, runner="local")
    assert approximate_files(run) == []
