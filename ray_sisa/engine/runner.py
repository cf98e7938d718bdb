"""The one seam to where work runs: start this chain, tell me what happens.

Two implementations: `local_runner` in this process, `ray_runner` on a cluster. Both pass the same tests.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from ray_sisa import model_code
from ray_sisa.config import Scaling
from ray_sisa.engine.work import ChainWork, Ending, Event

RunnerName = Literal["ray", "local"]
Item = TypeVar("Item")
Result = TypeVar("Result")
Tell = Callable[[int, Any], None]
"""Hears what a mapped function yields: the number of its item, and what."""


def no_one(number: int, told: Any) -> None:
    """Hears nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """A worker elsewhere took up a chain, or a mapped item."""

    number: int
    """Of the shard, or of the item."""
    node: str
    """IP address."""
    node_id: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.pid} on node {self.node}"


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker came up and is free."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerLost:
    """A worker was lost before it had anything to do; nobody's job is charged with it."""

    ending: Ending
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenBack:
    """What was handed to a worker goes back to those that wait: the worker had died in idleness."""

    number: int


WorkerNews = WorkerReady | WorkerLost | GivenBack | Placed


class Runner(Protocol):
    """Where chains are trained and functions are mapped."""

    def demand(self, num_chains: int) -> None:
        """Says how many chains there are to train in all, for a cluster that can grow."""

    def want(self, num_waiting: int) -> None:
        """Says how many chains wait: workers are started for them, and those that start for nothing are let go."""

    def free(self) -> int:
        """How many workers could take up a chain now."""

    def start(self, work: ChainWork) -> None:
        """Hands a chain to a free worker; its events come from `poll`, the last of them a `ChainEnded`."""

    def poll(self, timeout_s: float) -> Sequence[Event | WorkerNews]:
        """What happened, waiting up to `timeout_s` for something."""

    def stop(self, shard: int) -> None:
        """Ends the chain of a shard without a further event; what it committed stays."""

    def map(
        self, function: Callable[[Any, Item], Result], shared: Any, items: Sequence[Item], tell: Tell = no_one
    ) -> list[Result]:
        """`function(shared, item)` of each item, in order; the function is importable by name.

        A generator function maps to what it returns, which types do not say; what it yields is told with the number
        of its item. An item that is tried again tells again.

        Raises:
            Exception: what the function raised, as it was raised.
            TrainingError: the workers of one item were lost too often, or none was to be had for too long.
        """

    def close(self) -> None:
        """Ends all workers."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a mapped function yields, told apart from what it returns."""

    what: Any


def telling(returned: Any) -> Generator[Told, None, Any]:
    """The result of a mapped function; before it, where that is a generator, all that it yields."""
    if not inspect.isgenerator(returned):
        return returned
    while True:
        try:
            what = next(returned)
        except StopIteration as end:
            return end.value
        yield Told(what)


def device_of(scaling: Scaling) -> str:
    """The device of a worker with these resources."""
    return "cuda" if scaling.num_gpus else "cpu"


OpenRunner = Callable[[], AbstractContextManager[Runner]]


@contextmanager
def open_runner(runner: RunnerName | Runner, scaling: Scaling, model: str = "") -> Iterator[Runner]:
    """A runner for the length of the block: made and closed for a name, used and left open if it is one already.

    Args:
        runner: or its name.
        scaling: of one that is made.
        model: the network that the work needs, if any: where it may not be imported, no cluster is joined for nothing.

    Raises:
        ConfigError: the network is code that nobody here has allowed.
        ResourcesError: no node of the cluster can hold a worker.
    """
    model_code.check_allowed(model)
    made = _make(runner, scaling) if isinstance(runner, str) else None
    try:
        yield made or runner  # type: ignore[misc]
    finally:
        if made:
            made.close()


def _make(name: RunnerName, scaling: Scaling) -> Runner:
    if name == "local":
        from ray_sisa.engine.local_runner import LocalRunner

        return LocalRunner()
    from ray_sisa.engine.ray_runner import RayRunner

    return RayRunner(scaling)
