"""Parquet that is wrong, damaged or a bomb: a DataError that names the file and the row or column, in bounds."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from measured import raised_by
from PIL import Image

from ray_sisa import ids, parquet
from ray_sisa.config import Columns
from ray_sisa.config_values import make_config
from ray_sisa.errors import DataError
from ray_sisa.planning import plan_config

COLUMNS = Columns(id="id", subject="who")
FEATURES = Columns(features=("x",))
CALL = "parquet.read({!r}, Columns({}))"
IMPORTS = "from ray_sisa import parquet\nfrom ray_sisa.config import Columns"


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(height: int = 6, width: int = 5, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def table(count: int = 8, **columns: object) -> pa.Table:
    images = [encoded(noise(seed=i)) for i in range(count)]
    names = [f"a{i}" for i in range(count)]
    return pa.table({"id": names, "who": names, "img": pa.array(images, pa.binary()), "label": [0] * count} | columns)


def with_image(image: bytes, at: int = 5) -> pa.Table:
    images = [encoded(noise(seed=i)) for i in range(8)]
    images[at] = image
    return table(img=pa.array(images, pa.binary()))


def write(folder: Path, content: pa.Table, **options: Any) -> str:
    pq.write_table(content, folder / "train.parquet", **options)
    return str(folder / "train.parquet")


def refused(path: str, columns: Columns = COLUMNS) -> str:
    with pytest.raises(DataError) as error:
        parquet.read(path, columns)
    assert len(str(error.value)) < 1500
    return str(error.value)


# --- columns


@pytest.mark.parametrize("column", ["id", "who", "img", "label"])
@pytest.mark.parametrize("rows", [[5], [5, 7], range(8)], ids=str)
def test_nulls(tmp_path: Path, column: str, rows: list[int]) -> None:
    content = table()
    holes = pa.array([i in rows for i in range(8)])
    filled = pc.if_else(holes, pa.scalar(None, content[column].type), content[column])
    told = refused(write(tmp_path, content.set_column(content.schema.get_field_index(column), column, filled)))
    assert f"{column} = null: is null in {len(rows)} row(s), first in" in told
    assert f"row {rows[0]} of {tmp_path}/train.parquet" in told


@pytest.mark.parametrize("column", ["id", "who", "img", "label"])
@pytest.mark.parametrize(
    "values",
    [
        pa.nulls(8),
        pa.array([0.5] * 8),
        pa.array([True] * 8),
        pa.array([[1]] * 8),
        pa.array([{"a": 1}] * 8),
        pa.array([{"bytes": 1}] * 8),
        pa.array([[b"x"]] * 8),
        pa.array([[("a", "b")]] * 8, pa.map_(pa.string(), pa.string())),
        pa.array([1] * 8, pa.timestamp("s")),
        pa.array([1] * 8, pa.decimal128(3)),
        pa.array([b"xx"] * 8, pa.binary(2)),
    ],
    ids=lambda values: str(values.type),
)
def test_wrong_types(tmp_path: Path, column: str, values: pa.Array) -> None:
    told = refused(write(tmp_path, table(**{column: values})))
    assert told.startswith(f"{column} = ")
    assert "must be" in told and "train.parquet" in told


def test_types_are_judged_before_values_are_read(tmp_path: Path) -> None:
    """A list in one row may be larger than memory: its column is refused unread."""
    path = write(tmp_path, table(1, img=pa.array([np.zeros(10**6, np.uint8)])))
    data = Path(path).read_bytes()
    Path(path).write_bytes(b"PAR1" + bytes(len(data) - 1004) + data[-1000:])
    assert "img = list" in refused(path)


@pytest.mark.parametrize("column", ["id", "who"])
def test_ids_that_are_too_long(tmp_path: Path, column: str) -> None:
    names = [f"a{i}" for i in range(8)]
    names[5] = "x" * (ids.MAX_BYTES + 1)
    told = refused(write(tmp_path, table(**{column: names})))
    assert re.search(rf"{column} = 65537 bytes: must be at most 65536, in .*row 5 of", told)


@pytest.mark.parametrize("column", ["id", "who"])
def test_text_that_is_no_unicode(tmp_path: Path, column: str) -> None:
    values = pa.StringArray.from_buffers(2, pa.py_buffer(struct.pack("<3i", 0, 1, 3)), pa.py_buffer(b"a\xed\xa0"))
    assert "Invalid UTF8" in refused(write(tmp_path, table(2, **{column: values}), use_dictionary=False))


def test_ids_in_messages_cannot_pose_as_something_else(tmp_path: Path) -> None:
    told = refused(write(tmp_path, table(2, id=["\x1b[2J", "b"], img=pa.array([b"no", b"image"]))))
    assert "\x1b" not in told and r"\x1b[2J" in told


# --- images


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG that declares a size, whatever it holds."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels, 9)) + chunk(b"IEND", b"")
    )


def bmp_of(width: int, height: int) -> bytes:
    data = bytearray(encoded(noise(), "BMP"))
    struct.pack_into("<ii", data, 18, width, height)
    return bytes(data)


IMAGES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a readable image"),
    "text": (b"<svg/>", "not a readable image"),
    "truncated png": (encoded(noise())[:80], "not a readable image"),
    "truncated jpeg": (encoded(noise(64, 64), "JPEG")[:300], "not a readable image"),
    "truncated webp": (encoded(noise(64, 64), "WEBP")[:300], "not a readable image"),
    "flipped bits": (bytes(b ^ (i > 30) for i, b in enumerate(encoded(noise()))), "not a readable image"),
    "another size": (encoded(noise(5, 6)), "is 5 x 6 pixels (height x width), but 6 x 5 are expected"),
    "png of 50,000 x 50,000": (png(50_000, 50_000), "DecompressionBomb"),
    "png of 2^31 x 2^31": (png(2**31 - 1, 2**31 - 1), "not a readable image"),
    "png of no pixels": (png(0, 0), "not a readable image"),
    "png of too few pixels": (png(5, 6, bytes(20)), "not a readable image"),
    "bmp of 30,000 x 30,000": (bmp_of(30_000, 30_000), "DecompressionBomb"),
    "animated gif": (encoded(noise(), "GIF", save_all=True, append_images=[noise(seed=1)]), "holds several frames"),
    "animated png": (encoded(noise(), save_all=True, append_images=[noise(seed=1)]), "holds several frames"),
    "animated webp": (encoded(noise(), "WEBP", save_all=True, append_images=[noise(seed=1)]), "holds several frames"),
    "tiff of pages": (encoded(noise(), "TIFF", save_all=True, append_images=[noise(seed=1)]), "holds several frames"),
    "cmyk": (encoded(noise().convert("CMYK"), "JPEG"), "has mode CMYK"),
    "16 bits": (encoded(Image.fromarray(np.full((6, 5), 40_000, np.uint16))), "has samples of 16 bits"),
    "float": (encoded(Image.fromarray(np.zeros((6, 5), np.float32)), "TIFF"), "has floating-point samples of 32 bits"),
    "ycbcr": (encoded(noise().convert("YCbCr"), "TIFF"), "has mode YCbCr"),
    "transparent": (encoded(noise().convert("LA").point(lambda value: value // 2)), "has transparent pixels"),
    "postscript": (encoded(noise(), "EPS"), "not a readable image"),
    "icon": (encoded(noise(16, 16), "ICO"), "not a readable image"),
}


@pytest.mark.parametrize("what", IMAGES)
def test_images(tmp_path: Path, what: str) -> None:
    image, rule = IMAGES[what]
    told = refused(write(tmp_path, with_image(image)))
    assert rule in told
    assert f"image = a5 (row 5 of {tmp_path}/train.parquet)" in told
    assert f"image = a0 (row 0 of {tmp_path}/train.parquet)" in refused(write(tmp_path, with_image(image, at=0))) or (
        what == "another size"
    )


def test_a_palette_is_read_as_its_colours(tmp_path: Path) -> None:
    palette = noise().quantize(8)
    samples = parquet.read(write(tmp_path, with_image(encoded(palette))), COLUMNS)
    assert np.array_equal(samples.images[5], np.asarray(palette.convert("RGB")))


# --- files


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1PAR1", b"\0" * 100, b"PAR1" + b"\xff" * 4 + b"PAR1"])
def test_files_that_are_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.parquet").write_bytes(content)
    assert "train.parquet: cannot be read as Parquet" in refused(str(tmp_path / "train.parquet"))


def test_no_rows(tmp_path: Path) -> None:
    assert "holds no samples" in refused(write(tmp_path, table().slice(0, 0)))


@pytest.mark.parametrize("cut", [1, 4, 8, 100, 2000])
def test_a_truncated_file(tmp_path: Path, cut: int) -> None:
    path = Path(write(tmp_path, table()))
    path.write_bytes(path.read_bytes()[:-cut])
    assert "cannot be read as Parquet" in refused(str(path))


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd", "gzip"])
def test_a_corrupt_column_chunk(tmp_path: Path, compression: str) -> None:
    path = Path(write(tmp_path, table(2000), compression=compression, row_group_size=500))
    chunk = pq.ParquetFile(path).metadata.row_group(2).column(2)
    data = bytearray(path.read_bytes())
    where = chunk.data_page_offset + chunk.total_compressed_size // 2
    data[where : where + 400] = b"\xaa" * 400
    path.write_bytes(data)
    told = refused(str(path))
    # Uncompressed bytes are anything: there the image is what is found to be wrong.
    assert re.search(
        r"train.parquet: cannot be read as Parquet in the rows from \d+ on|image = a1\d+ \(row 1\d+ of", told
    )


def test_a_page_whose_checksum_is_wrong(tmp_path: Path) -> None:
    content = pa.table({"x": np.arange(1000.0), "label": [0] * 1000})
    path = Path(write(tmp_path, content, write_page_checksum=True, compression="none", use_dictionary=False))
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    assert "checksum" in refused(str(path), FEATURES)


def with_rows(path: Path, old: int, new: int) -> None:
    """Changes the number of rows in the footer, where it stands as a Thrift integer of as many bytes."""
    data = path.read_bytes()
    (size,) = struct.unpack("<I", data[-8:-4])
    start = len(data) - 8 - size
    footer = data[start:-8]
    field = b"\x16" + varint(2 * old) + b"\x19"
    assert footer.count(field) == 1
    changed = footer.replace(field, b"\x16" + varint(2 * new) + b"\x19")
    path.write_bytes(data[:start] + changed + struct.pack("<I", len(changed)) + b"PAR1")


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


@pytest.mark.parametrize(
    ("rows", "rule"), [(9, "says that it has 9"), (7, "more rows than it says"), (10**15, "memory")]
)
def test_a_footer_that_lies_about_rows(tmp_path: Path, rows: int, rule: str) -> None:
    path = Path(write(tmp_path, table()))
    with_rows(path, 8, rows)
    told = refused(str(path))
    assert rule in told or "cannot be read as Parquet" in told


# --- bombs


def test_many_rows_in_a_tiny_file(tmp_path: Path) -> None:
    rows = pa.table({"x": pa.array(np.zeros(10**7)), "label": pa.array(np.zeros(10**7, np.int8))})
    path = tmp_path / "bomb.parquet"
    with pq.ParquetWriter(path, rows.schema, compression="zstd") as writer:
        for _ in range(20):
            writer.write_table(rows, row_group_size=10**7)
    assert path.stat().st_size < 2_000_000
    assert parquet.count(str(path)) == 2 * 10**8
    call = CALL.format(str(path), "features=('x',)")
    kind, message = raised_by(call, imports=IMPORTS, megabytes=1024)
    assert (kind, "would take 40.8 GB" in message) == ("DataError", True), message


@pytest.mark.parametrize("use_dictionary", [True, False])
@pytest.mark.parametrize("column", ["img", "id"])
def test_one_long_value_in_many_rows(tmp_path: Path, column: str, use_dictionary: bool) -> None:
    """40 MB a row, 40 GB in a batch of usual size: read few rows at a time, and refused at the first."""
    count, long = 1000, "x" * (40 << 20)
    value = pa.DictionaryArray.from_arrays(
        pa.array([0] * count, pa.int32()), [long if column == "id" else long.encode()]
    )
    names = pa.array([f"a{i}" for i in range(count)])
    columns = {"id": names, "img": pa.array([b"x"] * count), "label": [0] * count} | {column: value}
    if not use_dictionary:
        columns = {name: pa.array(values).slice(0, 20) for name, values in columns.items()}
    path = write(
        tmp_path,
        pa.table(columns),
        compression="zstd",
        store_schema=False,
        use_dictionary=use_dictionary,
        dictionary_pagesize_limit=1 << 30,
    )
    call = CALL.format(path, "id='id'")
    kind, message = raised_by(call, imports=IMPORTS, megabytes=3072)
    assert kind == "DataError", message
    assert ("bytes: must be at most 65536" if column == "id" else "not a readable image") in message


def test_tensors_larger_than_memory(tmp_path: Path) -> None:
    shape = (2000, 2000, 1)
    kind = pa.fixed_shape_tensor(pa.uint8(), shape)
    rows = pa.ExtensionArray.from_storage(kind, pa.array([np.zeros(4_000_000, np.uint8)] * 3, kind.storage_type))
    path = Path(write(tmp_path, pa.table({"img": rows, "label": [0] * 3}), compression="zstd"))
    with_rows(path, 3, 3000)
    found, message = raised_by(CALL.format(str(path), ""), imports=IMPORTS, megabytes=512)
    assert (found, "would take 16.1 GB" in message) == ("DataError", True), message


def test_small_files_of_large_images(tmp_path: Path) -> None:
    """Each image is within the limit of pixels; together they are not within memory."""
    image = encoded(Image.new("L", (4096, 4096)))
    path = write(tmp_path, pa.table({"img": pa.array([image] * 500), "label": [0] * 500}))
    assert Path(path).stat().st_size < 1_000_000
    found, message = raised_by(CALL.format(path, ""), imports=IMPORTS, megabytes=1024)
    assert (found, "would take 16.8 GB" in message) == ("DataError", True), message


def test_a_plan_reads_one_row(tmp_path: Path) -> None:
    image = encoded(noise(8, 8))
    path = write(tmp_path, pa.table({"img": pa.array([image, b"never looked at"]), "label": [0, 0]}))
    config = {
        "name": "a",
        "data": {"source": "parquet", "train": path, "num_classes": 2},
        "placement": {"shards": 1, "slices": 1},
        "recipe": {"model": "mlp", "epochs_per_slice": 1},
    }
    assert plan_config(make_config(config)).sample_passes == 2


READS: dict[str, Callable[[str], object]] = {
    "count": parquet.count,
    "first_row": lambda path: parquet.first_row(path, Columns()),
    "read_inputs": lambda path: parquet.read_inputs(path, Columns(), (8, 8, 1)),
}


@pytest.mark.parametrize("name", READS)
def test_every_way_to_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + b"\xff" * 100 + b"PAR1")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        READS[name](str(tmp_path / "a.parquet"))
