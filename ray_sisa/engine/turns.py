"""How numbered jobs reach workers: a job belongs to nobody until a worker is there that can take it up.

Chains of stages and mapped items are such jobs. Decisions are pure; only `Turns` acts, and only on its crew.
"""

from __future__ import annotations

import enum
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Generic, Protocol, TypeVar

from ray_sisa.config import Scaling
from ray_sisa.engine.runner import GivenBack, Placed, WorkerLost, WorkerReady
from ray_sisa.engine.work import Ending
from ray_sisa.errors import TrainingError

TICK_S = 1.0  # how often the driver looks up from its events
MOST_NAMED = 10  # of what is waited for, in a message
Happening = TypeVar("Happening", covariant=True)


class Decision(enum.Enum):
    """What to do about a job that ended, or about a worker that was lost."""

    DONE = "done"
    RETRY = "retry"
    GIVE_UP = "give up"


def decide(ending: Ending, num_failures: int, limit: int) -> Decision:
    """What to do about a job that ended.

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


def staffing(*, num_waiting: int, num_free: int, num_starting: int, num_working: int, capacity: int) -> int:
    """How many workers to start, or as a negative number, how many of those that start to let go.

    A worker that starts may never get what it needs, since others hold it. So none is worth more than a free one: what
    waits goes to whichever comes first, and a worker that starts for nothing is let go.

    Args:
        num_waiting: jobs that no worker has.
        num_free: workers that could take up a job now.
        num_starting: workers that were asked for and have not come.
        num_working: workers with a job.
        capacity: workers that the cluster could hold, were it empty.
    """
    wanted = max(0, num_waiting - num_free)
    room = max(0, capacity - num_free - num_working)
    return min(wanted, room) - num_starting


class Crew(Protocol[Happening]):
    """Workers that take up jobs."""

    def want(self, num_waiting: int) -> None:
        """Says how many jobs wait: workers are started for them, and those that start for nothing are let go."""

    def free(self) -> int:
        """How many workers could take up a job now."""

    def poll(self, timeout_s: float) -> Sequence[Happening | WorkerReady | WorkerLost | GivenBack | Placed]:
        """What happened, waiting up to `timeout_s` for something."""


class Turns(Generic[Happening]):
    """Hands jobs to workers as these become free, and says where each is."""

    def __init__(
        self,
        numbers: Iterable[int],
        crew: Crew[Happening],
        hand_out: Callable[[int], None],
        scaling: Scaling,
        waiting_for: str,
    ) -> None:
        """Takes numbers of jobs, in the order in which they are to start, and what hands one to a free worker."""
        self.waiting, self.running = deque(numbers), set[int]()
        self.moved_at = time.monotonic()
        self._crew, self._hand_out, self._scaling, self._waiting_for = crew, hand_out, scaling, waiting_for
        self._places: dict[int, Placed] = {}
        self._lost = Counter[Ending]()

    @property
    def busy(self) -> bool:
        """Whether any job waits or runs."""
        return bool(self.waiting or self.running)

    @property
    def places(self) -> dict[int, Placed | None]:
        """Who has each job that waits or runs; None where no worker has taken it up."""
        return {number: self._places.get(number) for number in sorted(self.running.union(self.waiting))}

    def take(self) -> list[Happening]:
        """Hands out what can be, and returns what happened to jobs, having waited up to `TICK_S` for something.

        Raises:
            TrainingError: nothing moved for too long, or too many workers in a row were lost before they had a job.
        """
        self._crew.want(len(self.waiting))
        while self.waiting and self._crew.free():
            self.running.add(number := self.waiting.popleft())
            self._hand_out(number)
        happened = self._crew.poll(TICK_S)
        if happened:
            self.moved_at = time.monotonic()
        return [one for one in happened if not self._is_ours(one)]  # type: ignore[misc]

    def check_progress(self) -> None:
        """Passes while something moved lately.

        Raises:
            TrainingError: the last move is longer ago than `no_progress_timeout_s`.
        """
        stands_still = {number: place for number, place in self.places.items() if number in self.running}
        _check_progress(self.moved_at, self._scaling, self._waiting_for, stands_still or self.places)

    def leave(self, number: int) -> None:
        """Forgets a job that ended or was stopped."""
        self.running.discard(number)
        self._places.pop(number, None)

    def again(self, number: int) -> None:
        """Puts a job that ended behind all that wait."""
        self.leave(number)
        self.waiting.append(number)

    def drop(self, numbers: Set[int]) -> None:
        """Forgets jobs, whether they wait or run."""
        for number in numbers:
            self.leave(number)
        self.waiting = deque(number for number in self.waiting if number not in numbers)

    def _is_ours(self, happened: object) -> bool:
        """Whether it is about workers rather than about what they do."""
        if isinstance(happened, Placed):
            self._places[happened.number] = happened
        elif isinstance(happened, GivenBack):
            self.leave(happened.number)
            self.waiting.appendleft(happened.number)
        elif isinstance(happened, WorkerReady):
            self._lost.clear()
        elif isinstance(happened, WorkerLost):
            self._lose(happened)
        else:
            return False
        return True

    def _lose(self, lost: WorkerLost) -> None:
        self._lost[lost.ending] += 1
        number, limit = self._lost[lost.ending], allowed(lost.ending, self._scaling)
        if decide(lost.ending, number, limit) is not Decision.GIVE_UP:
            return
        rule = f"could not start (application):\n{lost.message.strip()}"
        if lost.ending != "application":
            rule = f"could not start, {number} times in a row ({lost.ending}) where {limit} are allowed: {lost.message}"
        raise TrainingError("worker", "", rule, "Correct the cause and run the command again: it goes on")


def _check_progress(moved_at: float, scaling: Scaling, waiting_for: str, places: Mapping[int, Placed | None]) -> None:
    still = time.monotonic() - moved_at
    if still <= scaling.no_progress_timeout_s:
        return
    rule = f"nothing moved for {still:.0f} s; {_whereabouts(places)}"
    remedy = (
        "Look at the workers' logs; raise scaling.no_progress_timeout_s if they need longer to start, or to read "
        "their slices. The same command goes on from the last committed stage"
    )
    raise TrainingError(f"waiting for {waiting_for}", list(places)[:MOST_NAMED], rule, remedy)


def _whereabouts(places: Mapping[int, Placed | None]) -> str:
    found = [f"{number} is with {place}" for number, place in places.items() if place]
    if unplaced := [number for number, place in places.items() if not place]:
        found.append(f"no worker has taken up {unplaced[:MOST_NAMED]}: others may hold what it would need")
    more = [f"and {len(found) - MOST_NAMED} more"] if len(found) > MOST_NAMED else []
    return "; ".join(found[:MOST_NAMED] + more)
