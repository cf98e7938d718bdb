"""What does the engine cost beside the training that it runs?

Two shards x three slices of ResNet-20 on CIFAR-100's shapes, trained by `Run.train` on Ray (two workers of one CPU)
and, in turns with it, by two plain processes that call `train_stage` on the same samples in memory and keep nothing.
Ray, its workers and the plain processes are started and warmed before anything is timed; the store is a local folder.

Target: Run.train takes at most 1.05 times as long as the plain processes. Told beside it: the time from a stage's end
to the start of the next one in its worker (commit, events, reading the next slice), before the first stage and
after the last one, and the share of the run in which the slowest shard did not train, which others on the machine
hardly move. Both sides must give weights of the same digests, else the benchmark fails.

    python benchmarks/engine_overhead.py
    python benchmarks/engine_overhead.py --samples 15000 --repetitions 5
    python benchmarks/engine_overhead.py --quick --json overhead.json

With RAY_SISA_DATA the images are CIFAR-100's (cifar100/train.parquet in that folder), else random.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import _measure
import numpy as np

from ray_sisa import data
from ray_sisa.config import (
    DataConfig,
    EvaluationConfig,
    OptimizerConfig,
    PlacementConfig,
    Recipe,
    RunConfig,
    Scaling,
    TrainingRecipe,
)
from ray_sisa.digests import digest_tensors
from ray_sisa.engine.ray_runner import RayRunner
from ray_sisa.ledger import read_ledger
from ray_sisa.lineage import Chain
from ray_sisa.records import StageRecord
from ray_sisa.run import Run
from ray_sisa.samples import Samples, make_samples
from ray_sisa.slices import read_slice
from ray_sisa.training import LabelledImages, Weights, initial_state, to_end, train_stage

QUESTION = "Wall time of a run on Ray against the same stages in bare processes (ResNet-20, 2 shards x 3 slices)"
NUM_SHARDS, NUM_SLICES = 2, 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Shard:
    """A chain and the samples of each of its stages' slices, in memory."""

    training: TrainingRecipe
    chain: Chain
    slices: tuple[LabelledImages, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RayTimes:
    """One run on Ray, in seconds."""

    wall: float
    before_first: float
    """From the call to the start of the first stage."""
    after_last: float
    """From the last commit to the return."""
    between: tuple[float, ...]
    """From the end of each stage's training to the start of the next one's in the same shard."""
    idle: float
    """What the slowest shard did not spend in training, of `wall`."""


# --- the two sides


def train_on_ray(run: Run, runner: RayRunner) -> RayTimes:
    began = time.time()
    run.train(runner=runner)
    ended = time.time()
    return ray_times(run.stages(), began, ended)


def ray_times(records: Sequence[StageRecord], began: float, ended: float) -> RayTimes:
    """What the commit records tell: `committed_at` follows the `seconds` of training at once."""
    ends = {(r.shard, r.slice): datetime.fromisoformat(r.committed_at).timestamp() for r in records}
    starts = {(r.shard, r.slice): ends[r.shard, r.slice] - r.seconds for r in records}
    trained = max(sum(r.seconds for r in records if r.shard == shard) for shard in range(NUM_SHARDS))
    return RayTimes(
        wall=ended - began,
        idle=ended - began - trained,
        before_first=min(starts.values()) - began,
        after_last=ended - max(ends.values()),
        between=tuple(starts[s, r + 1] - ends[s, r] for s, r in sorted(ends) if (s, r + 1) in starts),
    )


def train_bare(workers: Sequence[Connection]) -> float:
    began = time.perf_counter()
    for worker in workers:
        worker.send("train")
    for worker in workers:
        assert worker.recv() == "trained"
    return time.perf_counter() - began


def serve(shard: Shard, niceness: int, orders: Connection) -> None:
    """A plain process: trains its shard whenever told, and answers with digests when asked."""
    os.setpriority(os.PRIO_PROCESS, 0, niceness)
    warm_up(shard.training, None)
    orders.send("ready")
    digests: list[str] = []
    while (order := orders.recv()) != "end":
        if order == "train":
            stages = train_shard(shard)
            orders.send("trained")
            digests = [digest_tensors(weights) for weights in stages]
        else:
            orders.send(digests)


def train_shard(shard: Shard) -> list[Weights]:
    """The weights of each stage of a shard."""
    weights = initial_state(shard.training, shard.chain.initial, None)
    trained: list[Weights] = []
    for position, stage in enumerate(shard.chain.stages, start=1):
        samples = LabelledImages(
            images=np.concatenate([part.images for part in shard.slices[:position]]),
            labels=np.concatenate([part.labels for part in shard.slices[:position]]),
        )
        weights = to_end(
            train_stage(start=weights, samples=samples, training=shard.training, key=stage.key, epochs=stage.epochs)
        )
        trained.append(weights)
    return trained


def warm_up(training: TrainingRecipe, item: object) -> int:
    """Trains two batches, so that what PyTorch does once a process is nobody's overhead; returns the niceness."""
    samples = random_samples(2 * training.recipe.batch_size)
    arrays = LabelledImages(images=samples.images, labels=samples.labels)
    start = initial_state(training, "warm-up", None)
    to_end(train_stage(start=start, samples=arrays, training=training, key="warm-up", epochs=1))
    return os.getpriority(os.PRIO_PROCESS, 0)


# --- what is trained


def random_samples(num_samples: int) -> Samples:
    generator = np.random.default_rng(0)
    return make_samples(
        ids=[f"sample-{row:06d}" for row in range(num_samples)],
        images=generator.integers(0, 256, (num_samples, 32, 32, 3), dtype=np.uint8),
        labels=generator.integers(0, 100, num_samples),
    )


def load_samples(num_samples: int) -> tuple[str, Samples]:
    """The name of a data set, and so many of its samples."""
    folder = os.environ.get("RAY_SISA_DATA")
    if folder is None:
        return "random", random_samples(num_samples)
    path = str(Path(folder) / "cifar100" / "train.parquet")
    config = DataConfig(source="parquet", train=path, num_classes=100, columns={"label": "fine_label"})
    return "cifar100", data.load(config).train.take(np.arange(num_samples))


def make_run(folder: str, samples: Samples) -> Run:
    config = RunConfig(
        name="run",
        storage_path=folder,
        data=DataConfig(source="torchvision:CIFAR100"),  # in name: the samples are given
        placement=PlacementConfig(strategy="permutation", shards=NUM_SHARDS, slices=NUM_SLICES, key="benchmark"),
        recipe=Recipe(
            model="resnet20",
            optimizer=OptimizerConfig(momentum=0.9, nesterov=True, weight_decay=5e-4),
            epochs_per_slice=1,
            augment=("crop", "flip"),
        ),
        scaling=Scaling(resources_per_worker={"CPU": 1}, max_concurrent_shards=NUM_SHARDS),
        evaluation=EvaluationConfig(test_during_training="never"),
    )
    dataset = data.Dataset(
        train=samples, test=None, num_classes=100, mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762)
    )
    return Run.create(config, dataset)


def shards_of(run: Run) -> list[Shard]:
    chains = run.live.chains(read_ledger(run.store))
    return [
        Shard(
            training=run.record.training,
            chain=chain,
            slices=tuple(arrays(read_slice(run.store, stage.slice_digest)) for stage in chain.stages),
        )
        for chain in chains
    ]


def arrays(samples: Samples) -> LabelledImages:
    # Copies, since the store's bytes are read-only and would be copied anew by every stage.
    return LabelledImages(images=samples.images.copy(), labels=samples.labels.copy())


# --- what is measured


@contextmanager
def bare_processes(shards: Sequence[Shard], niceness: int) -> Iterator[list[Connection]]:
    """A warm process for each shard."""
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in shards]
    processes = [
        context.Process(target=serve, args=(shard, niceness, theirs))
        for shard, (_, theirs) in zip(shards, pipes, strict=True)
    ]
    for process in processes:
        process.start()
    ours = [pipe for pipe, _ in pipes]
    try:
        assert [pipe.recv() for pipe in ours] == ["ready"] * len(shards)
        yield ours
    finally:
        for pipe, process in zip(ours, processes, strict=True):
            pipe.send("end")
            process.join()


def check_same(run: Run, workers: Sequence[Connection]) -> None:
    """Fails unless both sides trained the same weights to the last bit."""
    for worker in workers:
        worker.send("digests")
    bare = [digest for worker in workers for digest in worker.recv()]
    on_ray = [record.weights_digest for record in run.stages()]
    if bare != on_ray:
        raise SystemExit(f"the two sides differ: {bare} in bare processes, {on_ray} on Ray")


def measure(folder: str, samples: Samples, repetitions: int) -> tuple[list[RayTimes], list[float]]:
    runs = [make_run(f"{folder}/{repetition}", samples) for repetition in range(repetitions)]
    # Workers take their path from the environment in which Ray is started.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_measure.ROOT), os.environ.get("PYTHONPATH")]))
    runner = RayRunner(runs[0].record.config.scaling)
    try:
        # Ray makes its workers nice; with others on the machine that would look like overhead.
        niceness = max(runner.map(warm_up, runs[0].record.training, range(NUM_SHARDS)))
        with bare_processes(shards_of(runs[0]), niceness) as workers:
            waiting, times = iter(runs), []

            def on_ray() -> float:
                times.append(train_on_ray(next(waiting), runner))
                return times[-1].wall

            walls = _measure.in_turns({"Ray": on_ray, "bare": lambda: train_bare(workers)}, repetitions)
            for run in runs:
                check_same(run, workers)
    finally:
        runner.close()
    return times, walls["bare"]


def compare(times: Sequence[RayTimes], bare: Sequence[float]) -> list[_measure.Finding]:
    walls = [time.wall for time in times]
    found = _measure.found
    return [
        found("Run.train on Ray", walls, "s"),
        found("bare processes", bare, "s"),
        _measure.ratio("Ray / bare", walls, bare, at_most=1.05),
        found("not training, of the run", [100 * time.idle / time.wall for time in times], "%"),
        found("stage's end to next start", [1000 * gap for time in times for gap in time.between], "ms"),
        found("call to first stage's start", [1000 * time.before_first for time in times], "ms"),
        found("last commit to return", [1000 * time.after_last for time in times], "ms"),
    ]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--samples", type=int, default=10_000, help="training samples, over both shards")
    parser.add_argument("--repetitions", type=int, default=2)


def main() -> None:
    arguments = _measure.parse_arguments(__doc__, add_options)
    num_samples, repetitions = (384, 1) if arguments.quick else (arguments.samples, arguments.repetitions)
    before = _measure.machine()
    source, samples = load_samples(num_samples)
    with tempfile.TemporaryDirectory() as folder:
        times, bare = measure(folder, samples, repetitions)
    _measure.report(
        question=QUESTION,
        findings=compare(times, bare),
        arguments=arguments,
        raw={
            "ray_seconds": [time.wall for time in times],
            "bare_seconds": bare,
            "between_stages_seconds": [time.between for time in times],
            "not_training_seconds": [time.idle for time in times],
            "before_first_seconds": [time.before_first for time in times],
            "after_last_seconds": [time.after_last for time in times],
        },
        settings={"samples": num_samples, "source": source, "repetitions": repetitions, "digests": "equal"},
        before=before,
    )


if __name__ == "__main__":
    main()
