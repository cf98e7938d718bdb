"""What a run that trains tells of itself: by a real run whose store is read while it trains, and by scripted events."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from small_runs import MLP, all_samples, small_config
from test_progress import Clock

from ray_sisa import activity, printing
from ray_sisa.activity import Activity, ActivityWriter, ShardActivity, read_activity
from ray_sisa.data import Dataset
from ray_sisa.engine.runner import Placed
from ray_sisa.engine.work import Event, StageDone
from ray_sisa.layout import ACTIVITY
from ray_sisa.lease import hold_lease
from ray_sisa.run import Run
from ray_sisa.status import Status
from ray_sisa.store import Store


@pytest.fixture
def run(tmp_path: Path) -> Run:
    data = Dataset(train=all_samples(), test=None, num_classes=10, mean=(0.3,), std=(0.38,))
    return Run.create(small_config(tmp_path, recipe=MLP), data)


def test_status_while_a_run_trains(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activity, "WRITE_EVERY_S", 0.0)
    monkeypatch.setattr(activity, "SLOWEST_S", 0.0)
    monkeypatch.setattr("ray_sisa.engine.turns.TICK_S", 0.0)
    seen: list[Status] = []
    objects: list[str] = []

    def tell(event: Event) -> None:
        if isinstance(event, StageDone) and event.record.slice == 2:
            other = Run.open(run.store.uri)
            seen.append(other.status())
            objects.extend(finding.path for finding in other.check().findings)

    run.train(runner="local", tell=tell)
    first = seen[0]
    assert not first.complete and first.work is not None
    assert first.work.holder.split("/")[1].isdigit() and first.work.lease_ends_in_s > 0
    assert [shard.depth for shard in first.shards] == [0, 0, 0]  # nothing votes yet
    assert max(shard.committed for shard in first.shards) == 2
    told = first.work.activity
    assert told is not None and told.stages == 9 and 1 <= told.stages_done <= 2
    assert {shard.shard for shard in told.shards} == {0, 1, 2}
    assert objects == []  # `check` knows it

    after = run.status()
    assert after.complete and after.work is None
    assert [shard.committed for shard in after.shards] == [shard.depth for shard in after.shards] == [3, 3, 3]
    assert run.store.find(ACTIVITY) is None


def test_a_short_training_writes_none(run: Run) -> None:
    written: list[bool] = []
    run.train(runner="local", tell=lambda event: written.append(run.store.find(ACTIVITY) is not None))
    assert not any(written)


def left_by(holder: str) -> Activity:
    return Activity(
        holder=holder,
        written_at="2026-01-01T00:00:00Z",
        stages_done=1,
        stages=9,
        passes_done=10,
        passes=100,
        samples_per_second=None,
        seconds_left=None,
        shards=(ShardActivity(shard=0, state="waiting"),),
    )


def test_what_another_left_is_ignored_and_swept(run: Run) -> None:
    run.store.put(ACTIVITY, left_by("somebody/1/dead").to_bytes())
    assert run.status().work is None
    with hold_lease(run.store) as lease:
        status = run.status()
        assert status.work is not None and status.work.activity is None
        run.store.put(ACTIVITY, left_by(lease.record.holder).to_bytes())
        assert read_activity(run.store, lease.record) == left_by(lease.record.holder)
    assert run.check().ok
    run.train(runner="local")
    assert run.store.find(ACTIVITY) is None


def test_a_damaged_one_disturbs_nobody_and_is_found(run: Run) -> None:
    run.train(runner="local")
    with hold_lease(run.store) as lease:
        run.store.put(ACTIVITY, left_by(lease.record.holder).to_bytes()[:-3])
        assert run.status().work is not None
    found = run.check()
    assert [(finding.path, finding.repairable) for finding in found.findings] == [(ACTIVITY, True)]
    run.train(runner="local")
    assert run.check().ok


def test_who_has_what_and_what_waits(tmp_path: Path) -> None:
    clock, store = Clock(), Store(str(tmp_path))
    writer = ActivityWriter(store, "host/1/abc", [], clock)
    place = Placed(number=1, node="10.0.0.7", node_id="n", pid=42)
    writer.watch({0: None, 1: place})
    assert store.find(ACTIVITY) is None  # not yet
    clock.now = activity.WRITE_EVERY_S
    writer.watch({0: None, 1: place})
    written = store.find_record(ACTIVITY, Activity)
    assert written is not None and written.samples_per_second is None
    assert [(s.shard, s.state, s.node, s.pid) for s in written.shards] == [
        (0, "waiting", None, None),
        (1, "starting", "10.0.0.7", 42),
    ]
    writer.end()
    assert store.find(ACTIVITY) is None


def test_a_long_training_writes_less_often(tmp_path: Path) -> None:
    clock, store = Clock(), Store(str(tmp_path))
    writer = ActivityWriter(store, "host/1/abc", [], clock)
    written = []
    for second in range(3600):
        clock.now = float(second)
        writer.watch({})
        if store.find(ACTIVITY) is not None:
            written.append(second)
            store.delete([ACTIVITY])
    gaps = [later - earlier for earlier, later in itertools.pairwise([0, *written])]
    assert (gaps[0], gaps[5], gaps[-1]) == (3, 3, 30)
    assert sorted(gaps) == gaps


@pytest.mark.parametrize(
    ("shard", "text"),
    [
        (ShardActivity(shard=0, state="waiting"), "waits for a worker"),
        (ShardActivity(shard=0, state="starting", node="n", pid=3), "reads its slices, process 3 on node n"),
        (ShardActivity(shard=0, state="features", slice=0), "features of the test set"),
        (
            ShardActivity(shard=0, state="training", slice=2, epochs_done=1, epochs=3, node="n", pid=3),
            "slice 2, 1/3 epochs, process 3 on node n",
        ),
    ],
)
def test_it_reads_well(run: Run, shard: ShardActivity, text: str) -> None:
    with hold_lease(run.store) as lease:
        told = left_by(lease.record.holder).model_copy(update={"shards": (shard,)})
        run.store.put(ACTIVITY, told.to_bytes())
        answer = printing.status(run.status())
    assert f"{lease.record.holder}; its lease ends in " in answer.text
    assert "1/9 stages, 10% of passes\n" in answer.text
    assert text in answer.text
    assert answer.fields["work"]["activity"]["shards"][0]["state"] == shard.state
