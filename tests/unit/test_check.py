"""Checks of sound runs, in every state that work or a kill leaves; findings, repairs, and the command.

What is damaged is the subject of tests/laws/test_corruption.py. Here runs are real, small and trained in this process.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import MLP, all_samples, dataset, digits, small_config
from typer.testing import CliRunner, Result

from ray_sisa import ledger
from ray_sisa.check import Checked, check, repair
from ray_sisa.cli import app
from ray_sisa.data import Dataset
from ray_sisa.digests import digest_bytes, seal, unseal
from ray_sisa.engine.work import StageUnderway
from ray_sisa.errors import BusyError, StoreError
from ray_sisa.findings import KINDS, REPAIR, Findings, is_name, wrong
from ray_sisa.inversion.kernel import KernelConfig
from ray_sisa.layout import (
    ACTIVITY,
    CERTIFICATES,
    HEADS,
    LEASES,
    LEDGER,
    PROBES,
    REMADE,
    RUN,
    approximation_record,
    approximation_weights,
    charges,
    divergence_record,
    feature_object,
    initial_weights,
    kind_of,
    numbered,
    partial_record,
    partial_state,
    report,
    seal_of,
    segment,
    shard_index,
    slice_object,
    stage_record,
    stage_weights,
)
from ray_sisa.layout import test_object as object_of_test
from ray_sisa.lease import hold_lease
from ray_sisa.records import LeaseRecord
from ray_sisa.run import Run
from ray_sisa.samples import make_samples
from ray_sisa.store import Store

PLACES: dict[str, Any] = {"shards": 2, "slices": 2}
DIGEST = "ab" * 32


def whole_shard(run: Run, shard: int) -> list[str]:
    return run.sample_ids(shard, 1) + run.sample_ids(shard, 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained, with one request done; never to be changed."""
    run = Run.create(small_config(tmp_path_factory.mktemp("trained"), placement=PLACES), dataset=dataset(all_samples()))
    run.train(runner="local")
    run.forget(samples=run.sample_ids(0, 2)[:1])
    run.unlearn(runner="local")
    return run


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A copy that a test may change."""
    shutil.copytree(trained.store.uri, tmp_path / "run")
    return Run.open(str(tmp_path / "run"))


def contents(store: Store) -> dict[str, bytes]:
    return {path: store.get(path) for path in store.sizes("") if kind_of(path) != LEASES}


def spoil(store: Store, path: str) -> None:
    store.put(path, store.get(path)[:-1])


# No false alarms.


def features() -> Dataset:
    samples, test = all_samples(), digits(240, 60)
    vectors = [s.images.reshape(len(s), 64).astype(np.float32) / 255 for s in (samples, test)]
    one, other = (
        make_samples(ids=s.ids.to_pylist(), subjects=s.subjects.to_pylist(), images=v, labels=s.labels)
        for s, v in zip((samples, test), vectors, strict=True)
    )
    return Dataset(train=one, test=other, num_classes=10, mean=(0.0,), std=(1.0,))


def without_test() -> Dataset:
    return Dataset(train=all_samples(), test=None, num_classes=10, mean=(0.3,), std=(0.38,))


RUNS: dict[str, tuple[Callable[[], Dataset], dict[str, Any]]] = {
    "images": (lambda: dataset(all_samples()), {}),
    "no test set": (without_test, {}),
    "features": (features, {"data": {"mean": [0.0], "std": [1.0]}}),
    "permutation": (lambda: dataset(all_samples()), {"placement": {**PLACES, "strategy": "permutation", "key": None}}),
}


@pytest.mark.parametrize("kind", RUNS)
def test_nothing_is_wrong_in_any_sound_state(kind: str, tmp_path: Path) -> None:
    make, changes = RUNS[kind]
    run = Run.create(small_config(tmp_path, **({"placement": PLACES} | changes)), dataset=make())

    def assert_ok(*, unfinished: bool) -> None:
        found = check(run.store)
        assert found.ok, found.findings
        assert found.sound
        assert bool(found.notes) == unfinished, found.notes
        assert (found.objects, found.bytes) == (len(run.store.sizes("")), sum(run.store.sizes("").values()))

    def unlearn(*batch: list[str]) -> None:
        for ids in batch:
            run.forget(samples=ids, key=f"request {run.ledger().position + 1}")
            assert_ok(unfinished=True)
        run.unlearn(runner="local")
        assert_ok(unfinished=False)

    assert_ok(unfinished=True)
    run.train(runner="local")
    assert_ok(unfinished=False)
    unlearn(run.sample_ids(0, 1)[:1], run.sample_ids(0, 1)[1:2], run.sample_ids(1, 2)[:2])
    unlearn(run.sample_ids(0, 2)[:1])
    unlearn(run.sample_ids(0, 2)[:1])  # another request, of what is gone
    unlearn(whole_shard(run, 0))
    shutil.copytree(run.store.uri, tmp_path / "nothing")
    run = Run.open(str(tmp_path / "nothing"))
    unlearn([*whole_shard(run, 0), *whole_shard(run, 1)])


def test_a_request_before_training(tmp_path: Path) -> None:
    run = Run.create(small_config(tmp_path, placement=PLACES), dataset=dataset(all_samples()))
    run.forget(samples=run.sample_ids(0, 1)[:1])
    assert check(run.store).ok
    run.train(runner="local")
    assert check(run.store).ok
    assert not check(run.store).notes


class BeforeEachWrite:
    """Checks a store before each of its writes, deletions one by one: that is what a kill there would leave."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.found: list[Checked] = []
        self._inside = threading.Lock()
        put, create, delete = Store.put, Store.create, Store.delete

        def delete_one_by_one(store: Store, paths: Iterable[str]) -> None:
            for path in paths:
                self._look(store, path)
                delete(store, [path])

        def checked_put(store: Store, path: str, data: bytes) -> None:
            self._look(store, path)
            put(store, path, data)

        def checked_create(store: Store, path: str, data: bytes) -> bool:
            self._look(store, path)
            return create(store, path, data)

        patch.setattr(Store, "put", checked_put)
        patch.setattr(Store, "create", checked_create)
        patch.setattr(Store, "delete", delete_one_by_one)

    def _look(self, store: Store, path: str) -> None:
        # The heart of the lease beats in a thread of its own.
        if threading.current_thread() is threading.main_thread() and store.sizes(""):
            self.found.append(check(store))
            assert self.found[-1].ok, (path, self.found[-1].findings)


def test_nothing_is_wrong_wherever_a_run_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "SEGMENT", 2)
    scaling = {"checkpoint_every": {"minutes": 1e-9}}
    looks = BeforeEachWrite(monkeypatch)
    recipe = MLP | {"epochs_per_slice": 1, "batch_size": 64}
    run = Run.create(
        small_config(tmp_path, placement=PLACES, scaling=scaling, recipe=recipe), dataset=dataset(all_samples())
    )
    run.train(runner="local")
    for ids in (run.sample_ids(0, 1)[:1], run.sample_ids(1, 2)[:1]):
        run.forget(samples=ids)
    run.unlearn(runner="local")
    more = iter([run.sample_ids(1, 1)[:1]])

    def forget_meanwhile(event: object) -> None:
        if isinstance(event, StageUnderway) and event.stage.slice == 1:
            for ids in more:
                run.forget(samples=ids)

    run.forget(samples=run.sample_ids(0, 1)[1:2])
    run.unlearn(runner="local", tell=forget_meanwhile)
    assert len(looks.found) > 80
    assert {found.sound for found in looks.found} == {True, False}  # not before there is a run.json
    assert check(run.store).notes == ()


def test_before_run_json_there_is_no_run_and_no_damage(trained: Run, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "run"))
    for path, data in contents(trained.store).items():
        if kind_of(path) in {"index", "slices", "test"}:
            store.put(path, data)
    found = check(store)
    assert found.ok
    assert not found.sound
    assert "Run `ray-sisa train CONFIG` again" in found.notes[0]


def test_a_run_that_lost_its_run_json_is_told_from_one_in_the_making(run: Run) -> None:
    run.store.delete([RUN])
    (finding,) = check(run.store).findings
    assert (finding.path, finding.problem, finding.repairable) == (RUN, "is not there", False)


def test_no_run_at_all(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="has no run"):
        check(Store(str(tmp_path / "nothing")))


def test_what_goes_while_it_is_read_is_no_damage(run: Run) -> None:
    """Another process unlearns between the listing and the reading of a check."""
    left = iter([run.sample_ids(1, 1)[:1]])

    def unlearn_meanwhile(done: int, of: int) -> None:
        for ids in left:
            other = Run.open(run.store.uri)
            other.forget(samples=ids)
            other.unlearn(runner="local")

    found = check(run.store, unlearn_meanwhile)
    assert found.ok, found.findings
    assert next(left, None) is None


def test_what_is_damaged_while_somebody_works_is_found(run: Run) -> None:
    path = numbered(CERTIFICATES, 1)
    spoil(run.store, path)
    with hold_lease(run.store) as lease:
        found = check(run.store)
    assert [finding.path for finding in found.findings] == [path]
    assert f"{lease.record.holder} works on the run" in found.notes


def test_what_is_unfinished_is_noted(run: Run) -> None:
    run.forget(samples=run.sample_ids(0, 1)[:1])
    notes = "\n".join(check(run.store).notes)
    assert f"{numbered(CERTIFICATES, 2)} still to be written" in notes
    assert "is still to be made from slices/" in notes
    assert "2 stage(s) still to be trained, stages/" in notes
    assert "to be removed, since requests wait to be completed" in notes
    assert "run `ray-sisa unlearn RUN`" in notes
    key = run.stages()[0].key
    run.store.put(partial_state(key, 1), b"left by a kill")
    half = Path(run.store.uri, "slices", "one.arrow#1")
    half.write_bytes(b"left by a kill")
    notes = "\n".join(check(run.store).notes)
    assert f"1 object(s) left inside the committed stage {key}" in notes
    assert "1 unfinished file(s)" in notes
    run.unlearn(runner="local")
    assert check(run.store).notes == ()


def test_tells_how_far_it_is(trained: Run) -> None:
    told: list[tuple[int, int]] = []
    found = check(trained.store, lambda done, of: told.append((done, of)))
    assert told[-1] == (found.objects, found.objects)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_writes_nothing(trained: Run) -> None:
    before = trained.store.sizes("")
    check(trained.store)
    assert trained.store.sizes("") == before


# What nothing accounts for.


def test_what_is_no_object_of_a_run_is_told_and_left(run: Run) -> None:
    strangers = ["notes.txt", "heads/latest.json", "backup/run.json", f"stages/{run.stages()[0].key}/log.txt"]
    for path in strangers:
        run.store.put(path, b"?")
    findings = check(run.store).findings
    assert [finding.path for finding in findings] == sorted(strangers)
    assert not any(finding.repairable for finding in findings)
    assert all("by hand" in finding.remedy for finding in findings)


def test_what_a_lost_race_left_is_removed(run: Run) -> None:
    """Two processes that create one run at once may draw two placement keys; one of them writes run.json."""
    paths = [shard_index(DIGEST), slice_object(DIGEST), object_of_test(DIGEST)]
    for path in paths:
        run.store.put(path, b"?")
    assert [finding.path for finding in check(run.store).findings] == sorted(paths)
    repair(run.store, check(run.store))
    assert check(run.store).ok


def test_reports_that_are_no_evaluation_are_no_concern_of_a_check(run: Run) -> None:
    for name in ("report.html", "mine.json"):
        run.store.put(report(name), b"?")
    assert check(run.store).ok


def test_the_report_of_an_attack_is_sealed_named_by_its_content_and_of_its_head(run: Run) -> None:
    run.attack_inversion("linear", digits(400, 40), digits(702, 20), decoder=KernelConfig(), runner="local")
    (path,) = (path for path in run.store.sizes("reports") if "inversion" in path)
    assert check(run.store).ok
    data, head = run.store.get(path), run.status().ensemble_digest
    assert head is not None
    other = seal(unseal(data).replace(head.encode(), DIGEST.encode()))
    strange = report(f"inversion-{int(path[18:26]):08d}-{digest_bytes(other)[:12]}.json")
    renamed = path.replace("inversion-0", "inversion-1")
    for where, content, problem in (
        (path, data[:-1], "is not a valid report of an attack"),
        (path, other, "is not the report that it is named after"),
        (renamed, data, "is not the report that it is named after"),
        (strange, other, "is of another ensemble than head"),
    ):
        run.store.delete([path])
        run.store.put(where, content)
        (finding,) = check(run.store).findings
        assert (finding.path, finding.repairable) == (where, True)
        assert problem in finding.problem
        assert "attack inversion" in finding.remedy
        repair(run.store, check(run.store))
        assert check(run.store).ok
        assert where not in run.store.sizes("")


# Repair.


def test_a_stage_goes_record_first(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    key = run.stages()[-1].key
    spoil(run.store, stage_weights(key))
    deleted: list[str] = []
    delete = Store.delete

    def noted(store: Store, paths: Iterable[str]) -> None:
        names = list(paths)
        deleted.extend(path for path in names if kind_of(path) not in (LEASES, PROBES))
        delete(store, names)

    monkeypatch.setattr(Store, "delete", noted)
    repair(run.store, check(run.store))
    assert deleted == [stage_record(key), stage_weights(key)]


def test_not_while_somebody_works(run: Run) -> None:
    spoil(run.store, numbered(CERTIFICATES, 1))
    before = contents(run.store)
    with hold_lease(run.store), pytest.raises(BusyError):
        repair(run.store, check(run.store), wait_s=0)
    assert contents(run.store) == before


def test_a_damaged_lease_gives_way_and_its_number_is_not_taken_again(run: Run) -> None:
    (number,) = run.store.numbers(LEASES)
    holder = LeaseRecord(number=number + 1, holder="paused", expires_at=2e9)
    run.store.put(holder.path, holder.to_bytes()[:-5])
    with pytest.raises(StoreError, match="check RUN --repair"):
        run.unlearn(runner="local")
    repair(run.store, check(run.store))
    assert min(run.store.numbers(LEASES)) > number + 1
    assert check(run.store).ok
    run.unlearn(runner="local")


def test_a_head_that_is_no_longer_the_last_is_left(run: Run) -> None:
    last = run.store.numbers(HEADS)[-1]
    spoil(run.store, numbered(HEADS, last))
    found = check(run.store)
    run.store.put(numbered(HEADS, last + 1), run.store.get(numbered(HEADS, last)))
    repair(run.store, found)
    assert run.store.numbers(HEADS) == list(range(1, last + 2))


def test_an_older_head_that_is_lost_is_for_a_backup(run: Run) -> None:
    run.store.delete([numbered(HEADS, 2)])
    (finding,) = check(run.store).findings
    assert (finding.path, finding.repairable) == (numbered(HEADS, 2), False)
    assert "without one leave it" in finding.remedy
    assert run.verify(runner="local").ok


def test_nothing_is_removed_on_the_word_of_another_runs_configuration(run: Run, tmp_path: Path) -> None:
    """Of the same data in the same places, so that only the stages differ."""
    other = Run.create(
        small_config(tmp_path, name="other", placement=PLACES, recipe=MLP | {"seed": 5}), dataset=dataset(all_samples())
    )
    run.store.put(RUN, other.store.get(RUN))
    before = contents(run.store)
    found = check(run.store)
    assert (found.sound, [finding.path for finding in found.findings]) == (False, [RUN])
    with pytest.raises(StoreError, match="nothing was changed"):
        repair(run.store, found)
    assert contents(run.store) == before


def test_a_lost_stage_is_made_again(run: Run) -> None:
    digest = run.status().ensemble_digest
    first, last = run.stages()[0].key, run.stages()[-1].key
    run.store.delete([stage_record(first), stage_weights(first), stage_record(last), stage_weights(last)])
    findings = check(run.store).findings
    assert {finding.path for finding in findings} == {stage_record(first), stage_record(last)}
    run.repair(check(run.store), runner="local")
    assert check(run.store).ok
    assert run.status().ensemble_digest == digest


def test_a_damaged_slice_is_made_again_where_a_larger_one_is_left(run: Run) -> None:
    run.forget(samples=run.sample_ids(1, 2)[:1])
    run.live.write_slices(run.live.chains(run.ledger()), run.ledger())  # as a reconcile does before it is killed
    digest = run.live.chains(run.ledger())[1].stages[1].slice_digest
    spoil(run.store, slice_object(digest))
    (finding,) = check(run.store).findings
    assert (finding.path, finding.repairable) == (slice_object(digest), True)
    run.repair(check(run.store), runner="local")
    assert check(run.store).ok


def test_a_damaged_slice_that_a_smaller_one_is_to_be_made_from(run: Run) -> None:
    larger = run.live.chains(run.ledger())[1].stages[1].slice_digest
    run.forget(samples=run.sample_ids(1, 2)[:1])
    spoil(run.store, slice_object(larger))
    (finding,) = check(run.store).findings
    assert (finding.path, finding.repairable) == (slice_object(larger), False)


def test_a_request_of_samples_that_are_elsewhere(run: Run) -> None:
    asked = run.ledger().requests[0]
    moved = asked.model_copy(
        update={
            "number": 2,
            "idempotency_key": "moved",
            "previous": run.ledger().tip(),
            "places": tuple(place.model_copy(update={"shard": place.shard + 7}) for place in asked.places),
        }
    )
    run.store.create(moved.path, moved.to_bytes())
    (finding,) = check(run.store).findings
    assert finding.path == numbered(LEDGER, 2)
    assert "names samples that are not where it says" in finding.problem


# Findings.


@pytest.fixture
def found(store: Store) -> Findings:
    return Findings(store, {RUN: 1}, lambda done, of: None)


def test_each_kind_says_what_it_means_and_what_to_do() -> None:
    assert all(meaning and remedy for meaning, remedy in KINDS.values())
    assert {kind for kind, (_, remedy) in KINDS.items() if remedy.startswith(REPAIR)} == REMADE


def test_names_of_objects() -> None:
    paths = [
        RUN,
        initial_weights(DIGEST),
        shard_index(DIGEST),
        object_of_test(DIGEST),
        slice_object(DIGEST),
        seal_of(slice_object(DIGEST)),
        feature_object(DIGEST, DIGEST),
        stage_weights(DIGEST),
        stage_record(DIGEST),
        divergence_record(DIGEST),
        partial_state(DIGEST, 1),
        partial_record(DIGEST, 1),
        approximation_weights(DIGEST, DIGEST),
        approximation_record(DIGEST, DIGEST),
        *(numbered(folder, 1) for folder in (LEDGER, HEADS, CERTIFICATES, LEASES)),
        numbered(charges(DIGEST), 1),
        segment(1000),
        report("evaluation.json"),
        ACTIVITY,
    ]
    assert all(map(is_name, paths))
    assert {kind_of(path) for path in paths} == KINDS.keys()
    strange = ["run.json.bak", f"stages/{DIGEST}.bak/stage.json", f"slices/{DIGEST}", "heads/1.json", "ledger/x.json"]
    assert not any(map(is_name, strange))


def test_an_error_is_a_finding_about_the_object_that_it_names(found: Findings, store: Store) -> None:
    with found.about(numbered(HEADS, 1)) as problems:
        raise StoreError(store.where(RUN), "", "is damaged")
    assert problems == ["is damaged"]
    with found.about(numbered(HEADS, 2), meaning="much", remedy="do this", repairable=True):
        raise wrong("is another")
    with found.about(numbered(HEADS, 3)):
        raise StoreError("weights", "", "are not valid")
    assert [(f.path, f.problem, f.repairable) for f in found.findings] == [
        (numbered(HEADS, 2), "is another", True),
        (numbered(HEADS, 3), "weights are not valid", False),
        (RUN, "is damaged", False),
    ]
    assert (found.findings[0].meaning, found.findings[0].remedy) == ("much", "do this")
    assert found.seen == {numbered(HEADS, n) for n in (1, 2, 3)}


def test_the_first_finding_about_an_object_stands(found: Findings) -> None:
    for problem in ("first", "second"):
        found.add(RUN, problem)
        found.note("a note")
    assert [finding.problem for finding in found.findings] == ["first"]
    assert found.notes == ("a note",)


def test_what_is_no_error_of_ours_is_no_finding(found: Findings) -> None:
    with pytest.raises(ZeroDivisionError), found.about(RUN):
        raise ZeroDivisionError
    assert not found.findings


# The command.


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def answer(*arguments: str, code: int) -> dict[str, Any]:
    result = invoke("check", *arguments, "--json", "--runner", "local")
    assert result.exit_code == code, result.output
    fields: dict[str, Any] = json.loads(result.stdout)
    return fields


FIELDS = {"objects", "bytes", "findings", "notes", "sound", "repaired", "ok"}


def paths_of(findings: Sequence[dict[str, Any]]) -> list[str]:
    return [finding["path"] for finding in findings]


def test_the_command_on_a_sound_run(run: Run) -> None:
    fields = answer(run.store.uri, code=0)
    assert fields.keys() == FIELDS
    assert (fields["ok"], fields["sound"], fields["findings"], fields["notes"]) == (True, True, [], [])
    result = invoke("check", run.store.uri)
    assert result.exit_code == 0
    assert result.stdout.endswith(f"{fields['objects']} objects, 0.2 MB: all are what they must be\n")


def test_the_command_finds_and_repairs(run: Run) -> None:
    path = stage_weights(run.stages()[-1].key)
    spoil(run.store, path)
    (finding,) = answer(run.store.uri, code=1)["findings"]
    assert finding.keys() == {"path", "problem", "meaning", "remedy", "repairable"}
    assert (finding["path"], finding["repairable"]) == (path, True)
    text = invoke("check", run.store.uri).stdout
    assert f"{path}: is not what was committed" in text
    assert "    means: its shard can neither vote with the stage nor go on from it" in text
    assert "    to do: Run `ray-sisa check RUN --repair`" in text
    assert text.endswith(": 1 wrong or missing\n")
    fields = answer(run.store.uri, "--repair", code=0)
    assert fields.keys() == FIELDS
    assert (fields["repaired"], fields["findings"]) == ([path], [])
    assert answer(run.store.uri, "--repair", code=0)["repaired"] == []


def test_the_command_says_what_it_cannot_repair(run: Run) -> None:
    path = shard_index(run.record.index_digests[0])
    spoil(run.store, path)
    before = contents(run.store)
    fields = answer(run.store.uri, "--repair", code=1)
    assert fields.keys() == FIELDS | {"error"}
    assert (fields["ok"], fields["sound"], fields["repaired"]) == (False, False, [])
    assert paths_of(fields["findings"]) == [path]
    assert "nothing was changed" in fields["error"]["remedy"]
    assert contents(run.store) == before
    assert "the repair stopped: run = " in invoke("check", run.store.uri, "--repair", "--runner", "local").stdout


def test_the_command_repairs_what_it_can(run: Run) -> None:
    lost, spoiled = numbered(HEADS, 1), numbered(CERTIFICATES, 1)
    run.store.delete([lost])
    spoil(run.store, spoiled)
    fields = answer(run.store.uri, "--repair", code=1)
    assert (fields["repaired"], paths_of(fields["findings"])) == ([spoiled], [lost])


def test_the_command_on_a_damaged_run_json(run: Run) -> None:
    spoil(run.store, RUN)
    fields = answer(run.store.uri, "--repair", code=1)
    assert paths_of(fields["findings"]) == [RUN]
    assert fields["error"]["kind"] == "StoreError"


def test_the_command_on_no_run(tmp_path: Path) -> None:
    assert answer(str(tmp_path / "nothing"), code=1).keys() == {"error"}
