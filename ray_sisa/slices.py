"""Slice objects: the samples of one (shard, slice) as they are live, in Arrow IPC files named by their digest."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_sisa.errors import StoreError
from ray_sisa.index import ShardIndex, digest_rows, one_chunk, slice_digest, table_from_bytes, table_to_bytes
from ray_sisa.layout import slice_object, test_object
from ray_sisa.samples import Samples
from ray_sisa.store import Store

TAMPERED = "Its content was changed after it was written. Restore it from a backup, then run unlearn"

_KINDS = {"sample_id": pa.string(), "subject_id": pa.string(), "label": pa.int64()}
_RECORDS = {(pa.uint8(), 3), (pa.float32(), 1)}  # type and number of axes


def slice_to_bytes(samples: Samples) -> bytes:
    """The samples of a slice (at least one) as an Arrow IPC file."""
    images = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(samples.images))
    columns = {"sample_id": samples.ids, "subject_id": samples.subjects, "label": samples.labels, "image": images}
    return table_to_bytes(pa.table(columns))


def slice_from_bytes(data: bytes, where: str) -> Samples:
    """The samples in a slice object named `where`; arrays share the memory of `data`.

    Raises:
        StoreError: the bytes are not a slice object.
    """
    table = table_from_bytes(data, where)
    try:
        kinds = {name: table.schema.field(name).type for name in table.schema.names}
        image = kinds.pop("image")
        if kinds != _KINDS or any(column.null_count for column in table.columns):
            raise ValueError(f"it has the columns {table.schema.names[:5]}, or nulls")
        images = one_chunk(table["image"])
        if (image.value_type, len(image.shape)) not in _RECORDS or images.storage.flatten().null_count:
            raise ValueError("its records are neither images of uint8 nor vectors of float32")
        return Samples(
            ids=one_chunk(table["sample_id"]),
            subjects=one_chunk(table["subject_id"]),
            images=images.to_numpy_ndarray(),
            labels=table["label"].to_numpy(),
        )
    except (LookupError, AttributeError, ValueError, TypeError, NotImplementedError, pa.ArrowException) as error:
        raise StoreError(where, str(error), "is not a slice object", TAMPERED) from None


def digest_of_slice(samples: Samples) -> str | None:
    """The digest that the samples of a slice have, recomputed from ids, labels and pixels."""
    return slice_digest(digest_rows(samples), samples.shape)


def sort_by_id(samples: Samples) -> Samples:
    """The samples in the one order that counts: by id."""
    return samples.take(_order_by_id(samples.ids))


def order_in_shard(ids: pa.StringArray, slices: np.ndarray) -> np.ndarray:
    """Rows of a shard by slice, then by id, int64 [n]: the order of its index.

    Args:
        ids: of the n samples of the shard, unique.
        slices: slice of each, int32 [n].
    """
    by_id = _order_by_id(ids)
    order: np.ndarray = by_id[np.argsort(slices[by_id], kind="stable")]
    return order


def _order_by_id(ids: pa.StringArray) -> np.ndarray:
    # Arrow compares the bytes of UTF-8, whose order is that of code points: as Python compares strings.
    order: np.ndarray = pc.sort_indices(ids).to_numpy().astype(np.int64)
    return order


def index_shard(samples: Samples, slices: np.ndarray) -> tuple[ShardIndex, Samples]:
    """The index of a shard and its samples in the order of the index.

    Args:
        samples: the n samples of the shard, in any order.
        slices: slice of each, int32 [n], from 1.
    """
    order = order_in_shard(samples.ids, slices)
    ordered = samples.take(order)
    index = ShardIndex(
        slices=slices[order].astype(np.int32),
        ids=ordered.ids,
        subjects=ordered.subjects,
        row_digests=digest_rows(ordered),
    )
    return index, ordered


def read_slice(store: Store, digest: str) -> Samples:
    """The samples of a slice, checked against its name.

    Raises:
        StoreError: the object is absent or changed.
    """
    return _read(store, slice_object(digest), digest)


def read_test(store: Store, digest: str) -> Samples:
    """The test set, checked against its name.

    Raises:
        StoreError: the object is absent or changed.
    """
    return _read(store, test_object(digest), digest)


def _read(store: Store, path: str, digest: str) -> Samples:
    return samples_in(store.get(path), store.where(path), digest)


def samples_in(data: bytes, where: str, digest: str) -> Samples:
    """The samples in a slice object or test set named `where`, checked against their digest.

    Raises:
        StoreError: the bytes are no such object, or hold other samples.
    """
    samples = slice_from_bytes(data, where)
    if digest_of_slice(samples) != digest:
        raise StoreError(where, "", "does not hold the samples that it is named after", TAMPERED)
    return samples
