"""The runner in this process: one chain at a time, for laptops, tests and debugging."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

from ray_sisa.engine.runner import Item, Result, Tell, Told, no_one, telling
from ray_sisa.engine.turns import TICK_S
from ray_sisa.engine.work import ChainEnded, ChainWork, Event
from ray_sisa.engine.worker import train_chain


class LocalRunner:
    """Trains chains here, an event at a time."""

    def __init__(self) -> None:
        self._shard = -1
        self._events: Iterator[Event] | None = None

    def demand(self, num_chains: int) -> None:
        """Nothing here can grow."""

    def want(self, num_waiting: int) -> None:
        """The one worker there is is this process."""

    def free(self) -> int:
        """One, unless a chain is being trained."""
        return int(self._events is None)

    def start(self, work: ChainWork) -> None:
        """Makes ready; the work is done in `poll`."""
        # Within an epoch too the loop comes to its turn: to keep the lease, and to drop a chain that became tainted.
        self._shard, self._events = work.shard, train_chain(work, tell_every_s=TICK_S)

    def poll(self, timeout_s: float) -> list[Event]:
        """Works until the next event: within a stage, until the batch is done that runs when `TICK_S` is over."""
        if self._events is None:
            return []
        try:
            return [next(self._events)]
        except StopIteration:
            ended = ChainEnded(shard=self._shard, ending="finished")
        except Exception as error:
            # Whatever the training raised is the user's to read; the loop decides what follows.
            ended = ChainEnded.by_error(self._shard, error)
        self._events = None
        return [ended]

    def stop(self, shard: int) -> None:
        """Drops the chain between two events."""
        if shard == self._shard:
            self._events = None

    def map(
        self, function: Callable[[Any, Item], Result], shared: Any, items: Sequence[Item], tell: Tell = no_one
    ) -> list[Result]:
        """One after another; no worker can be lost, so all that is raised comes from the function."""
        return [_to_end(telling(function(shared, item)), number, tell) for number, item in enumerate(items)]

    def close(self) -> None:
        """Nothing is left running."""
        self._events = None


def _to_end(steps: Generator[Told, None, Any], number: int, tell: Tell) -> Any:
    while True:
        try:
            told = next(steps)
        except StopIteration as end:
            return end.value
        tell(number, told.what)
