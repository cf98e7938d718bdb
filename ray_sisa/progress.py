"""Progress of training, told on standard error: one updating line on a terminal, plain lines elsewhere.

Listens to events; decides and stores nothing.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from ray_sisa.engine.work import ChainEnded, EpochDone, Event
from ray_sisa.lineage import Stage
from ray_sisa.printing import duration
from ray_sisa.records import EpochMetrics

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
        self._committed: set[str] = set()
        self._began = self._told_at = clock()
        self._updates = self._stream.isatty()

    def __call__(self, event: Event) -> None:
        """Hears one event."""
        if isinstance(event, EpochDone):
            self._hear_epoch(event.stage, event.metrics)
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
        self._want(stage.key, stage.sample_passes)
        done = (metrics.epoch + 1) * stage.num_samples
        self._passes[stage.key] = max(done, self._passes.get(stage.key, 0))
        where = f"shard {stage.shard} slice {stage.slice}/{self._num_slices}"
        text = f"{where} epoch {metrics.epoch + 1}/{stage.epochs} loss {metrics.loss:.3f}{_accuracies(metrics)}, "
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
        rate = done / max(self._clock() - self._began, 1e-9)
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
