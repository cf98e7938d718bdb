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
from ray_sisa.engine.work import ChainEnded, EpochDone, Event, FeaturesUnderway, StageDiverged, StageUnderway
from ray_sisa.headway import Headway
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
        self._headway = Headway(stages, clock)
        self._told_at = clock()
        self._updates = self._stream.isatty()

    def __call__(self, event: Event) -> None:
        """Hears one event."""
        self._headway.hear(event)
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
        elif isinstance(event, StageDiverged):
            gone = event.record
            self._line(f"shard {gone.shard} slice {gone.slice}/{self._num_slices} diverged at step {gone.step + 1}")
        else:
            record = event.record
            where = f"shard {record.shard} slice {record.slice}/{self._num_slices}"
            self._line(f"{where} committed{_accuracies(record.metrics[-1])}, {self._totals()}")

    def _hear_epoch(self, stage: Stage, metrics: EpochMetrics) -> None:
        loss = "not a number" if metrics.loss is None else f"{metrics.loss:.3f}"
        self._update(f"{self._epoch(stage, metrics.epoch)} loss {loss}{_accuracies(metrics)}, ")

    def _hear_underway(self, event: StageUnderway) -> None:
        share = event.batch / event.num_batches
        text = f"{self._epoch(event.stage, event.epoch)} {share:.0%} done, "
        if event.what == "resumed":
            self._line(f"{text}taken up where its state was saved, {self._totals()}")
        else:
            self._update(text + ("state saved, " if event.what == "saved" else ""))

    def _epoch(self, stage: Stage, epoch: int) -> str:
        return f"shard {stage.shard} slice {stage.slice}/{self._num_slices} epoch {epoch + 1}/{stage.epochs}"

    def _update(self, text: str) -> None:
        if self._updates:
            width = shutil.get_terminal_size().columns - 1
            self._stream.write("\r\x1b[2K" + (text + self._totals())[:width])
            self._stream.flush()
        elif self._clock() - self._told_at >= LINE_EVERY_S:
            self._line(text + self._totals())

    def _totals(self) -> str:
        (done, total), (committed, stages) = self._headway.passes, self._headway.stages
        share = done / total if total else 1.0
        return (
            f"{committed}/{stages} stages, {share:.0%} of passes{speed(self._headway.rate, self._headway.seconds_left)}"
        )

    def _line(self, text: str) -> None:
        self._told_at = self._clock()
        self._stream.write(("\r\x1b[2K" if self._updates else "") + text + "\n")
        self._stream.flush()


def speed(rate: float | None, seconds_left: float | None) -> str:
    """Rate and time left in words, to be put behind others; empty until they are known."""
    if rate is None or seconds_left is None:
        return ""
    return f", {rate:,.0f} samples/s, {duration(seconds_left)} left"


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
