"""What a worker does, wherever it runs: train the missing stages of one shard's chain, committing each.

It reads its own shard's slices and nothing else. No ray here.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator

from ray_sisa.engine.work import ChainWork, EpochDone, StageDone
from ray_sisa.ledger import FOLDER as LEDGER
from ray_sisa.ledger import read_ledger
from ray_sisa.lineage import Stage
from ray_sisa.records import EpochMetrics, RunRecord
from ray_sisa.samples import Samples, concatenate
from ray_sisa.slices import read_slice, read_test
from ray_sisa.stages import commit_stage, environment_of, load_initial, load_stage
from ray_sisa.store import RUN, Store, numbered
from ray_sisa.training import LabelledImages, Weights, initial_state, train_stage

UNREACHABLE = "storage_path must be reachable from every node: use an object store or a folder that all of them mount"


def train_chain(work: ChainWork) -> Iterator[EpochDone | StageDone]:
    """Trains and commits the missing stages of a chain, telling of each epoch and each commit.

    Ends early, without an error, once the ledger has a request that touches the shard: what it was making is tainted.

    Raises:
        StoreError: a slice or a parent is absent or changed.
    """
    run = work.store.read(RUN, RunRecord, UNREACHABLE)
    wanted = run.test_digest if work.test_during_training != "never" else None
    test = _arrays(read_test(work.store, wanted)) if wanted else None
    weights: Weights | None = None
    parts: list[Samples] = []
    for position, stage in enumerate(work.chain.stages):
        if stage.key not in work.missing:
            weights = None
            continue
        start = weights if weights is not None else _start(work, run, position)
        parts += [read_slice(work.store, s.slice_digest) for s in work.chain.stages[len(parts) : position + 1]]
        weights = yield from _train_and_commit(work, run, stage, start, concatenate(parts), test)
        if weights is None:
            return


def _start(work: ChainWork, run: RunRecord, position: int) -> Weights:
    """The weights of the stage before the one at `position`."""
    if position:
        return load_stage(work.store, work.chain.stages[position - 1].key)
    public = load_initial(work.store, run.training.initial_weights)
    return initial_state(run.training, work.chain.initial, public)


def _train_and_commit(
    work: ChainWork, run: RunRecord, stage: Stage, start: Weights, samples: Samples, test: LabelledImages | None
) -> Generator[EpochDone | StageDone, None, Weights | None]:
    """Returns the weights of the stage, or None where a newer request touches it and it was not committed."""
    began = time.perf_counter()
    steps = train_stage(
        start=start,
        samples=_arrays(samples),
        training=run.training,
        key=stage.key,
        epochs=stage.epochs,
        device=work.device,
        test=test,
        test_every_epoch=work.test_during_training == "epoch",
    )
    metrics: list[EpochMetrics] = []
    weights = yield from _tell_epochs(stage, steps, metrics)
    if touched_since(work.store, work.ledger, stage.shard, stage.slice):
        return None
    seconds = time.perf_counter() - began
    environment = environment_of(work.device, run.training.recipe.threads)
    record = commit_stage(work.store, work.chain, stage, weights, metrics, seconds, environment)
    yield StageDone(record=record)
    return weights


def _tell_epochs(
    stage: Stage, steps: Generator[EpochMetrics, None, Weights], metrics: list[EpochMetrics]
) -> Generator[EpochDone, None, Weights]:
    while True:
        try:
            measured = next(steps)
        except StopIteration as end:
            weights: Weights = end.value
            return weights
        metrics.append(measured)
        yield EpochDone(stage=stage, metrics=measured)


def touched_since(store: Store, ledger: int, shard: int, slice_number: int) -> bool:
    """Whether a request after number `ledger` deletes a live sample of slices 1..r of a shard; one read if not."""
    if store.find(numbered(LEDGER, ledger + 1)) is None:
        return False
    return read_ledger(store).touched(ledger).get(shard, slice_number + 1) <= slice_number


def _arrays(samples: Samples) -> LabelledImages:
    return LabelledImages(images=samples.images, labels=samples.labels)
