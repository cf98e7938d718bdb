"""The honest arm: does DP-SGD reduce what activations tell, beyond the accuracy that it costs?

One network, and for each private training of it three controls of the same validation accuracy: the network stopped
early without privacy; fully trained with noise on its activations; and, at accuracies of their own, fully trained with
a NoPeek penalty, and not trained at all. All are attacked alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from ray_sisa.inversion_study.arm import LAYER, Arm
from ray_sisa.inversion_study.baselines import NAMES, BaselineTask
from ray_sisa.inversion_study.pairs import pairs
from ray_sisa.inversion_study.presets import PLAIN, PRIVATE, Preset
from ray_sisa.inversion_study.results import (
    Attacked,
    Baseline,
    Honest,
    HonestSeed,
    NoisyTarget,
    StoppedTarget,
    Target,
    TrainedTarget,
)
from ray_sisa.study.steps import Task

Made = TypeVar("Made")
MODEL = "split_convnet_group"  # one network for all, which DP-SGD can train as it is


def run_honest(arm: Arm, preset: Preset) -> Honest:
    """All seeds, a kind of step at a time, so that a cluster is full."""
    sigmas, seeds = preset.honest_noise_multipliers, preset.seeds
    private = arm.each([arm.train(f"private-{s:g}", private_recipe(preset, s), seed) for seed in seeds for s in sigmas])
    plain = arm.each([arm.train("plain", plain_recipe(preset), seed) for seed in seeds])
    nopeek = arm.each(
        [arm.train(f"nopeek-{w:g}", nopeek_recipe(preset, w), seed) for seed in seeds for w in preset.nopeek]
    )
    wanted = [made.accuracy for made in private]
    stopped = arm.each(
        [
            arm.stop(f"stopped-{sigma:g}", plain_recipe(preset), seed, accuracy, preset.check_every)
            for (seed, sigma), accuracy in zip(itertools.product(seeds, sigmas), wanted, strict=True)
        ]
    )
    own = [made for made in plain for _ in sigmas]
    noisy = arm.each([arm.match(made.target, accuracy) for made, accuracy in zip(own, wanted, strict=True)])
    random = arm.each([arm.random(plain_recipe(preset), seed) for seed in seeds])
    found = [
        _Seed(
            seed=seed,
            plain=plain[i],
            private=_row(private, i, len(seeds)),
            stopped=_row(stopped, i, len(seeds)),
            noisy=_row(noisy, i, len(seeds)),
            nopeek=_row(nopeek, i, len(seeds)),
            random=random[i],
        )
        for i, seed in enumerate(seeds)
    ]
    baselines: list[Task[Baseline]] = [BaselineTask(name=n, images=arm.roles.digest) for n in NAMES]
    attacked, made = tuple(_attacked(arm, preset, found)), tuple(arm.each(baselines))
    return Honest(
        side=preset.side,
        truth=arm.steps.keep(shown=arm.roles.victims.images[arm.roles.shown][..., 0]),
        num_train=len(arm.roles.dataset.train),
        seeds=attacked,
        pairs=pairs(arm.steps, arm.roles, attacked, made[NAMES.index("mean")]),
        baselines=made,
    )


def plain_recipe(preset: Preset) -> dict[str, Any]:
    """Without privacy."""
    return {**PLAIN, "precision": preset.precision, "model": MODEL, "epochs_per_slice": preset.epochs}


def private_recipe(preset: Preset, noise_multiplier: float) -> dict[str, Any]:
    """With DP-SGD, at the original's rate, clipping and delta."""
    return {
        **PRIVATE,
        "precision": preset.precision,
        "model": MODEL,
        "epochs_per_slice": preset.private_epochs,
        "dp": {"noise_multiplier": noise_multiplier, "max_grad_norm": 1.0, "delta": 1e-5},
    }


def nopeek_recipe(preset: Preset, weight: float) -> dict[str, Any]:
    """With a penalty on what activations have in common with inputs."""
    return {**plain_recipe(preset), "nopeek": {"layer": LAYER, "weight": weight}}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seed:
    seed: int
    plain: TrainedTarget
    private: tuple[TrainedTarget, ...]
    stopped: tuple[StoppedTarget, ...]
    noisy: tuple[NoisyTarget, ...]
    nopeek: tuple[TrainedTarget, ...]
    random: Target

    def attacks(self, arm: Arm, preset: Preset) -> list[Task[Attacked]]:
        trained = [self.plain, *self.private, *self.nopeek]
        stopped = [made.target for made in self.stopped]
        own = [*(made.target for made in trained), *stopped]
        tasks: list[Task[Attacked]] = [
            *(arm.attack(target, preset.attackers[0], self.seed) for target in [*own, self.random]),
            *(arm.attack(self.plain.target, preset.attackers[0], self.seed, made.noise) for made in self.noisy),
        ]
        if self.seed == preset.seeds[0]:  # what others make of it, once: they take long
            chosen = [self.plain.target, *(made.target for made in self.private), *stopped]
            others = [*chosen, self.random]
            tasks += [arm.attack(t, attacker, self.seed) for attacker in preset.attackers[1:] for t in others]
            tasks += [arm.white_box(t, preset.white_box_images, preset.white_box_steps) for t in chosen]
        return tasks


def _attacked(arm: Arm, preset: Preset, found: Sequence[_Seed]) -> Iterator[HonestSeed]:
    tasks = [seed.attacks(arm, preset) for seed in found]
    made = iter(arm.each([task for row in tasks for task in row]))
    for seed, row in zip(found, tasks, strict=True):
        yield HonestSeed(
            seed=seed.seed,
            plain=seed.plain,
            private=seed.private,
            stopped=seed.stopped,
            noisy=seed.noisy,
            nopeek=seed.nopeek,
            attacks=tuple(itertools.islice(made, len(row))),
        )


def _row(made: Sequence[Made], number: int, count: int) -> tuple[Made, ...]:
    """The part of one seed of what was made for so many, one after the other."""
    each = len(made) // count
    return tuple(made[number * each : (number + 1) * each])
