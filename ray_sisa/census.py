"""Finding samples by id or by subject: where each lies. What a run does not have is counted, and a few are named.

Names are looked up batch by batch: memory holds what the run itself has, however many are asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_sisa import ids, near_ids
from ray_sisa.errors import RequestError
from ray_sisa.index import ShardIndex
from ray_sisa.keyed_ids import key_of, tombstones
from ray_sisa.live import LiveSet
from ray_sisa.placement import hashed_shards
from ray_sisa.records import RunRecord

Places = dict[tuple[int, int], list[str]]
"""Sample ids by (shard, slice), each list sorted."""

NUM_EXAMPLES = 20  # unknown names that are compared with those of the run
NUM_TOLD, TOLD = 5, 40  # of them, and characters of each: a file that was named by mistake may hold anything
NUM_NEAR = 3  # told in an error


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a run has of the names in a request."""

    places: Places
    unknown: int
    """Names that the run never had, as often as they were named."""
    unknown_examples: tuple[str, ...]
    """The first few of them, cut where they are long."""
    near: tuple[str, ...] = ()
    """What the run has that is nearly one of these, see `near_ids`."""

    def refuse_unknown(self, field: str, remedy: str) -> None:
        """Raises a RequestError that counts the unknown names and shows the first, if there are any."""
        if self.unknown:
            value = ", ".join(map(ids.shown, self.unknown_examples))
            rule = f"{self.unknown} not in this run"
            if self.near:
                rule += f"; it has {', '.join(self.near[:NUM_NEAR])}"
            raise RequestError(field, value, rule, remedy)


class Census:
    """Looks samples up in the indexes of a run."""

    def __init__(self, live: LiveSet, run: RunRecord) -> None:
        self._live, self._run = live, run
        self._key = key_of(run)

    def find(self, *, samples: ids.Ids = (), subjects: ids.Ids = ()) -> Found:
        """Where the samples with these ids lie, and all samples of these subjects.

        Raises:
            RequestError: a name that can be no id.
        """
        named: dict[int, np.ndarray] = {}
        num_unknown, examples = 0, dict[str, None]()  # a dictionary, as a set that keeps its order
        for names, field, by_subject in ((samples, "samples", False), (subjects, "subjects", True)):
            for batch in ids.batches(names, field):
                known = self._mark(self._known_as(batch, by_subject=by_subject), named, by_subject=by_subject)
                unknown = batch.filter(pa.array(~known))
                num_unknown += len(unknown)
                if len(examples) < NUM_EXAMPLES:
                    examples |= dict.fromkeys(_cut(name) for name in unknown.unique()[:NUM_EXAMPLES].to_pylist())
        unknown_examples = tuple(examples)[:NUM_EXAMPLES]
        return Found(
            places=self._places(named),
            unknown=num_unknown,
            unknown_examples=tuple(_cut(name, TOLD) for name in unknown_examples[:NUM_TOLD]),
            near=near_ids.find(unknown_examples, self._known()) if unknown_examples and not self._key else (),
        )

    def _known_as(self, names: pa.StringArray, *, by_subject: bool) -> pa.StringArray:
        """What the index calls these samples or subjects."""
        if self._key is None:
            return names
        return self._key.hashed("subject", names) if by_subject else tombstones(self._key.hashed("sample", names))

    def _known(self) -> Iterator[pa.StringArray]:
        """All ids and subjects of the run."""
        for shard in range(len(self._run.slices)):
            index = self._live.index(shard)
            yield from (index.ids, index.subjects)

    def _mark(self, names: pa.StringArray, named: dict[int, np.ndarray], *, by_subject: bool) -> np.ndarray:
        """Marks what a batch names in `named`: bool [n] by shard, over the rows of its index.

        Returns:
            Which of the names the run has, bool [len(names)].
        """
        known = np.zeros(len(names), dtype=bool)
        for shard, rows in self._likely_rows(names):
            known[rows] = _mark_shard(self._live.index(shard), shard, names.take(pa.array(rows)), named, by_subject)
        is_settled = by_subject and self._run.config.placement.strategy == "hash"
        for shard in () if is_settled else range(len(self._run.slices)):
            left = np.flatnonzero(~known)
            if not len(left):
                break
            known[left] = _mark_shard(self._live.index(shard), shard, names.take(pa.array(left)), named, by_subject)
        return known

    def _likely_rows(self, names: pa.StringArray) -> Iterable[tuple[int, np.ndarray]]:
        """Where hash placement puts these names, were they subjects: right unless samples share a subject."""
        config = self._run.config.placement
        if config.strategy != "hash":
            return
        shards = hashed_shards(config, names)
        for shard in np.unique(shards).tolist():
            yield shard, np.flatnonzero(shards == shard)

    def _places(self, named: dict[int, np.ndarray]) -> Places:
        places: Places = {}
        for shard in sorted(named):
            index = self._live.index(shard)
            rows = np.flatnonzero(named[shard])
            for number, sample in zip(
                index.slices[rows].tolist(), index.ids.take(pa.array(rows)).to_pylist(), strict=True
            ):
                places.setdefault((shard, number), []).append(sample)
        return places


def _mark_shard(
    index: ShardIndex, shard: int, names: pa.StringArray, named: dict[int, np.ndarray], by_subject: bool
) -> np.ndarray:
    """Marks the rows of an index that these names mean; returns which of the names it has, bool [len(names)]."""
    keys = index.subjects if by_subject else index.ids
    meant = _is_in(keys, names)
    if not meant.any():
        return np.zeros(len(names), dtype=bool)
    named[shard] = meant | named.get(shard, False)
    return _is_in(names, keys.filter(pa.array(meant)))


def _is_in(names: pa.StringArray, among: pa.StringArray) -> np.ndarray:
    found: np.ndarray = pc.is_in(names, among).to_numpy(zero_copy_only=False)
    return found


def _cut(name: str, limit: int = ids.SHOWN) -> str:
    return name if len(name) <= limit else f"{name[: limit - 3]}..."
