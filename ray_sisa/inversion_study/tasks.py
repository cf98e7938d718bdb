"""The steps of the study that a worker does by itself: train a target, stop one early, attack one.

Each is a frozen dataclass that says all that its result follows from, so that `study.steps` finds what was done before.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ray_sisa.config import RunConfig, TrainingRecipe
from ray_sisa.engine.runner import Runner, RunnerName
from ray_sisa.evaluation.accuracy import accuracy
from ray_sisa.ingest import resolve_recipe
from ray_sisa.inversion.baselines import mean_image
from ray_sisa.inversion.white_box import SearchConfig
from ray_sisa.inversion_study.quality import of_others, qualities
from ray_sisa.inversion_study.querying import Queried
from ray_sisa.inversion_study.results import (
    WHITE_BOX,
    Attacked,
    NoisyTarget,
    StoppedTarget,
    Target,
    TrainedTarget,
    UnboundedTarget,
)
from ray_sisa.inversion_study.roles import Roles
from ray_sisa.inversion_study.spending import spending_of
from ray_sisa.inversion_study.unbounded import train_unbounded
from ray_sisa.run import Run
from ray_sisa.snapshot import Partial, Position
from ray_sisa.stages import load_stage
from ray_sisa.study.steps import Steps
from ray_sisa.training import LabelledImages, Weights, initial_state, predict_log_probabilities, train_stage


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What tasks that are done together share; it is sent to workers once."""

    steps: Steps
    roles: Mapping[str, Roles]
    """By digest, which is how tasks name their images."""
    device: str = "cpu"
    """Where targets are asked, and attackers learn."""
    runner: RunnerName | Runner = "local"
    """Where a run trains: in the process that does the step, unless the driver of a study says otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainTarget:
    """Makes a run of one shard and one slice, trains it, and keeps its weights."""

    name: str
    config: RunConfig
    images: str
    """Digest of all images."""

    result_type = TrainedTarget

    def do(self, bench: Bench) -> TrainedTarget:
        """Trains it, or goes on with it."""
        run = Run.create(self.config, bench.roles[self.images].dataset)
        run.train(runner="local")
        stage = run.stages()[-1]
        return TrainedTarget(
            target=keep_target(bench.steps, self.name, run.record.training, load_stage(run.store, stage.key)),
            uri=run.store.uri,
            train_top1=tuple(m.train_top1 for m in stage.metrics),
            validation_top1=tuple(m.test_top1 or 0.0 for m in stage.metrics),
            spending=spending_of(run),
            seconds=stage.seconds,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainUnbounded:
    """Trains a target as the original trained its private ones, and keeps its weights."""

    name: str
    config: RunConfig
    """Without `dp`."""
    images: str
    noise_multiplier: float
    max_grad_norm: float

    result_type = UnboundedTarget

    def do(self, bench: Bench) -> Generator[str, None, UnboundedTarget]:
        """Trains it, measured after each epoch."""
        began, roles = time.perf_counter(), bench.roles[self.images]
        training = resolve_recipe(None, self.config, roles.dataset)
        epochs = train_unbounded(
            LabelledImages.of(roles.dataset.train),
            training,
            key_of(self.config),
            noise_multiplier=self.noise_multiplier,
            max_grad_norm=self.max_grad_norm,
            device=bench.device,
        )
        right, validation, weights = [], [], None
        for share, weights in epochs:
            right.append(share)
            validation.append(validation_accuracy(weights, training, roles, bench.device))
            yield f"{self.name}: epoch {len(right)} of {training.epochs[0]}, {100 * share:.1f} %"
        assert weights is not None  # recipes have an epoch at least
        return UnboundedTarget(
            target=keep_target(bench.steps, self.name, training, weights),
            noise_multiplier=self.noise_multiplier,
            train_top1=tuple(right),
            validation_top1=tuple(validation),
            seconds=time.perf_counter() - began,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class KeepRandom:
    """Keeps the network of a run as it is before any training: what no encoder has learnt."""

    name: str
    config: RunConfig
    images: str

    result_type = Target

    def do(self, bench: Bench) -> Target:
        """Draws initial weights."""
        training = resolve_recipe(None, self.config, bench.roles[self.images].dataset)
        return keep_target(bench.steps, self.name, training, initial_state(training, key_of(self.config), None))


@dataclass(frozen=True, kw_only=True, slots=True)
class StopAt:
    """Trains as a run would, and stops where the validation accuracy is nearest to one."""

    name: str
    config: RunConfig
    images: str
    accuracy: float
    every: int
    """Steps between two looks."""

    result_type = StoppedTarget

    def do(self, bench: Bench) -> StoppedTarget:
        """Looks until the accuracy is passed, or training ends; the nearest of all is kept."""
        roles = bench.roles[self.images]
        training = resolve_recipe(None, self.config, roles.dataset)
        best, nearest, steps = None, float("inf"), 0
        for step, weights in self._states(training, roles, bench.device):
            reached = validation_accuracy(weights, training, roles, bench.device)
            if abs(reached - self.accuracy) < abs(nearest - self.accuracy):
                best, nearest, steps = weights, reached, step
            if reached >= self.accuracy:
                break
        assert best is not None  # there is a state before the first step
        target = keep_target(bench.steps, self.name, training, best)
        return StoppedTarget(target=target, wanted=self.accuracy, accuracy=nearest, steps=steps)

    def _states(self, training: TrainingRecipe, roles: Roles, device: str) -> Iterator[tuple[int, Weights]]:
        """Weights after so many steps, from those drawn at first on."""
        key = key_of(self.config)
        start = initial_state(training, key, None)
        yield 0, start
        steps = train_stage(
            start=start,
            samples=LabelledImages.of(roles.dataset.train),
            training=training,
            key=key,
            epochs=training.epochs[0],
            device=device,
            due=self._due,
        )
        for made in steps:
            if isinstance(made, Partial):
                prefix = "model/"
                found = {n.removeprefix(prefix): t for n, t in made.tensors.items() if n.startswith(prefix)}
                yield made.position.step, {name: found[name] for name in start}

    def _due(self, position: Position) -> Any:
        return "save" if position.step % self.every == 0 else None


@dataclass(frozen=True, kw_only=True, slots=True)
class MatchNoise:
    """Finds the noise on a target's activations with which its validation accuracy is a given one."""

    target: Target
    layer: str
    kind: str
    images: str
    accuracy: float

    result_type = NoisyTarget

    def do(self, bench: Bench) -> NoisyTarget:
        """By bisection of the scale, in units of the deviation of the activations, up to 64 of them."""
        queried = Queried.open(bench.steps, self.target, self.layer, device=bench.device)
        test = bench.roles[self.images].dataset.test
        assert test is not None  # made with the roles
        clean = queried.activations(test.images)
        low, high = -8.0, 6.0  # powers of two
        for _ in range(12):
            middle = (low + high) / 2
            reached = self._accuracy(queried, clean, middle, test.labels)
            low, high = (middle, high) if reached > self.accuracy else (low, middle)
        scale = float(clean.std()) * 2**low
        reached = self._accuracy(queried, clean, low, test.labels)
        return NoisyTarget(noise=f"{self.kind}:{scale:.6g}", wanted=self.accuracy, accuracy=reached)

    def _accuracy(self, queried: Queried, clean: np.ndarray, power: float, labels: np.ndarray) -> float:
        noisy = queried.with_noise(clean, f"{self.kind}:{float(clean.std()) * 2**power:.6g}", seed=0)
        return accuracy(queried.answers(noisy), labels).top1


@dataclass(frozen=True, kw_only=True, slots=True)
class Attack:
    """Has an attacker learn from public images, and reconstruct them and the victims."""

    target: Target
    layer: str
    images: str
    attacker: dict[str, Any]
    """`style: kernel`, or a `DecoderConfig`."""
    noise: str | None = None

    result_type = Attacked

    def do(self, bench: Bench) -> Attacked:
        """The device part is asked, and nothing else."""
        began, roles = time.perf_counter(), bench.roles[self.images]
        queried = Queried.open(bench.steps, self.target, self.layer, self.noise, bench.device)
        made = queried.attack(roles.public, self.attacker)
        public, victims = (made.reconstruct(s.images) for s in (roles.public, roles.victims))
        return Attacked(
            target=self.target.name,
            attacker=str(self.attacker["style"]),
            noise=self.noise,
            training_mse=made.mse,
            quality=qualities(roles, public, victims),
            arrays=keep_pictures(bench.steps, roles, victims),
            seconds=time.perf_counter() - began,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WhiteBox:
    """Finds inputs whose activations are those intercepted, knowing the weights; of unseen victims."""

    target: Target
    layer: str
    images: str
    num_images: int
    search: SearchConfig

    result_type = Attacked

    def do(self, bench: Bench) -> Attacked:
        """He et al. 2019, with total variation, from the mean of the public images on."""
        began, roles = time.perf_counter(), bench.roles[self.images]
        queried = Queried.open(bench.steps, self.target, self.layer, device=bench.device)
        rows = np.flatnonzero(~roles.seen)
        rows = rows[np.linspace(0, len(rows) - 1, min(self.num_images, len(rows))).round().astype(np.int64)]
        victims = roles.victims.take(rows)
        found = queried.search(victims.images, mean_image(roles.public.images), self.search)
        return Attacked(
            target=self.target.name,
            attacker=WHITE_BOX,
            noise=None,
            training_mse=(),
            quality={"unseen": of_others(roles, victims, found)},
            arrays=bench.steps.keep(shown=as_pixels(found), truth=victims.images[..., 0]),
            seconds=time.perf_counter() - began,
        )


def keep_target(steps: Steps, name: str, training: TrainingRecipe, weights: Mapping[str, Tensor]) -> Target:
    """Keeps a network."""
    arrays = {tensor: weights[tensor].numpy() for tensor in weights}
    return Target(name=name, arrays=steps.keep(**arrays), recipe=training.model_dump_json())


def validation_accuracy(weights: Weights, training: TrainingRecipe, roles: Roles, device: str) -> float:
    """Top-1 of the images that no target trains on."""
    test = roles.dataset.test
    assert test is not None  # made with the roles
    return accuracy(predict_log_probabilities(weights, test.images, training, device), test.labels).top1


def keep_pictures(steps: Steps, roles: Roles, victims: np.ndarray) -> str:
    """Keeps what was made of the victims that are shown, and the error of each victim."""
    truth = roles.victims.images.astype(np.float32) / 255
    errors = ((victims - truth) ** 2).mean((1, 2, 3), dtype=np.float64).astype(np.float32)
    return steps.keep(shown=as_pixels(victims[roles.shown]), mse=errors)


def as_pixels(images: np.ndarray) -> np.ndarray:
    """Grey images float32 [N, H, W, 1] in 0..1 as uint8 [N, H, W]."""
    pixels: np.ndarray = np.rint(images[..., 0].clip(0, 1) * 255).astype(np.uint8)
    return pixels


def key_of(config: RunConfig) -> str:
    """What the draws of a target that is no run come from."""
    return f"inversion study {config.recipe.seed}"
