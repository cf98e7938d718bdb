"""Rate and time left, from scripted events and a scripted clock: said late rather than wrong."""

from __future__ import annotations

import heapq

import pytest
from test_progress import Clock, committed, metrics, stage

from ray_sisa.engine.work import ChainEnded, EpochDone, StageUnderway
from ray_sisa.headway import ENOUGH_S, Headway

NUM_SLICES, EPOCHS = 6, 2  # as `stage` has it


def simulated(start_up_s: list[float], rate: float) -> tuple[list[tuple[float, float]], float]:
    """Estimates of the time left, each with the moment at which it was made, and the moment of the end.

    A worker a shard comes up after so many seconds and then does `rate` sample passes a second.
    """
    stages = {shard: [stage(shard, r + 1) for r in range(NUM_SLICES)] for shard in range(len(start_up_s))}
    clock = Clock()
    headway = Headway([one for chain in stages.values() for one in chain], clock)
    events: list[tuple[float, int, int, int]] = []
    for shard, at in enumerate(start_up_s):
        for r in range(NUM_SLICES):
            for epoch in range(EPOCHS):
                at += stages[shard][r].num_samples / rate
                heapq.heappush(events, (at, shard, r, epoch))
    estimates = []
    while events:
        clock.now, shard, r, epoch = heapq.heappop(events)
        headway.hear(EpochDone(stage=stages[shard][r], metrics=metrics(epoch)))
        if epoch == EPOCHS - 1:
            headway.hear(committed(stages[shard][r]))
        if headway.seconds_left is not None:
            estimates.append((clock.now, headway.seconds_left))
    assert headway.passes[0] == headway.passes[1] and headway.stages == (NUM_SLICES * len(start_up_s),) * 2
    return estimates, clock.now


@pytest.mark.parametrize(
    "start_up_s",
    [[0.0], [40.0], [300.0], [20.0, 22.0, 24.0], [100.0, 100.5, 101.0, 103.0]],
    ids=lambda times: " ".join(map(str, times)),
)
def test_no_estimate_is_far_off_whatever_the_start_up(start_up_s: list[float]) -> None:
    """A rate from the start of the process would be off by the length of the start-up: 300 s for 4 s of work."""
    estimates, end = simulated(start_up_s, rate=40.0)
    assert estimates
    for at, left in estimates:
        assert left == pytest.approx(end - at, rel=0.5, abs=15.0)


def test_nothing_is_said_before_enough_was_measured() -> None:
    clock = Clock()
    only = stage(0, 1)
    headway = Headway([only, stage(0, 2)], clock)
    for clock.now, batch in ((90.0, 10), (91.0, 20), (92.0, 30), (93.0, 40), (94.0, 50), (95.0, 60)):
        headway.hear(StageUnderway(stage=only, what="passing", epoch=0, batch=batch, num_batches=100))
        assert headway.rate is None and headway.seconds_left is None
    clock.now = 90.0 + ENOUGH_S
    assert headway.rate == pytest.approx(50 / ENOUGH_S)  # of 100 samples an epoch
    clock.now = 1000.0  # nothing came for long: it gets slower
    assert headway.rate == pytest.approx(50 / 910)


def test_another_worker_starts_the_measurement_anew() -> None:
    clock = Clock()
    headway = Headway([stage(shard, 1) for shard in (0, 1)], clock)

    def passing(shard: int, batch: int) -> None:
        headway.hear(StageUnderway(stage=stage(shard, 1), what="passing", epoch=0, batch=batch, num_batches=100))

    for clock.now in range(12):  # type: ignore[assignment]
        passing(0, int(clock.now))
    assert headway.rate == pytest.approx(1.0)
    passing(1, 1)
    assert headway.rate is None
    for clock.now in range(12, 30):  # type: ignore[assignment]
        passing(0, int(clock.now))
        passing(1, int(clock.now) - 11)
    assert headway.rate == pytest.approx(2.0, rel=0.1)
    headway.hear(ChainEnded(shard=1, ending="worker"))
    assert headway.rate is not None  # one that comes in its place changes nothing


def test_what_was_done_before_is_no_rate() -> None:
    clock = Clock()
    only = stage(0, 1)
    headway = Headway([only], clock)
    headway.hear(StageUnderway(stage=only, what="resumed", epoch=1, batch=50, num_batches=100))
    for clock.now in range(1, 12):  # type: ignore[assignment]
        headway.hear(StageUnderway(stage=only, what="passing", epoch=1, batch=50 + int(clock.now), num_batches=100))
    assert headway.passes[0] == 161
    assert headway.rate == pytest.approx(1.0)
