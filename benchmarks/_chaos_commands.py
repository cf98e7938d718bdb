"""The run of a drill: its configuration, its commands, and the one that is left in peace.

The runs of a drill share a placement key, so that all of them have the same names.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from _chaos_judge import Deletion, Judge
from _chaos_kills import Phase
from _chaos_program import Program
from _chaos_storage import Storage

from ray_sisa.run import Run

NAME = "run"
PEACE_S = 300.0
TRACE = "trace"
CONFIG = {
    "name": NAME,
    "data": {"source": "digits"},
    "placement": {"shards": 3, "slices": 3, "key": "chaos"},
    "recipe": {
        "model": "small_cnn",  # with batch normalisation
        "optimizer": {"lr": 0.05, "weight_decay": 5e-4, "nesterov": True},
        "schedule": "one_cycle",
        "epochs_per_slice": 3,
        "batch_size": 64,
        "augment": ["crop", "flip"],
    },
    "scaling": {"max_failures": -1, "checkpoint_every": {"epochs": 1}, "no_progress_timeout_s": 900},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Undisturbed:
    """A run that nothing disturbed, and what it told."""

    judge: Judge
    deletions: tuple[Deletion, ...]
    seconds: dict[Phase, float]
    points: dict[Phase, tuple[str, ...]]
    """Crash points of each phase in the order in which they were passed, each as often as it was."""


def undisturbed(program: Program, folder: Path, storage: Storage) -> Undisturbed:
    """Makes the run that all others in this storage are compared with, tracing its crash points."""
    uri = uri_of(folder, storage)
    seconds: dict[Phase, float] = {}
    points: dict[Phase, tuple[str, ...]] = {}

    def run(phase: Phase, *arguments: str) -> None:
        trace = folder / f"{TRACE}-{phase}"
        environment = storage.environment | {"RAY_SISA_CRASH_AT": TRACE, "RAY_SISA_CRASH_LOG": str(trace)}
        began = time.monotonic()
        code = program.start(*arguments, log=folder / "log", environment=environment).wait(PEACE_S)
        if code != 0:
            raise RuntimeError(f"{phase} ended with {code} undisturbed:\n{(folder / 'log').read_text()}")
        seconds[phase] = time.monotonic() - began
        points[phase] = tuple(json.loads(line)["point"] for line in trace.read_text().splitlines())

    run("train", *train_arguments(folder, storage))
    opened = Run.open(uri)
    deletions = _deletions(opened)
    for deletion in deletions:
        run("forget", *forget_arguments(uri, deletion))
    run("unlearn", *unlearn_arguments(uri))
    return Undisturbed(judge=Judge(opened, deletions), deletions=deletions, seconds=seconds, points=points)


def uri_of(folder: Path, storage: Storage) -> str:
    """Where the run is whose configuration and logs are in a folder."""
    return f"{storage.of(folder)}/{NAME}"


def train_arguments(folder: Path, storage: Storage, on_ray: bool = False) -> list[str]:
    config = folder / "config.yaml"
    config.write_text(json.dumps(CONFIG | {"storage_path": storage.of(folder)}))  # JSON is YAML
    return ["train", str(config), *_runner(on_ray)]


def forget_arguments(uri: str, deletion: Deletion) -> list[str]:
    return ["forget", uri, "--samples", ",".join(deletion.samples), "--key", deletion.key]


def unlearn_arguments(uri: str, on_ray: bool = False) -> list[str]:
    return ["unlearn", uri, *_runner(on_ray)]


def _runner(on_ray: bool) -> list[str]:
    return ["--runner", "ray" if on_ray else "local"]


def _deletions(run: Run) -> tuple[Deletion, ...]:
    """In the last slice of a shard; in the middle; in the first, so that a shard leaves the vote, and in two shards."""
    last, middle, first = run.sample_ids(0, 3), run.sample_ids(1, 2), run.sample_ids(2, 1)
    return (
        Deletion(key="one", samples=tuple(last[:2])),
        Deletion(key="two", samples=(middle[0],)),
        Deletion(key="three", samples=(first[0], last[2])),
    )
