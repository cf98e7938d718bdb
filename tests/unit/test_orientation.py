"""Orientation tags: applied as viewers do, or ignored as the run says; runs that lack the setting ignore them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from ray_sisa import data, images
from ray_sisa.config import Columns, DataConfig, RunConfig
from ray_sisa.config_values import make_config
from ray_sisa.data_config import Exif
from ray_sisa.digests import seal, unseal
from ray_sisa.errors import ConfigError, DataError
from ray_sisa.run import Run

ROTATE = 6
PIXELS = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10


def tagged(pixels: np.ndarray, value: int, format: str = "PNG") -> bytes:
    """An image with an orientation tag."""
    out, exif = io.BytesIO(), Image.Exif()
    exif[274] = value
    Image.fromarray(pixels).save(out, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    return out.getvalue()


@pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG", "TIFF"])
@pytest.mark.parametrize("value", range(1, 9))
def test_each_orientation_is_applied_as_viewers_do(format: str, value: int) -> None:
    content = tagged(PIXELS, value, format)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(images.decode(content, "a"), expected)
    assert np.array_equal(images.decode(content, "a", expected.shape), expected)
    assert expected.shape[:2] == ((4, 2) if value >= 5 else (2, 4))


@pytest.mark.parametrize("value", range(1, 9))
def test_ignored_tags_leave_pixels_as_stored(value: int) -> None:
    assert np.array_equal(images.decode(tagged(PIXELS, value), "a", PIXELS.shape, exif="ignore"), PIXELS)


@pytest.mark.parametrize("value", [0, 9, 1000])
def test_values_without_a_meaning_turn_nothing(value: int) -> None:
    assert np.array_equal(images.decode(tagged(PIXELS, value), "a"), PIXELS)


def test_a_damaged_tag_turns_nothing() -> None:
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, "PNG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff junk")
    assert np.array_equal(images.decode(out.getvalue(), "a"), PIXELS)


def test_an_error_of_size_names_the_tag() -> None:
    content = tagged(PIXELS, ROTATE)
    with pytest.raises(DataError, match=r"is 4 x 2 pixels .*its orientation tag 6 applied\), but 2 x 4 are"):
        images.decode(content, "a", (2, 4, 3))
    with pytest.raises(DataError, match=r"is 2 x 4 pixels .*its orientation tag 6 ignored\), but 4 x 2 are"):
        images.decode(content, "a", (4, 2, 3), exif="ignore")
    with pytest.raises(DataError, match=r"is 2 x 4 pixels \(height x width\), but"):
        images.decode(tagged(PIXELS, 1), "a", (4, 2, 3))


def photographs(folder: Path, kind: str = "photo") -> tuple[str, np.ndarray]:
    """A Parquet file of 24 square images that all lie on their side, and their pixels as stored."""
    pixels = np.random.default_rng(len(kind)).integers(0, 256, (24, 4, 4, 3), dtype=np.uint8)
    path = folder / f"{kind}.parquet"
    content = [tagged(image, ROTATE) for image in pixels]
    table = {"id": [f"{kind}-{i:02d}" for i in range(24)], "img": content, "label": [i % 2 for i in range(24)]}
    pq.write_table(pa.table(table), path)
    return str(path), pixels


def turned(pixels: np.ndarray) -> np.ndarray:
    return np.rot90(pixels, -1, axes=(1, 2))


def config_of(folder: Path, source: str, **section: Any) -> RunConfig:
    test, _ = photographs(folder, "test")
    read = {"source": "parquet", "train": source, "test": test, "columns": {"id": "id"}, "num_classes": 2}
    return make_config(
        {
            "name": "run",
            "storage_path": str(folder),
            "data": read | section,
            "placement": {"shards": 1, "slices": 2, "key": "k"},
            "recipe": {"model": "mlp", "epochs_per_slice": 1, "batch_size": 8},
        }
    )


def as_of_old(run: Run) -> None:
    """Rewrites run.json as it was before there was `data.exif`."""
    path = Path(run.store.uri) / "run.json"
    content = json.loads(unseal(path.read_bytes()))
    del content["config"]["data"]["exif"]
    path.write_bytes(seal(json.dumps(content, indent=1).encode()))


@pytest.mark.parametrize("exif", ["apply", "ignore", None])
def test_training_and_prediction_read_alike(tmp_path: Path, exif: Exif | None) -> None:
    source, pixels = photographs(tmp_path)
    section = DataConfig(source="parquet", train=source, columns=Columns(id="id"), num_classes=2, exif=exif)
    expected = pixels if exif == "ignore" else turned(pixels)
    assert np.array_equal(data.load(section).train.images, expected)
    assert np.array_equal(data.load_inputs([source], (4, 4, 3), Columns(id="id"), exif)[1], expected)
    (tmp_path / "one.png").write_bytes(tagged(pixels[0], ROTATE))
    assert np.array_equal(data.load_inputs([str(tmp_path / "one.png")], (4, 4, 3), exif=exif)[1], expected[:1])


def test_a_new_run_says_that_tags_are_applied_and_is_found_again(tmp_path: Path) -> None:
    source, _ = photographs(tmp_path)
    assert Run.create(config_of(tmp_path, source)).record.config.data.exif == "apply"
    assert Run.create(config_of(tmp_path, source)).record.config.data.exif == "apply"
    with pytest.raises(ConfigError, match=r"these differ: data\.exif"):
        Run.create(config_of(tmp_path, source, exif="ignore"))


def test_a_run_of_before_there_was_a_choice_reads_images_as_its_training_did(tmp_path: Path) -> None:
    source, _ = photographs(tmp_path)
    before = Run.create(config_of(tmp_path, source, exif="ignore"))
    before.train(runner="local")
    as_of_old(before)
    old = Run.create(config_of(tmp_path, source))  # the configuration that it was made with
    assert old.record.config.data.exif == "ignore"
    request = old.forget(samples=["photo-03"]).request
    old.unlearn(runner="local")
    # Their content is compared with the index: images that are turned would be refused.
    assert old.evaluate(forget=request, runner="local").forget is not None
    assert old.evaluate(forget=request, source=config_of(tmp_path, source).data, runner="local").forget is not None
    assert not old.check().findings
    with pytest.raises(ConfigError, match=r"these differ: data\.exif"):
        Run.create(config_of(tmp_path, source, exif="apply"))


def test_a_png_that_is_damaged_in_its_pixels_is_refused_though_its_tag_is_looked_for_behind_them() -> None:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(out, "PNG")
    content = bytearray(out.getvalue())
    content[100:140] = b"\xaa" * 40
    with pytest.raises(DataError, match="is not a readable image"):
        images.decode(bytes(content), "damaged", (8, 8, 3))
