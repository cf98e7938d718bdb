"""An arm of the study: images at one resolution, targets trained on them, attackers against these."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from ray_sisa.config import RunConfig, Scaling
from ray_sisa.config_values import make_config
from ray_sisa.digests import digest_json
from ray_sisa.engine.runner import device_of
from ray_sisa.inversion.white_box import SearchConfig
from ray_sisa.inversion_study.baselines import NAMES, BaselineTask
from ray_sisa.inversion_study.presets import MAX_GRAD_NORM
from ray_sisa.inversion_study.results import Baseline, Target
from ray_sisa.inversion_study.roles import CONSTANTS, Roles
from ray_sisa.inversion_study.tasks import (
    Attack,
    Bench,
    KeepRandom,
    MatchNoise,
    StopAt,
    TrainTarget,
    TrainUnbounded,
    WhiteBox,
)
from ray_sisa.location import join_run
from ray_sisa.study.place import Place
from ray_sisa.study.steps import Task, do_each, do_here

Result = TypeVar("Result")
LAYER = "device"  # the part of the study's network that leaves 32 numbers


class Arm:
    """Makes the steps of an arm, and has workers do them."""

    def __init__(self, name: str, place: Place, roles: Roles, beside: Sequence[Roles] = ()) -> None:
        """Takes its images, and those of other arms whose steps it has done along with its own."""
        self.name, self.place, self.roles, self.steps = name, place, roles, place.steps
        device = device_of(Scaling.model_validate(place.scaling))
        self._bench = Bench(steps=place.steps, roles={each.digest: each for each in (roles, *beside)}, device=device)

    def each(self, tasks: Sequence[Task[Result]]) -> list[Result]:
        """The results of steps that do not depend on each other; the longest are best first."""
        return do_each(self.name, tasks, self.steps, self._bench, self.place.runner)

    def rows(self, tasks: Sequence[Sequence[Task[Result]]]) -> list[tuple[Result, ...]]:
        """The results of rows of steps, all done together as by `each`."""
        made = iter(self.each([task for row in tasks for task in row]))
        return [tuple(itertools.islice(made, len(row))) for row in tasks]

    def here(self, task: Task[Result]) -> Result:
        """The result of a step driven from this process, its chains trained by workers."""
        return do_here(self.name, task, self.steps, self._bench, self.place.runner)

    def config(
        self, recipe: Mapping[str, Any], *, seed: int, shards: int = 1, slices: int = 1, measure: str = "epoch"
    ) -> RunConfig:
        """A run of this arm; its name follows from what it is made of."""
        content = {
            "storage_path": join_run(self.place.storage, "runs"),
            "data": {**self.roles.data, **CONSTANTS},
            "placement": {"strategy": "hash", "key": "study", "shards": shards, "slices": slices},
            "recipe": {**recipe, "seed": seed},
            "scaling": self.place.scaling,
            "evaluation": {"test_during_training": measure},
        }
        digest = digest_json([self.roles.digest, content["placement"], content["recipe"]])
        return make_config({**content, "name": f"{self.name}-{shards}x{slices}-{seed}-{digest[:8]}"})

    def train(self, name: str, recipe: Mapping[str, Any], seed: int) -> TrainTarget:
        """The step that trains a whole model."""
        return TrainTarget(name=name, config=self.config(recipe, seed=seed), images=self.roles.digest)

    def unbounded(self, name: str, recipe: Mapping[str, Any], seed: int, noise_multiplier: float) -> TrainUnbounded:
        """The step that trains a whole model as the original trained its private targets."""
        return TrainUnbounded(
            name=name,
            config=self.config(recipe, seed=seed),
            images=self.roles.digest,
            noise_multiplier=noise_multiplier,
            max_grad_norm=MAX_GRAD_NORM,
        )

    def random(self, recipe: Mapping[str, Any], seed: int) -> KeepRandom:
        """The step that keeps a network with random weights."""
        return KeepRandom(name="random", config=self.config(recipe, seed=seed), images=self.roles.digest)

    def stop(self, name: str, recipe: Mapping[str, Any], seed: int, accuracy: float, every: int) -> StopAt:
        """The step that trains a whole model to an accuracy."""
        config = self.config(recipe, seed=seed)
        return StopAt(name=name, config=config, images=self.roles.digest, accuracy=accuracy, every=every)

    def match(self, target: Target, accuracy: float, kind: str = "gaussian") -> MatchNoise:
        """The step that finds the noise that brings a target to an accuracy."""
        return MatchNoise(target=target, layer=LAYER, kind=kind, images=self.roles.digest, accuracy=accuracy)

    def attack(self, target: Target, attacker: Mapping[str, Any], seed: int, noise: str | None = None) -> Attack:
        """The step that attacks a target, without knowing its weights."""
        return Attack(
            target=target, layer=LAYER, images=self.roles.digest, attacker={**attacker, "seed": seed}, noise=noise
        )

    def baselines(self) -> list[Task[Baseline]]:
        """The steps of what needs no target, of the images of this arm; the mean image first."""
        return [BaselineTask(name=name, images=self.roles.digest) for name in NAMES]

    def keep_truth(self) -> str:
        """Keeps the victims that are shown, as they are; returns the name of the arrays: `shown` uint8 [N, H, W]."""
        return self.steps.keep(shown=self.roles.victims.images[self.roles.shown][..., 0])

    def white_box(self, target: Target, num_images: int, search: SearchConfig) -> WhiteBox:
        """The step that attacks a target whose weights are known."""
        return WhiteBox(target=target, layer=LAYER, images=self.roles.digest, num_images=num_images, search=search)
