"""Law: a network that diverged is a run like any other: no number in it stops it from being read, checked or undone."""

from __future__ import annotations

import math
from pathlib import Path

from small_runs import MLP, assert_same_models, dataset, small_config, without

from ray_sisa.printing_measures import evaluated
from ray_sisa.run import Run
from ray_sisa.samples import Samples

HOPELESS = MLP | {"optimizer": {"name": "sgd", "lr": 1e30}}


def test_it_is_trained_checked_and_unlearned(tmp_path: Path, samples: Samples) -> None:
    run = Run.create(small_config(tmp_path, recipe=HOPELESS), dataset=dataset(samples))
    run.train(runner="local")
    assert all(math.isnan(record.metrics[-1].loss) for record in run.stages())
    assert run.check().ok
    ids = run.sample_ids(0, 2)[:1]
    run.forget(samples=ids)
    run.unlearn(runner="local")
    measured = run.evaluate(runner="local")
    assert measured.ensemble_membership is None
    assert [shard.held for shard in measured.shard_memberships] == [None] * 3
    assert run.evaluations() == [measured]
    assert "losses that are not numbers" in evaluated(measured, with_roc=False, is_repeatable=True).text
    assert run.check().ok
    assert run.verify(runner="local").ok
    scratch = Run.create(
        small_config(tmp_path, name="scratch", recipe=HOPELESS), dataset=dataset(without(samples, ids))
    )
    scratch.train(runner="local")
    assert_same_models(run, scratch)
