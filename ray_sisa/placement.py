"""The function subject -> (shard, slice), fixed for the life of a run: pure, no storage.

A place is numbered `shard * R + (slice - 1)`, shards from 0 and slices from 1.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_sisa.config import PlacementConfig

BATCH = 1 << 18  # subjects turned into Python strings at a time, to bound memory


def place(config: PlacementConfig, subjects: pa.StringArray) -> np.ndarray:
    """The place of each subject, int32 [N]; all samples of a subject share one.

    `hash` looks at nothing but the key and the subject, so a deletion moves nobody else. `permutation` is the
    shuffled, equal-sized ranges of Bourtoule et al. 2021: it depends on who else is there, hence is stored at ingest.
    """
    num_places = config.shards * config.slices
    if config.strategy == "hash":
        return (hash_subjects(config, subjects) % np.uint64(num_places)).astype(np.int32)
    return _equal_ranges(positions(config, subjects), config)


def group_by_shard(config: PlacementConfig, places: np.ndarray) -> list[np.ndarray]:
    """Rows of each shard, int64, ascending, by the place of each row (int32 [N])."""
    # In 16 bits, if they fit: NumPy sorts those by radix, ten times as fast.
    shards = (places // config.slices).astype(np.min_scalar_type(config.shards))
    by_shard = np.argsort(shards, kind="stable")
    edges = np.searchsorted(shards[by_shard], np.arange(1, config.shards))
    return np.split(by_shard, edges)


def hash_subjects(config: PlacementConfig, subjects: pa.StringArray) -> np.ndarray:
    """Keyed BLAKE2b of each subject, uint64 [N]."""
    assert config.key is not None  # made when the run is created
    # BLAKE2b takes keys of up to 64 bytes; hashing the key first allows any length.
    keyed = blake2b(key=blake2b(config.key.encode()).digest(), digest_size=8)
    digests = bytearray()
    for start in range(0, len(subjects), BATCH):
        for subject in subjects.slice(start, BATCH).to_pylist():
            state = keyed.copy()
            state.update(subject.encode())
            digests += state.digest()
    return np.frombuffer(digests, dtype=">u8").astype(np.uint64)


def positions(config: PlacementConfig, subjects: pa.StringArray) -> np.ndarray:
    """Position of each subject in the shuffled list of the distinct ones, int64 [N].

    The shuffle sorts by keyed hash, so that it does not hang on a library's random stream.
    """
    distinct = pc.unique(subjects)
    distinct = distinct.take(pc.sort_indices(distinct))
    order = np.argsort(hash_subjects(config, distinct), kind="stable")
    shuffled = distinct.take(pa.array(order))
    found: np.ndarray = pc.index_in(subjects, shuffled).to_numpy(zero_copy_only=False).astype(np.int64)
    return found


def _equal_ranges(position: np.ndarray, config: PlacementConfig) -> np.ndarray:
    """Places of shuffled positions: range edges at floor(i N / S), and likewise for the slices within a shard."""
    total = int(position.max()) + 1 if len(position) else 0
    shard_edges = np.arange(config.shards + 1) * total // config.shards
    shard = np.searchsorted(shard_edges, position, side="right") - 1
    first, size = shard_edges[shard], np.diff(shard_edges)[shard]
    slice_edges = first[:, None] + np.arange(1, config.slices) * size[:, None] // config.slices
    places: np.ndarray = shard * config.slices + (position[:, None] >= slice_edges).sum(axis=1)
    return places.astype(np.int32)
