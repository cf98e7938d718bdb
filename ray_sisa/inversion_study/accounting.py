"""The original's epsilons, told again: as it claims them, as it ran, by the method of 2020 and by today's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ray_sisa.composition import epsilon_2020
from ray_sisa.inversion_study.results import Accounting
from ray_sisa.privacy import Claim, check_statement

REPORTED = {0.7: 4.0, 0.5: 12.5, 0.3: 84.7}
CLAIMED, DRAWN_FROM, BATCH, DELTA = 13_180, 11_000, 32, 1e-5
STEPS = 8_240  # 20 epochs of 13,180 / 32, whose last part of a batch is a step as well
CLAIMED_STEPS = 20 * CLAIMED // BATCH + 1  # as TensorFlow Privacy counted them
BATCH_NORMALISATION = (
    "batch normalisation is in the network, so that a sample's gradient depends on the others of its batch"
)


def accountings(noise_multipliers: Sequence[float]) -> tuple[Accounting, ...]:
    """Each noise multiplier that the original reports."""
    return tuple(_accounting(noise) for noise in noise_multipliers if noise in REPORTED)


def _accounting(noise: float) -> Accounting:
    claimed = Claim(num_samples=CLAIMED, batch_size=BATCH, steps=CLAIMED_STEPS, noise_multiplier=noise, delta=DELTA)
    ran = replace(claimed, num_samples=DRAWN_FROM, steps=STEPS, sampler="shuffled")
    return Accounting(
        noise_multiplier=noise,
        reported=REPORTED[noise],
        claimed=_by_method(claimed),
        as_run=_by_method(replace(ran, sampler="poisson")),
        refusals=(*check_statement(replace(claimed, steps=STEPS), ran), BATCH_NORMALISATION),
    )


def _by_method(claim: Claim) -> dict[str, float]:
    return {
        "2020": epsilon_2020([claim.mechanism], claim.delta).epsilon,
        "rdp": claim.spent("rdp").epsilon,
        "prv": claim.spent("prv").epsilon,
        "unamplified": replace(claim, sampler="shuffled").spent().epsilon,
    }
