"""Finding samples by id or by subject: where each lies, and whether it is still live."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_sisa.index import ShardIndex
from ray_sisa.live import LiveSet
from ray_sisa.placement import place
from ray_sisa.records import RunRecord

Places = dict[tuple[int, int], list[str]]
"""Sample ids by (shard, slice)."""


class Census:
    """Looks samples up in the indexes of a run."""

    def __init__(self, live: LiveSet, run: RunRecord) -> None:
        self._live, self._run = live, run

    def samples(self, ids: Iterable[str]) -> tuple[Places, list[str]]:
        """Places of samples by id, and the ids that the run never had."""
        return self._find(sorted(set(ids)), by_subject=False)

    def subjects(self, subjects: Iterable[str]) -> tuple[Places, list[str]]:
        """Places of all samples of some subjects, and the subjects that the run never had."""
        return self._find(sorted(set(subjects)), by_subject=True)

    def _find(self, names: Sequence[str], *, by_subject: bool) -> tuple[Places, list[str]]:
        places: Places = {}
        unknown = pa.array(names, pa.string())
        for shard, candidates in self._by_likely_shard(unknown):
            found = _collect(self._live.index(shard), shard, candidates, places, by_subject=by_subject)
            unknown = unknown.filter(pc.invert(pc.is_in(unknown, found)))
        for shard in range(len(self._run.slices)) if len(unknown) else ():
            found = _collect(self._live.index(shard), shard, unknown, places, by_subject=by_subject)
            unknown = unknown.filter(pc.invert(pc.is_in(unknown, found)))
        return places, unknown.to_pylist()

    def _by_likely_shard(self, names: pa.StringArray) -> Iterable[tuple[int, pa.StringArray]]:
        """Where hash placement puts these names, were they subjects: right unless samples share a subject."""
        config = self._run.config.placement
        if config.strategy != "hash":
            return
        shards = place(config, names) // config.slices
        for shard in np.unique(shards).tolist():
            yield shard, names.filter(pa.array(shards == shard))


def _collect(
    index: ShardIndex, shard: int, names: pa.StringArray, places: Places, *, by_subject: bool
) -> pa.StringArray:
    """Adds what an index has of these names to `places`; returns the names found."""
    keys = index.subjects if by_subject else index.ids
    rows = np.flatnonzero(pc.is_in(keys, names).to_numpy(zero_copy_only=False))
    picked = pa.array(rows)
    for number, sample in zip(index.slices[rows].tolist(), index.ids.take(picked).to_pylist(), strict=True):
        places.setdefault((shard, number), []).append(sample)
    return keys.take(picked).unique()
