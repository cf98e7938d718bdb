"""Trained runs to test laws on, trained once a session and copied for each test, and a process that can be killed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from killable import Killable
from small_runs import RECIPES, all_samples, dataset, digits, frozen_recipe, small_config, write_parquet

from ray_sisa.config import RunConfig
from ray_sisa.run import Run
from ray_sisa.samples import Samples


@pytest.fixture(scope="session")
def samples() -> Samples:
    """D."""
    return all_samples()


@pytest.fixture(scope="session")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """D and the test set in Parquet files, as fields of `data`."""
    folder = tmp_path_factory.mktemp("parquet")
    return {
        "train": write_parquet(folder / "train.parquet", all_samples()),
        "test": write_parquet(folder / "test.parquet", digits(240, 60)),
    }


@pytest.fixture(scope="session")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Recipes by name, `frozen` and `private` among them."""
    frozen = frozen_recipe(tmp_path_factory.mktemp("backbone") / "backbone.safetensors")
    return RECIPES | {"frozen": frozen}


@pytest.fixture(scope="session")
def trained(
    tmp_path_factory: pytest.TempPathFactory, parquet: dict[str, str], recipes: dict[str, dict[str, Any]]
) -> Callable[[str], Run]:
    """train(D) by the name of a recipe: never to be changed, see `copied`."""
    runs: dict[str, Run] = {}

    def train(recipe: str) -> Run:
        if recipe not in runs:
            config = small_config(tmp_path_factory.mktemp("trained"), recipe=recipes[recipe], data=parquet)
            runs[recipe] = Run.create(config)
            runs[recipe].train(runner="local")
        return runs[recipe]

    return train


@pytest.fixture
def copied(tmp_path: Path, trained: Callable[[str], Run]) -> Callable[..., Run]:
    """A copy of train(D) that a test may change, under a name in its own folder."""

    def copy(recipe: str = "mlp", name: str = "copy") -> Run:
        # Runs are relocatable: nothing in a store names the place where it lies.
        shutil.copytree(trained(recipe).store.uri, tmp_path / name)
        return Run.open(str(tmp_path / name))

    return copy


@pytest.fixture
def from_scratch(tmp_path: Path, recipes: dict[str, dict[str, Any]]) -> Callable[[Samples, str], Run]:
    """train(samples), in the test's own folder."""

    def train(samples: Samples, recipe: str = "mlp") -> Run:
        config: RunConfig = small_config(tmp_path, name="scratch", recipe=recipes[recipe])
        run = Run.create(config, dataset=dataset(samples))
        run.train(runner="local")
        return run

    return train


@pytest.fixture(scope="session")
def killable() -> Iterator[Killable]:
    """Processes that train, unlearn or predict, and can be killed before any of their writes."""
    with Killable() as server:
        yield server
