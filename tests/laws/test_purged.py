"""Law: after `unlearn`, nothing in the store held a deleted sample: no stage, slice, unfinished write or report.

The scanner reads the files themselves, all of them, and works out for itself which stages saw what.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from small_runs import FORGET_SETS, assert_same_models, files_of, folder_of, without

from ray_sisa.features import read_features
from ray_sisa.run import Run
from ray_sisa.samples import Samples

TOMBSTONES = {"ledger", "index"}  # they keep ids, so that a deletion is known for good; never pixels


def _slice_ids(content: bytes) -> set[str]:
    return set(pa.ipc.open_file(pa.py_buffer(content)).read_all()["sample_id"].to_pylist())


def _seen_by_stages(files: dict[str, bytes]) -> dict[str, set[str]]:
    """Ids that each stage was trained on, by following its record and those of its parents to their slices."""
    records = {name.split("/")[1]: json.loads(data) for name, data in files.items() if name.endswith("/stage.json")}
    slices = {Path(name).stem: _slice_ids(data) for name, data in files.items() if name.startswith("slices/")}
    seen = {}
    for key in records:
        ids, at = set(), key
        while at in records:
            ids |= slices.get(records[at]["slice_digest"], {f"of a slice that is gone: {records[at]['slice_digest']}"})
            at = records[at]["parent"]
        seen[key] = ids
    return seen


def _traces(folder: Path, deleted: Samples, tainted: dict[str, bytes], rows: Sequence[bytes] = ()) -> list[str]:
    """Everything in a store that held one of these samples, or is a stage that is known to have (key: weights).

    `rows` are their features, where the backbone is frozen.
    """
    files = {name: state.content for name, state in files_of(folder, leases=True).items()}
    ids = deleted.ids.to_pylist()
    pixels = [image.tobytes() for image in deleted.images]
    found = [f"{name} holds pixels" for name, data in files.items() if any(p in data for p in pixels)]
    found += [f"{name} holds features" for name, data in files.items() if any(row in data for row in rows)]
    for name, data in files.items():
        if name.split("/")[0] not in TOMBSTONES and any(sample.encode() in data for sample in ids):
            found.append(f"{name} names a sample")
        if name.startswith("stages/") and (name.split("/")[1] in tainted or data in tainted.values()):
            found.append(f"{name} is a stage that saw a sample")
    for key, seen in _seen_by_stages(files).items():
        if seen & set(ids) or any(s.startswith("of a slice that is gone") for s in seen):
            found.append(f"stage {key} was trained on {sorted(seen & set(ids)) or seen}")
    return found


def _tainted(run: Run, ids: list[str]) -> dict[str, bytes]:
    """Key and weights of each stage that saw one of these samples."""
    files = {name: state.content for name, state in files_of(folder_of(run)).items()}
    return {
        key: files[f"stages/{key}/weights.safetensors"]
        for key, seen in _seen_by_stages(files).items()
        if seen & set(ids)
    }


@pytest.mark.parametrize("recipe", ["mlp", "frozen"])
@pytest.mark.parametrize("forget", FORGET_SETS)
def test_nothing_that_held_a_deleted_sample_is_left(
    forget: str, recipe: str, samples: Samples, copied: Callable[..., Run]
) -> None:
    run = copied(recipe)
    ids = FORGET_SETS[forget](run)
    deleted, tainted = samples.select(ids), _tainted(run, ids)
    known = read_features(run.store, run.record, run.store.slice_digests())
    rows = [known[sample].tobytes() for sample in ids if sample in known]
    assert tainted and len(rows) == (len(ids) if recipe == "frozen" else 0)
    run.forget(samples=ids, reason="on request")

    before = _traces(folder_of(run), deleted, tainted, rows)  # the scanner finds what there is to find
    assert {line.split()[-1] for line in before} >= {"pixels", "sample", *(["features"] if rows else [])}
    assert len([line for line in before if "is a stage that saw" in line]) == 2 * len(tainted)

    run.unlearn(runner="local")
    assert _traces(folder_of(run), deleted, tainted, rows) == []


def test_reports_name_no_deleted_sample(samples: Samples, copied: Callable[..., Run]) -> None:
    run = copied()
    ids = FORGET_SETS["samples spread over all shards"](run)
    deleted, tainted = samples.select(ids), _tainted(run, ids)
    run.evaluate(forget=ids, runner="local")
    run.forget(samples=ids)
    run.evaluate(forget=1, runner="local")
    run.unlearn(runner="local")
    run.evaluate(forget=1, runner="local")
    assert len(run.evaluations()) == 2
    kept = sorted(path.name.split("-")[0] for path in (folder_of(run) / "reports").iterdir())
    assert kept == ["evaluation", "evaluation", "removed"]
    assert _traces(folder_of(run), deleted, tainted) == []


def test_ids_stay_as_tombstones_without_pixels(samples: Samples, copied: Callable[..., Run]) -> None:
    run = copied()
    ids = run.sample_ids(1, 2)[:1]
    run.forget(samples=ids)
    run.unlearn(runner="local")
    files = files_of(folder_of(run))
    holders = {name for name, state in files.items() if ids[0].encode() in state.content}
    assert holders == {"ledger/00000001.json", f"index/{run.record.index_digests[1]}.arrow"}
    pixels = samples.select(ids).images[0].tobytes()
    assert not any(pixels in files[name].content for name in holders)


@pytest.mark.parametrize("heads", ["new heads", "heads of the backup"])
def test_a_backup_restored_over_the_run_is_not_served_and_swept(
    heads: str,
    samples: Samples,
    copied: Callable[..., Run],
    from_scratch: Callable[[Samples, str], Run],
    tmp_path: Path,
) -> None:
    run = copied()
    ids = FORGET_SETS["samples spread over all shards"](run)
    deleted, tainted = samples.select(ids), _tainted(run, ids)
    shutil.copytree(folder_of(run), tmp_path / "backup")
    run.forget(samples=ids)
    run.unlearn(runner="local")
    if heads == "heads of the backup":
        shutil.rmtree(folder_of(run) / "heads")
    shutil.copytree(tmp_path / "backup", folder_of(run), dirs_exist_ok=True)
    assert _traces(folder_of(run), deleted, tainted)

    back = Run.open(run.store.uri)
    assert not tainted.keys() & {c.key for c in back.ensemble().constituents}
    assert not tainted.keys() & {record.key for record in back.stages()}
    done = back.unlearn(runner="local")
    assert done.stages_trained == 0
    assert _traces(folder_of(run), deleted, tainted) == []
    assert_same_models(back, from_scratch(without(samples, ids), "mlp"))


def test_a_stage_without_its_record_is_swept(samples: Samples, copied: Callable[..., Run]) -> None:
    """What a worker leaves that died between weights and record, or wrote them late."""
    run = copied()
    ids = run.sample_ids(0, 1)[:1]
    deleted, tainted = samples.select(ids), _tainted(run, ids)
    run.forget(samples=ids)
    run.unlearn(runner="local")
    key, weights = next(iter(tainted.items()))
    run.store.put(f"stages/{key}/weights.safetensors", weights)
    assert run.unlearn(runner="local").stages_purged == 1
    assert _traces(folder_of(run), deleted, tainted) == []


def test_an_unfinished_write_is_swept(samples: Samples, copied: Callable[..., Run]) -> None:
    """A process killed within a put leaves the file that it was to rename, with all that was written by then."""
    run = copied()
    ids = run.sample_ids(0, 1)[:1]
    deleted, tainted = samples.select(ids), _tainted(run, ids)
    digest = next(record.slice_digest for record in run.stages() if (record.shard, record.slice) == (0, 1))
    finished = folder_of(run) / f"slices/{digest}.arrow"
    shutil.copy(finished, finished.with_name(f"{finished.name}#1"))
    run.forget(samples=ids)
    run.unlearn(runner="local")
    assert _traces(folder_of(run), deleted, tainted) == []
