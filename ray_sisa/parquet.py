"""Parquet files, local or in an object store, read as samples.

Owns which columns and types are understood and how rows without an id are named. Reads batch by batch into one
preallocated array; never computes a statistic of the data.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
import pyarrow.parquet as pq

from ray_sisa import images
from ray_sisa.config import Columns
from ray_sisa.digests import canonical_json, digest_bytes
from ray_sisa.errors import ConfigError, DataError
from ray_sisa.samples import Samples, make_samples

logger = logging.getLogger(__name__)

Location = str | Sequence[str]
"""A file, a folder of *.parquet files, a URI of either, or several of these."""

BATCH_ROWS = 1024


def read(location: Location, columns: Columns, field: str = "data.train") -> Samples:
    """All samples of Parquet files, in the order of files (sorted in a folder) and rows.

    Without an id column the id is the BLAKE2b-256 digest of label and content, cut to 16 bytes, in hexadecimal; the
    second and later of identical samples get the suffix "#2", "#3", ... The order of rows decides nothing but which
    of identical samples has which suffix.

    Raises:
        ConfigError: columns that are not there.
        DataError: files that cannot be read, without rows, or with values of another kind than named in `Columns`.
    """
    named, content = _read(location, columns, field, labelled=True)
    labels = named["label"].to_numpy()
    return make_samples(
        ids=named["id"].combine_chunks() if columns.id is not None else _content_ids(content, labels),
        subjects=named["subject"].combine_chunks() if columns.subject is not None else None,
        images=content,
        labels=labels,
    )


def read_inputs(location: str, columns: Columns, shape: tuple[int, ...]) -> tuple[list[str], np.ndarray]:
    """Names (ids, or "FILE#row") and content of rows to predict; labels and subjects are not looked at.

    Images become grey or RGB as `shape` (H, W, C) says.

    Raises:
        ConfigError, DataError: as `read`, and for content of another shape.
    """
    unlabelled = columns.model_copy(update={"subject": None})
    named, content = _read(location, unlabelled, "inputs", labelled=False, shape=shape)
    if columns.id is not None:
        return named["id"].to_pylist(), content
    name = _without_secrets(location)
    return [f"{name}#{i}" for i in range(len(content))], content


def count(location: Location, field: str = "data.train") -> int:
    """Number of rows, from the files' metadata alone.

    Raises:
        DataError: files that cannot be read.
    """
    return sum(_num_rows(file) for file in _find(location, field))


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    field: str
    name: str
    filesystem: pyarrow.fs.FileSystem
    path: str

    def open(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.path, filesystem=self.filesystem)

    def unreadable(self, error: Exception) -> DataError:
        return DataError(self.field, self.name, f"cannot be read as Parquet: {error}", "Check the file")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    """Consecutive rows of one file; `ids` as text or None."""

    file: _File
    first_row: int
    rows: pa.RecordBatch
    ids: pa.StringArray | None

    def name(self, i: int) -> str:
        """What errors call row i of this batch."""
        row = f"row {self.first_row + i} of {self.file.name}"
        return row if self.ids is None else f"{self.ids[i].as_py()} ({row})"

    def column(self, name: str) -> pa.Array:
        """A column in which nothing is null, dictionaries decoded."""
        column = self.rows.column(name)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        return self.without_nulls(column, name)

    def without_nulls(self, column: pa.Array, name: str) -> pa.Array:
        if column.null_count:
            first = pc.index(column.is_null(), True).as_py()
            rule = f"is null in {column.null_count} row(s), first in {self.name(first)}"
            raise DataError(name, "null", rule, "Fill the column, or drop those rows")
        return column

    def wrong_type(self, name: str, kind: pa.DataType, rule: str) -> DataError:
        return DataError(name, str(kind), f"{rule}, in {self.file.name}", "Name another column, or convert this one")


def _find(location: Location, field: str) -> list[_File]:
    parts = [location] if isinstance(location, str) else list(location)
    return [file for part in parts for file in _files(part, field)]


def _files(location: str, field: str) -> list[_File]:
    name = _without_secrets(location)
    try:
        filesystem, path = _resolve(location)
        info = filesystem.get_file_info(path)
        if info.type == pyarrow.fs.FileType.NotFound:
            raise DataError(
                field, name, "does not exist", "Check the path; a relative one starts at the working folder"
            )
        if info.type == pyarrow.fs.FileType.File:
            return [_File(field=field, name=name, filesystem=filesystem, path=path)]
        entries = filesystem.get_file_info(pyarrow.fs.FileSelector(path))
    except (OSError, pa.ArrowException) as error:
        rule = f"cannot be opened: {_without_secrets(str(error))}"
        raise DataError(field, name, rule, "Check the path and the access to it") from None
    found = sorted((e for e in entries if e.is_file and e.base_name.endswith(".parquet")), key=lambda e: e.base_name)
    if not found:
        raise DataError(field, name, "is a folder without *.parquet files", "Name the folder that holds them")
    folder = name.rstrip("/")
    return [_File(field=field, name=f"{folder}/{e.base_name}", filesystem=filesystem, path=e.path) for e in found]


def _without_secrets(text: str) -> str:
    """The text without the key and secret that a URI may carry: they must not reach messages or logs."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def _resolve(location: str) -> tuple[pyarrow.fs.FileSystem, str]:
    if "://" in location:
        filesystem, path = pyarrow.fs.FileSystem.from_uri(location)
        return filesystem, path
    return pyarrow.fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(location))


def _num_rows(file: _File) -> int:
    try:
        with file.open() as parquet:
            return int(parquet.metadata.num_rows)
    except (OSError, pa.ArrowException) as error:
        raise file.unreadable(error) from error


def _read(
    location: Location, columns: Columns, field: str, *, labelled: bool, shape: tuple[int, ...] | None = None
) -> tuple[pa.Table, np.ndarray]:
    """The wanted ones of the columns id, subject and label; and uint8 [N, H, W, C] or float32 [N, D] content.

    A `shape` is that of the content, and images are brought to its channels even where colour is lost.
    """
    files = _find(location, field)
    total = sum(_num_rows(file) for file in files)
    if total == 0:
        raise DataError(field, [file.name for file in files], "holds no samples", "Give files with at least one row")
    exact = shape is None
    content = np.empty(0)
    named: list[pa.Table] = []
    row = 0
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="decode") as pool:
        for batch in _batches(files, columns, labelled=labelled):
            part = _content(batch, columns, shape, pool, exact=exact)
            if not named:
                shape = part.shape[1:]
                content = np.empty((total, *shape), dtype=part.dtype)
            content[row : row + len(part)] = part
            row += len(part)
            named.append(_named(batch, columns, labelled=labelled))
    return pa.concat_tables(named), content


def _named(batch: _Batch, columns: Columns, *, labelled: bool) -> pa.Table:
    """Columns id, subject and label of a batch, those of them that are wanted."""
    named: dict[str, pa.Array] = {}
    if batch.ids is not None:
        named["id"] = batch.ids
    if columns.subject is not None:
        named["subject"] = _text(batch, columns.subject)
    if labelled:
        named["label"] = _labels(batch, columns.label)
    return pa.table(named)


def _batches(files: Sequence[_File], columns: Columns, *, labelled: bool) -> Iterator[_Batch]:
    """Batches with at least one row, of the wanted columns."""
    wanted = _wanted(columns, labelled=labelled)
    for file in files:
        first_row = 0
        try:
            with file.open() as parquet:
                _check_names(file, wanted, parquet.schema_arrow)
                for rows in parquet.iter_batches(BATCH_ROWS, columns=list(dict.fromkeys(wanted.values()))):
                    if rows.num_rows:
                        yield _with_ids(_Batch(file=file, first_row=first_row, rows=rows, ids=None), columns.id)
                        first_row += rows.num_rows
        except (OSError, pa.ArrowException) as error:
            raise file.unreadable(error) from error


def _with_ids(batch: _Batch, column: str | None) -> _Batch:
    if column is None:
        return batch
    return _Batch(file=batch.file, first_row=batch.first_row, rows=batch.rows, ids=_text(batch, column))


def _wanted(columns: Columns, *, labelled: bool) -> dict[str, str]:
    """Column names by the configuration field that names them."""
    wanted: dict[str, str | None] = {"data.columns.id": columns.id, "data.columns.subject": columns.subject}
    if labelled:
        wanted["data.columns.label"] = columns.label
    if columns.features is None:
        wanted["data.columns.image"] = columns.image
    elif not columns.features:
        raise ConfigError("data.columns.features", "()", "must name at least one column", "Leave it out for images")
    else:
        wanted |= {f"data.columns.features[{i}]": name for i, name in enumerate(columns.features)}
    return {field: name for field, name in wanted.items() if name is not None}


def _check_names(file: _File, wanted: dict[str, str], schema: pa.Schema) -> None:
    for field, name in wanted.items():
        if schema.names.count(name) != 1:
            rule = f"must be the name of one column of {file.name}, whose columns are: {', '.join(schema.names)}"
            raise ConfigError(field, name, rule, "Correct the name")


def _text(batch: _Batch, name: str) -> pa.StringArray:
    """A column of ids, as strings; integers become decimal."""
    column = batch.column(name)
    kind = column.type
    if not (pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        raise batch.wrong_type(name, kind, "must be strings or integers")
    return column.cast(pa.string())


def _labels(batch: _Batch, name: str) -> pa.Int64Array:
    """A column of class labels."""
    column = batch.column(name)
    if not pa.types.is_integer(column.type):
        raise batch.wrong_type(name, column.type, "must be integers from 0 to num_classes - 1")
    # Labels too large for int64 wrap to negative ones, which are as much out of range.
    return column.cast(pa.int64(), safe=False)


def _content(
    batch: _Batch, columns: Columns, shape: tuple[int, ...] | None, pool: Executor, *, exact: bool
) -> np.ndarray:
    """uint8 [n, H, W, C] or float32 [n, D]."""
    if columns.features is not None:
        content = _features(batch, columns.features)
    elif isinstance(batch.rows.column(columns.image).type, pa.FixedShapeTensorType):
        content = _tensors(batch, columns.image)
    else:
        return _decoded(batch, columns.image, shape, pool, exact=exact)
    if shape is not None and content.shape[1:] != shape:
        rule = f"has shape {list(content.shape[1:])}, but {list(shape)} is expected"
        raise DataError("image" if columns.features is None else "features", batch.name(0), rule, "Bring all to one")
    return content


def _features(batch: _Batch, names: Sequence[str]) -> np.ndarray:
    """Numeric columns side by side: float32 [n, D]."""
    features = np.empty((batch.rows.num_rows, len(names)), dtype=np.float32)
    for i, name in enumerate(names):
        column = batch.column(name)
        if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
            raise batch.wrong_type(name, column.type, "must be numbers")
        with np.errstate(over="ignore"):  # too large for float32 is infinite, and refused below
            features[:, i] = column.to_numpy(zero_copy_only=False)
        bad = np.flatnonzero(~np.isfinite(features[:, i]))
        if len(bad):
            value = column[int(bad[0])].as_py()
            raise DataError(name, value, f"must be finite as float32, in {batch.name(int(bad[0]))}", "Correct the row")
    return features


def _tensors(batch: _Batch, name: str) -> np.ndarray:
    """A fixed-shape tensor column as images: uint8 [n, H, W, C]."""
    column = batch.column(name)
    if column.type.value_type != pa.uint8() or len(column.type.shape) not in (2, 3):
        raise batch.wrong_type(name, column.type, "must be tensors of uint8, (H, W) or (H, W, C)")
    if column.storage.flatten().null_count:
        raise DataError(name, "null", f"is null within tensors of {batch.file.name}", "Fill them")
    pixels: np.ndarray = column.to_numpy_ndarray()
    return pixels[..., None] if pixels.ndim == 3 else pixels


def _decoded(batch: _Batch, name: str, shape: tuple[int, ...] | None, pool: Executor, *, exact: bool) -> np.ndarray:
    """A column of encoded images: uint8 [n, H, W, C]."""
    column = batch.column(name)
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = batch.without_nulls(column.field("bytes"), f"{name}.bytes")
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        raise batch.wrong_type(name, column.type, "must be struct{bytes, path}, binary or a fixed-shape tensor")
    if shape is not None and len(shape) != 3:
        raise DataError("image", batch.name(0), f"is an image, but {list(shape)} is expected", "Give feature vectors")
    # The first image decides what the others must be.
    wanted = shape if shape is not None else images.decode(column[0].as_py(), batch.name(0)).shape
    decoded = np.empty((len(column), *wanted), dtype=np.uint8)

    def decode(i: int) -> None:
        decoded[i] = images.decode(column[i].as_py(), batch.name(i), wanted, exact=exact)

    for _ in pool.map(decode, range(len(column))):
        pass
    return decoded


def _content_ids(content: np.ndarray, labels: np.ndarray) -> list[str]:
    """Ids of samples that have none: see `read`."""
    seen: Counter[str] = Counter()
    ids = []
    for record, label in zip(content, labels.tolist(), strict=True):
        head = canonical_json([label, str(record.dtype), list(record.shape)])
        digest = digest_bytes(head, np.ascontiguousarray(record).tobytes())[:32]
        seen[digest] += 1
        ids.append(digest if seen[digest] == 1 else f"{digest}#{seen[digest]}")
    message = "No id column: %d samples are named by a digest of their content; %d repeat an earlier one"
    logger.info(message, len(ids), len(ids) - len(seen))
    return ids
