"""The loop that sees chains to their end, whatever runs them. Decisions are values; only the loop acts."""

from __future__ import annotations

import enum
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence, Set

from ray_sisa.config import Scaling
from ray_sisa.engine.runner import Runner
from ray_sisa.engine.work import ChainEnded, ChainWork, Ending, Event, StageDone
from ray_sisa.errors import TrainingError
from ray_sisa.records import StageRecord

TICK_S = 1.0  # how often the driver looks up from its events


class Decision(enum.Enum):
    """What to do about a chain that ended."""

    DONE = "done"
    RETRY = "retry"
    GIVE_UP = "give up"


def decide(ending: Ending, num_failures: int, max_failures: int) -> Decision:
    """What to do about a chain that ended.

    An application error would only come again; a lost worker is tried again up to `max_failures` times (-1: always),
    counting this failure; a preemption is nobody's fault and is not counted.

    Args:
        ending: how it ended.
        num_failures: lost workers since its last commit, this one included. What commits makes progress: on machines
            that come and go, a long chain loses more workers than any limit allows, and still ends.
        max_failures: how many of them are allowed.
    """
    if ending == "finished":
        return Decision.DONE
    if ending == "application":
        return Decision.GIVE_UP
    if ending == "preemption" or max_failures == -1 or num_failures <= max_failures:
        return Decision.RETRY
    return Decision.GIVE_UP


def run_chains(
    works: Sequence[ChainWork],
    runner: Runner,
    scaling: Scaling,
    *,
    tell: Callable[[Event], None] = lambda event: None,
    tick: Callable[[], Set[int]] = frozenset,
) -> list[StageRecord]:
    """Trains chains to their end and returns the records of the stages committed.

    Args:
        works: in the order in which they are to start.
        runner: where they run.
        scaling: limits on failures and on standing still.
        tell: hears every event.
        tick: called at the start, about once a second, and at the end; returns the shards whose chains have become
            useless and are stopped. A runner that trains in this process keeps it waiting for an epoch.

    Raises:
        TrainingError: a chain failed for good, or nothing moved for too long. What was committed stays.
    """
    loop = _Loop(works, runner, scaling, tell)
    runner.demand(len(works))
    tick_at = time.monotonic()
    try:
        while loop.busy:
            loop.turn()
            if time.monotonic() >= tick_at or not loop.busy:
                loop.drop(tick())
                tick_at = time.monotonic() + TICK_S
    finally:
        loop.stop_all()
    return loop.committed


def check_progress(moved_at: float, scaling: Scaling, waiting_for: str, numbers: Collection[int]) -> None:
    """Passes while something moved lately.

    Args:
        moved_at: when something last did, on the monotonic clock.
        scaling: holds the limit.
        waiting_for: what `numbers` number, for the message.
        numbers: of what is waited for.

    Raises:
        TrainingError: the last move is longer ago than `no_progress_timeout_s`.
    """
    still = time.monotonic() - moved_at
    if still > scaling.no_progress_timeout_s:
        rule = f"nothing moved for {still:.0f} s"
        remedy = "Look at the workers' logs; raise scaling.no_progress_timeout_s if an epoch or a replay takes longer"
        raise TrainingError(f"waiting for {waiting_for}", sorted(numbers), rule, remedy)


class _Loop:
    def __init__(
        self, works: Sequence[ChainWork], runner: Runner, scaling: Scaling, tell: Callable[[Event], None]
    ) -> None:
        self._waiting, self._running = deque(works), dict[int, ChainWork]()
        self._runner, self._scaling, self._tell = runner, scaling, tell
        self._failures: Counter[int] = Counter()
        self._moved_at = time.monotonic()
        self.committed: list[StageRecord] = []

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    def turn(self) -> None:
        while self._waiting and len(self._running) < self._runner.capacity():
            work = self._waiting.popleft()
            self._running[work.shard] = work
            self._runner.start(work)
        events = self._runner.poll(TICK_S)
        for event in events:
            self._moved_at = time.monotonic()
            self._tell(event)
            self._take(event)
        check_progress(self._moved_at, self._scaling, "shards", self._running.keys())

    def drop(self, shards: Set[int]) -> None:
        for shard in shards & self._running.keys():
            self._runner.stop(shard)
            del self._running[shard]
        self._waiting = deque(work for work in self._waiting if work.shard not in shards)

    def stop_all(self) -> None:
        for shard in list(self._running):
            self._runner.stop(shard)
        self._running = {}

    def _take(self, event: Event) -> None:
        if isinstance(event, StageDone):
            record = event.record
            self.committed.append(record)
            self._failures[record.shard] = 0
            self._running[record.shard] = self._running[record.shard].without(record.key)
        elif isinstance(event, ChainEnded):
            self._end(event, self._running.pop(event.shard))

    def _end(self, event: ChainEnded, work: ChainWork) -> None:
        self._failures[event.shard] += event.ending == "worker"
        decision = decide(event.ending, self._failures[event.shard], self._scaling.max_failures)
        if decision is Decision.RETRY:
            self._waiting.append(work)
        elif decision is Decision.GIVE_UP:
            slices = [s.slice for s in work.chain.stages if s.key in work.missing]
            rule = f"failed ({event.ending}, {self._failures[event.shard]} worker failures):\n{event.message}"
            remedy = "Correct the cause and run the command again: it goes on from the last committed stage"
            raise TrainingError(f"shard {event.shard}", f"slice {slices[:1]}", rule, remedy)
