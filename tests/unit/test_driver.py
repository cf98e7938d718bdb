"""The driver's loop over a scripted runner: the one seam, so nothing here trains and nothing waits.

Endings, capacity and events are the script's; the loop, its decisions and the clock are real.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ray_sisa.config import Scaling, TrainingRecipe
from ray_sisa.engine import turns
from ray_sisa.engine.driver import run_chains
from ray_sisa.engine.runner import Placed
from ray_sisa.engine.turns import Decision, allowed, decide
from ray_sisa.engine.work import ChainEnded, ChainWork, Ending, EpochDone, Event, StageDone, StageUnderway
from ray_sisa.errors import TrainingError
from ray_sisa.index import SliceSummary
from ray_sisa.lineage import Stage, make_chain, recipe_digest
from ray_sisa.records import Environment, EpochMetrics, LeaseRecord, StageRecord
from ray_sisa.store import Store

MakeWork = Callable[..., ChainWork]
LEASE = LeaseRecord(number=1, holder="this test", expires_at=0)
ENVIRONMENT = Environment(device="cpu", device_name="", threads=1, python="", torch="", ray_sisa="", platform="")


def record_of(stage: Stage) -> StageRecord:
    return StageRecord(
        key=stage.key,
        shard=stage.shard,
        slice=stage.slice,
        parent=stage.parent,
        slice_digest=stage.slice_digest,
        num_samples=stage.num_samples,
        epochs=stage.epochs,
        ancestors=(),
        weights_digest="",
        weights_bytes=0,
        weights_file_digest="",
        metrics=(),
        sample_passes=stage.sample_passes,
        seconds=0,
        environment=ENVIRONMENT,
        committed_at="2026-01-01T00:00:00+00:00",
    )


class ScriptedRunner:
    """Plays for each attempt at a shard: commit this many of its missing stages, then end thus (None: never)."""

    def __init__(
        self,
        script: dict[int, list[tuple[int, Ending | None]]],
        capacity: int | Sequence[int] = 1,
        places: dict[int, Placed] | None = None,
    ) -> None:
        self._places = places or {}
        self._script = {shard: deque(attempts) for shard, attempts in script.items()}
        self._capacities = deque([capacity] if isinstance(capacity, int) else capacity)
        self._playing: dict[int, deque[Event | Placed]] = {}
        self.started: list[ChainWork] = []
        self.stopped: list[int] = []
        self.demanded: list[int] = []
        self.wanted: list[int] = []
        self.most_in_flight = 0

    def want(self, num_waiting: int) -> None:
        self.wanted.append(num_waiting)

    def free(self) -> int:
        capacity = self._capacities.popleft() if len(self._capacities) > 1 else self._capacities[0]
        return max(0, capacity - len(self._playing))

    def demand(self, num_chains: int) -> None:
        self.demanded.append(num_chains)

    def start(self, work: ChainWork) -> None:
        assert work.shard not in self._playing
        attempts = self._script.get(work.shard) or deque([(len(work.missing), "finished")])
        commits, ending = attempts.popleft() if len(attempts) > 1 else attempts[0]
        missing = [s for s in work.chain.stages if s.key in work.missing]
        events: deque[Event | Placed] = deque()
        if place := self._places.get(work.shard):
            events.append(place)
        for stage in missing[:commits]:
            events.append(EpochDone(stage=stage, metrics=EpochMetrics(epoch=0, loss=1.0, train_top1=0.5)))
            events.append(StageDone(record=record_of(stage)))
        if ending:
            traceback = (
                f"Traceback of shard {work.shard}\n{'frame' * 2000}\nerror of shard {work.shard}{' and on' * 100}\n"
            )
            message = traceback if ending == "application" else "the cause\nand all that Ray says"
            events.append(ChainEnded(shard=work.shard, ending=ending, message=message))
        self.started.append(work)
        self._playing[work.shard] = events
        self.most_in_flight = max(self.most_in_flight, len(self._playing))

    def poll(self, timeout_s: float) -> list[Event | Placed]:
        """One event of each chain in flight."""
        events = [events.popleft() for events in self._playing.values() if events]
        for event in events:
            if isinstance(event, ChainEnded):
                del self._playing[event.shard]
        return events

    def stop(self, shard: int) -> None:
        self._playing.pop(shard, None)
        self.stopped.append(shard)

    def map(self, function: Any, shared: Any, items: Sequence[Any]) -> list[Any]:
        raise NotImplementedError

    def close(self) -> None:
        raise AssertionError("the driver does not own its runner")

    @property
    def order(self) -> list[int]:
        return [work.shard for work in self.started]


@pytest.fixture
def make_work(store: Store, make_training: Callable[..., TrainingRecipe]) -> MakeWork:
    training = make_training()
    slices = [SliceSummary(digest=name, num_samples=5) for name in ("aa", "bb", "cc")]

    def make(shard: int, num_present: int = 0) -> ChainWork:
        chain = make_chain(training, recipe_digest(training), shard, slices)
        missing = frozenset(chain.keys[num_present:])
        return ChainWork(store=store, chain=chain, missing=missing, device="cpu", ledger=0, lease=LEASE)

    return make


# Decisions.


@pytest.mark.parametrize(
    ("ending", "num_failures", "limit", "decision"),
    [
        ("finished", 0, 0, Decision.DONE),
        ("finished", 9, 0, Decision.DONE),
        ("application", 1, 3, Decision.GIVE_UP),
        ("application", 1, -1, Decision.GIVE_UP),
        *[
            (ending, number, limit, decision)
            for ending in ("worker", "preemption")
            for number, limit, decision in [
                (1, 0, Decision.GIVE_UP),
                (1, 1, Decision.RETRY),
                (2, 1, Decision.GIVE_UP),
                (3, 3, Decision.RETRY),
                (4, 3, Decision.GIVE_UP),
                (10**6, -1, Decision.RETRY),
            ]
        ],
    ],
)
def test_decide(ending: Ending, num_failures: int, limit: int, decision: Decision) -> None:
    assert decide(ending, num_failures, limit) is decision


def test_each_cause_has_its_own_limit() -> None:
    scaling = Scaling(max_failures=5, max_preemption_failures=7)
    endings: list[Ending] = ["worker", "preemption", "application", "finished"]
    assert [allowed(ending, scaling) for ending in endings] == [5, 7, 0, 0]


# The loop.


def test_nothing_to_do() -> None:
    runner = ScriptedRunner({})
    assert run_chains([], runner, Scaling()) == []
    assert (runner.started, runner.stopped) == ([], [])


def test_all_stages_come_back_and_are_told(make_work: MakeWork) -> None:
    works, heard = [make_work(0), make_work(1, num_present=1)], list[Event]()
    runner = ScriptedRunner({}, capacity=2)
    records = run_chains(works, runner, Scaling(), tell=heard.append)
    assert {r.key for r in records} == works[0].missing | works[1].missing
    assert [r.slice for r in records if r.shard == 0] == [1, 2, 3]
    assert [r.slice for r in records if r.shard == 1] == [2, 3]
    assert [e.record for e in heard if isinstance(e, StageDone)] == records
    assert sum(isinstance(e, EpochDone) for e in heard) == 5
    assert {e.shard for e in heard if isinstance(e, ChainEnded)} == {0, 1}
    assert (runner.demanded, runner.stopped) == ([2], [])


def test_they_start_in_the_order_given(make_work: MakeWork) -> None:
    runner = ScriptedRunner({})
    run_chains([make_work(s) for s in (3, 1, 2, 0)], runner, Scaling())
    assert runner.order == [3, 1, 2, 0]


@pytest.mark.parametrize("capacity", [1, 2, 3, 5, 100])
def test_capacity_is_used_and_kept(make_work: MakeWork, capacity: int) -> None:
    runner = ScriptedRunner({}, capacity=capacity)
    run_chains([make_work(s) for s in range(5)], runner, Scaling())
    assert runner.most_in_flight == min(capacity, 5)


def test_a_cluster_that_grows_and_shrinks(make_work: MakeWork) -> None:
    runner = ScriptedRunner({}, capacity=[1, 1, 3, 3, 3, 1])
    records = run_chains([make_work(s) for s in range(5)], runner, Scaling())
    assert len(records) == 15
    assert 1 < runner.most_in_flight <= 3


# Failures.


@pytest.mark.parametrize("max_failures", [0, 1, 3])
def test_a_worker_may_fail_so_often(make_work: MakeWork, max_failures: int) -> None:
    script: dict[int, list[tuple[int, Ending | None]]] = {0: [(0, "worker")] * max_failures + [(3, "finished")]}
    runner = ScriptedRunner(script)
    assert len(run_chains([make_work(0)], runner, Scaling(max_failures=max_failures))) == 3
    assert len(runner.started) == max_failures + 1


@pytest.mark.parametrize("max_failures", [0, 1, 3])
def test_and_no_more(make_work: MakeWork, max_failures: int) -> None:
    runner = ScriptedRunner({0: [(0, "worker")]})
    with pytest.raises(TrainingError, match=f"shard 0.*worker, {max_failures + 1} since"):
        run_chains([make_work(0)], runner, Scaling(max_failures=max_failures))
    assert len(runner.started) == max_failures + 1


def test_without_a_limit_it_is_tried_for_ever(make_work: MakeWork) -> None:
    runner = ScriptedRunner({0: [(0, "worker")] * 200 + [(3, "finished")]})
    assert len(run_chains([make_work(0)], runner, Scaling(max_failures=-1))) == 3


def test_preemptions_are_without_limit_and_use_up_no_other(make_work: MakeWork) -> None:
    runner = ScriptedRunner({0: [(0, "preemption")] * 50 + [(0, "worker"), (0, "preemption"), (3, "finished")]})
    assert len(run_chains([make_work(0)], runner, Scaling(max_failures=1))) == 3


def test_preemptions_have_a_limit_of_their_own(make_work: MakeWork) -> None:
    runner = ScriptedRunner({0: [(0, "worker")] * 3 + [(0, "preemption")]})
    scaling = Scaling(max_failures=3, max_preemption_failures=1)
    with pytest.raises(TrainingError, match=r"preemption, 2 since .*max_preemption_failures allows 1\)") as caught:
        run_chains([make_work(0)], runner, scaling)
    assert len(runner.started) == 5
    assert "raise scaling.max_preemption_failures" in caught.value.remedy


def test_a_commit_forgets_preemptions_too(make_work: MakeWork) -> None:
    runner = ScriptedRunner({0: [(0, "preemption"), (1, "preemption"), (1, "preemption"), (1, "finished")]})
    assert len(run_chains([make_work(0)], runner, Scaling(max_preemption_failures=1))) == 3


def test_each_failure_is_one_line_of_the_log(make_work: MakeWork, caplog: pytest.LogCaptureFixture) -> None:
    script: dict[int, list[tuple[int, Ending | None]]] = {
        0: [(0, "worker"), (2, "preemption"), (0, "worker"), (0, "worker")]
    }
    with caplog.at_level(logging.WARNING), pytest.raises(TrainingError):
        run_chains([make_work(0)], ScriptedRunner(script), Scaling(max_failures=1))
    assert [record.getMessage() for record in caplog.records] == [
        "shard 0, slice 1: retry (worker failure 1 of 1 allowed): the cause",
        "shard 0, slice 3: retry (preemption failure 1 of any number allowed): the cause",
        "shard 0, slice 3: retry (worker failure 1 of 1 allowed): the cause",
        "shard 0, slice 3: give up (worker failure 2 of 1 allowed): the cause",
    ]


def test_of_an_application_error_the_log_has_the_last_line(
    make_work: MakeWork, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(TrainingError):
        run_chains([make_work(1)], ScriptedRunner({1: [(0, "application")]}), Scaling())
    (record,) = caplog.records
    assert "give up (application error, not tried again): error of shard 1 and on" in record.getMessage()
    assert len(record.getMessage()) < 400


def test_failures_are_counted_by_shard(make_work: MakeWork) -> None:
    script: dict[int, list[tuple[int, Ending | None]]] = {s: [(0, "worker"), (3, "finished")] for s in range(4)}
    assert len(run_chains([make_work(s) for s in range(4)], ScriptedRunner(script, 4), Scaling(max_failures=1))) == 12


def test_a_commit_forgets_the_failures_before_it(make_work: MakeWork) -> None:
    script: dict[int, list[tuple[int, Ending | None]]] = {
        0: [(0, "worker"), (1, "worker"), (1, "worker"), (1, "worker"), (0, "finished")]
    }
    assert len(run_chains([make_work(0)], ScriptedRunner(script), Scaling(max_failures=1))) == 3


class SavingRunner(ScriptedRunner):
    """Each attempt saves the state inside its first missing stage before it does what the script says."""

    def start(self, work: ChainWork) -> None:
        super().start(work)
        stage = next(s for s in work.chain.stages if s.key in work.missing)
        saved = StageUnderway(stage=stage, what="saved", epoch=0, batch=1, num_batches=2)
        self._playing[work.shard].appendleft(saved)


def test_a_saved_state_is_progress_as_well(make_work: MakeWork) -> None:
    script: dict[int, list[tuple[int, Ending | None]]] = {0: [*[(0, "worker")] * 4, (3, "finished")]}
    assert len(run_chains([make_work(0)], SavingRunner(script), Scaling(max_failures=1))) == 3
    with pytest.raises(TrainingError, match=r"worker, 2 since"):
        run_chains([make_work(0)], ScriptedRunner(script), Scaling(max_failures=1))


def test_a_commit_of_another_shard_does_not(make_work: MakeWork) -> None:
    runner = ScriptedRunner({0: [(0, "worker")], 1: [(1, "worker"), (2, "finished")]}, capacity=2)
    with pytest.raises(TrainingError, match=r"shard 0.*worker, 2 since"):
        run_chains([make_work(0), make_work(1)], runner, Scaling(max_failures=1))


def test_after_its_last_commit_the_limit_holds(make_work: MakeWork) -> None:
    runner = ScriptedRunner({0: [(0, "worker"), (2, "worker"), (0, "worker")]})
    with pytest.raises(TrainingError, match=r"shard 0.*slice 3: .*worker, 2 since"):
        run_chains([make_work(0)], runner, Scaling(max_failures=1))
    assert len(runner.started) == 3


def test_a_retry_goes_on_from_the_last_commit(make_work: MakeWork) -> None:
    runner = ScriptedRunner({0: [(2, "worker"), (1, "finished")]})
    records = run_chains([make_work(0)], runner, Scaling())
    assert [r.slice for r in records] == [1, 2, 3]
    first, second = runner.started
    assert (len(first.missing), second.missing) == (3, {first.chain.keys[2]})
    assert second.chain == first.chain


def test_others_go_first_when_one_is_tried_again(make_work: MakeWork) -> None:
    runner = ScriptedRunner({0: [(0, "worker"), (3, "finished")]})
    run_chains([make_work(s) for s in range(3)], runner, Scaling())
    assert runner.order == [0, 1, 2, 0]


def test_an_application_error_is_told_whole_and_at_once(make_work: MakeWork) -> None:
    runner = ScriptedRunner({1: [(1, "application")]}, capacity=3)
    heard: list[Event] = []
    with pytest.raises(TrainingError) as caught:
        run_chains([make_work(s) for s in range(5)], runner, Scaling(max_failures=-1), tell=heard.append)
    error = caught.value
    assert error.field == "shard 1, slice 2"
    assert f"Traceback of shard 1\n{'frame' * 2000}\nerror of shard 1" in str(error)
    assert "last stage committed" in error.remedy
    assert runner.order == [0, 1, 2]
    assert sorted(runner.stopped) == [0, 2]  # nothing is left running behind the error
    assert any(isinstance(e, ChainEnded) and e.ending == "application" for e in heard)


def test_a_chain_that_finishes_early_is_done(make_work: MakeWork) -> None:
    runner = ScriptedRunner({0: [(1, "finished")]})  # as where a newer request touches its next stage
    assert [r.slice for r in run_chains([make_work(0)], runner, Scaling(max_failures=0))] == [1]
    assert runner.order == [0]


# Standing still.


def test_no_progress_fails_and_names_what_it_waits_for(make_work: MakeWork) -> None:
    runner = ScriptedRunner({2: [(1, None)], 4: [(0, None)]}, capacity=5)
    with pytest.raises(TrainingError, match="nothing moved") as caught:
        run_chains([make_work(s) for s in range(5)], runner, Scaling(no_progress_timeout_s=0.02))
    assert caught.value.value == "[2, 4]"
    assert "no_progress_timeout_s" in caught.value.remedy
    assert sorted(runner.stopped) == [2, 4]


def test_and_where_it_is(make_work: MakeWork) -> None:
    place = Placed(number=2, node="10.0.0.7", node_id="ab", pid=1234)
    runner = ScriptedRunner({2: [(1, None)], 4: [(0, None)]}, capacity=5, places={2: place})
    heard: list[Event] = []
    with pytest.raises(TrainingError) as caught:
        run_chains([make_work(s) for s in range(5)], runner, Scaling(no_progress_timeout_s=0.02), tell=heard.append)
    assert "2 is with process 1234 on node 10.0.0.7; no worker has taken up [4]" in caught.value.rule
    assert place not in heard


def test_it_names_no_more_than_can_be_read(make_work: MakeWork) -> None:
    places = {s: Placed(number=s, node="10.0.0.7", node_id="ab", pid=s) for s in range(100)}
    runner = ScriptedRunner({s: [(0, None)] for s in range(100)}, capacity=100, places=places)
    with pytest.raises(TrainingError) as caught:
        run_chains([make_work(s) for s in range(100)], runner, Scaling(no_progress_timeout_s=0.02))
    assert caught.value.rule.endswith("9 is with process 9 on node 10.0.0.7; and 90 more")
    assert len(str(caught.value)) < 1500


def test_an_error_of_the_listener_leaves_nothing_running(make_work: MakeWork) -> None:
    def listen(event: Event) -> None:
        raise OSError("the log is full")

    runner = ScriptedRunner({}, capacity=2)
    with pytest.raises(OSError, match="the log is full"):
        run_chains([make_work(0), make_work(1)], runner, Scaling(), tell=listen)
    assert sorted(runner.stopped) == [0, 1]


def test_an_error_of_the_tick_leaves_nothing_running(make_work: MakeWork) -> None:
    def tick() -> set[int]:
        raise OSError("the store is gone")

    runner = ScriptedRunner({}, capacity=2)
    with pytest.raises(OSError, match="the store is gone"):
        run_chains([make_work(0), make_work(1), make_work(2)], runner, Scaling(), tick=tick)
    assert sorted(runner.stopped) == [0, 1]


# Chains that become useless.


@pytest.fixture
def after_each_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that looks up after every turn."""
    monkeypatch.setattr(turns, "TICK_S", 0.0)


@pytest.mark.parametrize(("interval_s", "ticks"), [(0.0, 7), (3600.0, 2)], ids=["each turn", "start and end"])
def test_ticks_come_by_the_clock(
    make_work: MakeWork, monkeypatch: pytest.MonkeyPatch, interval_s: float, ticks: int
) -> None:
    monkeypatch.setattr(turns, "TICK_S", interval_s)
    heard, heard_at_tick = list[Event](), list[int]()

    def tick() -> set[int]:
        heard_at_tick.append(len(heard))
        return set()

    run_chains([make_work(0)], ScriptedRunner({}), Scaling(), tell=heard.append, tick=tick)
    assert len(heard_at_tick) == ticks
    assert (heard_at_tick[0], heard_at_tick[-1]) == (1, 7)  # soon after the start, and when all is told


@pytest.mark.usefixtures("after_each_turn")
def test_dropped_shards_stop_whether_running_or_waiting(make_work: MakeWork) -> None:
    runner = ScriptedRunner({0: [(1, None)]}, capacity=2)
    heard: list[Event] = []
    dropped: list[bool] = []

    def tick() -> set[int]:
        """Once shard 0 has a stage, it and shard 3, which waits, are tainted; a stranger's number harms nobody."""
        if any(isinstance(e, StageDone) and e.record.shard == 0 for e in heard):
            dropped.append(True)
            return {0, 3, 77}
        return set()

    records = run_chains([make_work(s) for s in range(4)], runner, Scaling(), tell=heard.append, tick=tick)
    assert runner.order == [0, 1, 2]
    assert runner.stopped == [0]
    assert sorted((r.shard, r.slice) for r in records) == [(0, 1), *((s, r) for s in (1, 2) for r in (1, 2, 3))]


@pytest.mark.usefixtures("after_each_turn")
def test_a_dropped_shard_is_not_tried_again(make_work: MakeWork) -> None:
    runner = ScriptedRunner({0: [(0, "worker")]})
    assert run_chains([make_work(0)], runner, Scaling(), tick=lambda: {0}) == []
    assert runner.order == [0]


@pytest.mark.usefixtures("after_each_turn")
def test_dropping_all_ends_the_loop(make_work: MakeWork) -> None:
    runner = ScriptedRunner({s: [(0, None)] for s in range(4)}, capacity=2)
    assert run_chains([make_work(s) for s in range(4)], runner, Scaling(), tick=lambda: set(range(4))) == []
    assert sorted(runner.stopped) == [0, 1]
