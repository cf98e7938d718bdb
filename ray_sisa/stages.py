"""Stages in the store: committing one, and reading one back with every byte checked."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ray_sisa import __version__, weights
from ray_sisa.clock import now
from ray_sisa.config import TrainingRecipe
from ray_sisa.digests import digest_bytes, digest_tensors
from ray_sisa.errors import StoreError, TrainingError
from ray_sisa.layout import BACKUP, damaged, initial_weights, stage_record, stage_weights
from ray_sisa.lineage import Chain, Stage, recipe_digest, stage_key
from ray_sisa.records import Ancestor, Environment, EpochMetrics, StageRecord
from ray_sisa.store import Store


def commit_stage(
    store: Store,
    chain: Chain,
    stage: Stage,
    tensors: Mapping[str, Tensor],
    metrics: Sequence[EpochMetrics],
    seconds: float,
    environment: Environment,
    *,
    repeatable: bool = True,
) -> StageRecord:
    """Writes a stage: weights first, the commit record last.

    A crash before the record leaves weights without one: the stage is absent, and the next run writes the same bytes
    over them. A crash after it leaves a committed stage. Of two writers, who write the same, the first stands; it does
    too where training is not `repeatable`, and they do not write the same.

    Raises:
        TrainingError: the stage is there with other weights, so something not named in its key influenced one of them.
    """
    data = weights.to_bytes(tensors)
    record = StageRecord(
        key=stage.key,
        shard=stage.shard,
        slice=stage.slice,
        parent=stage.parent,
        slice_digest=stage.slice_digest,
        num_samples=stage.num_samples,
        epochs=stage.epochs,
        ancestors=tuple(Ancestor(slice=s.slice, key=s.key) for s in chain.stages if s.slice < stage.slice),
        weights_digest=digest_tensors(tensors),
        weights_bytes=len(data),
        weights_file_digest=digest_bytes(data),
        metrics=tuple(metrics),
        sample_passes=stage.sample_passes,
        seconds=seconds,
        environment=environment,
        committed_at=now(),
    )
    known = store.find_record(stage_record(stage.key), StageRecord)
    if known is not None and store.find(stage_weights(stage.key)) is None:
        store.delete([stage_record(stage.key)])  # of weights that are lost: these may have been made elsewhere
        known = None
    if known is None:
        if not repeatable and (there := store.find_record(stage_record(stage.key), StageRecord)) is not None:
            return there  # another's, since the first look: its weights are not to be written over
        store.put(stage_weights(stage.key), data)
        if store.create(stage_record(stage.key), record.to_bytes()):
            return record
        known = store.read(stage_record(stage.key), StageRecord)
        if digest_bytes(store.get(stage_weights(stage.key))) != known.weights_file_digest:
            store.delete([stage_record(stage.key)])  # half of each writer's is worse than a stage that is absent
            if not repeatable:
                return commit_stage(store, chain, stage, tensors, metrics, seconds, environment, repeatable=False)
    if not repeatable:
        return known
    if known.weights_digest != record.weights_digest:
        rule = f"was trained twice with different results ({known.weights_digest}, {record.weights_digest})"
        remedy = (
            f"{_difference(known.environment, environment)}: train on equal machines, or look in the model for what "
            "lies outside its module"
        )
        raise TrainingError(f"shard {stage.shard} slice {stage.slice}", stage.key, rule, remedy)
    return known


def load_stage(store: Store, key: str, training: TrainingRecipe | None = None) -> dict[str, Tensor]:
    """The weights of a committed stage, every byte checked against its record.

    Args:
        store: of the run.
        key: key of the stage.
        training: the recipe that it must have been trained by, if that is not known already.

    Raises:
        StoreError: the stage is absent, its weights are not what was committed, or it is of another recipe.
    """
    record = store.read(stage_record(key), StageRecord)
    if training and key != stage_key(record.parent, record.slice_digest, recipe_digest(training), record.slice):
        rule = "is of another recipe than run.json: one of the two is another run's"
        raise StoreError(store.where(stage_record(key)), "", rule, f"{BACKUP}, then run `ray-sisa check RUN`")
    path = stage_weights(key)
    data = store.get(path)
    if digest_bytes(data) != record.weights_file_digest:
        rule = f"is not what was committed ({len(data)} bytes, {record.weights_bytes} expected, or other content)"
        raise StoreError(store.where(path), "", rule, damaged(path))
    return _tensors(store, path, data)


def load_initial(store: Store, digest: str | None) -> dict[str, Tensor] | None:
    """The public weights that all shards start from, checked against their digest; None for random ones.

    Raises:
        StoreError: they are absent or changed, or not finite: runs made before that was refused may have such.
    """
    if digest is None:
        return None
    path = initial_weights(digest)
    data = store.get(path)
    tensors = _tensors(store, path, data)
    if digest_tensors(tensors) != digest:
        raise StoreError(store.where(path), "", "is not what was stored", damaged(path))
    if name := weights.not_finite(tensors):
        rule = f"has numbers in {name} that are not finite: no network trains from them"
        raise StoreError(store.where(path), "", rule, "Make a new run, with recipe.weights of finite numbers")
    return tensors


def _tensors(store: Store, path: str, data: bytes) -> dict[str, Tensor]:
    try:
        return weights.from_bytes(data)
    except StoreError as error:
        raise StoreError(store.where(path), "", error.rule, damaged(path)) from None


def environment_of(device: str, threads: int) -> Environment:
    """What bits may depend on besides the key, as it is in this process."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return Environment(
        device=device.partition(":")[0],
        device_name=name,
        threads=threads,
        python=platform.python_version(),
        torch=torch.__version__,
        ray_sisa=__version__,
        platform=platform.platform(),
    )


def _difference(one: Environment, other: Environment) -> str:
    names = [name for name in Environment.model_fields if getattr(one, name) != getattr(other, name)]
    return f"The environments differ in {', '.join(names)}" if names else "The environments are the same"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
            return next(names, platform.processor())
    except OSError:
        return platform.processor()
