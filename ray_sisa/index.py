"""Who is in a shard: ids, subjects and row digests by slice, written once at ingest.

From the index and the ledger alone follows the digest of every slice as it is live, so that names can be computed
without reading, or still having, any sample.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Set
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_sisa.digests import canonical_json, digest_bytes
from ray_sisa.errors import StoreError
from ray_sisa.samples import Samples

ROW_BYTES = 32
_MAGIC = b"ARROW1"
SCHEMA = pa.schema(
    {"slice": pa.int32(), "sample_id": pa.string(), "subject_id": pa.string(), "row_digest": pa.binary(ROW_BYTES)}
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceSummary:
    """A slice as it is live: its digest, or None where no sample is left, and how many samples it has."""

    digest: str | None
    num_samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardIndex:
    """The n samples that one shard was given, sorted by slice, then by sample id.

    Attributes:
        slices: int32 [n], from 1.
        ids: string [n].
        subjects: string [n].
        row_digests: uint8 [n, 32].
    """

    slices: np.ndarray
    ids: pa.StringArray
    subjects: pa.StringArray
    row_digests: np.ndarray

    def without(self, deleted: Set[str]) -> ShardIndex:
        """The index less the samples with the ids in `deleted`."""
        if not deleted:
            return self
        keep = pc.invert(pc.is_in(self.ids, pa.array(sorted(deleted), pa.string())))
        rows = keep.to_numpy(zero_copy_only=False)
        return ShardIndex(
            slices=self.slices[rows],
            ids=self.ids.filter(keep),
            subjects=self.subjects.filter(keep),
            row_digests=self.row_digests[rows],
        )

    def summaries(self, num_slices: int, shape: tuple[int, ...]) -> tuple[SliceSummary, ...]:
        """Digest and size of each slice 1..R."""
        edges = np.searchsorted(self.slices, np.arange(1, num_slices + 2))
        return tuple(
            SliceSummary(digest=slice_digest(self.row_digests[a:b], shape), num_samples=int(b - a))
            for a, b in itertools.pairwise(edges)
        )

    def sample_ids(self, slice_number: int) -> list[str]:
        """Ids of the samples of one slice, sorted."""
        first, end = np.searchsorted(self.slices, [slice_number, slice_number + 1])
        ids: list[str] = self.ids.slice(first, end - first).to_pylist()
        return ids


def slice_digest(row_digests: np.ndarray, shape: tuple[int, ...]) -> str | None:
    """Digest of a slice from the digests of its rows (uint8 [n, 32], in the order of their ids); None if empty."""
    if not len(row_digests):
        return None
    head = canonical_json(["slice", list(shape), len(row_digests)])
    return digest_bytes(head, np.ascontiguousarray(row_digests).tobytes())


def digest_rows(samples: Samples) -> np.ndarray:
    """Digest of each record, uint8 [N, 32]: id, label and pixels (whose it is changes no weights)."""
    digests = bytearray()
    pixels = np.ascontiguousarray(samples.images).reshape(len(samples), math.prod(samples.shape)).view(np.uint8)
    for name, label, row in zip(samples.ids.to_pylist(), samples.labels.tolist(), pixels, strict=True):
        digests += blake2b(canonical_json([name, label]) + row.tobytes(), digest_size=ROW_BYTES).digest()
    return np.frombuffer(digests, dtype=np.uint8).reshape(-1, ROW_BYTES)


def index_to_bytes(index: ShardIndex) -> bytes:
    """The index as an Arrow IPC file."""
    rows = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(ROW_BYTES), len(index.slices), [None, pa.py_buffer(np.ascontiguousarray(index.row_digests))]
    )
    columns = {"slice": index.slices, "sample_id": index.ids, "subject_id": index.subjects, "row_digest": rows}
    return table_to_bytes(pa.table(columns))


def index_from_bytes(data: bytes, where: str) -> ShardIndex:
    """The index in an Arrow IPC file named `where`.

    Raises:
        StoreError: the bytes are not an index.
    """
    table = table_from_bytes(data, where)
    try:
        if table.schema != SCHEMA or any(column.null_count for column in table.columns):
            raise ValueError(f"it has the columns {table.schema.names[:5]}, or nulls")
        digests = table["row_digest"].combine_chunks()
        buffer = digests.buffers()[1]
        rows = np.frombuffer(buffer, dtype=np.uint8)[: len(table) * ROW_BYTES] if len(table) else np.empty(0, np.uint8)
        return ShardIndex(
            slices=table["slice"].to_numpy(),
            ids=one_chunk(table["sample_id"]),
            subjects=one_chunk(table["subject_id"]),
            row_digests=rows.reshape(-1, ROW_BYTES),
        )
    except (LookupError, ValueError, TypeError, pa.ArrowException) as error:
        raise StoreError(where, str(error), "is not the index of a shard", "Restore it from a backup") from None


def table_to_bytes(table: pa.Table) -> bytes:
    """A table as an Arrow IPC file in one batch, so that its bytes are a function of its content."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    data: bytes = sink.getvalue().to_pybytes()
    return data


def table_from_bytes(data: bytes, where: str) -> pa.Table:
    """The table in an Arrow IPC file named `where` as `table_to_bytes` writes it, on the memory of `data`.

    Raises:
        StoreError: the bytes are not such a file. It is refused before it takes more memory than its own bytes:
            compressed, in several batches, or of types that are not plain.
    """
    try:
        table = _plain_table(data)
        # Arrow trusts offsets: unchecked, a damaged one reads memory that is not the file's.
        table.validate(full=True)
        return table
    except (pa.ArrowException, OSError, ValueError, TypeError, NotImplementedError, LookupError, struct.error) as error:
        raise StoreError(where, str(error)[:200], "is not a valid Arrow file", "Restore it from a backup") from None


def _plain_table(data: bytes) -> pa.Table:
    if not (data.startswith(_MAGIC) and data.endswith(_MAGIC)):
        raise ValueError("it does not begin and end as an Arrow file")
    # Message by message, since the footer of a file may name a batch any number of times.
    messages = list(itertools.islice(pa.ipc.MessageReader.open_stream(pa.py_buffer(data)[8:]), 3))
    if [message.type for message in messages] not in (["schema"], ["schema", "record batch"]):
        raise ValueError("it holds more than one batch of rows")
    schema = pa.ipc.read_schema(messages[0])
    strange = [field.name for field in schema if not _is_plain(field.type)]
    if strange:
        raise TypeError(f"its columns {strange[:5]} have types that are not expected")
    if any(_is_compressed(message.metadata.to_pybytes()) for message in messages[1:]):
        raise ValueError("it is compressed")
    return pa.Table.from_batches([pa.ipc.read_record_batch(message, schema) for message in messages[1:]], schema)


def _is_plain(kind: pa.DataType) -> bool:
    tensor = isinstance(kind, pa.FixedShapeTensorType) and kind.value_type in (pa.uint8(), pa.float32())
    return tensor or kind in (pa.int32(), pa.int64(), pa.string(), pa.binary(ROW_BYTES))


def _is_compressed(metadata: bytes) -> bool:
    """Whether the body of a record batch is compressed, from its flatbuffer (Message.fbs of the Arrow format)."""
    (message,) = struct.unpack_from("<I", metadata)
    header = _flatbuffer_field(metadata, message, 2)
    if header is None:
        raise ValueError("a message has no header")
    batch = header + struct.unpack_from("<I", metadata, header)[0]
    return _flatbuffer_field(metadata, batch, 3) is not None


def _flatbuffer_field(metadata: bytes, table: int, number: int) -> int | None:
    """Where field `number` of the flatbuffer table at `table` lies, or None where it is left out."""
    slots = table - struct.unpack_from("<i", metadata, table)[0]
    slot = 4 + 2 * number
    if slot >= struct.unpack_from("<H", metadata, slots)[0]:
        return None
    (offset,) = struct.unpack_from("<H", metadata, slots + slot)
    return table + offset if offset else None


def one_chunk(column: pa.ChunkedArray) -> pa.Array:
    """A column as one array."""
    merged = column.combine_chunks()
    return merged.chunk(0) if isinstance(merged, pa.ChunkedArray) and merged.num_chunks else merged
