"""Samples into a store, partitioned by placement; `run.json` comes last and makes the run exist."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ray_sisa import creation, model_code, overlap, preprocessing, retention
from ray_sisa.clock import now
from ray_sisa.config import RunConfig, TrainingRecipe, epochs_by_slice
from ray_sisa.data import Dataset
from ray_sisa.digests import digest_bytes, digest_json
from ray_sisa.errors import ConfigError
from ray_sisa.index import index_to_bytes
from ray_sisa.keyed_ids import read_key, tombstones
from ray_sisa.layout import RUN, initial_weights, shard_index, slice_object, test_object
from ray_sisa.placement import group_by_shard, place
from ray_sisa.private_recipe import Sizes, noise_multiplier, slice_sizes
from ray_sisa.records import RunRecord, SliceEntry
from ray_sisa.samples import Samples
from ray_sisa.seals import put_sealed
from ray_sisa.slices import digest_of_slice, index_shard, slice_to_bytes, sort_by_id
from ray_sisa.store import Store

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)


def ingest(store: Store, config: RunConfig, dataset: Dataset) -> RunRecord:
    """Writes a data set into a store and creates the run.

    A crash before `run.json` leaves objects that nothing refers to; the same command writes them again. If another
    process creates the run meanwhile, that one stands, and what was written for this one is removed.

    Raises:
        ConfigError: more places than subjects, a placement that needs deletion probabilities which the data do not
            have, or a recipe that does not fit the data.
        DataError: no subject's deletion probability is above 0, and the placement depends on them; or test samples are
            training samples too.
        StoreError: the store cannot be written, would let others create the same objects, or keeps what is deleted and
            is not to.
    """
    config = _resolved(config)
    _check_enough(config, dataset.train)
    overlapping = overlap.count(config.data, dataset)
    retention.look(store, config.purge)
    key = read_key() if config.ids == "keyed" else None
    dataset = key.of_dataset(dataset) if key else dataset
    places = place(config.placement, dataset.train.subjects, dataset.deletion_probabilities)
    training = resolve_recipe(store, config, dataset, slice_sizes(config.placement, places))
    preprocessing.check_fit(dataset.train.images, training)
    written = _write_shards(store, config, dataset.train, places)
    slices = tuple(entries for entries, _ in written)
    record = RunRecord(
        config=config,
        training=training,
        num_samples=len(dataset.train),
        num_test_samples=len(dataset.test) if dataset.test else 0,
        test_digest=_write_test(store, dataset.test),
        slices=slices,
        index_digests=tuple(digest for _, digest in written),
        fingerprint=digest_json([[entry.digest for entry in shard] for shard in slices]),
        created_at=now(),
        test_samples_in_training=overlapping,
        ids_key_mark=key.mark if key else None,
    )
    if store.create(RUN, record.to_bytes()):
        return record
    run = store.read(RUN, RunRecord)
    creation.withdraw(store, record, run)
    return run


def resolve_recipe(
    store: Store | None, config: RunConfig, dataset: Dataset, sizes: Sizes | None = None
) -> TrainingRecipe:
    """The recipe with all that data and placement add; initial weights are put into the store, if one is given.

    Without the `sizes` of the slices, nothing is asked of them, and no noise is solved for.
    """
    # Imported late: networks and their weights need torch.
    import torch

    from ray_sisa import models, public_weights, weights
    from ray_sisa.private_network import replaced

    epochs = epochs_by_slice(config.recipe, config.placement.slices)
    noise = noise_multiplier(config, sizes, epochs)
    model_code.allow([config.recipe.model])  # it is the caller's own configuration
    training = TrainingRecipe(
        recipe=config.recipe,
        model_code=model_code.digest(config.recipe.model),
        initial_weights=None,
        num_classes=dataset.num_classes,
        image_shape=dataset.train.shape,
        mean=dataset.mean,
        std=dataset.std,
        epochs=epochs,
        noise_multiplier=noise,
    )
    with torch.random.fork_rng(devices=[]):  # the caller's random stream is not ours to draw from
        model = models.build(training)
    public = public_weights.read(config.recipe.weights, model) if config.recipe.weights else None
    training = training.model_copy(update={"initial_weights": public.digest if public else None})
    known = public.preprocessing if public else None
    training = preprocessing.resolve(training, known, configured=dataset.configured)
    if public:
        dropped = weights.fit(model, public.tensors, config.recipe.weights or "")
        logger.info("initial weights %s: %s drawn at random", config.recipe.weights, dropped or "nothing")
    if names := replaced(model):
        logger.warning(
            "recipe.dp: GroupNorm stands in for %d BatchNorm layers, %s the first: BatchNorm mixes the samples of a "
            "batch, which DP-SGD has to tell apart",
            len(names),
            names[0],
        )
    _check_network(training, model)  # before anything is written
    if store:
        store.prove()  # once nothing else can be refused: on a disk it makes the run's folder
    if store and public:
        store.put(initial_weights(public.digest), weights.to_bytes(public.tensors))
    return training


def _check_network(training: TrainingRecipe, model: nn.Module) -> None:
    """Asks a network about two empty samples: what does not fit the data shows now, not in a worker."""
    from ray_sisa import backbone, nopeek
    from ray_sisa.training import log_probabilities, make_optimizer

    make_optimizer(model, training.recipe.optimizer)
    dtype = np.uint8 if len(training.image_shape) == 3 else np.float32
    try:
        outputs = log_probabilities(model, np.zeros((2, *training.image_shape), dtype), training, "cpu")
    except Exception as error:
        rule = f"cannot take samples of shape {list(training.image_shape)}: {type(error).__name__}: {error}"
        raise ConfigError(
            "recipe.model", training.recipe.model, rule, "Set recipe.input_size, or correct it"
        ) from error
    if outputs.shape != (2, training.num_classes):
        rule = (
            f"gives {list(outputs.shape[1:])} scores a sample, not one for each of the {training.num_classes} classes"
        )
        raise ConfigError("recipe.model", training.recipe.model, rule, "Correct it, or data.num_classes")
    if training.is_frozen:
        backbone.check(training, model)
    if training.recipe.nopeek:
        nopeek.check(training.recipe.nopeek, training, model)
    if training.recipe.dp:
        from ray_sisa import private_check  # Opacus takes seconds to import

        private_check.check(backbone.trained_part(training))


def _resolved(config: RunConfig) -> RunConfig:
    """The configuration with what may be left out and is fixed by the run all the same."""
    placement = config.placement.model_copy(update={"key": config.placement.key or secrets.token_hex(16)})
    data = config.data.model_copy(update={"exif": config.data.exif or "apply"})
    return config.model_copy(update={"placement": placement, "data": data})


def _check_enough(config: RunConfig, samples: Samples) -> None:
    places = config.placement.shards * config.placement.slices
    subjects = len(samples.subjects.unique())
    # No samples at all is what is left once everything is deleted: a run like any other.
    if 0 < subjects < places:
        rule = f"makes more slices than there are subjects ({subjects})"
        value = f"{config.placement.shards} shards x {config.placement.slices} slices = {places}"
        raise ConfigError("placement", value, rule, "Use fewer shards or slices")


def _write_shards(
    store: Store, config: RunConfig, samples: Samples, places: np.ndarray
) -> list[tuple[tuple[SliceEntry, ...], str]]:
    """Writes slices and index of every shard: its entries and the digest of its index."""
    return [
        _write_shard(store, config, samples.take(rows), places[rows] % config.placement.slices + 1)
        for rows in group_by_shard(config.placement, places)
    ]


def _write_shard(
    store: Store, config: RunConfig, samples: Samples, slices: np.ndarray
) -> tuple[tuple[SliceEntry, ...], str]:
    index, ordered = index_shard(samples, slices)
    index = replace(index, ids=tombstones(index.ids)) if config.ids == "keyed" else index
    summaries = index.summaries(config.placement.slices, samples.shape)
    first = 0
    for summary in summaries:
        rows = np.arange(first, first := first + summary.num_samples)
        if summary.digest:
            put_sealed(store, slice_object(summary.digest), slice_to_bytes(ordered.take(rows)))
    data = index_to_bytes(index)
    digest = digest_bytes(data)
    store.put(shard_index(digest), data)
    return tuple(SliceEntry(digest=s.digest, num_samples=s.num_samples) for s in summaries), digest


def _write_test(store: Store, test: Samples | None) -> str | None:
    if test is None or not len(test):
        return None
    ordered = sort_by_id(test)
    digest = digest_of_slice(ordered)
    assert digest is not None  # it has samples
    put_sealed(store, test_object(digest), slice_to_bytes(ordered))
    return digest


def differing_fields(ours: RunConfig, theirs: RunConfig) -> Sequence[str]:
    """Fields that fix a run for life and differ between two configurations, as `section.field`."""
    fixed = ("name", "data", "placement", "recipe", "ids")
    mine, other = (_flatten(c.model_dump(mode="json", include=set(fixed))) for c in (ours, theirs))
    for fields in (mine, other):
        fields.pop("data.allow_overlap", None)  # it let samples in or not, and changed none
        fields.pop("recipe.on_divergence", None)  # as scaling: it holds for a process, not for the run
    # Absent means: whatever the run has.
    for name, given in (("placement.key", theirs.placement.key), ("data.exif", theirs.data.exif)):
        if given is None:
            mine.pop(name, None), other.pop(name, None)
    return sorted(name for name in mine.keys() | other.keys() if mine.get(name) != other.get(name))


def _flatten(value: object, prefix: str = "") -> dict[str, object]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, object] = {}
    for name, inner in value.items():
        flat |= _flatten(inner, f"{prefix}.{name}" if prefix else name)
    return flat
