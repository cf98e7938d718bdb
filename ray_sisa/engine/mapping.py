"""The loop that sees a function over some items to its end, whatever runs it."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ray_sisa.config import Scaling
from ray_sisa.engine.runner import Tell, Told
from ray_sisa.engine.turns import Crew, Decision, Turns, allowed, decide
from ray_sisa.engine.work import Ending
from ray_sisa.errors import TrainingError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What a job told, or what it returned, after which nothing else of it comes."""

    number: int
    what: Told | Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Raised:
    """A job raised; its worker lives."""

    number: int
    error: Exception
    """As it was raised."""
    text: str
    """With its traceback."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost:
    """The worker of a job was lost while it had it."""

    number: int
    ending: Ending
    message: str


JobNews = Said | Raised | Lost


class Pool(Crew[JobNews], Protocol):
    """Workers that run a function of the package on what they are given."""

    def submit(self, number: int, function: Callable[..., Any], *arguments: Any) -> None:
        """Hands `function(*arguments)` to a free worker; `poll` says what it tells, and then what it returns."""

    def stop(self, number: int) -> None:
        """Ends a job, and its worker, without a further word."""


def map_items(
    pool: Pool, scaling: Scaling, function: Callable[..., Any], shared: Any, items: Sequence[Any], tell: Tell
) -> list[Any]:
    """`function(shared, item)` of each item, in order; what `Runner.map` says holds.

    Args:
        pool: where it runs.
        scaling: limits on workers that are lost, and on standing still.
        function: of the package, or importable by name.
        shared: as the pool's workers take it.
        items: one a job.
        tell: hears what a generator function yields.
    """
    mapping = _Mapping(pool, scaling, function, shared, items, tell)
    try:
        while mapping.busy:
            mapping.turn()
    finally:
        mapping.stop_all()
    return [mapping.results[number] for number in range(len(items))]


class _Mapping:
    def __init__(
        self, pool: Pool, scaling: Scaling, function: Callable[..., Any], shared: Any, items: Sequence[Any], tell: Tell
    ) -> None:
        self._pool, self._scaling, self._tell = pool, scaling, tell
        self._function, self._shared, self._items = function, shared, items
        self._turns: Turns[JobNews] = Turns(range(len(items)), pool, self._start, scaling, "items")
        self._failures = Counter[tuple[int, Ending]]()
        self.results: dict[int, Any] = {}

    @property
    def busy(self) -> bool:
        return self._turns.busy

    def turn(self) -> None:
        for news in self._turns.take():
            self._take(news)
        if any(place for number, place in self._turns.places.items() if number in self._turns.running):
            self._turns.moved_at = time.monotonic()  # they run, however long: not all tell of anything
        self._turns.check_progress()

    def stop_all(self) -> None:
        """Leaves nothing running, and no worker starting for it."""
        for number in self._turns.running:
            self._pool.stop(number)
        self._pool.want(0)

    def _start(self, number: int) -> None:
        self._pool.submit(number, self._function, self._shared, self._items[number])

    def _take(self, news: JobNews) -> None:
        if isinstance(news, Raised):
            self._turns.leave(news.number)
            raise news.error
        if isinstance(news, Lost):
            self._turns.again(news.number)
            self._count(news)
        elif isinstance(news.what, Told):
            self._tell(news.number, news.what.what)
        else:
            self._turns.leave(news.number)
            self.results[news.number] = news.what

    def _count(self, lost: Lost) -> None:
        """Returns if the item is to be tried again."""
        self._failures[lost.number, lost.ending] += 1
        number, limit = self._failures[lost.number, lost.ending], allowed(lost.ending, self._scaling)
        if decide(lost.ending, number, limit) is Decision.GIVE_UP:
            rule = f"was lost {number} times ({lost.ending}), where {limit} are allowed: {lost.message}"
            raise TrainingError("worker", f"item {lost.number}", rule, "Run the command again")
        logger.warning("item %d: %s failure %d: %s", lost.number, lost.ending, number, lost.message.partition("\n")[0])
