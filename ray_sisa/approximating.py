"""Making an approximation, wherever a runner puts it: read the one stage and its samples, unlearn, commit.

A worker commits under the run's lease, and only while its stage is one that should exist: what a request touched
meanwhile is dropped unwritten.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ray_sisa import approximations, weights
from ray_sisa.approximate.methods import AnyMethod
from ray_sisa.approximate.problem import EpochPassed
from ray_sisa.approximate.unlearning import unlearn
from ray_sisa.clock import now
from ray_sisa.digests import digest_bytes, digest_tensors
from ray_sisa.engine.runner import Runner, device_of
from ray_sisa.ensemble import Inputs
from ray_sisa.errors import StoreError, TrainingError
from ray_sisa.keyed_ids import known_as
from ray_sisa.layout import RUN, UNREACHABLE, approximation_record, approximation_weights, stage_record
from ray_sisa.lease import hold_lease
from ray_sisa.ledger import read_ledger
from ray_sisa.lineage import Stage
from ray_sisa.live import LiveSet
from ray_sisa.records import Approximation, RunRecord, StageRecord
from ray_sisa.samples import Samples
from ray_sisa.slices import read_slice
from ray_sisa.stages import environment_of, load_stage
from ray_sisa.store import Store
from ray_sisa.training import LabelledImages, predict_log_probabilities

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Approximating:
    """What all methods are given: the model of `stage`, made to forget samples of its slice by their ids."""

    store: Store
    run: RunRecord
    stage: Stage
    forget: tuple[str, ...]
    device: str
    wait_s: float | None
    """How long a commit waits for another process that works on the run."""


def approximate_all(
    store: Store,
    run: RunRecord,
    stage: Stage,
    forget: Sequence[str],
    methods: Sequence[AnyMethod],
    runner: Runner,
    wait_s: float | None,
) -> list[Approximation]:
    """What each method makes of a stage, each a job of the runner; what is there already is found, not made."""
    work = Approximating(
        store=store, run=run, stage=stage, forget=tuple(forget), device=device_of(run.config.scaling), wait_s=wait_s
    )
    names = ", ".join(method.name for method in methods)
    logger.info("%s: a model of %d samples is made to forget %d", names, stage.num_samples, len(forget))
    return runner.map(approximate, work, methods)


def approximate(work: Approximating, method: AnyMethod) -> Approximation:
    """One job: the approximation, from the store if it is there.

    Raises:
        TrainingError: it diverged, or a request retired the stage meanwhile; nothing was written.
        BusyError: another process works on the run for longer than the commit waits.
    """
    store, training = work.store, work.run.training
    store.get(RUN, UNREACHABLE)  # a node that sees another folder says so, and not that a stage is lost
    _check_wanted(work)  # a request may have retired the stage, and had it removed, while the job waited
    stage = store.read(stage_record(work.stage.key), StageRecord)
    forget_digest = approximations.digest_of_ids(work.forget)
    key = approximations.approximation_key(stage, forget_digest, method, training)
    if known := approximations.find(store, stage.key, key):
        return known
    began = time.perf_counter()
    try:
        start = load_stage(store, stage.key, training)
        retained, forget = _split(work.run, read_slice(store, work.stage.slice_digest), set(work.forget))
    except StoreError:
        _check_wanted(work)  # a request may have had them removed just now: that is the reason then
        raise
    environment = environment_of(work.device, training.recipe.threads)
    made = unlearn(
        method,
        start=start,
        retained=LabelledImages.of(retained),
        forget=LabelledImages.of(forget),
        training=training,
        key=key,
        device=work.device,
        tell=lambda passed: _tell(method, passed),
    )
    data = weights.to_bytes(made.weights)
    record = Approximation(
        key=key,
        stage=stage.key,
        method=method,
        forget_digest=forget_digest,
        num_forget=len(forget),
        num_retained=len(retained),
        sample_passes=made.sample_passes,
        forward_passes=made.forward_passes,
        weights_digest=digest_tensors(made.weights),
        weights_bytes=len(data),
        weights_file_digest=digest_bytes(data),
        seconds=time.perf_counter() - began,
        environment=environment,
        committed_at=now(),
    )
    return _commit(work, record, data)


def approximate_outputs(inputs: Inputs, approximation: Approximation) -> np.ndarray:
    """Log-probabilities float32 [N, K] of an approximation: the one job of its evaluation."""
    inputs.store.get(RUN, UNREACHABLE)
    tensors = approximations.load(inputs.store, approximation)
    return predict_log_probabilities(tensors, inputs.images, inputs.run.training, inputs.device)


def _commit(work: Approximating, record: Approximation, data: bytes) -> Approximation:
    """Writes weights, then the record, under the lease, so that no reconcile sweeps the one before the other.

    A crash between the two leaves weights without a record: absent, and swept by the next reconcile.
    """
    store = work.store
    with hold_lease(store, wait_s=work.wait_s) as lease:
        _check_wanted(work)
        if known := approximations.find(store, record.stage, record.key):
            return known  # another process was faster; its weights may be of another environment
        store.delete([approximation_record(record.stage, record.key)])  # of weights that are lost
        store.put(approximation_weights(record.stage, record.key), data)
        lease.check()
        store.create(record.path, record.to_bytes())
    return record


def _check_wanted(work: Approximating) -> None:
    ledger = read_ledger(work.store)
    keys = {key for chain in LiveSet(work.store, work.run).chains(ledger) for key in chain.keys}
    if work.stage.key not in keys:
        rule = "was made from a stage that a request retired meanwhile; nothing was written"
        raise TrainingError("approximation", "", rule, "Run `ray-sisa unlearn RUN`, then this command again")


def _split(run: RunRecord, samples: Samples, forget: set[str]) -> tuple[Samples, Samples]:
    """What is retained and what is to be forgotten, both in the order of the slice."""
    is_named = np.array([i in forget for i in known_as(run, samples.ids).to_pylist()], dtype=bool)
    return samples.take(np.flatnonzero(~is_named)), samples.take(np.flatnonzero(is_named))


def _tell(method: AnyMethod, passed: EpochPassed) -> None:
    # In this process it reaches the user; a worker elsewhere has a log of its own.
    logger.info("%s epoch %d/%d loss %.3f", method.name, passed.epoch, passed.epochs, passed.loss)
