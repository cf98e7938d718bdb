"""Law: what was purged and comes back, from a backup or a late writer, is served to nobody, found, swept and logged.

And what a backup can bring back all the same, if it is one of the ledger too: how such a run learns of later requests.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from small_runs import DROPOUT, FORGET_SETS, assert_same_models, dataset, digits, folder_of, small_config, without

from ray_sisa.check import check, repair
from ray_sisa.engine.work import Event, StageUnderway
from ray_sisa.ensemble import Ensemble
from ray_sisa.errors import StoreError
from ray_sisa.layout import CERTIFICATES, HEADS, LEDGER, numbered, slice_object, stage_record, stage_weights
from ray_sisa.ledger import read_ledger
from ray_sisa.run import Run
from ray_sisa.samples import Samples
from ray_sisa.slices import read_slice, read_test
from ray_sisa.store import Store

IMAGES = digits(240, 20).images


@dataclass(frozen=True, kw_only=True, slots=True)
class Forgotten:
    """A run that forgot, and what it was before."""

    run: Run
    backup: Path
    """The run as it was before the request."""
    ids: list[str]
    stages: set[str]
    """Keys of the stages that were purged."""
    slices: set[str]
    """Digests of the slices that were purged."""
    early: Ensemble
    """Opened before anything came back."""
    scores: np.ndarray
    """What the run answers."""
    certificate: bytes

    def bring_back(self, *folders: str) -> None:
        """Restores folders of the backup over those of the run."""
        for folder in folders:
            shutil.copytree(self.backup / folder, folder_of(self.run) / folder, dirs_exist_ok=True)

    def replace(self, *folders: str) -> None:
        """Restores folders of the backup in place of those of the run."""
        for folder in folders:
            shutil.rmtree(folder_of(self.run) / folder, ignore_errors=True)
            if (self.backup / folder).exists():
                shutil.copytree(self.backup / folder, folder_of(self.run) / folder)


@pytest.fixture
def forgotten(copied: Callable[..., Run], tmp_path: Path) -> Forgotten:
    run = copied()
    backup = tmp_path / "backup"
    shutil.copytree(folder_of(run), backup)
    ids = FORGET_SETS["samples spread over all shards"](run)
    run.forget(samples=ids, reason="on request", key="letter of May")
    run.unlearn(runner="local")
    before, early = Store(str(backup)), run.ensemble()
    return Forgotten(
        run=run,
        backup=backup,
        ids=ids,
        stages=before.committed_stages() - run.store.committed_stages(),
        slices=before.slice_digests() - run.store.slice_digests(),
        early=early,
        scores=early.predict_proba(IMAGES),
        certificate=run.store.get(numbered(CERTIFICATES, 1)),
    )


def bring_back_stages(was: Forgotten) -> None:
    was.bring_back("stages")


def bring_back_slices(was: Forgotten) -> None:
    was.bring_back("slices")


def bring_back_stages_and_slices(was: Forgotten) -> None:
    was.bring_back("stages", "slices")


def bring_back_a_stage_in_another_folder(was: Forgotten) -> None:
    key = min(was.stages)
    shutil.copytree(was.backup / "stages" / key, folder_of(was.run) / "stages" / f"{key}.bak")


def bring_back_weights_without_their_record(was: Forgotten) -> None:
    key = min(was.stages)
    was.run.store.put(stage_weights(key), Store(str(was.backup)).get(stage_weights(key)))


WAYS = {
    way.__name__: way
    for way in (
        bring_back_stages,
        bring_back_slices,
        bring_back_stages_and_slices,
        bring_back_a_stage_in_another_folder,
        bring_back_weights_without_their_record,
    )
}


def listed(run: Run) -> set[str]:
    return {path for path in run.store.sizes("") if not path.startswith("lease/")}


def assert_not_served(was: Forgotten) -> None:
    """Neither by an ensemble that was open, nor by one opened now, nor in anything a run tells of itself."""
    late = Run.open(was.run.store.uri).ensemble()
    for ensemble in (was.early, late):
        np.testing.assert_array_equal(ensemble.predict_proba(IMAGES), was.scores)
        assert not {c.key for c in ensemble.constituents} & was.stages
    run = Run.open(was.run.store.uri)
    assert not {record.key for record in run.stages()} & was.stages
    assert not {shard.stage for shard in run.status().shards} & was.stages
    assert run.status().complete


@pytest.mark.parametrize("command", ["train", "unlearn"])
@pytest.mark.parametrize("way", WAYS)
def test_found_refused_swept_and_logged(
    way: str, command: str, forgotten: Forgotten, caplog: pytest.LogCaptureFixture
) -> None:
    clean = listed(forgotten.run)
    WAYS[way](forgotten)
    strays = listed(forgotten.run) - clean
    assert strays
    assert_not_served(forgotten)

    findings = check(forgotten.run.store).findings
    assert {finding.path for finding in findings} == strays
    assert all("must not exist" in finding.problem and finding.repairable for finding in findings)

    with caplog.at_level(logging.WARNING, "ray_sisa.reconcile"):
        done = getattr(Run.open(forgotten.run.store.uri), command)(runner="local")
    assert done.stages_trained == 0
    names = {Path(path).stem if path.startswith("slices/") else path.split("/")[1] for path in strays}
    assert all(name in caplog.text for name in names)
    assert caplog.text.count("must not exist") == len(names)
    assert listed(forgotten.run) == clean
    assert check(forgotten.run.store).ok
    assert forgotten.run.store.get(numbered(CERTIFICATES, 1)) == forgotten.certificate
    assert_not_served(forgotten)


def test_repair_sweeps_as_well(forgotten: Forgotten) -> None:
    clean = listed(forgotten.run)
    forgotten.bring_back("stages", "slices")
    repair(forgotten.run.store, check(forgotten.run.store))
    assert listed(forgotten.run) == clean


@pytest.mark.slow
def test_neither_measured_nor_verified(forgotten: Forgotten) -> None:
    forgotten.bring_back("stages", "slices")
    run = Run.open(forgotten.run.store.uri)
    test = read_test(run.store, str(run.record.test_digest))
    found = run.evaluate(runner="local")
    assert found.ensemble_digest == run.status().ensemble_digest
    assert found.test.top1 == np.mean(forgotten.early.predict(test.images) == test.labels)
    verification = run.verify(runner="local")
    assert verification.ok
    assert not {stage.key for stage in verification.stages} & forgotten.stages


@pytest.mark.parametrize("command", ["check", "unlearn"])
def test_a_slice_under_a_name_of_no_slice_is_swept(command: str, forgotten: Forgotten) -> None:
    path = f"{slice_object(min(forgotten.slices))}.bak"
    forgotten.run.store.put(path, (forgotten.backup / slice_object(min(forgotten.slices))).read_bytes())
    assert [finding.path for finding in check(forgotten.run.store).findings] == [path]
    if command == "check":
        repair(forgotten.run.store, check(forgotten.run.store))
    else:
        forgotten.run.unlearn(runner="local")
    assert path not in listed(forgotten.run)


def test_a_slice_under_the_name_of_the_smaller_one_is_refused(forgotten: Forgotten) -> None:
    """The samples of before the request, where those of after it should be."""
    before, run = Store(str(forgotten.backup)), forgotten.run
    smaller, larger = next(
        (new, old)
        for new in sorted(run.store.slice_digests() - before.slice_digests())
        for old in forgotten.slices
        if set(read_slice(run.store, new).ids.to_pylist()) < set(read_slice(before, old).ids.to_pylist())
    )
    run.store.put(slice_object(smaller), before.get(slice_object(larger)))
    with pytest.raises(StoreError, match=f"{smaller}.*does not hold the samples that it is named after"):
        read_slice(run.store, smaller)
    (finding,) = check(run.store).findings
    assert finding.path == slice_object(smaller)
    verification = run.verify(runner="local")
    assert not verification.ok
    assert any("holds 1 deleted samples" in stage.problem for stage in verification.stages)


def test_a_stage_under_the_key_of_a_clean_one_is_refused(forgotten: Forgotten) -> None:
    """The weights and record of before the request, in the folder of a stage that never saw the samples."""
    run, clean, tainted = forgotten.run, forgotten.early.constituents[0].key, min(forgotten.stages)
    before = Store(str(forgotten.backup))
    run.store.put(stage_weights(clean), before.get(stage_weights(tainted)))
    with pytest.raises(StoreError, match="is not what was committed"):
        Run.open(run.store.uri).ensemble()
    run.store.put(stage_record(clean), before.get(stage_record(tainted)))
    with pytest.raises(StoreError, match="objects were swapped"):
        Run.open(run.store.uri).ensemble()
    repair(run.store, check(run.store))
    run.unlearn(runner="local")
    assert check(run.store).ok
    np.testing.assert_array_equal(Run.open(run.store.uri).ensemble().predict_proba(IMAGES), forgotten.scores)


def test_a_state_inside_a_stage_that_comes_back_is_swept(
    samples: Samples, from_scratch: Callable[[Samples, str], Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scaling = {"checkpoint_every": {"minutes": 1e-9}}
    run = Run.create(small_config(tmp_path, recipe=DROPOUT, scaling=scaling), dataset=dataset(samples))
    key = interrupt(run)
    shutil.copytree(folder_of(run) / "stages", tmp_path / "stages")
    shard = next(chain.shard for chain in run.live.chains(run.ledger()) if key in chain.keys)
    ids = run.sample_ids(shard, 1)[:1]
    run.forget(samples=ids)
    run.unlearn(runner="local")
    shutil.copytree(tmp_path / "stages" / key, folder_of(run) / "stages" / key)

    assert {finding.path.split("/")[1] for finding in check(run.store).findings} == {key}
    with caplog.at_level(logging.WARNING, "ray_sisa.reconcile"):
        assert run.unlearn(runner="local").stages_trained == 0
    assert key in caplog.text
    assert check(run.store).ok
    assert_same_models(run, from_scratch(without(samples, ids), "dropout"))


def interrupt(run: Run) -> str:
    """Stops training inside a stage, after a state of it was saved; returns its key."""
    keys: list[str] = []

    def stop(event: Event) -> None:
        if isinstance(event, StageUnderway) and event.what == "saved":
            keys.append(event.stage.key)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.train(runner="local", tell=stop)
    return keys[0]


# Backups of the records themselves.


def test_old_heads_are_rolled_back_by_their_readers(forgotten: Forgotten) -> None:
    """Heads of before the request alone: the ensemble that they name is served without what saw the samples."""
    forgotten.replace(HEADS)
    forgotten.bring_back("stages", "slices")
    run = Run.open(forgotten.run.store.uri)
    assert run.store.numbers(HEADS) == [1]
    assert not {c.key for c in run.ensemble().constituents} & forgotten.stages
    assert numbered(HEADS, 3) in {finding.path for finding in check(run.store).findings}
    run.unlearn(runner="local")
    assert check(run.store).ok
    assert_not_served(forgotten)
    assert run.store.get(numbered(CERTIFICATES, 1)) == forgotten.certificate


def test_an_old_ledger_alone_is_refused(forgotten: Forgotten) -> None:
    """A head respects a request that the ledger has lost: nobody is served, nothing is purged, nothing trained."""
    newer = folder_of(forgotten.run) / LEDGER
    shutil.copytree(newer, folder_of(forgotten.run).parent / "newer")
    forgotten.replace(LEDGER)
    forgotten.bring_back("stages", "slices")
    before = listed(forgotten.run)
    run = Run.open(forgotten.run.store.uri)
    for ask in (run.ensemble, run.status, lambda: run.unlearn(runner="local"), lambda: run.verify(runner="local")):
        with pytest.raises(StoreError, match=r"request 1 is lost or was edited.*Restore the ledger from a backup"):
            ask()
    found = check(run.store)
    assert numbered(LEDGER, 1) in {finding.path for finding in found.findings}
    with pytest.raises(StoreError, match="nothing was changed"):
        repair(run.store, found)
    assert listed(run) == before

    shutil.copytree(folder_of(run).parent / "newer", folder_of(run) / LEDGER)
    run.unlearn(runner="local")
    assert check(run.store).ok
    assert_not_served(forgotten)


@pytest.fixture
def restored(forgotten: Forgotten) -> tuple[Run, Path]:
    """A backup of everything, from before the request, in place of the run; and the ledger as it was, kept elsewhere.

    This is what no mechanism of a store can prevent: the backup is a valid run that never heard of the request.
    """
    kept = folder_of(forgotten.run).parent / "kept"
    shutil.copytree(folder_of(forgotten.run) / LEDGER, kept / LEDGER)
    shutil.rmtree(folder_of(forgotten.run))
    shutil.copytree(forgotten.backup, folder_of(forgotten.run))
    run = Run.open(forgotten.run.store.uri)
    assert check(run.store).ok
    assert run.status().requests == 0
    assert {c.key for c in run.ensemble().constituents} & forgotten.stages
    return run, kept


def test_a_restored_run_learns_of_later_requests_from_a_copy_of_the_ledger(
    restored: tuple[Run, Path],
    forgotten: Forgotten,
    samples: Samples,
    from_scratch: Callable[[Samples, str], Run],
) -> None:
    """The procedure of the operations page: newer ledger objects extend those that were restored, then `unlearn`."""
    run, kept = restored
    served = run.ensemble()  # open while the newer requests come
    assert {c.key for c in served.constituents} & forgotten.stages
    shutil.copytree(kept / LEDGER, folder_of(run) / LEDGER, dirs_exist_ok=True)
    served.predict(IMAGES)
    assert not {c.key for c in served.constituents} & forgotten.stages
    run.unlearn(runner="local")
    assert check(run.store).ok
    assert [certificate.request for certificate in run.certificates()] == [1]
    assert_same_models(run, from_scratch(without(samples, forgotten.ids), "mlp"))
    np.testing.assert_array_equal(served.predict_proba(IMAGES), forgotten.scores)
    # The request is the one that was acknowledged: sent again, it is no new one.
    assert run.forget(samples=forgotten.ids, key="letter of May").request == 1


def test_a_restored_run_that_took_requests_since_is_sent_the_others_again(
    restored: tuple[Run, Path],
    forgotten: Forgotten,
    samples: Samples,
    from_scratch: Callable[[Samples, str], Run],
) -> None:
    """Its number 1 is another request now, which a copied ledger would overwrite: so they are sent again, by key."""
    run, kept = restored
    since = run.sample_ids(1, 1)[:2]
    assert run.forget(samples=since).request == 1
    for _ in range(2):  # twice is once
        for request in read_ledger(Store(str(kept))).requests:
            run.forget(samples=request.sample_ids, reason=request.reason, key=request.idempotency_key)
    assert [(r.idempotency_key, r.reason) for r in run.ledger().requests[1:]] == [("letter of May", "on request")]
    run.unlearn(runner="local")
    assert check(run.store).ok
    assert_same_models(run, from_scratch(without(samples, [*since, *forgotten.ids]), "mlp"))


def test_the_ledger_of_before_over_one_that_took_requests_since_is_refused_once_it_was_respected(
    restored: tuple[Run, Path], forgotten: Forgotten
) -> None:
    """Overwriting a request is noticed by the head that respects it."""
    run, kept = restored
    run.forget(samples=run.sample_ids(1, 1)[:2])
    run.unlearn(runner="local")
    shutil.copytree(kept / LEDGER, folder_of(run) / LEDGER, dirs_exist_ok=True)
    back = Run.open(run.store.uri)
    for ask in (back.ensemble, back.status, lambda: back.unlearn(runner="local")):
        with pytest.raises(StoreError, match="request 1 is lost or was edited"):
            ask()
    found = check(run.store)
    assert numbered(LEDGER, 1) in {finding.path for finding in found.findings}
    assert not found.sound
