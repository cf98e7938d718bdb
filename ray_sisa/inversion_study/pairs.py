"""Two targets of equal accuracy beside each other, under one attacker: which leaks more, over all seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ray_sisa.evaluation.inversion import r2_difference
from ray_sisa.inversion_study.results import Attacked, Baseline, HonestSeed, Pair
from ray_sisa.inversion_study.roles import Roles, characters
from ray_sisa.inversion_study.summary import NOISY, PRIVATE, STOPPED, accuracy_at, attack_at, noise_of
from ray_sisa.study.steps import Steps

COMPARED = ((PRIVATE, STOPPED), (PRIVATE, NOISY), (NOISY, STOPPED))


def pairs(steps: Steps, roles: Roles, seeds: Sequence[HonestSeed], mean: Baseline) -> tuple[Pair, ...]:
    """All pairs, by noise multiplier; errors of images come from the arrays that the attacks kept."""
    unseen = ~roles.seen
    base = steps.arrays(mean.arrays)["mse"][unseen]
    clusters = characters(roles.victims.take(np.flatnonzero(unseen)))
    found: list[Pair] = []
    for place in range(len(seeds[0].private)):
        for one, other in COMPARED:
            errors, others = (
                np.stack([steps.arrays(_attack_of(seed, name, place).arrays)["mse"][unseen] for seed in seeds])
                for name in (one, other)
            )
            found.append(
                Pair(
                    noise_multiplier=noise_of(seeds[0].private[place]),
                    one=one,
                    other=other,
                    accuracy=float(np.mean([accuracy_at(seed, one, place) for seed in seeds])),
                    other_accuracy=float(np.mean([accuracy_at(seed, other, place) for seed in seeds])),
                    r2=float(1 - errors.mean() / base.mean()),
                    other_r2=float(1 - others.mean() / base.mean()),
                    by_seed=tuple(float((b - a).mean() / base.mean()) for a, b in zip(errors, others, strict=True)),
                    difference=r2_difference(errors.mean(0), others.mean(0), base, clusters),
                )
            )
    return tuple(found)


def _attack_of(seed: HonestSeed, kind: str, place: int) -> Attacked:
    """By the first attacker, which all of these targets are attacked by under every seed."""
    attacker = seed.attacks[0].attacker
    found = attack_at(seed, attacker, kind, place)
    if found is None:
        raise AssertionError(f"seed {seed.seed}: no attack of {attacker} on the {kind} target number {place}")
    return found
