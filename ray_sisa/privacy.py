"""What DP-SGD spends: the mechanism that a stage is, epsilon of several composed, the noise that a target takes. Pure.

Adjacency is to add or remove one sample. The number of samples of a stage is taken to be public. `composition` does the
accounting.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from scipy import optimize

from ray_sisa.composition import Accountant, Mechanism, Spent, compose, epsilon_2020, gaussian
from ray_sisa.errors import ConfigError

__all__ = [
    "Accountant",
    "Mechanism",
    "Spent",
    "epsilon",
    "epsilon_2020",
    "gaussian",
    "num_steps",
    "solve_noise_multiplier",
    "stage_mechanism",
]

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
        noise = _least_noise(lambda noise: spent(worst, noise, "prv"), target_epsilon, near=noise)
    while any(spent(shard, noise, accountant) > target_epsilon for shard in shards):
        noise = _rounded_up(noise * 1.0005)
    return noise


def _least_noise(spent: Callable[[float], float], target: float, near: float = 1.0) -> float:
    low = high = near
    while spent(high) > target:
        low, high = high, high * 2
        if high > LARGEST_NOISE:
            remedy = "Raise it, or delta; or train fewer epochs, or slices"
            raise ConfigError("recipe.dp.target_epsilon", target, "no noise multiplier is large enough", remedy)
    while low == high or spent(low) <= target:
        low, high = low / 2, low
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
