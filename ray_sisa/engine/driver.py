"""The loop that sees chains to their end, whatever runs them. Decisions are values; only the loop acts."""

from __future__ import annotations

import enum
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence, Set

from ray_sisa.config import Scaling
from ray_sisa.engine.runner import Placed, Runner
from ray_sisa.engine.work import ChainEnded, ChainWork, Ending, Event, StageDone, StageUnderway
from ray_sisa.errors import TrainingError
from ray_sisa.records import StageRecord

TICK_S = 1.0  # how often the driver looks up from its events
MOST_NAMED = 10  # of what is waited for, in a message
LONGEST_CAUSE = 300  # characters of a cause in the log; an error has the whole

logger = logging.getLogger(__name__)


class Decision(enum.Enum):
    """What to do about a chain that ended."""

    DONE = "done"
    RETRY = "retry"
    GIVE_UP = "give up"


def decide(ending: Ending, num_failures: int, limit: int) -> Decision:
    """What to do about a chain that ended.

    An application error would only come again. A lost worker, and likewise a preemption, is tried again up to its own
    limit.

    Args:
        ending: how it ended.
        num_failures: endings like this since the shard last committed a stage or saved its state, this one included.
            What does makes progress: on machines that come and go, a long chain loses more workers than any limit
            allows, and still ends.
        limit: how many of them are allowed; -1 is without limit.
    """
    if ending == "finished":
        return Decision.DONE
    if ending == "application":
        return Decision.GIVE_UP
    return Decision.RETRY if limit == -1 or num_failures <= limit else Decision.GIVE_UP


def allowed(ending: Ending, scaling: Scaling) -> int:
    """How many endings of a kind a shard may have between two of its commits; -1 is without limit."""
    limits = {"worker": scaling.max_failures, "preemption": scaling.max_preemption_failures}
    return limits.get(ending, 0)


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


def check_progress(moved_at: float, scaling: Scaling, waiting_for: str, places: Mapping[int, Placed | None]) -> None:
    """Passes while something moved lately.

    Args:
        moved_at: when something last did, on the monotonic clock.
        scaling: holds the limit.
        waiting_for: what the numbers of `places` number, for the message.
        places: where each thing that is waited for is worked on; None where no worker has taken it up.

    Raises:
        TrainingError: the last move is longer ago than `no_progress_timeout_s`.
    """
    still = time.monotonic() - moved_at
    if still > scaling.no_progress_timeout_s:
        rule = f"nothing moved for {still:.0f} s; {_whereabouts(places)}"
        remedy = (
            "Look at the workers' logs; raise scaling.no_progress_timeout_s if they need longer to start, or to read "
            "their slices. The same command goes on from the last committed stage"
        )
        raise TrainingError(f"waiting for {waiting_for}", sorted(places), rule, remedy)


def _whereabouts(places: Mapping[int, Placed | None]) -> str:
    found = [f"{number} is with {place}" for number, place in sorted(places.items()) if place]
    if unplaced := sorted(number for number, place in places.items() if not place):
        found.append(f"no worker has taken up {unplaced[:MOST_NAMED]}: others may hold what it would need")
    more = [f"and {len(found) - MOST_NAMED} more"] if len(found) > MOST_NAMED else []
    return "; ".join(found[:MOST_NAMED] + more)


class _Loop:
    def __init__(
        self, works: Sequence[ChainWork], runner: Runner, scaling: Scaling, tell: Callable[[Event], None]
    ) -> None:
        self._waiting, self._running = deque(works), dict[int, ChainWork]()
        self._runner, self._scaling, self._tell = runner, scaling, tell
        self._places: dict[int, Placed] = {}
        self._failures: dict[int, Counter[Ending]] = {}
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
        for event in self._runner.poll(TICK_S):
            self._moved_at = time.monotonic()
            if isinstance(event, Placed):
                self._places[event.number] = event
            else:
                self._tell(event)
                self._take(event)
        places = {shard: self._places.get(shard) for shard in self._running}
        check_progress(self._moved_at, self._scaling, "shards", places)

    def drop(self, shards: Set[int]) -> None:
        for shard in shards & self._running.keys():
            self._runner.stop(shard)
            self._leave(shard)
        self._waiting = deque(work for work in self._waiting if work.shard not in shards)

    def stop_all(self) -> None:
        self.drop(set(self._running))

    def _leave(self, shard: int) -> ChainWork:
        self._places.pop(shard, None)
        return self._running.pop(shard)

    def _take(self, event: Event) -> None:
        if isinstance(event, StageDone):
            record = event.record
            self.committed.append(record)
            self._failures.pop(record.shard, None)
            self._running[record.shard] = self._running[record.shard].without(record.key)
        elif isinstance(event, StageUnderway) and event.what == "saved":
            self._failures.pop(event.stage.shard, None)
        elif isinstance(event, ChainEnded):
            self._end(event, self._leave(event.shard))

    def _end(self, event: ChainEnded, work: ChainWork) -> None:
        failures = self._failures.setdefault(event.shard, Counter())
        failures[event.ending] += 1
        number, limit = failures[event.ending], allowed(event.ending, self._scaling)
        decision = decide(event.ending, number, limit)
        if decision is Decision.DONE:
            return
        slices = [s.slice for s in work.chain.stages if s.key in work.missing]
        _log(event, slices, number, limit, decision)
        if decision is Decision.GIVE_UP:
            raise _failed(event, slices, number, limit)
        self._waiting.append(work)


def _log(event: ChainEnded, slices: Sequence[int], number: int, limit: int, decision: Decision) -> None:
    """One line a failure: who follows a long job sees what goes on, and from where."""
    lines = event.message.strip().splitlines() or [""]
    if event.ending == "application":
        cause, counted = lines[-1], "application error, not tried again"
    else:
        cause, most = lines[0], "any number" if limit == -1 else limit
        counted = f"{event.ending} failure {number} of {most} allowed"
    where = f"shard {event.shard}, slice {min(slices, default='-')}"
    logger.warning("%s: %s (%s): %s", where, decision.value, counted, cause[:LONGEST_CAUSE])


def _failed(event: ChainEnded, slices: Sequence[int], number: int, limit: int) -> TrainingError:
    goes_on = "run the command again: it goes on from the last stage committed or state saved"
    if event.ending == "application":
        rule, remedy = f"failed (application):\n{event.message.strip()}", f"Correct the cause and {goes_on}"
    else:
        field = "max_failures" if event.ending == "worker" else "max_preemption_failures"
        counted = f"{event.ending}, {number} since its last commit where scaling.{field} allows {limit}"
        rule = f"failed ({counted}): {event.message.strip()}"
        remedy = f"Correct the cause or raise scaling.{field}, and {goes_on}"
    return TrainingError(f"shard {event.shard}, slice {min(slices, default='-')}", "", rule, remedy)
