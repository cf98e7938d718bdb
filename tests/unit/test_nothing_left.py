"""Once all samples are deleted, whoever asks is told that nothing is left and that a new run is needed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from small_runs import dataset, digits, small_config

from ray_sisa.approximate.methods import make_method
from ray_sisa.errors import DataError
from ray_sisa.report import make_page
from ray_sisa.run import Run

TOLD = "nor will there be one: all samples of this run are deleted. Make a new run"


@pytest.fixture(scope="module", params=["before unlearn", "after unlearn"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("left")
    samples = dataset(digits(0, 30))
    run = Run.create(small_config(folder, placement={"shards": 1, "slices": 1}), samples)
    run.train(runner="local")
    run.forget(samples=samples.train.ids.to_pylist())
    if request.param == "after unlearn":
        run.unlearn(runner="local")
    return run


ASKED: dict[str, Callable[[Run], object]] = {
    "predict": lambda run: run.ensemble().predict(np.zeros((1, 8, 8, 1), np.uint8)),
    "evaluate": lambda run: run.evaluate(runner="local"),
    "evaluate a request": lambda run: run.evaluate(forget=1, runner="local"),
    "attack": lambda run: run.attack_inversion("hidden1", digits(0, 20), digits(20, 20), runner="local"),
    "approximate": lambda run: run.approximate(make_method("fine_tune"), forget=["digit-0001"], runner="local"),
}


@pytest.mark.parametrize("what", ASKED)
def test_nothing_is_left(run: Run, what: str) -> None:
    with pytest.raises(DataError) as caught:
        ASKED[what](run)
    assert TOLD in str(caught.value)


def test_the_report_says_so(run: Run) -> None:
    first = make_page(run).verdict[0]
    assert first.startswith("Nothing is left: all samples are deleted, and nothing votes. A new run is needed.")
    assert ("`ray-sisa unlearn`" in first) == bool(run.status().pending_requests)


def test_an_ensemble_that_was_open_says_so_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    samples = dataset(digits(0, 30))
    run = Run.create(small_config(tmp_path_factory.mktemp("open"), placement={"shards": 1, "slices": 2}), samples)
    run.train(runner="local")
    ensemble, asked = run.ensemble(), np.zeros((1, 8, 8, 1), np.uint8)
    ensemble.predict(asked)
    run.forget(samples=run.sample_ids(0, 1))
    with pytest.raises(DataError, match=r"no constituent is left to vote until training has ended\. Run `ray-sisa unl"):
        ensemble.predict(asked)
    run.forget(samples=run.sample_ids(0, 2))
    with pytest.raises(DataError, match="all samples of this run are deleted"):
        ensemble.predict(asked)
