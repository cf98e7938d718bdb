"""Law: a deletion takes effect before any retraining; what serves meanwhile is clean, votes, and can be measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from killable import Killable
from small_runs import MLP, assert_same_models, dataset, digits, folder_of, small_config, without

from ray_sisa.engine.local_runner import LocalRunner
from ray_sisa.engine.work import ChainWork, Event, StageDone
from ray_sisa.heads import latest_head
from ray_sisa.run import Run
from ray_sisa.samples import Samples


class LooksFirst(LocalRunner):
    """Trains here, but first calls `look`, when all before the training is done."""

    def __init__(self, look: Callable[[], None]) -> None:
        super().__init__()
        self._look = look

    def start(self, work: ChainWork) -> None:
        self._look()
        super().start(work)


def _forget_set(run: Run) -> list[str]:
    """Touches shard 0 from its last slice on, shard 1 from its second, shard 2 from its first: it leaves the vote."""
    return [run.sample_ids(0, 3)[0], run.sample_ids(1, 2)[0], run.sample_ids(2, 1)[0]]


FALLEN_BACK = [(0, 2), (1, 1)]  # (shard, slice) of the constituents that are clean of it


def _tainted(run: Run) -> set[str]:
    return {r.key for r in run.stages() if r.slice >= 3 - r.shard}


def test_the_ensemble_is_clean_votes_and_can_be_measured_before_any_retraining(copied: Callable[..., Run]) -> None:
    run, looks = copied(), 0
    tainted = _tainted(run)
    assert len(tainted) == 6
    run.forget(samples=_forget_set(run))
    test = digits(240, 60)

    def look() -> None:
        nonlocal looks
        looks += 1
        if looks > 1:
            return  # by now the first shard is being retrained
        head = latest_head(run.store)
        assert head is not None
        assert (head.ledger, head.complete) == (1, False)
        assert [(c.shard, c.slice) for c in head.constituents] == FALLEN_BACK
        assert not tainted & run.store.committed_stages()
        other = Run.open(run.store.uri)
        ensemble = other.ensemble()
        assert [(c.shard, c.slice) for c in ensemble.constituents] == FALLEN_BACK
        assert ensemble.predict(test.images).shape == (60,)
        measured = other.evaluate(forget=1, runner="local")
        assert not measured.complete
        assert measured.test.top1 == pytest.approx((ensemble.predict(test.images) == test.labels).mean())
        assert measured.test.top1 > 0.2  # better than chance: a model, not a placeholder
        status = other.status()
        assert [(s.shard, s.depth, s.clean) for s in status.shards] == [(0, 2, True), (1, 1, True), (2, 0, True)]
        assert (status.complete, status.pending_requests, status.stages_missing) == (False, (1,), 6)

    done = run.unlearn(runner=LooksFirst(look))
    assert looks == 3
    assert done.seconds_to_effective < done.seconds_to_complete
    assert run.status().complete


def test_effective_even_if_retraining_cannot_start(copied: Callable[..., Run]) -> None:
    run = copied()
    tainted = _tainted(run)
    run.forget(samples=_forget_set(run))

    def fail() -> None:
        raise ConnectionError("the cluster is gone")

    with pytest.raises(ConnectionError):
        run.unlearn(runner=LooksFirst(fail))
    assert [(c.shard, c.slice) for c in run.ensemble().constituents] == FALLEN_BACK
    assert not tainted & run.store.committed_stages()
    assert run.unlearn(runner="local").stages_trained == 6
    assert run.status().complete


def test_no_process_loads_a_tainted_stage_once_forget_has_returned(
    copied: Callable[..., Run], killable: Killable, tmp_path: Path
) -> None:
    run = copied()
    tainted = _tainted(run)

    def loaded() -> set[str]:
        reads = killable.run("ensemble", tmp_path / "trace", uri=run.store.uri)
        weights = [path for path in reads if path.startswith("read stages/") and path.endswith(".safetensors")]
        return {path.split("/")[1] for path in weights}

    assert len(loaded() & tainted) == 3  # as long as nobody objects, the deepest of each shard
    run.forget(samples=_forget_set(run))
    assert len(run.store.committed_stages() & tainted) == 6  # nobody has unlearned yet
    now = loaded()
    assert len(now) == len(FALLEN_BACK)
    assert not now & tainted
    status = Run.open(run.store.uri).status()
    assert [(s.shard, s.depth, s.clean) for s in status.shards] == [(0, 2, False), (1, 1, False), (2, 0, False)]


def test_predictions_after_forget_are_those_of_the_clean_stages(copied: Callable[..., Run]) -> None:
    """Not only the names change: an ensemble opened before and one opened after disagree somewhere."""
    run, images = copied(), digits(240, 60).images
    before = run.ensemble().predict_proba(images)
    run.forget(samples=_forget_set(run))
    after = run.ensemble().predict_proba(images)
    assert after.shape == before.shape
    assert not np.allclose(before, after)
    np.testing.assert_allclose(after.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("trains", ["for the first time", "again"])
def test_a_request_that_comes_while_training_is_respected_by_its_end(
    trains: str,
    samples: Samples,
    copied: Callable[..., Run],
    from_scratch: Callable[[Samples, str], Run],
    tmp_path: Path,
) -> None:
    earlier: list[str] = []
    if trains == "again":
        run = copied()
        earlier = run.sample_ids(2, 1)[:1]
        run.forget(samples=earlier)
    else:
        run = Run.create(small_config(tmp_path, recipe=MLP), dataset=dataset(samples))
    later = run.sample_ids(2, 2)[:1]
    depths_at_once: list[int] = []

    def forget_after_the_first_stage(event: Event) -> None:
        if isinstance(event, StageDone) and run.status().requests == len(earlier):
            Run.open(run.store.uri).forget(samples=later)
            depths_at_once.extend(s.depth for s in run.status().shards if s.shard == 2)

    run.train(runner="local", tell=forget_after_the_first_stage)
    assert depths_at_once == [0]
    assert run.status().pending_requests == ()
    assert run.status().complete
    assert_same_models(run, from_scratch(without(samples, earlier + later), "mlp"))


def test_a_reconcile_tells_of_requests_that_came_meanwhile(copied: Callable[..., Run]) -> None:
    run = copied()
    shutil.rmtree(folder_of(run) / "stages")  # something to train, and no request to begin with
    later = run.sample_ids(2, 2)[:1]

    def forget(event: Event) -> None:
        run.forget(samples=later)

    done = run.train(runner="local", tell=forget)
    assert (done.requests, done.affected_shards) == ((1,), (2,))


def test_an_open_ensemble_lets_go_of_what_is_forgotten_and_takes_up_what_is_retrained(
    copied: Callable[..., Run], samples: Samples
) -> None:
    run = copied()
    ensemble = run.ensemble()
    before = {c.shard: c.key for c in ensemble.constituents}
    run.forget(samples=run.sample_ids(1, 2)[:1])
    ensemble.predict(samples.images[:1])
    assert {c.shard: c.slice for c in ensemble.constituents} == {0: 3, 1: 1, 2: 3}
    run.unlearn(runner="local")
    ensemble.predict(samples.images[:1])
    after = {c.shard: c.key for c in ensemble.constituents}
    assert (after[0], after[2]) == (before[0], before[2])
    assert after[1] != before[1]
    assert ensemble.head == run.status().head


def test_asking_again_for_what_is_forgotten_takes_nothing_out_of_service(copied: Callable[..., Run]) -> None:
    run = copied()
    ids = run.sample_ids(1, 1)[:2]
    run.forget(samples=ids)
    run.unlearn(runner="local")
    settled = run.status()
    again = run.forget(samples=ids, key="sent by somebody else")
    assert (again.request, again.samples, again.already_forgotten) == (2, 0, 2)
    asked = run.status()
    assert asked.shards == settled.shards
    assert asked.pending_requests == (2,)
    done = run.unlearn(runner="local")
    assert (done.requests, done.affected_shards, done.stages_trained, done.stages_purged) == ((2,), (), 0, 0)
    assert done.ensemble_digest == settled.ensemble_digest
    assert run.status().complete


def test_the_attack_on_training_samples_works_while_a_request_is_pending(copied: Callable[..., Run]) -> None:
    run = copied()
    run.forget(samples=run.sample_ids(1, 2)[:1] + run.sample_ids(2, 1)[:1])
    evaluation = run.evaluate(runner="local")
    assert not evaluation.complete
    held = {m.shard: m.num_held for m in evaluation.shard_memberships}
    assert held == {0: run.status().shards[0].samples, 1: len(run.sample_ids(1, 1))}
