"""How far training is, how fast it goes and how long it may still take, from its events alone.

Rate and time left are not known at first: a worker that starts, imports, compiles or reads is no rate. So they are
measured from the first passes that are told, over the last minute, and said only once they rest on enough.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from ray_sisa.engine.work import ChainEnded, EpochDone, Event, StageDone, StageUnderway
from ray_sisa.lineage import Stage

ENOUGH_S, ENOUGH_EVENTS = 10.0, 5  # before a rate is said
WINDOW_S = 60.0  # that a rate is measured over, or longer where fewer events than `ENOUGH_EVENTS` fall into it


class Headway:
    """Sample passes done and to do of some stages; hears events."""

    def __init__(self, stages: Sequence[Stage], clock: Callable[[], float] = time.monotonic) -> None:
        """Takes the stages that are to be trained."""
        self._clock = clock
        self._wanted = {stage.key: stage.sample_passes for stage in stages}
        self._passes: dict[str, int] = {}  # by stage, so that an epoch done twice after a failure counts once
        self._given = 0  # passes done by earlier processes, which say nothing of the rate
        self._committed: set[str] = set()
        self._active: set[int] = set()
        self._most_active = 0
        self._marks: deque[tuple[float, int]] = deque()  # when so many passes had been done by this process

    def hear(self, event: Event) -> None:
        """Takes note of one event."""
        if isinstance(event, EpochDone):
            self._advance(event.stage, event.metrics.epoch + 1)
        elif isinstance(event, StageUnderway):
            gained = self._advance(event.stage, event.epoch + event.batch / event.num_batches)
            self._given += gained if event.what == "resumed" else 0
        elif isinstance(event, StageDone):
            record = event.record
            self._wanted.setdefault(record.key, record.sample_passes)
            self._passes[record.key] = record.sample_passes
            self._committed.add(record.key)
        elif isinstance(event, ChainEnded):
            self._active.discard(event.shard)
        self._mark(event)

    @property
    def stages(self) -> tuple[int, int]:
        """How many stages are committed, of how many."""
        return len(self._committed), len(self._wanted)

    @property
    def passes(self) -> tuple[int, int]:
        """How many sample passes are done, of how many."""
        return sum(self._passes.values()), sum(self._wanted.values())

    @property
    def rate(self) -> float | None:
        """Sample passes a second; None until enough was measured."""
        if len(self._marks) <= ENOUGH_EVENTS:
            return None
        (began, before), now = self._marks[0], self._clock()
        gained = self.passes[0] - self._given - before
        return gained / (now - began) if gained > 0 and now - began >= ENOUGH_S else None

    @property
    def seconds_left(self) -> float | None:
        """Until the last stage, at this rate; None until it is known."""
        done, total = self.passes
        return (total - done) / self.rate if self.rate else None

    def _advance(self, stage: Stage, epochs: float) -> int:
        """Takes note that so many epochs of a stage are done; returns how many passes that adds."""
        # A request that arrives while training asks for stages that were not foreseen.
        self._wanted.setdefault(stage.key, stage.sample_passes)
        before = self._passes.get(stage.key, 0)
        self._passes[stage.key] = max(before, int(epochs * stage.num_samples))
        return self._passes[stage.key] - before

    def _mark(self, event: Event) -> None:
        if not isinstance(event, EpochDone | StageUnderway):
            return
        self._active.add(event.stage.shard)
        if len(self._active) > self._most_active:  # another worker came: the rate so far is that of fewer
            self._most_active = len(self._active)
            self._marks.clear()
        now = self._clock()
        self._marks.append((now, self.passes[0] - self._given))
        while len(self._marks) > ENOUGH_EVENTS + 1 and now - self._marks[0][0] > WINDOW_S:
            self._marks.popleft()
