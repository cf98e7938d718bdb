"""One Parquet file, judged by what it declares before a value of it is read.

Parquet is compressed and names repeated values once, so a few bytes can be gigabytes: how much is read at a time
follows from what the file declares. Which files there are is for `parquet_sources`, their values are for `parquet`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq

from ray_sisa import memory, thrift
from ray_sisa.config import Columns
from ray_sisa.errors import ConfigError, DataError
from ray_sisa.foreign_text import redacted

BATCH_ROWS = 1024
BATCH_BYTES = 1 << 27  # of one column in a batch, where what the file declares tells

UNREADABLE = (
    OSError,
    pa.ArrowException,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
    MemoryError,
)
"""What reading a damaged file raises: a footer may hold any value where another kind is expected."""

# Of parquet.thrift: numbers of types, encodings, kinds of pages and fields.
_BYTE_ARRAY = 6
_DICTIONARIES = {2, 8}
_DICTIONARY_PAGE = 2
_ROW_GROUPS, _COLUMNS, _META_DATA = 4, 1, 3  # one inside the other
_TYPE, _ENCODINGS, _PATH, _SIZE, _DATA_PAGE, _FIRST_PAGE = 1, 2, 3, 6, 9, 11  # of a column chunk
_PAGE_KIND, _PAGE_SIZE = 1, 2

_PAGE_HEADER = 4096  # bytes; those of a dictionary are short, of others they hold the least and greatest value
_TAIL = 8  # size of the footer and "PAR1"
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # what writers of such folders put for a null
_TENSOR_BYTES = 8  # to read one value of a tensor: Parquet holds it as 32 bits and two levels of 16


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """One Parquet file; `field` of the configuration named it, `name` is what errors call it."""

    field: str
    name: str
    filesystem: pyarrow.fs.FileSystem
    path: str

    def open(self) -> pq.ParquetFile:
        """The file, its footer read."""
        return pq.ParquetFile(self.path, filesystem=self.filesystem, page_checksum_verification=True)

    def keys(self, names: Sequence[str]) -> dict[str, pa.Scalar]:
        """What folders KEY=VALUE on the way to the file say: the innermost where a key stands twice.

        Args:
            names: keys whose values are names, and stay as they are written; others are numbers where they can be.
        """
        parts = (part.partition("=") for part in self.path.split("/")[:-1])
        found = {unquote(key): unquote(value) for key, equals, value in parts if equals and key}
        return {key: _scalar(value, is_name=key in names) for key, value in found.items()}

    def column_names(self) -> list[str]:
        """Names of the columns that the footer declares, and of those that folders KEY=VALUE add."""
        try:
            with self.open() as parquet:
                return list(dict.fromkeys([*parquet.schema_arrow.names, *self.keys(())]))
        except UNREADABLE as error:
            raise self.unreadable(error) from error

    def num_rows(self) -> int:
        """Number of rows that the footer declares."""
        try:
            with self.open() as parquet:
                count = int(parquet.metadata.num_rows)
        except UNREADABLE as error:
            raise self.unreadable(error) from error
        if count < 0:
            raise self.unreadable(ValueError(f"it declares {count} rows"))
        return count

    def unreadable(self, error: Exception, first_row: int | None = None) -> DataError:
        """The error to raise where reading, from a row on, raised this one."""
        at = "" if first_row is None else f" in the rows from {first_row} on"
        reason = redacted(str(error))[:300]
        return DataError(self.field, self.name, f"cannot be read as Parquet{at}: {reason}", "Check the file")


def check_names(file: File, wanted: Mapping[str, str], schema: pa.Schema) -> None:
    """Refuses a file without one of the wanted columns, by the configuration field that names it."""
    for field, name in wanted.items():
        if schema.names.count(name) != 1:
            rule = f"must be the name of one column of {file.name}, whose columns are: {', '.join(schema.names)[:1000]}"
            raise ConfigError(field, name, rule, "Correct the name")


def check_types(file: File, columns: Columns, schema: pa.Schema, *, labelled: bool) -> None:
    """Refuses columns of types that are not understood, whatever they hold."""

    def check(name: str, is_right: Callable[[pa.DataType], bool], rule: str) -> None:
        kind = schema.field(name).type
        if not is_right(kind):
            remedy = "Name another column, or convert this one"
            raise DataError(name, str(kind)[:200], f"must be {rule}, in {file.name}", remedy)

    for name in filter(None, (columns.id, columns.subject)):
        check(name, _is_id, "strings or integers")
    if labelled:
        check(columns.label, _is_integer, "integers from 0 to num_classes - 1")
    if columns.deletion_probability is not None:
        check(columns.deletion_probability, _is_floating, "floating-point numbers from 0 to 1")
    for name in columns.features or ():
        check(name, _is_number, "numbers")
    if columns.features is None and is_tensor(schema.field(columns.image).type):
        check(columns.image, _is_image_tensor, "tensors of uint8, (H, W) or (H, W, C)")
    elif columns.features is None:
        check(columns.image, _is_encoded_image, "struct{bytes, path}, binary or a fixed-shape tensor")


def rows_at_a_time(file: File, schema: pa.Schema, names: Sequence[str]) -> int:
    """How many rows of the named columns to read at once, so that no column of them takes much more than a batch may.

    Raises:
        DataError: a row group that memory cannot hold.
    """
    kinds = [schema.field(name).type for name in names]
    row_bytes: list[int] = [_TENSOR_BYTES * math.prod(kind.shape) for kind in kinds if is_tensor(kind)]
    with file.filesystem.open_input_file(file.path) as raw:
        for chunk in _chunks(raw):
            name = chunk[_PATH][0].decode()
            if name not in names:
                continue
            if not 0 <= chunk[_SIZE] <= memory.limit():
                rule = f"declares {chunk[_SIZE]} bytes in a row group, more than memory holds"
                raise DataError(name, file.name, rule, "Write smaller row groups")
            row_bytes.append(_repeated_bytes(chunk, raw))
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max([1, *row_bytes])))


def is_tensor(kind: pa.DataType) -> bool:
    """Whether this is Arrow's fixed-shape tensor."""
    return isinstance(kind, pa.FixedShapeTensorType)


def decoded_type(kind: pa.DataType) -> pa.DataType:
    """The type of the values of a column, which may be a dictionary of them."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _scalar(text: str, *, is_name: bool) -> pa.Scalar:
    """The value that a folder's name gives to a column."""
    if text == _NO_VALUE:
        return pa.scalar(None, pa.string() if is_name else pa.int64())
    if not is_name and re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        return pa.scalar(int(text), pa.int64())
    if not is_name and re.fullmatch(r"[+-]?[0-9]*\.?[0-9]+([eE][+-]?[0-9]+)?", text):
        return pa.scalar(float(text), pa.float64())
    return pa.scalar(text, pa.string())


def _chunks(raw: pa.NativeFile) -> list[thrift.Struct]:
    """The column chunks that the footer describes, by its own field numbers."""
    end = raw.size() - _TAIL
    size = int.from_bytes(raw.read_at(4, end), "little")
    footer = thrift.parse(raw.read_at(size, end - size))
    return [chunk[_META_DATA] for group in footer[_ROW_GROUPS] for chunk in group[_COLUMNS]]


def _repeated_bytes(chunk: thrift.Struct, raw: pa.NativeFile) -> int:
    """The most bytes that one row can repeat: those of the dictionary of a column of texts or images."""
    declared = int(chunk[_SIZE])
    if chunk[_TYPE] != _BYTE_ARRAY or declared <= BATCH_BYTES // BATCH_ROWS:
        return 0
    first = min(start for start in (chunk[_DATA_PAGE], chunk.get(_FIRST_PAGE, 0)) if start > 0)
    try:
        page = thrift.parse(raw.read_at(_PAGE_HEADER, first))
    except ValueError:  # statistics that are longer than this
        page = {}
    if page.get(_PAGE_KIND) == _DICTIONARY_PAGE:
        return int(page[_PAGE_SIZE])
    return declared if _FIRST_PAGE in chunk or _DICTIONARIES & set(chunk[_ENCODINGS]) else 0


def _is_integer(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(decoded_type(kind)))


def _is_id(kind: pa.DataType) -> bool:
    kind = decoded_type(kind)
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(kind: pa.DataType) -> bool:
    kind = decoded_type(kind)
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _is_floating(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(decoded_type(kind)))


def _is_image_tensor(kind: pa.DataType) -> bool:
    return kind.value_type == pa.uint8() and len(kind.shape) in (2, 3)


def _is_encoded_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    kind = decoded_type(kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
