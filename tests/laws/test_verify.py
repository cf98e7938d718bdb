"""Law: `verify` agrees with an honest store, and names the stage of any that was tampered with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from small_runs import folder_of

from ray_sisa import weights
from ray_sisa.digests import digest_bytes, digest_tensors
from ray_sisa.heads import latest_head
from ray_sisa.layout import slice_object, stage_record, stage_weights
from ray_sisa.records import StageRecord
from ray_sisa.run import Run
from ray_sisa.samples import Samples, concatenate, make_samples
from ray_sisa.slices import slice_from_bytes, slice_to_bytes, sort_by_id
from ray_sisa.verify import Verification

SHARD, SLICE = 1, 2  # where all the tampering is done
FROM_SCRATCH, FROM_PARENTS = None, 9  # nine of nine stages, each from the parent that the store holds
MODES = pytest.mark.parametrize("sample", [FROM_SCRATCH, FROM_PARENTS], ids=["from scratch", "from parents"])


@MODES
@pytest.mark.parametrize("recipe", ["mlp", "cnn", "nopeek", "private"])
def test_an_honest_run_is_confirmed(recipe: str, sample: int | None, trained: Callable[[str], Run]) -> None:
    found = trained(recipe).verify(sample=sample, runner="local")
    assert found.ok
    assert [(c.shard, c.slice) for c in found.stages] == [(s, r) for s in range(3) for r in (1, 2, 3)]
    assert all(c.expected == c.actual != "" and not c.problem for c in found.stages)


@MODES
def test_an_unlearned_run_is_confirmed(sample: int | None, copied: Callable[..., Run]) -> None:
    run = copied("cnn")
    run.forget(samples=[*run.sample_ids(0, 1)[:2], *run.sample_ids(1, 2)])  # the whole of slice (1, 2)
    run.unlearn(runner="local")
    found = run.verify(sample=sample, runner="local")
    assert found.ok
    assert len(found.stages) == 8


def test_some_shards_or_some_stages(trained: Callable[[str], Run]) -> None:
    run = trained("mlp")
    assert {c.shard for c in run.verify(shards=[2, 0], runner="local").stages} == {0, 2}
    assert len(run.verify(sample=2, runner="local").stages) == 2
    assert len(run.verify(sample=100, shards=[1], runner="local").stages) == 3


def test_it_looks_at_what_is_stored_not_at_what_was_loaded(copied: Callable[..., Run]) -> None:
    run = copied()
    assert run.verify(runner="local").ok
    _change_slice(run, _another_pixel)
    assert not run.verify(runner="local").ok


def _record(run: Run) -> StageRecord:
    return next(record for record in run.stages() if (record.shard, record.slice) == (SHARD, SLICE))


def _change_slice(run: Run, change: Callable[[Samples], Samples]) -> None:
    """Rewrites the object of a slice under its name."""
    path = slice_object(_record(run).slice_digest)
    changed = change(slice_from_bytes(run.store.get(path), path))
    (folder_of(run) / path).write_bytes(slice_to_bytes(changed))


def _another_pixel(samples: Samples) -> Samples:
    images = samples.images.copy()
    images[3, 4, 4, 0] ^= 1
    return make_samples(ids=samples.ids, subjects=samples.subjects, images=images, labels=samples.labels)


def _another_label(samples: Samples) -> Samples:
    labels = samples.labels.copy()
    labels[3] = (labels[3] + 1) % 10
    return make_samples(ids=samples.ids, subjects=samples.subjects, images=samples.images, labels=labels)


def _another_sample(samples: Samples) -> Samples:
    extra = make_samples(ids=["digit-9999"], images=np.zeros((1, 8, 8, 1), np.uint8), labels=[0])
    return sort_by_id(concatenate([samples, extra]))


def _one_sample_less(samples: Samples) -> Samples:
    return samples.take(np.arange(1, len(samples)))


def _another_order(samples: Samples) -> Samples:
    return samples.take(np.arange(len(samples))[::-1])


def _no_arrow(run: Run) -> None:
    (folder_of(run) / slice_object(_record(run).slice_digest)).write_bytes(b"not an Arrow file")


def _no_slice(run: Run) -> None:
    (folder_of(run) / slice_object(_record(run).slice_digest)).unlink()


def _another_weight_byte(run: Run) -> None:
    file = folder_of(run) / stage_weights(_record(run).key)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1  # tensors lie at the end of the file
    file.write_bytes(data)


def _another_weight_and_a_record_of_it(run: Run) -> None:
    """A forger who knows how digests are made."""
    record = _record(run)
    tensors = weights.from_bytes(run.store.get(stage_weights(record.key)))
    tensors["linear.bias"][0] += 1
    data = weights.to_bytes(tensors)
    forged = {"weights_digest": digest_tensors(tensors), "weights_file_digest": digest_bytes(data)}
    (folder_of(run) / stage_weights(record.key)).write_bytes(data)
    (folder_of(run) / stage_record(record.key)).write_bytes(record.model_copy(update=forged).to_bytes())


TAMPERINGS: dict[str, Callable[[Run], None]] = {
    "one pixel": lambda run: _change_slice(run, _another_pixel),
    "one label": lambda run: _change_slice(run, _another_label),
    "one sample more": lambda run: _change_slice(run, _another_sample),
    "one sample less": lambda run: _change_slice(run, _one_sample_less),
    "another order": lambda run: _change_slice(run, _another_order),
    "a slice that is no Arrow file": _no_arrow,
    "a slice that is gone": _no_slice,
    "one weight byte": _another_weight_byte,
    "one weight, with a record of it": _another_weight_and_a_record_of_it,
}
OF_WEIGHTS = {"one weight byte", "one weight, with a record of it"}


@MODES
@pytest.mark.parametrize("tampering", TAMPERINGS)
def test_tampering_is_found_and_located(tampering: str, sample: int | None, copied: Callable[..., Run]) -> None:
    run = copied()
    TAMPERINGS[tampering](run)
    found = run.verify(sample=sample, runner="local")
    assert not found.ok
    # What was trained on the slice is in doubt from there on; weights only where they are what is trained on.
    later = not (tampering in OF_WEIGHTS and sample is FROM_SCRATCH)
    assert _failed(found) == ([(1, 2), (1, 3)] if later else [(1, 2)])
    problem = next(c.problem for c in found.stages if not c.ok)
    assert problem


def test_a_deleted_sample_put_back_is_found(samples: Samples, copied: Callable[..., Run]) -> None:
    run = copied()
    ids = run.sample_ids(SHARD, SLICE)[:1]
    run.forget(samples=ids)
    run.unlearn(runner="local")
    _change_slice(run, lambda live: sort_by_id(concatenate([live, samples.select(ids)])))
    found = run.verify(shards=[SHARD], runner="local")
    assert _failed(found) == [(1, 2), (1, 3)]
    assert "holds 1 deleted samples" in found.stages[1].problem


def test_a_stage_that_is_gone_is_found(copied: Callable[..., Run]) -> None:
    run = copied()
    (folder_of(run) / stage_record(_record(run).key)).unlink()
    found = run.verify(shards=[SHARD], runner="local")
    assert _failed(found) == [(1, 2)]
    assert found.stages[1].expected == ""


def test_an_edited_index_is_refused(copied: Callable[..., Run]) -> None:
    run = copied()
    file = folder_of(run) / f"index/{run.record.index_digests[1]}.arrow"
    run.forget(samples=run.sample_ids(SHARD, SLICE)[:1])
    table = pa.ipc.open_file(pa.py_buffer(file.read_bytes())).read_all().slice(1)
    with pa.ipc.new_file(str(file), table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(Exception, match="is not the index that was written"):
        Run.open(run.store.uri).verify(runner="local")


def _failed(found: Verification) -> list[tuple[int, int]]:
    return [(c.shard, c.slice) for c in found.stages if not c.ok]


def test_a_head_that_names_another_stage_or_other_weights_fails(copied: Callable[..., Run]) -> None:
    for change in ({"slice": 2}, {"weights_digest": "0" * 64}):
        run = copied(name=f"copy-{next(iter(change))}")
        head = latest_head(run.store)
        assert head is not None
        first = head.constituents[0]
        if "slice" in change:
            shallower = run.stages()[1]
            change = {"slice": shallower.slice, "key": shallower.key, "weights_digest": shallower.weights_digest}
        forged = head.model_copy(update={"constituents": (first.model_copy(update=change), *head.constituents[1:])})
        (folder_of(run) / "heads/00000001.json").write_bytes(forged.to_bytes())
        verification = run.verify(runner="local")
        assert not verification.ok
        assert all(stage.ok for stage in verification.stages)
        assert "shard 0" in verification.problems[0]


def test_samples_that_cannot_even_be_trained_on_are_named_and_not_trained_on(copied: Callable[..., Run]) -> None:
    run = copied()
    stage = run.stages()[0]
    path = folder_of(run) / f"slices/{stage.slice_digest}.arrow"
    samples = slice_from_bytes(path.read_bytes(), "")
    labels = np.full_like(samples.labels, 99)
    path.write_bytes(slice_to_bytes(make_samples(ids=samples.ids, images=samples.images, labels=labels)))
    verification = run.verify(shards=[stage.shard], runner="local")
    assert not verification.ok
    assert [check.actual for check in verification.stages] == ["", "", ""]
    assert "does not hold the samples that it is named after" in verification.stages[0].problem
