"""Law: retrained is exactly what changed its key, at the cost of the formula; nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
from small_runs import FORGET_SETS, MLP, files_of, folder_of, small_config

from ray_sisa.data import Dataset
from ray_sisa.engine.work import Event, StageDone
from ray_sisa.placement import positions
from ray_sisa.run import Run
from ray_sisa.samples import make_samples


def _expected_passes(run: Run, forgotten: set[str], epochs: int) -> dict[tuple[int, int], int]:
    """Sample passes by (shard, slice) of the stages to retrain: from the first slice touched, empty ones skipped."""
    passes = {}
    for shard in range(3):
        ids = [set(run.sample_ids(shard, number)) for number in (1, 2, 3)]
        touched = [number for number, given in enumerate(ids, start=1) if given & forgotten]
        live = [len(given - forgotten) for given in ids]
        for number, total in enumerate(accumulate(live), start=1):
            if touched and number >= touched[0] and live[number - 1]:
                passes[shard, number] = epochs * total
    return passes


@pytest.mark.parametrize("forget", FORGET_SETS)
def test_retrained_is_what_changed_its_key(forget: str, copied: Callable[..., Run]) -> None:
    run = copied()
    before, files_before = {r.key for r in run.stages()}, files_of(folder_of(run))
    ids = FORGET_SETS[forget](run)
    run.forget(samples=ids)
    events: list[Event] = []
    done = run.unlearn(runner="local", tell=events.append)
    after = {r.key for r in run.stages()}
    trained = [event.record for event in events if isinstance(event, StageDone)]
    assert {r.key for r in trained} == after - before
    assert len(trained) == len(after - before) == done.stages_trained
    assert done.stages_reused == len(after & before)
    assert done.stages_purged == len(before - after)

    expected = _expected_passes(run, set(ids), MLP["epochs_per_slice"])
    assert {(r.shard, r.slice): r.sample_passes for r in trained} == expected
    assert done.sample_passes == sum(expected.values())
    (certificate,) = run.certificates()
    assert certificate.sample_passes == done.sample_passes
    assert set(certificate.retired_stages) == before - after
    assert set(certificate.retrained_stages) == after - before

    # Same inode, time and bytes: not even the same content was written again.
    files_after = files_of(folder_of(run))
    kept = [name for name in files_before if name.split("/")[0] in {"stages", "slices"} and name in files_after]
    assert len([name for name in kept if name.startswith("stages/")]) == 2 * len(after & before)
    assert all(files_after[name] == files_before[name] for name in kept)
    untouched = [
        name for name in files_before if name.split("/")[0] in {"run.json", "index", "test", "ledger", "heads"}
    ]
    assert all(files_after[name] == files_before[name] for name in untouched)


def test_unaffected_shards_are_not_touched(copied: Callable[..., Run]) -> None:
    run = copied()
    ids = FORGET_SETS["one sample in the first slice"](run)  # of shard 1
    others = {
        f"stages/{r.key}/{name}" for r in run.stages() if r.shard != 1 for name in ("stage.json", "weights.safetensors")
    }
    others |= {f"slices/{r.slice_digest}.arrow" for r in run.stages() if r.shard != 1}
    before = files_of(folder_of(run))
    run.forget(samples=ids)
    done = run.unlearn(runner="local")
    after = files_of(folder_of(run))
    assert done.affected_shards == (1,)
    assert len(others) == 18
    assert all(before[name] == after[name] for name in others)


def test_nothing_to_do_writes_nothing(copied: Callable[..., Run]) -> None:
    run = copied()
    before = files_of(folder_of(run))
    done = run.unlearn(runner="local")
    assert (done.stages_trained, done.stages_purged, done.sample_passes) == (0, 0, 0)
    assert files_of(folder_of(run)) == before


def test_training_costs_the_formula(trained: Callable[[str], Run]) -> None:
    records = trained("mlp").stages()
    assert sum(r.sample_passes for r in records) == sum(_expected_passes_of_all(trained("mlp")))


def _expected_passes_of_all(run: Run) -> list[int]:
    sizes = [[len(run.sample_ids(shard, number)) for number in (1, 2, 3)] for shard in range(3)]
    return [MLP["epochs_per_slice"] * total for shard in sizes for total in accumulate(shard)]


@pytest.mark.slow
def test_the_layout_of_the_study(tmp_path: Path) -> None:
    """Positions [20000, 30000) of 50,000 in 4 shards of 5 slices: the end of shard 1, the beginning of shard 2."""
    random = np.random.default_rng(0)
    features = random.normal(size=(50_000, 4)).astype(np.float32)
    samples = make_samples(
        ids=[f"s{i:05d}" for i in range(50_000)], images=features, labels=(features[:, 0] > 0).astype(np.int64)
    )
    config = small_config(
        tmp_path,
        placement={"strategy": "permutation", "shards": 4, "slices": 5},
        recipe=MLP | {"epochs_per_slice": 9, "batch_size": 1000},
    )
    run = Run.create(config, dataset=Dataset(train=samples, test=None, num_classes=2, mean=(0.0,), std=(1.0,)))
    training = run.train(runner="local")
    assert training.sample_passes == training.full_training_sample_passes == 1_350_000
    before = {(r.shard, r.slice): r.key for r in run.stages()}

    position = positions(run.record.config.placement, samples.subjects)
    block = samples.ids.filter((position >= 20_000) & (position < 30_000)).to_pylist()
    run.forget(samples=block)
    assert [(s.shard, s.depth) for s in run.status().shards] == [(0, 5), (1, 3), (2, 0), (3, 5)]  # at once
    events: list[Event] = []
    unlearning = run.unlearn(runner="local", tell=events.append)

    trained = [(e.record.shard, e.record.slice) for e in events if isinstance(e, StageDone)]
    assert trained == [(2, 3), (2, 4), (2, 5)]  # and nothing of shard 1 beyond falling back
    assert unlearning.affected_shards == (1, 2)
    assert unlearning.sample_passes == 135_000
    assert training.sample_passes / unlearning.sample_passes == 10
    after = {(r.shard, r.slice): r.key for r in run.stages()}
    assert sorted(before.keys() - after.keys()) == [(1, 4), (1, 5), (2, 1), (2, 2)]
    assert {place for place in after if after[place] != before[place]} == {(2, 3), (2, 4), (2, 5)}
    assert [(s.shard, s.depth, s.samples) for s in run.status().shards] == [
        (0, 5, 12_500),
        (1, 3, 7_500),
        (2, 5, 7_500),
        (3, 5, 12_500),
    ]


def test_certificates_of_one_batch_name_only_stages_that_were_there_and_are(copied: Callable[..., Run]) -> None:
    run = copied()
    before = {r.key for r in run.stages()}
    run.forget(samples=run.sample_ids(0, 1)[:1])
    run.forget(samples=run.sample_ids(0, 2)[:1])
    done = run.unlearn(runner="local")
    after = {r.key for r in run.stages()}
    certificates = run.certificates()
    assert [c.request for c in certificates] == [1, 2] == list(done.requests)
    for certificate in certificates:
        assert certificate.batch == (1, 2)
        assert set(certificate.retired_stages) == before - after
        assert set(certificate.retrained_stages) == after - before
        assert certificate.sample_passes == done.sample_passes
    run.forget(samples=run.sample_ids(2, 3)[:1])
    run.unlearn(runner="local")
    latest = run.certificates()[-1]
    assert (latest.request, latest.batch, len(latest.retrained_stages)) == (3, (3, 3), 1)
