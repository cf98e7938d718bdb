"""A local `storage_path` on a cluster: a worker that sees another folder than the driver says so, and how to mend it.

The nodes of a cluster on one machine share its disk. So the worker's folder is exchanged where a runner hands the work
over, which is all that another machine would change: its path is the same, and what lies there is not.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from places import config_in
from small_runs import all_samples, dataset

from ray_sisa.engine.local_runner import LocalRunner
from ray_sisa.engine.runner import Item, Result
from ray_sisa.engine.work import ChainWork
from ray_sisa.errors import SisaError, TrainingError
from ray_sisa.run import Run
from ray_sisa.store import Store


class Elsewhere(LocalRunner):
    """A worker for which `storage_path` is another folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._store = Store(str(folder))

    def start(self, work: ChainWork) -> None:
        super().start(replace(work, store=self._store))

    def map(self, function: Callable[[Any, Item], Result], shared: Any, items: Sequence[Item]) -> list[Result]:
        return super().map(function, replace(shared, store=self._store), items)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(config_in(str(tmp_path / "runs")), dataset=dataset(all_samples()))


@pytest.mark.parametrize("what", ["nothing", "an empty folder", "a copy", "a copy of long ago"])
def test_training(what: str, run: Run, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    if what == "an empty folder":
        seen.mkdir()
    elif what != "nothing":
        shutil.copytree(run.store.uri, seen)
    if what == "a copy of long ago":
        Run.open(str(seen)).train(runner="local")  # by another driver, whose lease is in it
        run.train(runner="local")
        run.forget(samples=run.sample_ids(0, 1)[:1])
    before = sorted(seen.rglob("*")) if seen.exists() else None
    with pytest.raises(TrainingError) as caught:
        run.train(runner=Elsewhere(seen))
    message = str(caught.value)
    assert "storage_path" in message
    assert "it is another folder than the driver's" in message
    assert "use an object store or a folder that all of them mount" in message
    assert (sorted(seen.rglob("*")) if seen.exists() else None) == before
    run.train(runner="local")
    assert run.check().ok


@pytest.mark.parametrize("ask", ["evaluate", "verify"])
def test_jobs_that_only_read(ask: str, run: Run, tmp_path: Path) -> None:
    run.train(runner="local")
    with pytest.raises(SisaError, match="storage_path must be reachable from every node"):
        getattr(run, ask)(runner=Elsewhere(tmp_path / "seen"))
