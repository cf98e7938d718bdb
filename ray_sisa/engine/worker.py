"""What a worker does, wherever it runs: train the missing stages of one shard's chain, committing each.

It reads its own shard's slices and nothing else. No ray here.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator
from typing import Literal

from ray_sisa import backbone, exclusions, partials, spending
from ray_sisa.config import CheckpointEvery, TrainingRecipe
from ray_sisa.divergence import diverged
from ray_sisa.engine.feed import Feed, concatenate
from ray_sisa.engine.work import ChainWork, EpochDone, StageDiverged, StageDone, StageUnderway, WorkerEvent
from ray_sisa.errors import DivergedError, StoreError
from ray_sisa.exclusions import DivergenceRecord
from ray_sisa.layout import LEDGER, RUN, UNREACHABLE, divergence_record, numbered, stage_record, stage_weights
from ray_sisa.lease import is_held
from ray_sisa.ledger import EMPTY, read_ledger
from ray_sisa.lineage import Stage
from ray_sisa.records import EpochMetrics, RunRecord, StageRecord
from ray_sisa.snapshot import Partial, Position
from ray_sisa.stages import commit_stage, environment_of, load_initial, load_stage
from ray_sisa.store import Store
from ray_sisa.training import LabelledImages, Weights, check_partial, train_stage

TELL_EVERY_S = 10.0  # within a stage; the driver of a large cluster hears all workers

logger = logging.getLogger(__name__)


def train_chain(work: ChainWork, tell_every_s: float = TELL_EVERY_S) -> Iterator[WorkerEvent]:
    """Trains and commits the missing stages of a chain, telling of each epoch and each commit.

    Within a stage it goes on from the state that was saved there, if any, and tells of itself every `tell_every_s`.
    Ends early, without an error, once the ledger has a request that touches the shard, since what it was making is
    tainted, and once another driver holds the run; so it does where a stage diverged that is to be passed over.

    Raises:
        StoreError: a slice or a parent is absent or changed, or the store is not the driver's.
        DivergedError: a stage diverged, and is not to be passed over.
    """
    if not is_held(work.store, work.lease):
        return
    run = work.store.read(RUN, RunRecord, UNREACHABLE)
    newer = _NewerRequests(work)
    feed = Feed(work, run, newer.allow, tell_every_s)
    test = yield from feed.test()
    weights: Weights | None = None
    parts: list[LabelledImages] = []
    for position, stage in enumerate(work.chain.stages):
        if stage.key not in work.missing:
            weights = None
            continue
        if record := _committed(work.store, stage.key):  # by a worker that was lost before it could tell
            partials.drop(work.store, stage.key)
            yield StageDone(record=record)
            weights = None
            continue
        if diverged := _passed_over(work, stage.key):  # likewise
            yield StageDiverged(record=diverged)
            return
        start = weights if weights is not None else _start(work, run, position)
        for earlier in work.chain.stages[len(parts) : position + 1]:
            if (part := (yield from feed.slice(earlier))) is None:
                return
            parts.append(part)
        attempt = _Attempt(work, feed.training, stage, newer)
        weights = yield from attempt.train(start, concatenate(parts), test, tell_every_s)
        if weights is None:
            return


def _start(work: ChainWork, run: RunRecord, position: int) -> Weights:
    """The weights of the stage before the one at `position`."""
    if position:
        return load_stage(work.store, work.chain.stages[position - 1].key)
    public = load_initial(work.store, run.training.initial_weights)
    return backbone.start(run.training, work.chain.initial, public)


class _Attempt:
    """One attempt at a stage, from its start or from the state that an earlier one saved."""

    def __init__(self, work: ChainWork, training: TrainingRecipe, stage: Stage, newer: _NewerRequests) -> None:
        self._work, self._training, self._stage, self._newer = work, training, stage, newer
        self._began = time.perf_counter()
        self._environment = environment_of(work.device, training.recipe.threads)
        check = functools.partial(
            check_partial,
            training=training,
            num_samples=stage.num_samples,
            epochs=stage.epochs,
            device=work.device,
        )
        saved = partials.find(work.store, stage.key, self._environment, check)
        self._resume = saved.partial if saved else None
        self._metrics = list(saved.record.metrics) if saved else []
        self._seconds_before = saved.record.seconds if saved else 0.0

    def train(
        self, start: Weights, samples: LabelledImages, test: LabelledImages | None, tell_every_s: float
    ) -> Generator[WorkerEvent, None, Weights | None]:
        """Returns the weights of the stage, or None where it was not committed, as it may not be."""
        # Before the first step: a kill in between leaves a charge for nothing, and never a stage without one.
        spending.charge(self._work.store, self._stage, self._training)
        if self._resume:
            yield self._underway("resumed", self._resume.position)
        steps = train_stage(
            start=start,
            samples=samples,
            training=self._training,
            key=self._stage.key,
            epochs=self._stage.epochs,
            device=self._work.device,
            test=test,
            test_every_epoch=self._work.test_during_training == "epoch",
            resume=self._resume,
            due=Pace(self._work.checkpoint_every, tell_every_s),
        )
        self._resume = None  # its memory is not needed for as long as the stage takes
        try:
            weights = yield from self._follow(steps)
        except DivergedError as error:
            yield from self._pass_over(error)
            return None
        if weights is None or not self._may_write():
            return None
        record = self._commit(weights)
        if not self._training.is_repeatable:  # another's may have come first, and what follows builds on what stands
            weights = load_stage(self._work.store, self._stage.key)
        # Save before delete: until the commit these hold the work of hours.
        partials.drop(self._work.store, self._stage.key)
        yield StageDone(record=record)
        return weights

    def _pass_over(self, error: DivergedError) -> Iterator[WorkerEvent]:
        """Records that the stage diverged, where it is to be passed over: one write, before or after which it is known.

        Raises:
            DivergedError: it is not; the error says where it happened.
        """
        stage = self._stage
        if self._work.on_divergence == "fail":
            where = f"shard {stage.shard}, slice {stage.slice}"
            raise diverged(error.epoch, error.step, error.what, where) from None
        if self._may_write():
            record = exclusions.record(self._work.store, stage, error, self._seconds(), self._environment)
            partials.drop(self._work.store, stage.key)
            yield StageDiverged(record=record)

    def _follow(
        self, steps: Generator[EpochMetrics | Position | Partial, None, Weights]
    ) -> Generator[WorkerEvent, None, Weights | None]:
        """Takes what a stage yields until it ends, or until a state would be saved that may not be."""
        while True:
            try:
                made = next(steps)
            except StopIteration as end:
                weights: Weights = end.value
                return weights
            if isinstance(made, EpochMetrics):
                self._metrics.append(made)
                yield EpochDone(stage=self._stage, metrics=made)
            elif isinstance(made, Position):
                yield self._underway("passing", made)
            elif not self._may_write():
                return None
            else:
                yield self._underway("saved" if self._save(made) else "passing", made.position)

    def _save(self, partial: Partial) -> bool:
        """Whether the state was saved: training need not end because it was not."""
        stage, seconds = self._stage, self._seconds()
        try:
            partials.save(self._work.store, stage.key, partial, self._metrics, seconds, self._environment)
        except StoreError as error:
            logger.warning("Shard %d slice %d goes on with its state unsaved. %s", stage.shard, stage.slice, error)
            return False
        return True

    def _commit(self, weights: Weights) -> StageRecord:
        return commit_stage(
            self._work.store,
            self._work.chain,
            self._stage,
            weights,
            self._metrics,
            self._seconds(),
            self._environment,
            repeatable=self._training.is_repeatable,
        )

    def _seconds(self) -> float:
        """Spent on the stage: in this attempt, and before the state was saved from which it goes on."""
        return self._seconds_before + time.perf_counter() - self._began

    def _may_write(self) -> bool:
        """Whether the run is still the driver's, and no newer request touches the stage; what was saved goes then."""
        work, stage = self._work, self._stage
        if not is_held(work.store, work.lease):
            return False  # what was saved is the next driver's to use
        if self._newer.touch(stage.slice):
            partials.drop(work.store, stage.key)
            return False
        return True

    def _underway(self, what: Literal["resumed", "passing", "saved"], position: Position) -> StageUnderway:
        return StageUnderway(
            stage=self._stage,
            what=what,
            epoch=position.epoch,
            batch=position.batch,
            num_batches=position.num_batches,
        )


class Pace:
    """Says where in a stage its state is saved, and where it is told of; minutes count from the start or last save."""

    def __init__(
        self, save_every: CheckpointEvery | None, tell_every_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._epochs = save_every.epochs if save_every else None
        self._save_every_s = 60 * save_every.minutes if save_every and save_every.minutes else math.inf
        self._tell_every_s, self._clock = tell_every_s, clock
        self._saved_at = clock()
        self._told_at = math.inf  # until the first step is done: it may take its time to load libraries

    def __call__(self, position: Position) -> Literal["tell", "save"] | None:
        """What is due at a place between two steps."""
        now = self._clock()
        self._told_at = min(self._told_at, now)
        at_edge = self._epochs is not None and position.batch == 0 and position.epoch % self._epochs == 0
        if at_edge or now - self._saved_at >= self._save_every_s:
            self._saved_at = self._told_at = now
            return "save"
        if now - self._told_at >= self._tell_every_s:
            self._told_at = now
            return "tell"
        return None


class _NewerRequests:
    """The requests that came after those that a chain respects, each read once."""

    def __init__(self, work: ChainWork) -> None:
        self._store, self._shard, self._after, self._lease = work.store, work.shard, work.ledger, work.lease
        self._ledger, self._seen = EMPTY, work.ledger
        self._first: float = math.inf

    def allow(self, slice_number: int) -> bool:
        """Whether what is made of slices 1..r may be written: the run is still the driver's, and none touches them."""
        return is_held(self._store, self._lease) and not self.touch(slice_number)

    def touch(self, slice_number: int) -> bool:
        """Whether one of them deletes a live sample of slices 1..r of the shard; one read if none has come."""
        if self._store.find(numbered(LEDGER, self._seen + 1)) is not None:
            self._ledger = read_ledger(self._store, self._ledger)
            self._seen = self._ledger.position
            self._first = self._ledger.touched(self._after).get(self._shard, math.inf)
        return self._first <= slice_number


def _passed_over(work: ChainWork, key: str) -> DivergenceRecord | None:
    """The record of a stage that diverged, where it is not to be trained again."""
    if work.on_divergence == "fail":
        return None
    return work.store.find_record(divergence_record(key), DivergenceRecord)


def _committed(store: Store, key: str) -> StageRecord | None:
    """The record of a stage that is there with its weights."""
    if not {stage_record(key), stage_weights(key)} <= store.sizes(f"stages/{key}").keys():
        return None
    return store.read(stage_record(key), StageRecord)
