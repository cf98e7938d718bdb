"""The original's epsilons, told again: as it claims them, as it ran, by the method of 2020 and by today's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ray_sisa.composition import epsilon_2020, gaussian
from ray_sisa.inversion_study import original
from ray_sisa.inversion_study.original import BATCH, DELTA
from ray_sisa.inversion_study.results import Accounting
from ray_sisa.privacy import Claim, check_statement

CLAIMED, DRAWN_FROM = original.NUM_CLAIMED, original.NUM_DRAWN_FROM
STEPS = 8_240  # 20 epochs of 13,180 / 32, whose last part of a batch is a step as well
EPOCHS = 20
CLAIMED_STEPS = EPOCHS * CLAIMED // BATCH + 1  # as TensorFlow Privacy counted them
BATCH_NORMALISATION = (
    "batch normalisation is in the network, so that a sample's gradient depends on the others of its batch"
)


def accountings(noise_multipliers: Sequence[float]) -> tuple[Accounting, ...]:
    """Each noise multiplier that the original reports."""
    found = (original.private(noise) for noise in noise_multipliers)
    return tuple(_accounting(each) for each in found if each is not None)


def _accounting(reported: original.PrivateTarget) -> Accounting:
    noise = reported.noise_multiplier
    claimed = Claim(num_samples=CLAIMED, batch_size=BATCH, steps=CLAIMED_STEPS, noise_multiplier=noise, delta=DELTA)
    ran = replace(claimed, num_samples=DRAWN_FROM, steps=STEPS, sampler="shuffled")
    return Accounting(
        noise_multiplier=noise,
        reported=reported.epsilon,
        claimed=_by_method(claimed, EPOCHS),
        as_run=_by_method(replace(ran, sampler="poisson"), ran.participations),
        refusals=(*check_statement(replace(claimed, steps=STEPS), ran), BATCH_NORMALISATION),
    )


def _by_method(claim: Claim, participations: int) -> dict[str, float]:
    return {
        "2020": epsilon_2020([claim.mechanism], claim.delta).epsilon,
        "rdp": claim.spent("rdp").epsilon,
        "prv": claim.spent("prv").epsilon,
        "unamplified": gaussian([(participations, claim.noise_multiplier)], claim.delta).epsilon,
    }
