"""Files of every depth: the right pixels, or an error that names file, depth and remedy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from image_files import png, tiff

from ray_sisa import images, parquet
from ray_sisa.config import Columns
from ray_sisa.data import load_inputs
from ray_sisa.errors import DataError

# Cut to 8 bits, the first three would be 0, and 256 would be 1.
DEEP = np.array([[[1, 200, 255, 65535], [256, 1000, 40_000, 65535]]], np.uint16)
SIXTEEN = {
    "PNG RGB": png(DEEP[:, :, :3], "RGB", 16),
    "PNG RGBA": png(DEEP, "RGBA", 16),
    "PNG LA": png(DEEP[:, :, 2:], "LA", 16),
    "PNG grey": png(DEEP[:, :, :1], "grey", 16),
    "TIFF RGB": tiff(DEEP[:, :, :3], "RGB", 16),
    "TIFF RGB, the other order": tiff(DEEP[:, :, :3], "RGB", 16, order=">"),
    "TIFF RGBA": tiff(DEEP, "RGB", 16),
    "TIFF LA": tiff(DEEP[:, :, 2:], "grey", 16),
    "TIFF grey": tiff(DEEP[:, :, :1], "grey", 16),
    "PPM": b"P6 2 1 65535\n" + DEEP[:, :, :3].astype(">u2").tobytes(),
    "PPM in text": b"P3 2 1 65535\n1 200 255 256 1000 40000\n",
    "PGM": b"P5 2 1 65535\n" + DEEP[:, :, :1].astype(">u2").tobytes(),
    "PGM of 10 bits": b"P5 2 1 1023\n" + np.array([[1, 1000]], ">u2").tobytes(),
}
OTHERS = {
    "TIFF grey of 12 bits": (tiff(DEEP[:, :, :1], "grey", 12), "samples of 12 bits"),
    "TIFF grey of 32 bits": (tiff(DEEP[:, :, :1].astype(np.uint32), "grey", 32), "samples of 32 bits"),
    "TIFF float": (tiff(DEEP[:, :, :1].astype(np.float32), "grey", 32, format=3), "floating-point samples of 32 bits"),
    "TIFF float RGB": (tiff(DEEP[:, :, :3].astype(np.float32), "RGB", 32, format=3), "floating-point samples of 32"),
    "TIFF with a sign": (tiff(np.array([[[-1], [5]]], np.int8), "grey", 8, format=2), "samples with a sign"),
}


@pytest.mark.parametrize("kind", SIXTEEN)
def test_deep_files_are_refused_with_file_depth_and_remedy(kind: str) -> None:
    bits = 10 if "10" in kind else 16
    with pytest.raises(
        DataError, match=rf"image = moon: has samples of {bits} bits, and pixels keep 8\. Convert it to"
    ):
        images.decode(SIXTEEN[kind], "moon")


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_of_samples_are_refused(kind: str) -> None:
    content, rule = OTHERS[kind]
    with pytest.raises(DataError, match=rf"image = moon: has {rule}.*Convert it to 8-bit grey or RGB"):
        images.decode(content, "moon")


def test_a_deep_image_in_parquet_is_named_by_row_in_training_and_in_prediction(tmp_path: Path) -> None:
    shallow = png(np.full((1, 2, 3), 7, np.uint8), "RGB", 8)
    path = str(tmp_path / "data.parquet")
    pq.write_table(pa.table({"img": [shallow, SIXTEEN["PNG RGB"]], "label": [0, 1]}), path)
    with pytest.raises(DataError, match=r"row 1 of .*data\.parquet.*samples of 16 bits"):
        parquet.read(path, Columns())
    with pytest.raises(DataError, match=r"row 1 of .*data\.parquet.*samples of 16 bits"):
        load_inputs([path], (1, 2, 3))


@pytest.mark.parametrize("kind", ["PNG RGB", "TIFF RGB"])
def test_a_deep_file_is_named_in_prediction(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "moon.img"
    path.write_bytes(SIXTEEN[kind])
    with pytest.raises(DataError, match=r"moon\.img: has samples of 16 bits"):
        load_inputs([str(path)], (1, 2, 3))


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_shallow_grey_spreads_from_black_to_white(bits: int) -> None:
    largest = 2**bits - 1
    samples = np.arange(8).reshape(2, 4, 1) % (largest + 1)
    samples[-1, -1] = largest
    expected = samples * 255 // largest
    assert np.array_equal(images.decode(png(samples.astype(np.uint8), "grey", bits), "a"), expected)
    assert np.array_equal(images.decode(tiff(samples.astype(np.uint8), "grey", bits), "a"), expected)
    inverted = tiff(samples.astype(np.uint8), "white is zero", bits)
    assert np.array_equal(images.decode(inverted, "a"), 255 - expected)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes_give_their_colours(bits: int) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (2**bits, 3), dtype=np.uint8)
    samples = (np.arange(8) % 2**bits).reshape(2, 4, 1)
    expected = colours[samples[:, :, 0]]
    assert np.array_equal(
        images.decode(png(samples.astype(np.uint8), "palette", bits, colours=colours.tobytes()), "a"), expected
    )
    for scale in (256, 257):  # both are written
        deep = tuple(int(value) * scale for value in colours.T.ravel())
        content = tiff(samples.astype(np.uint8), "palette", bits, colours=deep)
        assert np.array_equal(images.decode(content, "a"), expected)
    lossy = tuple(int(value) * 256 + 3 for value in colours.T.ravel())
    with pytest.raises(DataError, match="palette whose colours need more than 8 bits"):
        images.decode(tiff(samples.astype(np.uint8), "palette", bits, colours=lossy), "a")


def test_ppm_of_few_values_spreads_from_black_to_white() -> None:
    assert images.decode(b"P6 2 1 15\n" + bytes([0, 1, 2, 3, 4, 15]), "a").ravel().tolist() == [0, 17, 34, 51, 68, 255]


def test_a_header_out_of_place_is_no_way_around() -> None:
    content = SIXTEEN["PNG RGB"]
    hidden = content[:8] + png(np.zeros((1, 1, 1), np.uint8), "grey", 8)[-12:] + content[8:]
    with pytest.raises(DataError, match="is not a readable image"):
        images.decode(hidden, "a")
