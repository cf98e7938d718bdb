"""Stages that diverged, in the store: a record in place of weights, so that no reconcile trains them again.

Such a stage, and all behind it in its chain, are passed over: the shard votes with the last stage before it, or not at
all. The record lies in the stage's folder under the stage's name, and goes with it once a request changes the name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING

from ray_sisa.clock import Moment, now
from ray_sisa.errors import DivergedError
from ray_sisa.layout import divergence_record
from ray_sisa.lineage import Chain, Stage
from ray_sisa.records import Environment, Excluded, StoredRecord

if TYPE_CHECKING:
    from ray_sisa.store import Store


class DivergenceRecord(StoredRecord):
    """stages/<key>/diverged.json: a stage diverged, and is passed over. It is removed as the stage would be."""

    key: str
    shard: int
    slice: int
    parent: str
    slice_digest: str
    num_samples: int
    epochs: int
    epoch: int
    """In which a number was not finite, from 0."""
    step: int
    """Of the stage at which it was found, from 0."""
    what: str
    """That was not finite."""
    seconds: float
    environment: Environment
    recorded_at: Moment

    @property
    def path(self) -> str:
        """Where it belongs."""
        return divergence_record(self.key)


def record(
    store: Store, stage: Stage, error: DivergedError, seconds: float, environment: Environment
) -> DivergenceRecord:
    """Writes that a stage diverged. Of two writers the first stands: both say the same of the same environment."""
    made = DivergenceRecord(
        key=stage.key,
        shard=stage.shard,
        slice=stage.slice,
        parent=stage.parent,
        slice_digest=stage.slice_digest,
        num_samples=stage.num_samples,
        epochs=stage.epochs,
        epoch=error.epoch,
        step=error.step,
        what=error.what,
        seconds=seconds,
        environment=environment,
        recorded_at=now(),
    )
    return made if store.create(made.path, made.to_bytes()) else store.read(made.path, DivergenceRecord)


def excluded(chains: Iterable[Chain], diverged: Set[str]) -> tuple[Excluded, ...]:
    """The shards that do not vote at their full depth, since a stage of their chain diverged."""
    found = (chain.excluded(diverged) for chain in chains)
    return tuple(Excluded(shard=stage.shard, slice=stage.slice, key=stage.key) for stage in found if stage)


def untouched(known: Sequence[Excluded], touched: Mapping[int, int]) -> tuple[Excluded, ...]:
    """Those whose stage no request touches, given the first slice that is touched by shard."""
    return tuple(each for each in known if each.slice < touched.get(each.shard, each.slice + 1))


def shown(known: Iterable[Excluded]) -> str:
    """Exclusions in words: `shard 0 from slice 2 on`."""
    return ", ".join(f"shard {each.shard} from slice {each.slice} on" for each in known)
