"""Stage keys, the stages that should exist, what is missing, and what that costs: pure, no storage, no torch.

A stage is named by all that determines its weights, so an unlearned stage and one that never saw the sample have one
name, and training, resuming and unlearning are the same question: which names are missing?
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace
from functools import cached_property

from ray_sisa.config import TrainingRecipe
from ray_sisa.digests import digest_json
from ray_sisa.index import SliceSummary


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Stage (s, r): shard s trained on its live samples of slices 1..r, from the weights of `parent`."""

    shard: int
    slice: int
    key: str
    parent: str
    slice_digest: str
    num_samples: int
    """Live samples of slices 1..r."""
    epochs: int

    @property
    def sample_passes(self) -> int:
        """What the stage costs."""
        return self.epochs * self.num_samples


@dataclass(frozen=True, kw_only=True)
class Chain:
    """The stages that one shard should have, in order; `initial` is key(s, 0). Empty slices add none."""

    shard: int
    initial: str
    stages: tuple[Stage, ...]

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Keys of the stages, in order."""
        return tuple(stage.key for stage in self.stages)

    @property
    def sample_passes(self) -> int:
        """Cost of training the whole chain."""
        return sum(stage.sample_passes for stage in self.stages)

    def missing(self, present: Set[str]) -> tuple[Stage, ...]:
        """The stages that are not present, in order."""
        return tuple(stage for stage in self.stages if stage.key not in present)

    def before(self, diverged: Set[str]) -> Chain:
        """The stages before the first that diverged: those behind it have nothing to start from."""
        stages = tuple(itertools.takewhile(lambda stage: stage.key not in diverged, self.stages))
        return replace(self, stages=stages)

    def excluded(self, diverged: Set[str]) -> Stage | None:
        """The first stage that diverged."""
        return next((stage for stage in self.stages if stage.key in diverged), None)


def recipe_digest(training: TrainingRecipe) -> str:
    """The digest of a recipe that stands in every stage key."""
    return digest_json(training.cause())


def initial_key(training: TrainingRecipe, recipe: str, shard: int) -> str:
    """key(s, 0) = H(initial weights, digest(recipe), seed, s)."""
    return digest_json([training.initial_weights, recipe, training.recipe.seed, shard])


def stage_key(parent: str, slice_digest: str, recipe: str, slice_number: int) -> str:
    """key(s, r) = H(key(s, r-1), digest(live slice), digest(recipe), r)."""
    return digest_json([parent, slice_digest, recipe, slice_number])


def make_chain(training: TrainingRecipe, recipe: str, shard: int, slices: Sequence[SliceSummary]) -> Chain:
    """The chain of a shard with these live slices.

    Args:
        training: what determines weights besides samples.
        recipe: its digest, as by `recipe_digest`.
        shard: number of the shard.
        slices: slices 1..R as they are live.
    """
    parent = initial = initial_key(training, recipe, shard)
    stages: list[Stage] = []
    num_samples = 0
    for number, live in enumerate(slices, start=1):
        if live.digest is None:
            continue
        num_samples += live.num_samples
        stage = Stage(
            shard=shard,
            slice=number,
            key=stage_key(parent, live.digest, recipe, number),
            parent=parent,
            slice_digest=live.digest,
            num_samples=num_samples,
            epochs=training.epochs[number - 1],
        )
        stages.append(stage)
        parent = stage.key
    return Chain(shard=shard, initial=initial, stages=tuple(stages))


def plan(wanted: Iterable[Chain], present: Set[str]) -> tuple[Chain, ...]:
    """The chains that have stages missing, cut down to these; the costliest first, so that the last to end is short."""
    missing = (Chain(shard=c.shard, initial=c.initial, stages=c.missing(present)) for c in wanted)
    return tuple(sorted((c for c in missing if c.stages), key=lambda c: (-c.sample_passes, c.shard)))


def expected_cost(num_samples: int, num_shards: int, epochs: Sequence[int], num_requests: int) -> float:
    """Expected sample passes to unlearn `num_requests` random samples in one batch, equal slices assumed.

    A stage (s, r) is retrained if any of its r slices was hit: sum over r of S e_r (r N / SR) (1 - (1 - r/(SR))^K),
    after Bourtoule et al. 2021, section VI, in the closed form for sharding and slicing together.
    """
    num_places = num_shards * len(epochs)

    def cost(number: int, epochs_of_stage: int) -> float:
        hit: float = 1 - (1 - number / num_places) ** num_requests
        return num_shards * epochs_of_stage * number * num_samples / num_places * hit

    return sum(cost(number, e) for number, e in enumerate(epochs, start=1))


def full_cost(num_samples: int, epochs: Sequence[int]) -> float:
    """Sample passes of training everything, equal slices assumed: e N (R+1) / 2 where e is the same for all slices."""
    return sum(e * number * num_samples / len(epochs) for number, e in enumerate(epochs, start=1))
