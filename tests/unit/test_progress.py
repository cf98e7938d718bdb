"""Progress lines from scripted events and a scripted clock; the terminal is a stream that says it is one."""

from __future__ import annotations

import io

import pytest

from ray_sisa.answer import duration
from ray_sisa.engine.work import ChainEnded, EpochDone, FeaturesUnderway, StageDone, StageUnderway
from ray_sisa.lineage import Stage
from ray_sisa.progress import Progress
from ray_sisa.records import Environment, EpochMetrics, StageRecord

ENVIRONMENT = Environment(device="cpu", device_name="", threads=1, python="", torch="", ray_sisa="", platform="")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def stage(shard: int, slice_number: int) -> Stage:
    return Stage(
        shard=shard,
        slice=slice_number,
        key=f"{shard}/{slice_number}",
        parent="",
        slice_digest="",
        num_samples=100 * slice_number,
        epochs=2,
    )


def metrics(epoch: int, test: float | None = None) -> EpochMetrics:
    return EpochMetrics(epoch=epoch, loss=1.5, train_top1=0.25, test_top1=test, test_top5=test)


def committed(of: Stage) -> StageDone:
    record = StageRecord(
        key=of.key,
        shard=of.shard,
        slice=of.slice,
        parent="",
        slice_digest="",
        num_samples=of.num_samples,
        epochs=2,
        ancestors=(),
        weights_digest="",
        weights_bytes=0,
        weights_file_digest="",
        metrics=(metrics(0), metrics(1, 0.5)),
        sample_passes=of.sample_passes,
        seconds=1.0,
        environment=ENVIRONMENT,
        committed_at="2026-01-01T00:00:00+00:00",
    )
    return StageDone(record=record)


def test_plain_lines_are_a_few_epochs_and_every_commit() -> None:
    stream, clock = io.StringIO(), Clock()
    first, second = stage(0, 1), stage(0, 2)  # 200 and 400 sample passes
    progress = Progress([first, second], 2, stream, clock)
    clock.now = 1.0
    progress(EpochDone(stage=first, metrics=metrics(0)))  # within two seconds: not told
    clock.now = 2.0
    progress(EpochDone(stage=first, metrics=metrics(1, 0.5)))
    progress(committed(first))
    lines = stream.getvalue().splitlines()
    totals = "33% of passes"  # of rate and time left nothing is known yet: see test_headway.py
    assert lines == [
        f"shard 0 slice 1/2 epoch 2/2 loss 1.500 train 25.0%, test 50.0%, 0/2 stages, {totals}",
        f"shard 0 slice 1/2 committed train 25.0%, test 50.0%, 1/2 stages, {totals}",
    ]


def test_an_epoch_done_twice_counts_once() -> None:
    stream, clock = io.StringIO(), Clock()
    only = stage(0, 1)
    progress = Progress([only], 1, stream, clock)
    for clock.now in (10.0, 20.0):
        progress(EpochDone(stage=only, metrics=metrics(0)))
    assert stream.getvalue().splitlines()[-1].endswith("50% of passes")


def test_stages_that_were_not_foreseen_are_added() -> None:
    stream = io.StringIO()
    progress = Progress([], 2, stream, Clock())
    progress(committed(stage(1, 2)))
    assert "1/1 stages, 100% of passes" in stream.getvalue()


@pytest.mark.parametrize("ending", ["application", "worker", "preemption"])
def test_a_chain_that_ends_early_is_told(ending: str) -> None:
    stream = io.StringIO()
    progress = Progress([], 2, stream, Clock())
    progress(ChainEnded(shard=1, ending="finished"))
    progress(ChainEnded(shard=1, ending=ending))  # type: ignore[arg-type]
    assert stream.getvalue() == f"shard 1: chain ended ({ending})\n"


def test_features_in_the_making_are_told() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress([stage(0, 1)], 2, stream, clock)
    for clock.now, number in ((3.0, 1), (6.0, 0)):
        progress(FeaturesUnderway(shard=0, slice=number, done=30, num_samples=120))
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("shard 0 slice 1/2 features 25% done, 0/1 stages, 0% of passes")
    assert lines[1].startswith("shard 0 test set features 25% done, ")


def test_a_terminal_has_one_line_that_changes() -> None:
    stream = Terminal()
    only = stage(0, 1)
    progress = Progress([only], 1, stream, Clock())
    progress(EpochDone(stage=only, metrics=metrics(0)))
    progress(EpochDone(stage=only, metrics=metrics(1)))
    assert "\n" not in stream.getvalue()
    assert stream.getvalue().count("\r\x1b[2K") == 2
    progress(committed(only))
    assert stream.getvalue().endswith("1/1 stages, 100% of passes\n")


def test_rate_and_time_left_are_told_once_they_are_known() -> None:
    stream, clock = io.StringIO(), Clock()
    only = stage(0, 10)  # 1,000 samples
    progress = Progress([only], 10, stream, clock)
    for number in range(12):
        clock.now = 60.0 + number
        progress(StageUnderway(stage=only, what="passing", epoch=0, batch=number, num_batches=100))
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("0/1 stages, 0% of passes")
    assert lines[-1].endswith("0/1 stages, 5% of passes, 10 samples/s, 3 min 10 s left")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (0.012, "12 ms"), (9.87, "9.9 s"), (42.4, "42 s"), (425, "7 min 5 s"), (11520, "3 h 12 min")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text
