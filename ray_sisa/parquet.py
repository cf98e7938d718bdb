"""Parquet files, local or in an object store, read as samples.

Owns which columns and types are understood and how rows without an id are named. Reads batch by batch into one
preallocated array, after it has seen that the array fits; never computes a statistic of the data.
"""

from __future__ import annotations

import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs

from ray_sisa import ids, memory
from ray_sisa.config import Columns
from ray_sisa.data_config import Exif
from ray_sisa.digests import canonical_json, digest_bytes
from ray_sisa.errors import ConfigError, DataError
from ray_sisa.foreign_text import redacted
from ray_sisa.image_form import Form
from ray_sisa.parquet_files import (
    BATCH_ROWS,
    UNREADABLE,
    File,
    check_names,
    check_types,
    is_tensor,
    rows_at_a_time,
)
from ray_sisa.parquet_sources import Location, find
from ray_sisa.samples import Samples, make_samples

logger = logging.getLogger(__name__)

ANY = Form()  # what all samples share, whatever it is
ROW_OVERHEAD = 200  # bytes that id, subject and label of a sample take at the height of reading
MAX_COLUMN = (1 << 31) - 1  # bytes of all ids, or of all subjects: what Arrow's strings can number


def read(location: Location, columns: Columns, field: str = "data.train", form: Form = ANY) -> Samples:
    """All samples of Parquet files, in the order of files (`parquet_sources.find`) and rows, images in one form.

    Without an id column the id is the BLAKE2b-256 digest of label and content, cut to 16 bytes, in hexadecimal; the
    second and later of identical samples get the suffix "#2", "#3", ... The order of rows decides nothing but which
    of identical samples has which suffix.

    Raises:
        ConfigError: columns that are not there.
        DataError: files that cannot be read, without rows, or with values of another kind than named in `Columns`.
    """
    samples, _ = read_with_probabilities(
        location, columns.model_copy(update={"deletion_probability": None}), field, form
    )
    return samples


def read_with_probabilities(
    location: Location, columns: Columns, field: str = "data.train", form: Form = ANY
) -> tuple[Samples, np.ndarray | None]:
    """As `read`, and the deletion probability that stands at each sample: float64 [N], or None without the column.

    Raises:
        ConfigError: as `read`.
        DataError: as `read`, and for probabilities that are null or outside 0..1.
    """
    named, content = _read(location, columns, field, form, labelled=True)
    labels = named["label"].to_numpy()
    samples = make_samples(
        ids=_joined(named, "id") if columns.id is not None else _content_ids(content, labels),
        subjects=_joined(named, "subject") if columns.subject is not None else None,
        images=content,
        labels=labels,
    )
    return samples, named["probability"].to_numpy() if columns.deletion_probability is not None else None


def read_inputs(
    location: str, columns: Columns, shape: tuple[int, ...], exif: Exif | None = None
) -> tuple[list[str], np.ndarray]:
    """Names (ids, or "FILE#row") and content of rows to predict; labels and subjects are not looked at.

    Images become grey or RGB as `shape` (H, W, C) says.

    Raises:
        ConfigError, DataError: as `read`, and for content of another shape.
    """
    unlabelled = columns.model_copy(update={"subject": None, "deletion_probability": None})
    named, content = _read(location, unlabelled, "inputs", Form.of_run(shape, exif), labelled=False, shape=shape)
    if columns.id is not None:
        return named["id"].to_pylist(), content
    name = redacted(location)
    return [f"{name}#{i}" for i in range(len(content))], content


def count(location: Location, field: str = "data.train") -> int:
    """Number of rows, from the files' metadata alone.

    Raises:
        DataError: files that cannot be read.
    """
    return sum(file.num_rows() for file in find(location, field))


def first_row(location: Location, columns: Columns, field: str = "data.train") -> pa.Table:
    """The first row, of the columns that `read` takes: it says all that is fixed for every sample.

    Raises:
        ConfigError, DataError: as `read`.
    """
    files = find(location, field)
    for batch in _batches(files, columns, labelled=True, num_rows=1):
        return pa.Table.from_batches([batch.rows])
    raise _no_samples(files, field)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    """Consecutive rows of one file; `ids` as text or None."""

    file: File
    first_row: int
    rows: pa.RecordBatch
    ids: pa.StringArray | None

    def name(self, i: int) -> str:
        """What errors call row i of this batch."""
        row = f"row {self.first_row + i} of {self.file.name}"
        return row if self.ids is None else f"{ids.shown(self.ids[i].as_py())} ({row})"

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


def _no_samples(files: Sequence[File], field: str) -> DataError:
    return DataError(field, [file.name for file in files], "holds no samples", "Give files with at least one row")


def _read(
    location: Location,
    columns: Columns,
    field: str,
    form: Form,
    *,
    labelled: bool,
    shape: tuple[int, ...] | None = None,
) -> tuple[pa.Table, np.ndarray]:
    """The wanted columns of id, subject, label and probability; and uint8 [N, H, W, C] or float32 [N, D] content.

    A `shape` is what the content must have; without one it follows from the form.
    """
    files = find(location, field)
    total = sum(file.num_rows() for file in files)
    if total == 0:
        raise _no_samples(files, field)
    content = np.empty(0)
    named: list[pa.Table] = []
    row = 0
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="decode") as pool:
        for batch in _batches(files, columns, labelled=labelled):
            if shape is None:
                shape = _shape(batch, columns, form)
            if not named:
                content = _empty(field, total, shape)
            if row + batch.rows.num_rows > total:
                raise batch.file.unreadable(ValueError("it has more rows than it says"), batch.first_row)
            content[row : row + batch.rows.num_rows] = _content(batch, columns, shape, pool, form)
            row += batch.rows.num_rows
            named.append(_named(batch, columns, labelled=labelled))
    if row != total:
        rule = f"has {row} rows and says that it has {total}"
        raise DataError(field, [file.name for file in files], rule, "Check the files")
    return pa.concat_tables(named), content


def _empty(field: str, total: int, shape: tuple[int, ...]) -> np.ndarray:
    """An array for so many samples, uint8 for images and float32 for features, if memory can hold it."""
    dtype = np.dtype(np.uint8 if len(shape) == 3 else np.float32)
    needed = (total + min(total, BATCH_ROWS)) * math.prod(shape) * dtype.itemsize + total * ROW_OVERHEAD
    available = memory.limit()
    if needed > available:
        rule = f"would take {needed / 1e9:,.1f} GB of memory, and this process may have {available / 1e9:,.1f} GB"
        raise DataError(field, f"{total} samples of shape {list(shape)}", rule, "Use less data or a larger machine")
    return np.empty((total, *shape), dtype)


def _shape(batch: _Batch, columns: Columns, form: Form) -> tuple[int, ...]:
    """Shape of all samples: as the form says; what it leaves open they share, so that any of them tells."""
    if columns.features is not None:
        return (len(columns.features),)
    kind = batch.rows.schema.field(columns.image).type
    if is_tensor(kind):
        return form.shape(lambda: (*kind.shape, 1)[:3])
    return form.shape(lambda: form.decode(_encoded(batch, columns.image)[0].as_py(), batch.name(0)).shape)


def _joined(named: pa.Table, name: str) -> pa.StringArray:
    """A column of text as one array."""
    size = sum(pc.sum(pc.binary_length(chunk)).as_py() or 0 for chunk in named[name].chunks)
    if size > MAX_COLUMN:
        raise DataError(name, f"{size} bytes", f"must be at most {MAX_COLUMN} bytes in all", "Use shorter ones")
    return named[name].combine_chunks()


def _named(batch: _Batch, columns: Columns, *, labelled: bool) -> pa.Table:
    """Columns id, subject, label and probability of a batch, those of them that are wanted."""
    named: dict[str, pa.Array] = {}
    if batch.ids is not None:
        named["id"] = batch.ids
    if columns.subject is not None:
        named["subject"] = _text(batch, columns.subject)
    if labelled:
        named["label"] = _labels(batch, columns.label)
    if columns.deletion_probability is not None:
        named["probability"] = _probabilities(batch, columns.deletion_probability)
    return pa.table(named)


def _batches(
    files: Sequence[File], columns: Columns, *, labelled: bool, num_rows: int = BATCH_ROWS
) -> Iterator[_Batch]:
    """Batches with at least one row, of the wanted columns."""
    wanted = _wanted(columns, labelled=labelled)
    names = list(dict.fromkeys(wanted.values()))
    as_text = [name for name in (columns.id, columns.subject) if name is not None]
    for file in files:
        first_row = 0
        try:
            with file.open() as parquet:
                within = parquet.schema_arrow
                keys = {key: value for key, value in file.keys(as_text).items() if key not in within.names}
                schema = pa.schema([*within, *(pa.field(key, value.type) for key, value in keys.items())])
                check_names(file, wanted, schema)
                check_types(file, columns, schema, labelled=labelled)
                size = min(num_rows, rows_at_a_time(file, schema, names))
                for rows in parquet.iter_batches(size, columns=[name for name in names if name not in keys]):
                    if rows.num_rows:
                        rows.validate(full=True)  # Arrow trusts offsets and text that it reads
                        for key in filter(keys.__contains__, names):
                            rows = rows.append_column(key, pa.repeat(keys[key], rows.num_rows))
                        yield _with_ids(_Batch(file=file, first_row=first_row, rows=rows, ids=None), columns.id)
                        first_row += rows.num_rows
        except UNREADABLE as error:
            raise file.unreadable(error, first_row) from error


def _with_ids(batch: _Batch, column: str | None) -> _Batch:
    if column is None:
        return batch
    return _Batch(file=batch.file, first_row=batch.first_row, rows=batch.rows, ids=_text(batch, column))


def _wanted(columns: Columns, *, labelled: bool) -> dict[str, str]:
    """Column names by the configuration field that names them."""
    wanted: dict[str, str | None] = {
        "data.columns.id": columns.id,
        "data.columns.subject": columns.subject,
        "data.columns.deletion_probability": columns.deletion_probability,
    }
    if labelled:
        wanted["data.columns.label"] = columns.label
    if columns.features is None:
        wanted["data.columns.image"] = columns.image
    elif not columns.features:
        raise ConfigError("data.columns.features", "()", "must name at least one column", "Leave it out for images")
    else:
        wanted |= {f"data.columns.features[{i}]": name for i, name in enumerate(columns.features)}
    return {field: name for field, name in wanted.items() if name is not None}


def _text(batch: _Batch, name: str) -> pa.StringArray:
    """A column of ids, as strings; integers become decimal."""
    column = batch.column(name)
    if not pa.types.is_integer(column.type):
        sizes = pc.binary_length(column)
        longest = pc.max(sizes).as_py()
        if longest > ids.MAX_BYTES:
            where = batch.name(pc.index(sizes, longest).as_py())
            raise DataError(name, f"{longest} bytes", f"must be at most {ids.MAX_BYTES}, in {where}", "Shorten it")
    return column.cast(pa.string())


def _labels(batch: _Batch, name: str) -> pa.Int64Array:
    """A column of class labels."""
    # Labels too large for int64 wrap to negative ones, which are as much out of range.
    return batch.column(name).cast(pa.int64(), safe=False)


def _probabilities(batch: _Batch, name: str) -> pa.DoubleArray:
    """A column of deletion probabilities."""
    values = batch.column(name).cast(pa.float64())
    within = values.to_numpy()
    bad = np.flatnonzero(~((within >= 0) & (within <= 1)))  # NaN is neither
    if len(bad):
        first = int(bad[0])
        rule = f"must be from 0 to 1, in {batch.name(first)}; {len(bad)} of {len(within)} rows there are not"
        raise DataError(name, float(within[first]), rule, "Correct the column")
    return values


def _content(batch: _Batch, columns: Columns, shape: tuple[int, ...], pool: Executor, form: Form) -> np.ndarray:
    """uint8 [n, H, W, C] or float32 [n, D]."""
    if columns.features is not None:
        content = _features(batch, columns.features)
    elif is_tensor(batch.rows.schema.field(columns.image).type):
        content = _tensors(batch, columns.image)
        content = form.bring(content, batch.name, shape) if len(shape) == 3 else content
    else:
        return _decoded(batch, columns.image, shape, pool, form)
    if content.shape[1:] != shape:
        rule = f"has shape {list(content.shape[1:])}, but {list(shape)} is expected"
        raise DataError("image" if columns.features is None else "features", batch.name(0), rule, "Bring all to one")
    return content


def _features(batch: _Batch, names: Sequence[str]) -> np.ndarray:
    """Numeric columns side by side: float32 [n, D]."""
    features = np.empty((batch.rows.num_rows, len(names)), dtype=np.float32)
    for i, name in enumerate(names):
        column = batch.column(name)
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
    if column.storage.flatten().null_count:
        raise DataError(name, "null", f"is null within tensors of {batch.file.name}", "Fill them")
    pixels: np.ndarray = column.to_numpy_ndarray()
    return pixels[..., None] if pixels.ndim == 3 else pixels


def _encoded(batch: _Batch, name: str) -> pa.Array:
    """A column of encoded images: binary."""
    column = batch.column(name)
    if pa.types.is_struct(column.type):
        column = batch.without_nulls(column.field("bytes"), f"{name}.bytes")
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _decoded(batch: _Batch, name: str, shape: tuple[int, ...], pool: Executor, form: Form) -> np.ndarray:
    """A column of encoded images: uint8 [n, H, W, C]."""
    column = _encoded(batch, name)
    if len(shape) != 3:
        raise DataError("image", batch.name(0), f"is an image, but {list(shape)} is expected", "Give feature vectors")
    decoded = np.empty((len(column), *shape), dtype=np.uint8)

    def put(i: int) -> None:
        decoded[i] = form.decode(column[i].as_py(), batch.name(i), shape)

    for _ in pool.map(put, range(len(column))):
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
