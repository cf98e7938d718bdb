"""What the process that holds a run's lease is doing, which it writes beside its lease every few seconds.

It is advice for people: no decision rests on it, it names no sample, and a run without it lacks nothing. It counts only
while the lease of the process that it names is in force.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Literal

from ray_sisa.clock import Moment, now
from ray_sisa.engine.runner import Placed
from ray_sisa.engine.work import (
    ChainEnded,
    ChainWork,
    EpochDone,
    Event,
    FeaturesUnderway,
    StageDiverged,
    StageDone,
    StageUnderway,
)
from ray_sisa.errors import StoreError
from ray_sisa.headway import Headway
from ray_sisa.layout import ACTIVITY
from ray_sisa.records import LeaseRecord, StoredRecord
from ray_sisa.store import Store

WRITE_EVERY_S = 3.0  # and first after as long, so that what is done within that writes nothing
SLOWEST_S, SLOWING = 30.0, 20  # later every twentieth of the time so far, up to this: a bucket may keep each version

logger = logging.getLogger(__name__)

State = Literal["waiting", "starting", "features", "training"]
"""No worker has taken the shard up; one has, and was not heard of since; it makes features; it trains."""


class ShardActivity(StoredRecord):
    """A shard that is not done."""

    shard: int
    state: State
    slice: int | None = None
    """Of the stage in training, or of the features; 0 is the test set."""
    epochs_done: int | None = None
    epochs: int | None = None
    node: str | None = None
    """IP address of who has it; None where nobody has, or the driver itself."""
    pid: int | None = None


class Activity(StoredRecord):
    """lease/activity.json: what the holder of a lease was doing."""

    holder: str
    written_at: Moment
    stages_done: int
    stages: int
    passes_done: int
    passes: int
    samples_per_second: float | None
    seconds_left: float | None
    """Both None until enough was measured."""
    shards: tuple[ShardActivity, ...]

    @property
    def path(self) -> str:
        """Where it belongs."""
        return ACTIVITY


def read_activity(store: Store, lease: LeaseRecord) -> Activity | None:
    """What the holder of a lease wrote last; None where it wrote nothing, or what is there is damaged."""
    with suppress(StoreError):
        found = store.find_record(ACTIVITY, Activity)
        if found is not None and found.holder == lease.holder:
            return found
    return None


class ActivityWriter:
    """Writes what the driver is doing while its chains are trained; hears events and places."""

    def __init__(
        self, store: Store, holder: str, works: Iterable[ChainWork], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Takes the store of the run, who holds its lease, and the chains to train."""
        self._store, self._holder, self._clock = store, holder, clock
        self._headway = Headway([s for work in works for s in work.chain.stages if s.key in work.missing], clock)
        self._heard: dict[int, ShardActivity] = {}
        self._began = self._written_at = clock()

    def hear(self, event: Event) -> None:
        """Takes note of one event."""
        self._headway.hear(event)
        if isinstance(event, ChainEnded):
            self._heard.pop(event.shard, None)
        elif isinstance(event, StageDone | StageDiverged):
            self._heard.pop(event.record.shard, None)
        elif isinstance(event, FeaturesUnderway):
            self._heard[event.shard] = ShardActivity(shard=event.shard, state="features", slice=event.slice)
        else:
            self._heard[event.stage.shard] = _training(event)

    def watch(self, places: Mapping[int, Placed | None]) -> None:
        """Writes who has each shard that is not done, unless that was done a moment ago."""
        every_s = max(WRITE_EVERY_S, min(SLOWEST_S, (self._clock() - self._began) / SLOWING))
        if self._clock() - self._written_at < every_s:
            return
        shards = tuple(self._shard(shard, place) for shard, place in sorted(places.items()))
        (stages_done, stages), (passes_done, passes) = self._headway.stages, self._headway.passes
        activity = Activity(
            holder=self._holder,
            written_at=now(),
            stages_done=stages_done,
            stages=stages,
            passes_done=passes_done,
            passes=passes,
            samples_per_second=self._headway.rate,
            seconds_left=self._headway.seconds_left,
            shards=shards,
        )
        try:
            self._store.put(ACTIVITY, activity.to_bytes())
        except StoreError as error:
            logger.debug("what is being done was not written: %s", error)  # training does not need it
        self._written_at = self._clock()

    def end(self) -> None:
        """Removes what was written; the next reconcile does where this process is killed before."""
        with suppress(StoreError):
            self._store.delete([ACTIVITY])

    def _shard(self, shard: int, place: Placed | None) -> ShardActivity:
        heard = self._heard.get(shard)
        if heard is None:
            heard = ShardActivity(shard=shard, state="starting" if place else "waiting")
        return heard.model_copy(update={"node": place.node, "pid": place.pid} if place else {})


def _training(event: StageUnderway | EpochDone) -> ShardActivity:
    stage = event.stage
    done = event.metrics.epoch + 1 if isinstance(event, EpochDone) else event.epoch
    return ShardActivity(shard=stage.shard, state="training", slice=stage.slice, epochs_done=done, epochs=stage.epochs)
