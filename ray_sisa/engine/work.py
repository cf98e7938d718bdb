"""What passes between the loop and its workers: a chain to train, and the events of its training."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, replace
from typing import Literal

from ray_sisa.config import CheckpointEvery, OnDivergence
from ray_sisa.errors import SisaError
from ray_sisa.exclusions import DivergenceRecord
from ray_sisa.lineage import Chain, Stage
from ray_sisa.records import EpochMetrics, LeaseRecord, StageRecord
from ray_sisa.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainWork:
    """The stages `missing` of a chain, to be trained in order into a store."""

    store: Store
    chain: Chain
    missing: frozenset[str]
    device: str
    ledger: int
    """Number of the last request that the chain respects."""
    lease: LeaseRecord
    """What the driver holds the run by; a store that does not know of it is not the driver's."""
    checkpoint_every: CheckpointEvery | None = None
    """How often the state inside a stage is saved; None for never."""
    test_during_training: Literal["epoch", "stage", "never"] = "stage"
    on_divergence: OnDivergence = "fail"

    @property
    def shard(self) -> int:
        """The shard that is trained."""
        return self.chain.shard

    @property
    def sample_passes(self) -> int:
        """What is to be done."""
        return sum(s.sample_passes for s in self.chain.stages if s.key in self.missing)

    def without(self, key: str) -> ChainWork:
        """What is left once the stage `key` is committed."""
        return replace(self, missing=self.missing - {key})


@dataclass(frozen=True, kw_only=True, slots=True)
class StageUnderway:
    """A stage is between two of its steps: it took up a saved state there, passes by, or saved its state."""

    stage: Stage
    what: Literal["resumed", "passing", "saved"]
    epoch: int
    """Epochs that have ended."""
    batch: int
    """Batches done of the epoch after them."""
    num_batches: int
    """Batches of an epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochDone:
    """An epoch of a stage ended."""

    stage: Stage
    metrics: EpochMetrics


@dataclass(frozen=True, kw_only=True, slots=True)
class StageDone:
    """A stage is committed."""

    record: StageRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class StageDiverged:
    """A stage diverged and is passed over; its chain ends."""

    record: DivergenceRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class FeaturesUnderway:
    """A worker makes features of a slice, 1..R, or of the test set, 0."""

    shard: int
    slice: int
    done: int
    num_samples: int


Ending = Literal["finished", "application", "worker", "preemption"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ChainEnded:
    """A chain ended: by itself, or by a failure of one of three kinds.

    `finished` is also the end of a chain that stopped before its last stage because a newer request touches it.
    """

    shard: int
    ending: Ending
    message: str = ""
    """Of a failure, with its traceback."""

    @classmethod
    def by_error(cls, shard: int, error: BaseException) -> ChainEnded:
        """The end by an error of the training; one that was raised on purpose says all in its own words."""
        lines = [str(error)] if isinstance(error, SisaError) else traceback.format_exception(error)
        return cls(shard=shard, ending="application", message="".join(lines))


WorkerEvent = FeaturesUnderway | StageUnderway | EpochDone | StageDone | StageDiverged
Event = WorkerEvent | ChainEnded
