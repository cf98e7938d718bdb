"""The arms of the CIFAR-100 study on features of a frozen backbone, where training a head takes seconds.

One run computes the features as any user's would, and forgets in every pattern. Runs with other shards, seeds, subjects
or placements train the same head on the same features as vectors, so that the backbone runs once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ray_sisa import features as stored
from ray_sisa.config import PlacementConfig
from ray_sisa.data import Dataset
from ray_sisa.lineage import full_cost
from ray_sisa.placement import place
from ray_sisa.run import Run
from ray_sisa.simulation import simulate_requests
from ray_sisa.study import patterns
from ray_sisa.study.arm import KEY, Arm, Case
from ray_sisa.study.pixels import BLOCK, RANDOM
from ray_sisa.study.place import Place
from ray_sisa.study.presets import Preset
from ray_sisa.study.results import GridPoint, Placed, PlacementPoint, Trained, Unlearning
from ray_sisa.study.samples import with_deletion_probabilities, with_features, with_subjects
from ray_sisa.study.tasks import Memorise

FEATURES = {"source": "parquet", "train": "features", "columns": {"features": ["feature"]}}
CLASS, SUBJECTS, MEMORISED, DRAWN = "class", "subjects", "memorised", "drawn"
BY_SAMPLE, BY_SUBJECT = "placed-by-sample", "placed-by-subject"  # the arms that forget subjects
PLACEMENTS: dict[str, dict[str, str]] = {
    "hash": {"strategy": "hash"},
    "hash, churn-ordered slices": {"strategy": "hash", "slice_order": "churn"},
    "distribution-aware": {"strategy": "distribution_aware"},
    "distribution-aware, churn-ordered slices": {"strategy": "distribution_aware", "slice_order": "churn"},
}


class FrozenStudy:
    """What follows from one run with a frozen backbone."""

    def __init__(self, place: Place, preset: Preset, images: Arm) -> None:
        """Trains the run, on the images of an arm, and reads its features."""
        self._place, self._preset = place, preset
        shards, slices = preset.layout
        config = images.config(preset.frozen, shards, slices, preset.frozen_seeds[0])
        self.base: Trained = images.here(images.training(config))
        """The run that computed the features."""
        self._features = _features(Run.open(self.base.uri), images.dataset)
        self._dataset = images.dataset
        self.arm = Arm(
            images.name,
            place,
            images.dataset,
            num_retained=preset.num_retained,
            data=images.data,
            features=self._features,
        )
        self._head = {**_head(preset.frozen), "model": "linear"}

    def unlearnings(self) -> list[Unlearning]:
        """The run forgets in every pattern."""
        self._add_patterns(self.arm)
        seed = self._preset.frozen_seeds[0]
        return self.arm.unlearn([Case(trained=self.base, pattern=name, seed=seed) for name in self.arm.forget])

    def grid(self) -> list[GridPoint]:
        """Accuracy by number of shards, under several seeds; 5 slices."""
        arm = self._vectors("frozen", self._dataset)
        slices = self._preset.layout[1]
        wanted = [(shards, seed) for shards in self._preset.shards for seed in self._preset.frozen_seeds]
        trained = arm.each([arm.training(arm.config(self._head, s, slices, seed)) for s, seed in wanted])
        found = arm.each([arm.vote(t) for t in trained])
        return [
            GridPoint(arm=arm.name, seed=seed, trained=t, votes=v)
            for (_, seed), t, v in zip(wanted, trained, found, strict=True)
        ]

    def seeds(self) -> list[Unlearning]:
        """The block forgotten under several seeds."""
        arm = self._vectors("frozen", self._dataset)
        arm.forget[BLOCK] = self._block(self._dataset)
        shards, slices = self._preset.layout
        seeds = self._preset.frozen_seeds
        trained = arm.each([arm.training(arm.config(self._head, shards, slices, seed)) for seed in seeds])
        return arm.unlearn([Case(trained=t, pattern=BLOCK, seed=s) for t, s in zip(trained, seeds, strict=True)])

    def subjects(self) -> list[Unlearning]:
        """The same subjects forgotten by a run that places samples and by one that places subjects."""
        grouped = with_subjects(self._dataset, self._preset.samples_per_subject)
        ids = patterns.of_subjects(grouped.train, self._preset.num_subjects)
        return [
            *self._forget_subjects(BY_SAMPLE, self._dataset, ids),
            *self._forget_subjects(BY_SUBJECT, grouped, ids),
        ]

    def placements(self) -> list[Placed]:
        """Placements that know deletion probabilities, beside hash placement."""
        dataset = with_deletion_probabilities(self._dataset)
        return [self._placed(name, dataset, placement) for name, placement in PLACEMENTS.items()]

    def _forget_subjects(self, name: str, dataset: Dataset, ids: patterns.Ids) -> list[Unlearning]:
        arm = self._vectors(name, dataset)
        arm.forget[SUBJECTS] = ids
        shards, slices = self._preset.layout
        seed = self._preset.frozen_seeds[0]
        config = arm.config(self._head, shards, slices, seed, {"strategy": "hash"})
        return arm.unlearn([Case(trained=arm.each([arm.training(config)])[0], pattern=SUBJECTS, seed=seed)])

    def _placed(self, name: str, dataset: Dataset, placement: Mapping[str, str]) -> Placed:
        arm = self._vectors(name.replace(",", "").replace(" ", "-"), dataset)
        shards, slices = self._preset.layout
        seed = self._preset.frozen_seeds[0]
        config = arm.config(self._head, shards, slices, seed, placement)
        trained = arm.each([arm.training(config)])[0]
        votes = arm.each([arm.vote(trained)])[0]
        arm.forget[DRAWN] = _drawn(dataset, self._preset.requests[-2])
        places = place(config.placement, dataset.train.subjects, dataset.deletion_probabilities)
        epochs = Run.open(trained.uri).record.training.epochs
        points = [
            _point(name, dataset, places, shards, epochs, number, self._preset.num_draws)
            for number in self._preset.requests
        ]
        return Placed(
            strategy=name,
            shard_sizes=tuple(np.bincount(places // slices, minlength=shards).tolist()),
            test=votes.mean,
            points=tuple(points),
            carried_out=arm.unlearn([Case(trained=trained, pattern=DRAWN, seed=seed)])[0],
        )

    def _add_patterns(self, arm: Arm) -> None:
        samples, preset = arm.dataset.train, self._preset
        arm.forget[BLOCK] = self._block(arm.dataset)
        arm.forget[RANDOM] = patterns.at_random(samples, len(arm.forget[BLOCK]))
        arm.forget[CLASS] = patterns.of_class(samples, 0)
        arm.forget[MEMORISED] = arm.each(
            [
                Memorise(
                    uri=self.base.uri,
                    ensemble_digest=self.base.ensemble_digest,
                    subjects=arm.subjects,
                    number=preset.num_memorised,
                )
            ]
        )[0]
        for number in preset.numbers:
            arm.forget[f"{number} at random"] = patterns.at_random(samples, number, f"forget {number}")

    def _block(self, dataset: Dataset) -> patterns.Ids:
        shards, slices = self._preset.layout
        placement = PlacementConfig(strategy="permutation", shards=shards, slices=slices, key=KEY)
        return patterns.block(dataset.train, placement)

    def _vectors(self, name: str, dataset: Dataset) -> Arm:
        """An arm on the features as vectors."""
        vectors = with_features(dataset, self._features)
        return Arm(name, self._place, vectors, num_retained=self._preset.num_retained, data=FEATURES)


def _features(run: Run, dataset: Dataset) -> np.ndarray:
    """Features float16 [N + T, D] of all samples, as the run stored them."""
    assert dataset.test is not None and run.record.test_digest is not None  # a study has a test set
    digests = [entry.digest for shard in run.record.slices for entry in shard if entry.digest]
    by_id = stored.read_features(run.store, run.record, [*digests, run.record.test_digest])
    ids = [*dataset.train.ids.to_pylist(), *dataset.test.ids.to_pylist()]
    return np.stack([by_id[i] for i in ids])


def _head(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of the head alone, on vectors."""
    of_backbone = {"backbone", "weights", "input_size", "upsampling", "precision"}
    return {name: value for name, value in recipe.items() if name not in of_backbone}


def _drawn(dataset: Dataset, number: int) -> patterns.Ids:
    """Samples drawn by their deletion probabilities; the same whatever the placement."""
    chances = np.asarray(dataset.deletion_probabilities)
    order = np.argsort(dataset.train.ids.to_numpy(zero_copy_only=False))
    drawn = np.random.default_rng(0).choice(order, number, replace=False, p=chances[order] / chances.sum())
    return tuple(dataset.train.take(np.sort(drawn)).ids.to_pylist())


def _point(
    name: str, dataset: Dataset, places: np.ndarray, shards: int, epochs: tuple[int, ...], number: int, draws: int
) -> PlacementPoint:
    costs = simulate_requests(
        places,
        dataset.train.subjects,
        np.asarray(dataset.deletion_probabilities),
        num_shards=shards,
        epochs=epochs,
        num_requests=number,
        num_draws=draws,
    )
    return PlacementPoint(
        strategy=name,
        requests=number,
        mean_sample_passes=float(costs.mean()),
        sd_sample_passes=float(costs.std(ddof=1)),
        full_sample_passes=round(full_cost(len(dataset.train), epochs)),
        draws=draws,
    )
