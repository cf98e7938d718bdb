"""Where a study works: storage, the steps that were done, workers. Its record says nothing of where that was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ray_sisa.config import Scaling
from ray_sisa.engine.runner import Runner, open_runner
from ray_sisa.location import join_run, resolve_uri
from ray_sisa.store import Store
from ray_sisa.study.provenance import commit_here
from ray_sisa.study.steps import Steps


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a study works."""

    storage: str
    """Its runs are under this folder or URI."""
    steps: Steps
    runner: Runner
    scaling: dict[str, Any]
    weights: Path = Path()
    """Folder of the weights that recipes name by file name alone."""


@contextmanager
def open_place(storage: str, gpus_per_worker: float, weights: Path = Path()) -> Iterator[Place]:
    """A place with workers of Ray for the length of the block; what was done before is found in its storage.

    Args:
        storage: folder or URI of runs and steps.
        gpus_per_worker: 0 for the CPU.
        weights: as in `Place`.

    Raises:
        ResourcesError: no node of the cluster can hold a worker.
    """
    scaling = {"resources_per_worker": {"CPU": 1, **({"GPU": gpus_per_worker} if gpus_per_worker else {})}}
    steps = Steps(Store(join_run(storage, "study")), commit_here())
    with open_runner("ray", Scaling.model_validate(scaling)) as runner:
        yield Place(storage=storage, steps=steps, runner=runner, scaling=scaling, weights=weights)


def write_result(record: object, storage: str, path: Path) -> None:
    """Writes a record, a dataclass, as JSON; where things lay is nobody's business who reads it."""
    text = TypeAdapter(type(record)).dump_json(record, indent=1).decode()
    path.write_text(text.replace(resolve_uri(storage), "STORAGE") + "\n", encoding="utf-8")
