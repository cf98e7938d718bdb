"""Law: an error on the way changes nothing that counts, neither what is served nor what is committed.

Real are the store and the objects that are taken out of it for a while; workers are called as a runner calls them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_runs import assert_same_models, digits, folder_of, without

from ray_sisa.engine.local_runner import LocalRunner
from ray_sisa.engine.work import ChainEnded, ChainWork, Event, StageDone
from ray_sisa.errors import StoreError, TrainingError
from ray_sisa.layout import HEADS, LEDGER, numbered, stage_record, stage_weights
from ray_sisa.run import Run
from ray_sisa.samples import Samples
from ray_sisa.stages import commit_stage, load_stage


def test_a_reader_that_met_an_error_is_served_nothing_tainted_after_it(copied: Callable[..., Run]) -> None:
    run = copied()
    ensemble, images = run.ensemble(), digits(0, 8).images
    before = ensemble.predict_proba(images)
    run.forget(samples=run.sample_ids(0, 2)[:1])
    head = Path(folder_of(run), numbered(HEADS, 1))
    kept = head.read_bytes()
    head.write_bytes(kept[:-9])
    for _ in range(2):
        with pytest.raises(StoreError, match="is not a valid Head"):
            ensemble.predict_proba(images)
    head.write_bytes(kept)
    after = ensemble.predict_proba(images)
    assert ensemble.constituents == run.in_force()
    assert not np.array_equal(before, after)
    assert {c.shard: c.slice for c in ensemble.constituents}[0] == 1


def test_a_reader_that_could_not_load_a_stage_loads_it_later(copied: Callable[..., Run]) -> None:
    run = copied()
    ensemble, images = run.ensemble(), digits(0, 8).images
    run.forget(samples=run.sample_ids(0, 2)[:1])
    (clean,) = (c.key for c in run.in_force() if c.shard == 0)
    weights = Path(folder_of(run), stage_weights(clean))
    kept = weights.read_bytes()
    weights.unlink()
    for _ in range(2):
        with pytest.raises(StoreError, match="is not there"):
            ensemble.predict(images)
    weights.write_bytes(kept)
    ensemble.predict(images)
    assert ensemble.constituents == run.in_force()


def test_a_request_is_not_acknowledged_by_a_ledger_that_lost_its_end(copied: Callable[..., Run]) -> None:
    run = copied()
    run.forget(samples=run.sample_ids(0, 1)[:1])
    run.unlearn(runner="local")
    Path(folder_of(run), numbered(LEDGER, 1)).unlink()
    fresh = Run.open(run.store.uri)
    with pytest.raises(StoreError, match="its request 1 is lost"):
        fresh.forget(samples=run.sample_ids(1, 1)[:1])
    assert run.store.numbers(LEDGER) == []


class LosesOneCommit(LocalRunner):
    """Ends like a worker whose node is lost between the commit of a stage and its telling."""

    lost = False

    def start(self, work: ChainWork) -> None:
        self._work = work
        super().start(work)

    def poll(self, timeout_s: float) -> list[Event]:
        events = super().poll(timeout_s)
        if not self.lost and any(isinstance(event, StageDone) for event in events):
            self.lost, self._events = True, None
            return [ChainEnded(shard=self._work.shard, ending="worker", message="lost")]
        return events


def test_a_stage_that_a_lost_worker_committed_is_not_trained_again(
    samples: Samples, copied: Callable[..., Run], from_scratch: Callable[[Samples, str], Run]
) -> None:
    run, events = copied(), list[Event]()
    ids = run.sample_ids(0, 1)[:1]
    run.forget(samples=ids)
    run.unlearn(runner=LosesOneCommit(), tell=events.append)
    epochs = [(event.stage.key, event.metrics.epoch) for event in events if hasattr(event, "metrics")]
    assert len(epochs) == len(set(epochs)) == 3 * 2
    assert sum(isinstance(event, StageDone) for event in events) == 3
    assert_same_models(run, from_scratch(without(samples, ids), "mlp"))


@pytest.mark.parametrize("lost", ["weights", "nothing"])
def test_other_weights_never_leave_half_a_stage(lost: str, copied: Callable[..., Run]) -> None:
    """As if trained on another machine: with the weights lost the stage is made anew, else the first one stands."""
    run = copied()
    chain = run.live.chain(0, set())
    stage = chain.stages[-1]
    record = next(record for record in run.stages() if record.key == stage.key)
    other = {
        name: tensor + 1e-3 for name, tensor in load_stage(run.store, stage.key).items() if tensor.is_floating_point()
    }
    if lost == "weights":
        run.store.delete([stage_weights(stage.key)])
    elsewhere = record.environment.model_copy(update={"device_name": "another"})
    arguments = (run.store, chain, stage, other, record.metrics, 1.0, elsewhere)
    if lost == "weights":
        assert commit_stage(*arguments).weights_digest != record.weights_digest
    else:
        with pytest.raises(TrainingError, match="was trained twice with different results"):
            commit_stage(*arguments)
    load_stage(run.store, stage.key)  # whichever it is, it is whole


def test_a_damaged_head_of_the_past_stops_nothing(copied: Callable[..., Run], caplog: pytest.LogCaptureFixture) -> None:
    run = copied()
    for number in (1, 2):
        run.forget(samples=run.sample_ids(0, number)[:1])
        with pytest.raises(RuntimeError):
            run.unlearn(runner="local", tell=_stop)
    assert run.store.numbers(HEADS) == [1, 2, 3]
    path = Path(folder_of(run), numbered(HEADS, 2))
    path.write_bytes(path.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        assert run.unlearn(runner="local").requests == (1, 2)
    assert "a head of the past is passed over" in caplog.text
    assert run.status().complete
    assert run.store.find(stage_record(run.in_force()[0].key))


def _stop(event: Event) -> None:
    raise RuntimeError("stop")
