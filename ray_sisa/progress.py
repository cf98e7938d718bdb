"""Progress of training, told on standard error: one updating line on a terminal, plain lines elsewhere.

Listens to events; decides and stores nothing.
"""

from __future__ import annotations

import logging
import math
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from ray_sisa.answer import duration
from ray_sisa.engine.work import ChainEnded, EpochDone, Event, FeaturesUnderway, StageUnderway
from ray_sisa.lineage import Stage
from ray_sisa.records import EpochMetrics

if TYPE_CHECKING:
    from ray_sisa.inversion.attack import AttackEpoch

LINE_EVERY_S = 2.0  # of plain lines about epochs; every committed stage has its own


class Progress:
    """Tells how far the training of some stages is."""

    def __init__(
        self,
        stages: Sequence[Stage],
        num_slices: int,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Takes the stages that are to be trained, and the slices R of a shard."""
        self._num_slices, self._stream, self._clock = num_slices, stream or sys.stderr, clock
        self._wanted = {stage.key: stage.sample_passes for stage in stages}
        self._passes: dict[str, int] = {}  # by stage, so that an epoch done twice after a failure counts once
        self._given = 0  # passes done by earlier processes, which say nothing of the rate
        self._committed: set[str] = set()
        self._began = self._told_at = clock()
        self._updates = self._stream.isatty()

    def __call__(self, event: Event) -> None:
        """Hears one event."""
        if isinstance(event, EpochDone):
            self._hear_epoch(event.stage, event.metrics)
        elif isinstance(event, StageUnderway):
            self._hear_underway(event)
        elif isinstance(event, FeaturesUnderway):
            what = f"slice {event.slice}/{self._num_slices}" if event.slice else "test set"
            self._update(f"shard {event.shard} {what} features {event.done / event.num_samples:.0%} done, ")
        elif isinstance(event, ChainEnded):
            if event.ending != "finished":
                self._line(f"shard {event.shard}: chain ended ({event.ending})")
        else:
            record = event.record
            self._want(record.key, record.sample_passes)
            self._passes[record.key] = record.sample_passes
            self._committed.add(record.key)
            where = f"shard {record.shard} slice {record.slice}/{self._num_slices}"
            self._line(f"{where} committed{_accuracies(record.metrics[-1])}, {self._totals()}")

    def _hear_epoch(self, stage: Stage, metrics: EpochMetrics) -> None:
        self._advance(stage, metrics.epoch + 1)
        self._update(f"{self._epoch(stage, metrics.epoch)} loss {metrics.loss:.3f}{_accuracies(metrics)}, ")

    def _hear_underway(self, event: StageUnderway) -> None:
        share = event.batch / event.num_batches
        gained = self._advance(event.stage, event.epoch + share)
        text = f"{self._epoch(event.stage, event.epoch)} {share:.0%} done, "
        if event.what == "resumed":
            self._given += gained
            self._line(f"{text}taken up where its state was saved, {self._totals()}")
        else:
            self._update(text + ("state saved, " if event.what == "saved" else ""))

    def _advance(self, stage: Stage, epochs: float) -> int:
        """Takes note that so many epochs of a stage are done; returns how many passes that adds."""
        self._want(stage.key, stage.sample_passes)
        before = self._passes.get(stage.key, 0)
        self._passes[stage.key] = max(before, int(epochs * stage.num_samples))
        return self._passes[stage.key] - before

    def _epoch(self, stage: Stage, epoch: int) -> str:
        return f"shard {stage.shard} slice {stage.slice}/{self._num_slices} epoch {epoch + 1}/{stage.epochs}"

    def _update(self, text: str) -> None:
        if self._updates:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r\x1b[2K" + (text + self._totals())[:width])
            self._stream.flush()
        elif self._clock() - self._told_at >= LINE_EVERY_S:
            self._line(text + self._totals())

    def _want(self, key: str, sample_passes: int) -> None:
        # A request that arrives while training asks for stages that were not foreseen.
        self._wanted.setdefault(key, sample_passes)

    def _totals(self) -> str:
        total, done = sum(self._wanted.values()), sum(self._passes.values())
        rate = (done - self._given) / max(self._clock() - self._began, 1e-9)
        left = (total - done) / rate if rate else 0.0
        share = done / total if total else 1.0
        stages = f"{len(self._committed)}/{len(self._wanted)} stages"
        return f"{stages}, {share:.0%} of passes, {rate:,.0f} samples/s, {duration(left)} left"

    def _line(self, text: str) -> None:
        self._told_at = self._clock()
        self._stream.write(("\r\x1b[2K" if self._updates else "") + text + "\n")
        self._stream.flush()


def _accuracies(metrics: EpochMetrics) -> str:
    test = "" if metrics.test_top1 is None else f", test {metrics.test_top1:.1%}"
    return f" train {metrics.train_top1:.1%}{test}"


@contextmanager
def quietly(quiet: bool) -> Iterator[None]:
    """Keeps progress that is logged from standard error for the length of the block, if it is to be quiet."""
    logger = logging.getLogger("ray_sisa")
    level = logger.level
    try:
        if quiet:
            logger.setLevel(logging.WARNING)
        yield
    finally:
        logger.setLevel(level)


def counter(what: str, quiet: bool, stream: TextIO | None = None) -> Callable[[int, int], None]:
    """Tells `done` of `of` on standard error: on a terminal, and only there, since it ends within minutes."""
    out = stream or sys.stderr

    def tell(done: int, of: int) -> None:
        if out.isatty() and not quiet:
            out.write(f"\r\x1b[2K{done:,} of {of:,} {what}" if done < of else "\r\x1b[2K")
            out.flush()

    return tell


def attack_progress(
    quiet: bool, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
) -> Callable[[str, AttackEpoch], None]:
    """Tells the epochs of an attack on each target: one updating line on a terminal, plain lines elsewhere."""
    out, told_at = stream or sys.stderr, -math.inf

    def tell(target: str, epoch: AttackEpoch) -> None:
        nonlocal told_at
        is_last = epoch.epoch == epoch.epochs
        if quiet or not (out.isatty() or is_last or clock() - told_at >= LINE_EVERY_S):
            return
        told_at = clock()
        text = f"{target}: attacker's epoch {epoch.epoch}/{epoch.epochs}, mse {epoch.mse:.4f}"
        out.write(f"\r\x1b[2K{text}" + ("\n" if is_last else "") if out.isatty() else f"{text}\n")
        out.flush()

    return tell
