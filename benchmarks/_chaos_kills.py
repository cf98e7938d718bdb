"""Kills: what is to be killed at which point or when, what each kill met, and which kills the next run gets."""

from __future__ import annotations

import itertools
import math
import random
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from _chaos_storage import StoreKind

Target = Literal["driver", "actor", "raylet", "head"]
Phase = Literal["train", "forget", "unlearn"]
Style = Literal["after", "between", "during"]
"""When requests are sent: once training has ended, after its first kill, or while it runs."""
Nodes = Literal["free", "held"]
"""Whether all CPUs of a cluster are free for the run, or another job holds some of them for part of the time."""

POINTED = 2 / 3
"""Of the kills of drivers, at named points; of those of actors, half as many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kill:
    """A kill to be made: of whom, while which command runs, and at which point, or when.

    When is a part of the command's usual time; on Ray, of `SPREAD_S` after it made something since the last kill.
    """

    target: Target
    phase: Phase
    point: str | None = None
    count: int = 1
    part: float = 0.0

    @property
    def environment(self) -> dict[str, str]:
        """What arms a process with its point."""
        return {"RAY_SISA_CRASH_AT": f"{self.point} {self.count}"} if self.point else {}


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What a kill met; of a crash point, what it left."""

    seconds: float
    """Since its command was started."""
    last_object: str
    """Kind of the last object written."""
    stages: int
    """That were committed."""
    acknowledged: int
    """Requests."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Strike:
    """A kill that struck, and what it met."""

    scenario: int
    runner: Literal["local", "ray"]
    store: StoreKind
    nodes: Nodes | None
    """None without Ray."""
    style: Style
    target: Target
    phase: Phase
    point: str | None
    """With how often it had been passed; None for a random time."""
    killed: str
    scene: Scene


class Plan:
    """The kills that are still to be made, and which of them the next run gets."""

    def __init__(
        self, local: int, ray: Mapping[Target, int], points: Mapping[Phase, Sequence[str]], draw: random.Random
    ) -> None:
        self._points, self._draw = points, draw
        self.local = deque(self._of_drivers(local))
        self.ray = deque(self._on_ray(ray))

    def style(self, kills: deque[Kill]) -> Style:
        """When the next run's requests are sent: late, unless there are kills for its training."""
        if not any(kill.phase == "train" for kill in kills):
            return "after"
        styles: tuple[Style, ...] = ("after", "after", "between", "during")
        return self._draw.choice(styles)

    def take(self, kills: deque[Kill], most: Mapping[Phase, int], style: Style) -> list[Kill]:
        """The next run's: so many for each phase, in the order in which a run comes to them."""
        # A training that sees to requests leaves nothing to unlearn.
        left = {**most, "unlearn": most["unlearn"] if style == "after" else 0}
        taken, kept = list[Kill](), list[Kill]()
        while kills:
            kill = kills.popleft()
            if left[kill.phase] and not any(_excludes(other, kill) for other in taken):
                left[kill.phase] -= 1
                taken.append(kill)
            else:
                kept.append(kill)
        kills.extend(kept)
        return sorted(taken, key=self._position)

    def _of_drivers(self, number: int) -> list[Kill]:
        """At all points, each once, or at as many of each phase as there is room for; and at random times."""
        by_phase = [[self._at(phase, point) for point in self._shuffled(phase)] for phase in self._points]
        in_turns = [kill for kills in itertools.zip_longest(*by_phase) for kill in kills if kill]
        named = in_turns[: math.ceil(number * POINTED)]
        phases: list[Phase] = self._draw.choices(("train", "forget", "unlearn"), (4, 1, 4), k=number - len(named))
        kills = [*named, *(Kill(target="driver", phase=phase, part=self._draw.random()) for phase in phases)]
        self._draw.shuffle(kills)
        return kills

    def _on_ray(self, counts: Mapping[Target, int]) -> list[Kill]:
        kills: list[Kill] = []
        for target, number in counts.items():
            phases: list[Phase] = self._draw.choices(("train", "unlearn"), (4, 3), k=number)
            kills += [Kill(target=target, phase=phase, part=self._draw.random()) for phase in phases]
        points = [point for point in self._shuffled("train") if _is_of_actors(point)]
        actors = [index for index, kill in enumerate(kills) if kill.target == "actor"]
        for index, point in zip(actors[: math.ceil(len(actors) * POINTED / 2)], points * len(actors), strict=False):
            count = self._draw.randint(1, 2)
            kills[index] = Kill(target="actor", phase=kills[index].phase, point=point, count=count)
        self._draw.shuffle(kills)
        return kills

    def _shuffled(self, phase: Phase) -> list[str]:
        points = sorted(set(self._points[phase]))
        return self._draw.sample(points, len(points))

    def _at(self, phase: Phase, point: str) -> Kill:
        # Passings of the lease's points follow from the clock: only the first is certain.
        most = 1 if point.endswith(" lease") else self._points[phase].count(point)
        return Kill(target="driver", phase=phase, point=point, count=self._draw.randint(1, most))

    def _position(self, kill: Kill) -> float:
        """Where in the undisturbed command it strikes, as a part of it."""
        passed = self._points[kill.phase]
        if not kill.point or kill.point not in passed:
            return kill.part
        at = [index for index, point in enumerate(passed) if point == kill.point]
        return at[min(kill.count, len(at)) - 1] / len(passed)


def again(kill: Kill) -> Kill:
    """A kill that missed, to be tried once more: at the first passing of its point, or sooner."""
    return replace(kill, count=1, part=kill.part / 2)


def _excludes(one: Kill, other: Kill) -> bool:
    """Whether one command cannot have both: it loses its head once, and its shard actors are armed with one point."""
    same = one.target == other.target and one.phase == other.phase
    return same and (one.target == "head" or (one.target == "actor" and bool(one.point and other.point)))


def _is_of_actors(point: str) -> bool:
    _, verb, kind = point.split()
    return kind.startswith("partial/") or (kind.startswith("stages/") and verb != "delete")
