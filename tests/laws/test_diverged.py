"""Law: a network that diverged is a run like any other: no number in it stops it from being read, checked or undone."""

from __future__ import annotations

import math
from pathlib import Path

from small_runs import MLP, assert_same_models, dataset, small_config, without

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
    assert run.verify(runner="local").ok
    scratch = Run.create(
        small_config(tmp_path, name="scratch", recipe=HOPELESS), dataset=dataset(without(samples, ids))
    )
    scratch.train(runner="local")
    assert_same_models(run, scratch)
