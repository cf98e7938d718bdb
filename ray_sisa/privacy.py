"""What DP-SGD spends: a stage as a mechanism, epsilon of several, the noise that a target takes, what may be claimed.

Adjacency is to add or remove one sample. The number of samples of a stage is taken to be public. Pure: `composition`
does the accounting, `spending` keeps the ledger.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scipy import optimize

from ray_sisa.composition import Accountant, Mechanism, Spent, compose, epsilon_2020, gaussian
from ray_sisa.errors import ConfigError

__all__ = [
    "Accountant",
    "Claim",
    "Mechanism",
    "Sampler",
    "Spent",
    "check_statement",
    "delta_too_large",
    "epsilon",
    "epsilon_2020",
    "gaussian",
    "num_steps",
    "solve_noise_multiplier",
    "stage_mechanism",
]

Sampler = Literal["poisson", "shuffled"]

FIXED_BATCHES = "one sample replaced by nothing in fixed batches (zero-out adjacency)"

LARGEST_NOISE = 2.0**14


def num_steps(num_samples: int, batch_size: int) -> int:
    """Steps of an epoch: as many batches of the expected size as hold each sample once."""
    return max(1, math.ceil(num_samples / batch_size))


def stage_mechanism(*, num_samples: int, epochs: int, batch_size: int, noise_multiplier: float) -> Mechanism:
    """What training a stage of so many samples is; with fewer samples than a batch, each is in every batch."""
    return Mechanism(
        sampling_rate=min(1.0, batch_size / max(1, num_samples)),
        noise_multiplier=noise_multiplier,
        steps=epochs * num_steps(num_samples, batch_size),
    )


def epsilon(mechanisms: Sequence[Mechanism], delta: float, accountant: Accountant = "prv") -> Spent:
    """Epsilon that all mechanisms together spend of a sample that took part in each.

    `rdp` is Mironov et al. 2019 with the conversion of Balle et al. 2020, `prv` Gopi et al. 2021. Where no batch is
    sampled (every rate is 1), `prv` is the Gaussian mechanism, which is composed exactly. Where epsilon is beyond what
    `prv` can compute, the answer is that of `rdp`, and `method` says so.
    """
    return compose([mechanisms], delta, accountant)[0]


def solve_noise_multiplier(
    target_epsilon: float,
    stages: Sequence[Sequence[tuple[int, int]]],
    batch_size: int,
    delta: float,
    accountant: Accountant = "prv",
) -> float:
    """The least noise multiplier, to about 0.1 %, with which no sample spends more than `target_epsilon`.

    `stages` gives, for each shard, samples and epochs of its stages in order. A sample of the first slice is used by
    all stages of its shard, so it spends most.

    Raises:
        ConfigError: no noise multiplier is large enough.
    """
    shards = sorted({tuple(shard) for shard in stages if shard})
    if not shards:
        return 0.0

    def spent(shard: tuple[tuple[int, int], ...], noise: float, by: Accountant) -> float:
        mechanisms = [
            stage_mechanism(num_samples=n, epochs=epochs, batch_size=batch_size, noise_multiplier=noise)
            for n, epochs in shard
        ]
        return epsilon(mechanisms, delta, by).epsilon

    # The quick bound says which shard is the worst; the others are then asked once each.
    noise = _least_noise(lambda noise: max(spent(shard, noise, "rdp") for shard in shards), target_epsilon)
    if accountant == "prv":
        worst = max(shards, key=lambda shard: spent(shard, noise, "rdp"))
        # The two bounds are near to each other, and little noise takes long to compute: so small steps.
        noise = _least_noise(lambda noise: spent(worst, noise, "prv"), target_epsilon, near=noise, factor=1.1)
    while any(spent(shard, noise, accountant) > target_epsilon for shard in shards):
        noise = _rounded_up(noise * 1.0005)
    return noise


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """One training by DP-SGD: as somebody reports it, or as it was run.

    Attributes:
        num_samples: that batches are drawn from.
        batch_size: samples in a batch; with Poisson sampling, expected ones.
        steps: optimiser steps.
        noise_multiplier: standard deviation of the noise over the clipping norm.
        delta: that epsilon is told for.
        sampler: `poisson`, or `shuffled`: each sample is in one batch an epoch, in any order, or by a shuffle buffer.
    """

    num_samples: int
    batch_size: int
    steps: int
    noise_multiplier: float
    delta: float
    sampler: Sampler = "poisson"

    @property
    def mechanism(self) -> Mechanism:
        """What it is if batches are drawn by Poisson sampling."""
        rate = min(1.0, self.batch_size / self.num_samples)
        return Mechanism(sampling_rate=rate, noise_multiplier=self.noise_multiplier, steps=self.steps)

    @property
    def participations(self) -> int:
        """In how many batches the sample is that is in most, without Poisson sampling."""
        return math.ceil(self.steps * self.batch_size / self.num_samples)

    def spent(self, accountant: Accountant = "prv") -> Spent:
        """Epsilon; of shuffled batches without any credit for sampling, since none is proven that comes near Poisson's.

        Raises:
            ConfigError: delta is so large that the guarantee says nothing.
        """
        if refused := delta_too_large(self.delta, self.num_samples):
            raise ConfigError("delta", self.delta, refused[0], "Make it well below 1 / samples")
        if self.sampler == "shuffled":
            found = gaussian([(self.participations, self.noise_multiplier)], self.delta)
            return replace(found, detail=f"{found.detail}; {FIXED_BATCHES}")
        return epsilon([self.mechanism], self.delta, accountant)


def check_statement(reported: Claim, ran: Claim) -> tuple[str, ...]:
    """Why an epsilon computed for `reported` is no guarantee of what was run; empty where it is one."""
    refused = list(delta_too_large(reported.delta, ran.num_samples))
    if reported.num_samples != ran.num_samples:
        refused.append(
            f"the accountant was told of {reported.num_samples:,} samples, and batches were drawn from "
            f"{ran.num_samples:,}: the sampling rate is {ran.batch_size / ran.num_samples:.3g}, not "
            f"{reported.batch_size / reported.num_samples:.3g}"
        )
    if ran.sampler != "poisson" and reported.sampler == "poisson":
        refused.append(
            "batches were shuffled and not drawn by Poisson sampling: only the figure without amplification holds"
        )
    for name in ("batch_size", "steps", "noise_multiplier"):
        told, done = getattr(reported, name), getattr(ran, name)
        if told != done:
            refused.append(f"the accountant was told {name} {told:g}, and it was {done:g}")
    return tuple(refused)


def delta_too_large(delta: float, num_samples: int) -> tuple[str, ...]:
    """Why a delta says nothing for so many samples; empty where it does."""
    if num_samples and delta * num_samples >= 1:
        rule = f"is not below 1 / samples, {num_samples:,} of them: publishing one sample whole would satisfy it"
        return (f"delta {delta:g} {rule}",)
    return ()


def _least_noise(spent: Callable[[float], float], target: float, near: float = 1.0, factor: float = 2.0) -> float:
    low = high = near
    while spent(high) > target:
        low, high = high, high * factor
        if high > LARGEST_NOISE:
            remedy = "Raise it, or delta; or train fewer epochs, or slices"
            raise ConfigError("recipe.dp.target_epsilon", target, "no noise multiplier is large enough", remedy)
    while low == high or spent(low) <= target:
        low, high = low / factor, low
    # In logarithms both are near to straight lines, so few steps are needed.
    root = optimize.brentq(
        lambda log_noise: math.log(max(spent(math.exp(log_noise)), 1e-12) / target),
        math.log(low),
        math.log(high),
        xtol=2e-4,
    )
    return _rounded_up(math.exp(root))


def _rounded_up(noise: float) -> float:
    """To four significant digits."""
    unit = 10.0 ** (math.floor(math.log10(noise)) - 3)
    return round(math.ceil(noise / unit) * unit, 12)
