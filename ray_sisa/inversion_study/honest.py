"""The honest arm: does DP-SGD reduce what activations tell, beyond the accuracy that it costs?

One network, and for each private training of it three controls of the same validation accuracy: the network stopped
early without privacy; fully trained with noise on its activations; and, at accuracies of their own, fully trained with
a NoPeek penalty, and not trained at all. All are attacked alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ray_sisa.inversion_study.arm import LAYER, Arm
from ray_sisa.inversion_study.pairs import pairs
from ray_sisa.inversion_study.presets import Preset, with_dp_sgd, without_privacy
from ray_sisa.inversion_study.results import Attacked, Honest, HonestSeed, Target
from ray_sisa.study.steps import Task

Made = TypeVar("Made")
MODEL = "split_convnet_group"  # one network for all, which DP-SGD can train as it is


def run_honest(arm: Arm, preset: Preset) -> Honest:
    """All seeds, a kind of step at a time, so that a cluster is full."""
    sigmas, seeds = preset.honest_noise_multipliers, preset.seeds
    private, plain, nopeek = arm.rows(
        [
            [arm.train(f"private-{s:g}", private_recipe(preset, s), seed) for seed in seeds for s in sigmas],
            [arm.train("plain", plain_recipe(preset), seed) for seed in seeds],
            [arm.train(f"nopeek-{w:g}", nopeek_recipe(preset, w), seed) for seed in seeds for w in preset.nopeek],
        ]
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
        HonestSeed(
            seed=seed,
            plain=plain[i],
            private=_row(private, i, len(seeds)),
            stopped=_row(stopped, i, len(seeds)),
            noisy=_row(noisy, i, len(seeds)),
            nopeek=_row(nopeek, i, len(seeds)),
            attacks=(),
        )
        for i, seed in enumerate(seeds)
    ]
    tasks = [_attacks(arm, preset, seed, target) for seed, target in zip(found, random, strict=True)]
    attacked = tuple(replace(seed, attacks=made) for seed, made in zip(found, arm.rows(tasks), strict=True))
    baselines = tuple(arm.each(arm.baselines()))
    return Honest(
        side=preset.side,
        truth=arm.keep_truth(),
        num_train=len(arm.roles.dataset.train),
        seeds=attacked,
        pairs=pairs(arm.steps, arm.roles, attacked, baselines[0]),
        baselines=baselines,
    )


def plain_recipe(preset: Preset) -> dict[str, Any]:
    """Without privacy."""
    return without_privacy(MODEL, preset.epochs, preset.precision)


def private_recipe(preset: Preset, noise_multiplier: float) -> dict[str, Any]:
    """With DP-SGD."""
    return with_dp_sgd(MODEL, preset.private_epochs, noise_multiplier, preset.precision)


def nopeek_recipe(preset: Preset, weight: float) -> dict[str, Any]:
    """With a penalty on what activations have in common with inputs."""
    return {**plain_recipe(preset), "nopeek": {"layer": LAYER, "weight": weight}}


def _attacks(arm: Arm, preset: Preset, seed: HonestSeed, random: Target) -> list[Task[Attacked]]:
    """Of a seed's targets, and of an encoder with random weights beside them."""
    stopped = [made.target for made in seed.stopped]
    own = [*(made.target for made in (seed.plain, *seed.private, *seed.nopeek)), *stopped]
    tasks: list[Task[Attacked]] = [
        *(arm.attack(target, preset.attackers[0], seed.seed) for target in [*own, random]),
        *(arm.attack(seed.plain.target, preset.attackers[0], seed.seed, made.noise) for made in seed.noisy),
    ]
    if seed.seed == preset.seeds[0]:  # what others make of it, once: they take long
        chosen = [seed.plain.target, *(made.target for made in seed.private), *stopped]
        others = [*chosen, random]
        tasks += [arm.attack(t, attacker, seed.seed) for attacker in preset.attackers[1:] for t in others]
        tasks += [arm.white_box(t, preset.white_box_images, preset.white_box) for t in chosen]
    return tasks


def _row(made: Sequence[Made], number: int, count: int) -> tuple[Made, ...]:
    """The part of one seed of what was made for so many, one after the other."""
    each = len(made) // count
    return tuple(made[number * each : (number + 1) * each])
