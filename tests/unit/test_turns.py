"""How jobs reach workers, under every order of events that a small cluster can give them.

Scripted is the cluster: slots that others take and give back, workers that come up late or never, die in idleness or at
work, nodes that come and go. Real are the loop over chains, the mapping of items, and their decisions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_driver import LEASE, record_of

from ray_sisa.config import Scaling, TrainingRecipe
from ray_sisa.engine.driver import run_chains
from ray_sisa.engine.mapping import Lost, Said, map_items
from ray_sisa.engine.runner import GivenBack, Placed, Told, WorkerLost, WorkerReady
from ray_sisa.engine.turns import staffing
from ray_sisa.engine.work import ChainEnded, ChainWork, StageDone
from ray_sisa.errors import TrainingError
from ray_sisa.index import SliceSummary
from ray_sisa.lineage import make_chain, recipe_digest
from ray_sisa.store import Store

PATIENT = Scaling(max_failures=-1)


@dataclass(kw_only=True, slots=True)
class Job:
    """What a busy worker has: the news of it that are to come."""

    number: int
    left: list[Any]
    is_taken_up: bool = False


@dataclass(kw_only=True)
class ScriptedCluster:
    """Slots, of which others hold some, and the workers of one driver; what happens next is drawn.

    Whatever is drawn, at least one slot is there that nobody else holds, as long as it is not ours.
    """

    draw: Callable[[int], int]
    """A number below another, from the script; 0 once the script has ended."""
    num_slots: int
    held: int
    starting: int = 0
    free_workers: int = 0
    dead_free: int = 0
    """Of the free: those that died in idleness, which nobody knows."""
    jobs: list[Job] = field(default_factory=list)
    waiting: int = 0
    """Jobs that nobody has."""
    most: int = 0

    @property
    def occupied(self) -> int:
        """Slots that our workers hold; those that start hold none."""
        return self.free_workers + len(self.jobs)

    def want(self, num_waiting: int) -> None:
        self.waiting = num_waiting
        more = staffing(
            num_waiting=num_waiting,
            num_free=self.free_workers,
            num_starting=self.starting,
            num_working=len(self.jobs),
            capacity=self.num_slots,  # whatever others hold of them
        )
        assert self.starting + more >= 0
        self.starting += more
        assert not (self.starting and self.free_workers >= num_waiting)  # none starts beside a free one that would do
        assert self.occupied + self.starting <= self.num_slots

    def free(self) -> int:
        return self.free_workers

    def hand_out(self, number: int, news: list[Any]) -> None:
        assert self.free_workers
        assert number not in [job.number for job in self.jobs]
        self.free_workers, self.waiting = self.free_workers - 1, self.waiting - 1
        self.jobs.append(Job(number=number, left=news))
        self.most = max(self.most, len(self.jobs))

    def poll(self, timeout_s: float) -> list[Any]:
        assert not (self.waiting and self.free_workers)
        assert self.starting >= min(self.waiting, self.num_slots - self.occupied)  # all that is there is asked for
        self._others_move()
        choices = [self._come_up] if self.starting and self.occupied + self.held < self.num_slots else []
        choices += [self._go_on] if self.jobs else []
        if self.draw(4) == 1:
            choices += [self._fail_to_start] if self.starting else []
            choices += [self._die] if self.jobs else []
            choices += [self._die_idle] if self.free_workers > self.dead_free else []
        assert choices, "it stands still: nothing runs, and nobody can come up"
        return choices[self.draw(len(choices))]()

    def stop(self, number: int) -> None:
        self.jobs = [job for job in self.jobs if job.number != number]

    def _others_move(self) -> None:
        step = (0, 1, -1)[self.draw(3)]
        if self.held + step >= 0 and self.held + step + max(1, self.occupied) <= self.num_slots:
            self.held += step

    def _come_up(self) -> list[Any]:
        self.starting, self.free_workers = self.starting - 1, self.free_workers + 1
        return [WorkerReady()]

    def _fail_to_start(self) -> list[Any]:
        self.starting -= 1
        return [WorkerLost(ending="worker", message="gone")]

    def _die_idle(self) -> list[Any]:
        self.dead_free += 1
        return []

    def _go_on(self) -> list[Any]:
        job = self.jobs[self.draw(len(self.jobs))]
        if not job.is_taken_up and self.dead_free:
            self.dead_free -= 1
            self.jobs.remove(job)
            return [GivenBack(number=job.number)]
        if not job.is_taken_up:
            job.is_taken_up = True
            return [Placed(number=job.number, node="here", node_id="h", pid=1)]
        said = job.left.pop(0)
        if not job.left:
            self.jobs.remove(job)
            self.free_workers += 1
        return [said]

    def _die(self) -> list[Any]:
        job = self.jobs.pop(self.draw(len(self.jobs)))
        return [self.lost(job)]

    def lost(self, job: Job) -> Any:
        return Lost(number=job.number, ending="worker", message="gone")


class ScriptedRunner(ScriptedCluster):
    """The same, for chains."""

    def demand(self, num_chains: int) -> None:
        pass

    def start(self, work: ChainWork) -> None:
        stages = [stage for stage in work.chain.stages if stage.key in work.missing]
        ended = ChainEnded(shard=work.shard, ending="finished")
        self.hand_out(work.shard, [*(StageDone(record=record_of(stage)) for stage in stages), ended])

    def lost(self, job: Job) -> Any:
        return ChainEnded(shard=job.number, ending="worker", message="gone")

    def map(self, *arguments: Any) -> list[Any]:
        raise NotImplementedError

    def close(self) -> None:
        raise AssertionError("the driver does not own its runner")


class ScriptedPool(ScriptedCluster):
    """The same, for mapped items."""

    def submit(self, number: int, function: Callable[..., Any], *arguments: Any) -> None:
        told = [Said(number=number, what=Told("half")), Said(number=number, what=function(*arguments))]
        self.hand_out(number, told)


@st.composite
def clusters(draw: Callable[..., Any], kind: type[ScriptedCluster] = ScriptedCluster) -> ScriptedCluster:
    num_slots = draw(st.integers(1, 4))
    held = draw(st.integers(0, num_slots - 1))
    free_workers = draw(st.integers(0, num_slots - held))  # from earlier work
    dead_free = draw(st.integers(0, free_workers))
    script = iter(draw(st.lists(st.integers(0, 11), max_size=150)))
    return kind(
        draw=lambda below: next(script, 0) % below,
        num_slots=num_slots,
        held=held,
        free_workers=free_workers,
        dead_free=dead_free,
    )


@pytest.fixture(scope="module")
def works(tmp_path_factory: pytest.TempPathFactory, make_training: Callable[..., TrainingRecipe]) -> list[ChainWork]:
    training = make_training(epochs=(1, 1))
    slices = [SliceSummary(digest=name, num_samples=5) for name in ("aa", "bb")]
    store = Store(str(tmp_path_factory.mktemp("store")))
    chains = [make_chain(training, recipe_digest(training), shard, slices) for shard in range(6)]
    return [
        ChainWork(store=store, chain=chain, missing=frozenset(chain.keys), device="cpu", ledger=0, lease=LEASE)
        for chain in chains
    ]


@given(runner=clusters(ScriptedRunner), number=st.integers(0, 6))
def test_all_chains_end_whatever_happens(works: list[ChainWork], runner: ScriptedRunner, number: int) -> None:
    records = run_chains(works[:number], runner, PATIENT)
    stages = sorted((record.shard, record.slice) for record in records)
    assert stages == [(shard, place) for shard in range(number) for place in (1, 2)]
    assert (runner.starting, runner.jobs) == (0, [])
    assert runner.most <= runner.num_slots


@given(pool=clusters(ScriptedPool), items=st.lists(st.integers(0, 99), max_size=6))
def test_all_items_end_whatever_happens(pool: ScriptedPool, items: list[int]) -> None:
    told: list[tuple[int, Any]] = []
    assert map_items(pool, PATIENT, pow, 2, items, lambda *heard: told.append(heard)) == [2**item for item in items]
    assert {number for number, _ in told} == set(range(len(items)))
    assert (pool.starting, pool.jobs) == (0, [])


@pytest.mark.parametrize(
    ("waiting", "free", "starting", "working", "capacity", "more"),
    [
        (6, 0, 0, 0, 2, 2),  # as many as there is room for
        (6, 0, 2, 0, 2, 0),
        (1, 0, 0, 1, 2, 1),
        (5, 0, 1, 1, 2, 0),  # one starts, and may never come: what waits is not bound to it
        (1, 1, 1, 0, 2, -1),  # a free one takes what waits
        (0, 0, 1, 1, 2, -1),  # nothing waits for it any more
        (3, 0, 1, 3, 2, -1),  # a node was lost
        (0, 2, 0, 0, 2, 0),
    ],
)
def test_staffing(waiting: int, free: int, starting: int, working: int, capacity: int, more: int) -> None:
    numbers = {"num_waiting": waiting, "num_free": free, "num_starting": starting, "num_working": working}
    assert staffing(**numbers, capacity=capacity) == more


@pytest.mark.parametrize("max_failures", [0, 2])
def test_workers_that_cannot_start_fail_the_run(works: list[ChainWork], max_failures: int) -> None:
    runner = Sinking(WorkerLost(ending="worker", message="gone"))
    times = rf"could not start, {max_failures + 1} times in a row \(worker\) where {max_failures} are allowed: gone"
    with pytest.raises(TrainingError, match=times) as failed:
        run_chains(works, runner, Scaling(max_failures=max_failures))
    assert (failed.value.field, runner.starting) == ("worker", 0)


def test_and_at_once_where_it_would_only_fail_again(works: list[ChainWork]) -> None:
    runner = Sinking(WorkerLost(ending="application", message="No module named torch"))
    with pytest.raises(TrainingError, match=r"could not start \(application\):\nNo module named torch"):
        run_chains(works, runner, PATIENT)


class Sinking(ScriptedRunner):
    """Its workers are lost before they come up."""

    def __init__(self, news: WorkerLost) -> None:
        super().__init__(draw=lambda below: 0, num_slots=2, held=0)
        self._news = news

    def poll(self, timeout_s: float) -> list[Any]:
        self.starting -= 1
        return [self._news]


def test_who_has_what_is_seen_at_each_tick(works: list[ChainWork]) -> None:
    runner = ScriptedRunner(draw=lambda below: 0, num_slots=1, held=0)
    seen: list[dict[int, Placed | None]] = []
    run_chains(works[:2], runner, PATIENT, watch=lambda places: seen.append(dict(places)))
    assert seen[0] == {0: None, 1: None}
    assert seen[-1] == {}
