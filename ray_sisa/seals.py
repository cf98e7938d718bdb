"""Seals: what the bytes of a slice object or test set are, to the last one.

Such an object is named by the samples in it, so its name says nothing of what lies between the buffers of an Arrow
file. Its seal does. It is written after the object, and goes after it; an object without one is sealed as it is found.
"""

from __future__ import annotations

from collections.abc import Iterable

from ray_sisa.digests import digest_bytes
from ray_sisa.errors import StoreError
from ray_sisa.layout import samples_of, seal_of
from ray_sisa.records import SealRecord
from ray_sisa.slices import samples_in, slice_to_bytes
from ray_sisa.store import Store


def put_sealed(store: Store, path: str, data: bytes) -> None:
    """Writes a slice object or test set, and then its seal."""
    store.put(path, data)
    record = SealRecord(object=path, digest=digest_bytes(data))
    store.put(record.path, record.to_bytes())


def add_missing(store: Store, paths: Iterable[str], present: Iterable[str]) -> None:
    """Seals those of these objects that have no seal; a damaged one is left to whoever needs it, and to a check."""
    there = set(present)
    for path in sorted(paths):
        if seal_of(path) in there:
            continue
        try:
            data = store.get(path)
            samples_in(data, store.where(path), samples_of(path))
        except StoreError:
            continue
        record = SealRecord(object=path, digest=digest_bytes(data))
        store.put(record.path, record.to_bytes())


def write_anew(store: Store, path: str) -> None:
    """Writes an object from what is read of it, with its seal.

    Raises:
        StoreError: it does not hold the samples that it is named after.
    """
    put_sealed(store, path, slice_to_bytes(samples_in(store.get(path), store.where(path), samples_of(path))))
