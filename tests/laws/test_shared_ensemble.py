"""Law: threads that share one ensemble are each served what is in force when they ask, however their steps interleave.

The model checker runs two readers and a writer, each in a thread of its own, one step at a time, in every order there
is. Store, ledger, heads and networks are real. A step of a reader ends where it looks whether it is behind, loads, or
waits for the lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ClassVar

import numpy as np
from small_runs import digits, folder_of
from torch import nn

from ray_sisa.ensemble import Ensemble, Snapshot
from ray_sisa.layout import LEDGER, numbered
from ray_sisa.records import Constituent
from ray_sisa.run import Run


class Schedule:
    """Lets one thread at a time take one step: follows `choices`, then always takes the first that can go on."""

    def __init__(self, choices: list[int]) -> None:
        self.choices, self.widths = choices, list[int]()
        self._gates: dict[str, threading.Semaphore] = {}
        self._paused = threading.Semaphore(0)
        self._ready: dict[str, Callable[[], bool]] = {}

    def pause(self, ready: Callable[[], bool] = lambda: True) -> None:
        """Ends a step of this thread; the next begins when `ready`, and when the schedule says so."""
        name = threading.current_thread().name
        if name in self._gates:
            self._ready[name] = ready
            self._paused.release()
            self._gates[name].acquire()

    def run(self, bodies: dict[str, Callable[[], None]]) -> None:
        """Runs all of them to their end; of `reader 1` and `reader 2`, which are alike, the first begins first."""
        self._gates = {name: threading.Semaphore(0) for name in bodies}
        self._ready = {name: lambda: True for name in bodies}
        began = set[str]()
        self._ready["reader 2"] = lambda: "reader 1" in began
        threads = [threading.Thread(target=self._body, args=(body,), name=name) for name, body in bodies.items()]
        for thread in threads:
            thread.start()
        while self._ready:
            able = sorted(name for name, ready in self._ready.items() if ready())
            assert able, "a deadlock"
            number = self.choices[len(self.widths)] if len(self.widths) < len(self.choices) else 0
            self.widths.append(len(able))
            began.add(able[number])
            self._gates[able[number]].release()
            self._paused.acquire()
        for thread in threads:
            thread.join()

    def _body(self, body: Callable[[], None]) -> None:
        name = threading.current_thread().name
        self._gates[name].acquire()
        try:
            body()
        finally:
            del self._ready[name]
            self._paused.release()

    def next(self) -> list[int] | None:
        """The choices of the next schedule, depth first; None after the last."""
        taken = self.choices + [0] * (len(self.widths) - len(self.choices))
        for place in reversed(range(len(taken))):
            if taken[place] + 1 < self.widths[place]:
                return [*taken[:place], taken[place] + 1]
        return None


class SteppedLock:
    """A lock that a schedule sees: who waits for it takes no step."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule, self._is_held = schedule, False

    def __enter__(self) -> None:
        self._schedule.pause(lambda: not self._is_held)
        self._is_held = True

    def __exit__(self, *error: object) -> None:
        self._is_held = False


class Stepped(Ensemble):
    """An ensemble whose looks at the store, and loads, are steps of a schedule; networks are loaded once for all."""

    schedule = Schedule([])
    loaded: ClassVar[dict[str, nn.Module]] = {}  # once for all schedules

    def start(self, snapshot: Snapshot, choices: list[int]) -> Schedule:
        """Puts a snapshot in force, and what follows under a new schedule."""
        self.schedule, self._snapshot = Schedule(choices), snapshot
        self._loading = SteppedLock(self.schedule)  # type: ignore[assignment]
        return self.schedule

    def _is_newer(self, position: int, head: int) -> bool:
        self.schedule.pause()
        return super()._is_newer(position, head)

    def _load(self, constituent: Constituent, head: int) -> nn.Module:
        self.schedule.pause()
        if constituent.key not in self.loaded:
            self.loaded[constituent.key] = super()._load(constituent, head)
        return self.loaded[constituent.key]


def test_no_interleaving_of_two_readers_and_a_writer_serves_what_was_forgotten(copied: Callable[..., Run]) -> None:
    run = copied()
    ensemble = Stepped(run.store, run.record)
    opened = ensemble.refresh()
    for shard in (0, 1):
        run.forget(samples=run.sample_ids(shard, 3)[:1])
    # The first request came after the ensemble was opened, the second comes while it is asked.
    later = folder_of(run) / numbered(LEDGER, 2)
    content = later.read_bytes()
    served: list[tuple[int, Snapshot]] = []

    def read() -> None:
        known = 2 if later.exists() else 1
        served.append((known, ensemble.refresh()))

    choices: list[int] | None = []
    explored = 0
    while choices is not None:
        later.unlink()
        schedule = ensemble.start(opened, choices)
        served.clear()
        schedule.run({"reader 1": read, "reader 2": read, "writer": lambda: bool(later.write_bytes(content))})
        assert len(served) == 2
        for known, snapshot in served:
            assert snapshot.ledger.position >= known, schedule.choices
            assert {c.shard: c.slice for c in snapshot.constituents} == FALLEN_BACK[snapshot.ledger.position]
        assert [s.ledger.position for _, s in served] == sorted(s.ledger.position for _, s in served), "backwards"
        choices, explored = schedule.next(), explored + 1
    assert explored > 50


FALLEN_BACK = {1: {0: 2, 1: 3, 2: 3}, 2: {0: 2, 1: 2, 2: 3}}  # slice by shard, under so many requests


def test_threads_that_predict_at_once_are_all_served(copied: Callable[..., Run]) -> None:
    """Each thread's prediction is that of one state of the run, to the bit, while requests come."""
    run, images = copied(), digits(240, 20).images
    ensemble = run.ensemble()
    states = [ensemble.predict_proba(images)]
    begun, told = threading.Barrier(4), list[tuple[int, np.ndarray]]()

    def ask() -> None:
        begun.wait()
        for _ in range(5):
            known = run.store.numbers(LEDGER)
            told.append((len(known), ensemble.predict_proba(images)))

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    begun.wait()
    for shard in (0, 1):
        Run.open(run.store.uri).forget(samples=run.sample_ids(shard, 3)[:1])
        states.append(Run.open(run.store.uri).ensemble().predict_proba(images))
    for thread in threads:
        thread.join()
    for known, found in told:
        assert any(np.array_equal(found, state) for state in states[known:])
