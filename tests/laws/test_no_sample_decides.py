"""Law: nothing follows from a sample that may be deleted, not even how many channels the others have."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_runs import assert_same_models, small_config

from ray_sisa import data
from ray_sisa.errors import DataError
from ray_sisa.run import Run

IDS = [f"s{i:02d}" for i in range(12)]
COLOURED = {"s00", "s07"}  # the first is one of them
FORMS: dict[str, dict[str, Any]] = {
    "three means": {"mean": [0.5, 0.4, 0.3], "std": [0.2] * 3},
    "three channels": {"mean": None, "std": None, "channels": 3},
    "one channel": {"mean": None, "std": None, "channels": 1, "image_size": 8},
}


def write_mixed(path: Path, ids: Sequence[str]) -> str:
    """Images of 8 x 8 pixels, grey but for two, in the order of the ids."""
    encoded = []
    for name in ids:
        number = IDS.index(name)
        shape = (8, 8, 3) if name in COLOURED else (8, 8)
        pixels = np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        encoded.append(out.getvalue())
    labels = [IDS.index(name) % 10 for name in ids]
    pq.write_table(pa.table({"id": list(ids), "img": pa.array(encoded, pa.binary()), "label": labels}), path)
    return str(path)


def trained(folder: Path, name: str, ids: Sequence[str], form: dict[str, Any]) -> Run:
    """train(D) of the samples with these ids."""
    source = {"train": write_mixed(folder / f"{name}.parquet", ids), "columns": {"id": "id"}}
    recipe = {"model": "linear", "epochs_per_slice": 1, "batch_size": 4}
    placement = {"shards": 2, "slices": 2}
    config = small_config(folder, name=name, data={**source, **form}, placement=placement, recipe=recipe)
    run = Run.create(config)
    run.train(runner="local")
    return run


@pytest.mark.parametrize("form", FORMS)
def test_each_sample_can_be_forgotten_as_if_it_had_never_been(form: str, tmp_path: Path) -> None:
    whole = trained(tmp_path, "all", IDS, FORMS[form])
    each = [{name} for name in IDS] if form == "three means" else [{"s00"}, {"s01"}]
    for number, forgotten in enumerate([*each, COLOURED]):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(whole.store.uri, copy)
        unlearned = Run.open(str(copy))
        unlearned.forget(samples=forgotten)
        unlearned.unlearn(runner="local")
        left = [name for name in IDS if name not in forgotten]
        assert_same_models(unlearned, trained(tmp_path, f"scratch-{number}", left, FORMS[form]))


@pytest.mark.parametrize("first", ["s00", "s01"])
def test_where_nothing_says_it_all_must_agree(first: str, tmp_path: Path) -> None:
    ids = [first, *(i for i in IDS if i != first)]
    with pytest.raises(DataError, match=r"nothing says what all are to be\. Set data.channels: 3"):
        trained(tmp_path, "mixed", ids, {"mean": None, "std": None})
    assert not (tmp_path / "mixed").exists()
    grey = [i for i in IDS if i not in COLOURED]
    assert trained(tmp_path, "grey", grey, {"mean": None, "std": None}).record.training.image_shape == (8, 8, 1)


def test_what_is_forgotten_is_read_again_as_it_was(tmp_path: Path) -> None:
    """Of a run whose images became what the first was, as they once did, and whose configuration does not say it."""
    run = trained(tmp_path, "all", IDS, FORMS["three channels"])
    silent = run.record.config.data.model_copy(update={"channels": None})
    ids = sorted(COLOURED)
    run.forget(samples=ids)
    run.unlearn(runner="local")
    again = data.load_training(silent, run.record.training.image_shape)
    assert again.shape == (8, 8, 3)
    assert again.ids.to_pylist() == IDS
