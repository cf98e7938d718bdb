"""Two targets of equal accuracy beside each other, under one attacker: which leaks more, over all seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ray_sisa.evaluation.inversion import r2_difference
from ray_sisa.inversion_study.results import Attacked, Baseline, HonestSeed, Pair
from ray_sisa.inversion_study.roles import Roles, characters
from ray_sisa.study.steps import Steps

COMPARED = (("private", "stopped"), ("private", "noisy"), ("noisy", "stopped"))


def pairs(steps: Steps, roles: Roles, seeds: Sequence[HonestSeed], mean: Baseline) -> tuple[Pair, ...]:
    """All pairs, by noise multiplier; errors of images come from the arrays that the attacks kept."""
    unseen = ~roles.seen
    base = steps.arrays(mean.arrays)["mse"][unseen]
    clusters = characters(roles.victims.take(np.flatnonzero(unseen)))
    found: list[Pair] = []
    for place in range(len(seeds[0].private)):
        for one, other in COMPARED:
            errors, others = (
                np.stack([steps.arrays(attack_of(seed, name, place).arrays)["mse"][unseen] for seed in seeds])
                for name in (one, other)
            )
            found.append(
                Pair(
                    noise_multiplier=noise_multiplier_of(seeds[0], place),
                    one=one,
                    other=other,
                    accuracy=float(np.mean([accuracy_of(seed, one, place) for seed in seeds])),
                    other_accuracy=float(np.mean([accuracy_of(seed, other, place) for seed in seeds])),
                    r2=float(1 - errors.mean() / base.mean()),
                    other_r2=float(1 - others.mean() / base.mean()),
                    by_seed=tuple(float((b - a).mean() / base.mean()) for a, b in zip(errors, others, strict=True)),
                    difference=r2_difference(errors.mean(0), others.mean(0), base, clusters),
                )
            )
    return tuple(found)


def attack_of(seed: HonestSeed, name: str, place: int) -> Attacked:
    """The attack on the private target of a place, or on its control, by the first attacker."""
    target, noise = {
        "private": (seed.private[place].target.name, None),
        "stopped": (seed.stopped[place].target.name, None),
        "noisy": (seed.plain.target.name, seed.noisy[place].noise),
    }[name]
    return next(attack for attack in seed.attacks if (attack.target, attack.noise) == (target, noise))


def accuracy_of(seed: HonestSeed, name: str, place: int) -> float:
    """Of the target that `attack_of` is about, on the validation images."""
    accuracies = {
        "private": seed.private[place].accuracy,
        "stopped": seed.stopped[place].accuracy,
        "noisy": seed.noisy[place].accuracy,
    }
    return accuracies[name]


def noise_multiplier_of(seed: HonestSeed, place: int) -> float:
    """Of the private target of a place."""
    spending = seed.private[place].spending
    assert spending is not None  # it is private
    return spending.noise_multiplier
