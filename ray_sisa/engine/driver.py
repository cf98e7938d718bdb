"""The loop that sees chains to their end, whatever runs them. Decisions are values; only the loop acts."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set

from ray_sisa.config import Scaling
from ray_sisa.engine import turns
from ray_sisa.engine.runner import Placed, Runner
from ray_sisa.engine.turns import Decision, Turns, allowed, decide
from ray_sisa.engine.work import ChainEnded, ChainWork, Ending, Event, StageDone, StageUnderway
from ray_sisa.errors import TrainingError
from ray_sisa.records import StageRecord

LONGEST_CAUSE = 300  # characters of a cause in the log; an error has the whole

logger = logging.getLogger(__name__)


def _nobody(places: Mapping[int, Placed | None]) -> None:
    """Looks at nothing."""


def run_chains(
    works: Sequence[ChainWork],
    runner: Runner,
    scaling: Scaling,
    *,
    tell: Callable[[Event], None] = lambda event: None,
    tick: Callable[[], Set[int]] = frozenset,
    watch: Callable[[Mapping[int, Placed | None]], None] = _nobody,
) -> list[StageRecord]:
    """Trains chains to their end and returns the records of the stages committed.

    Args:
        works: in the order in which they are to start.
        runner: where they run.
        scaling: limits on failures and on standing still.
        tell: hears every event.
        tick: called at the start, about once a second, and at the end; returns the shards whose chains have become
            useless and are stopped. A runner that trains in this process keeps it waiting for an epoch.
        watch: called before each tick with the shards that are not done: who has each, None where nobody has.

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
                watch(loop.places)
                loop.drop(tick())
                tick_at = time.monotonic() + turns.TICK_S
    finally:
        loop.stop_all()
    return loop.committed


class _Loop:
    def __init__(
        self, works: Sequence[ChainWork], runner: Runner, scaling: Scaling, tell: Callable[[Event], None]
    ) -> None:
        self._works = {work.shard: work for work in works}
        self._runner, self._scaling, self._tell = runner, scaling, tell
        self._turns: Turns[Event] = Turns(self._works, runner, self._start, scaling, "shards")
        self._failures: dict[int, Counter[Ending]] = {}
        self.committed: list[StageRecord] = []

    @property
    def busy(self) -> bool:
        return self._turns.busy

    @property
    def places(self) -> Mapping[int, Placed | None]:
        return self._turns.places

    def turn(self) -> None:
        for event in self._turns.take():
            self._tell(event)
            self._take(event)
        self._turns.check_progress()

    def drop(self, shards: Set[int]) -> None:
        for shard in shards & self._turns.running:
            self._runner.stop(shard)
        self._turns.drop(shards)

    def stop_all(self) -> None:
        """Leaves no chain running, and no worker starting for one."""
        self.drop(set(self._works))
        self._runner.want(0)

    def _start(self, shard: int) -> None:
        self._runner.start(self._works[shard])

    def _take(self, event: Event) -> None:
        if isinstance(event, StageDone):
            record = event.record
            self.committed.append(record)
            self._failures.pop(record.shard, None)
            self._works[record.shard] = self._works[record.shard].without(record.key)
        elif isinstance(event, StageUnderway) and event.what == "saved":
            self._failures.pop(event.stage.shard, None)
        elif isinstance(event, ChainEnded):
            self._end(event)

    def _end(self, event: ChainEnded) -> None:
        failures = self._failures.setdefault(event.shard, Counter())
        failures[event.ending] += 1
        number, limit = failures[event.ending], allowed(event.ending, self._scaling)
        decision = decide(event.ending, number, limit)
        if decision is Decision.DONE:
            return self._turns.leave(event.shard)
        self._turns.again(event.shard)
        work = self._works[event.shard]
        slices = [s.slice for s in work.chain.stages if s.key in work.missing]
        _log(event, slices, number, limit, decision)
        if decision is Decision.GIVE_UP:
            raise _failed(event, slices, number, limit)


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
