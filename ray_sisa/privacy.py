"""What DP-SGD spends: the mechanism that a stage is, and epsilon of several composed. Pure: no storage, no torch.

Adjacency is to add or remove one sample. The number of samples of a stage is taken to be public. The accounting itself
is Opacus', which is imported late because it loads torch.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

from ray_sisa.errors import ConfigError

Accountant = Literal["prv", "rdp"]
Floats = npt.NDArray[np.float64]

ORDERS: tuple[float, ...] = (
    *(round(1 + 0.01 * 1.05**step, 4) for step in range(142)),
    *range(12, 65),
    *range(72, 257, 8),
    *(320, 384, 512, 768, 1024),
)
"""Orders of the Renyi bound. Low noise needs those near 1, few steps those far above."""
ORDERS_IN_WORDS = f"{len(ORDERS)} orders from 1.01 to 1024"

ORDERS_2020: tuple[float, ...] = (
    *(1.25, 1.5, 1.75, 2, 2.25, 2.5, 3, 3.5, 4, 4.5),
    *range(5, 64),
    *(128, 256, 512),
)
"""The orders that TensorFlow Privacy tried in 2020."""

PRV_ERROR = 0.01
"""By how much the estimate of epsilon is raised to be a bound, unless that takes too many points."""
PRV_DELTA_ERROR = 1e-3
"""The same for delta, as a fraction of it."""
MOST_POINTS = 2**23
"""Points of a discretised privacy loss; four times as many take gigabytes."""
PRV_LIMIT = 500.0
"""Losses above some 700 overflow where they are exponentiated; no epsilon near it means anything."""
LARGEST_NOISE = 2.0**14


@dataclass(frozen=True, kw_only=True, slots=True)
class Mechanism:
    """The sampled Gaussian mechanism, some steps of it: what one stage is to each of its samples.

    Attributes:
        sampling_rate: probability with which a sample is in a batch, independently of all others (Poisson sampling).
        noise_multiplier: standard deviation of the noise over the clipping norm.
        steps: optimiser steps.
    """

    sampling_rate: float
    noise_multiplier: float
    steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """A bound of epsilon, and how it was found.

    Attributes:
        epsilon: for the delta that was asked about.
        delta: that delta.
        method: `prv`, `rdp`, `gaussian` (exact, without sampling), `rdp 2020`.
        order: of the Renyi divergence that gives the least epsilon, with `rdp`.
        error: what the estimate was raised by to be a bound, with `prv`.
        detail: conversion, orders or discretisation, in words.
    """

    epsilon: float
    delta: float
    method: str
    detail: str
    order: float | None = None
    error: float | None = None


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
    _check_delta(delta)
    return _epsilon(_merged(mechanisms), delta, accountant)


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
    _check_delta(delta)
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


def epsilon_2020(mechanisms: Sequence[Mechanism], delta: float) -> Spent:
    """Epsilon as TensorFlow Privacy gave it in 2020: few orders, and the conversion of Mironov 2017."""
    _check_delta(delta)
    orders = np.array(ORDERS_2020)
    candidates = _renyi(_merged(mechanisms), ORDERS_2020) - math.log(delta) / (orders - 1)
    best = int(np.argmin(candidates))
    return Spent(
        epsilon=float(candidates[best]),
        delta=delta,
        method="rdp 2020",
        order=float(orders[best]),
        detail="Renyi, conversion of Mironov 2017, the orders of TensorFlow Privacy in 2020 (1.25 to 512)",
    )


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Epsilon of the Gaussian mechanism exactly (Balle and Wang 2018); `mu` is the root of the sum of steps / sigma²."""
    if mu == 0:
        return 0.0

    def excess(eps: float) -> float:
        log_tail = eps + special.log_ndtr(-eps / mu - mu / 2)
        return float(special.ndtr(-eps / mu + mu / 2) - math.exp(log_tail)) - delta

    if excess(0.0) <= 0:
        return 0.0
    # Ten standard deviations beyond the mean of the privacy loss, mu²/2.
    return float(optimize.brentq(excess, 0.0, mu * mu / 2 + 40 * mu + 1, xtol=1e-10))


def without_amplification(mechanisms: Sequence[Mechanism], delta: float) -> Spent:
    """Epsilon if nothing is known of how batches are drawn: a sample is in one batch of each epoch, noised once.

    The Gaussian mechanism, composed over the participations: steps times sampling rate, rounded up.
    """
    squares = [math.ceil(m.steps * m.sampling_rate - 1e-9) / m.noise_multiplier**2 for m in mechanisms]
    return _gaussian(math.sqrt(math.fsum(squares)), delta, "the Gaussian mechanism over all participations, exactly")


def _gaussian(mu: float, delta: float, detail: str) -> Spent:
    return Spent(epsilon=gaussian_epsilon(mu, delta), delta=delta, method="gaussian", detail=detail)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ConfigError("delta", delta, "must be above 0 and below 1")


def _merged(mechanisms: Sequence[Mechanism]) -> tuple[Mechanism, ...]:
    """Equal mechanisms as one with the sum of their steps, in an order of their own: equal questions are then equal."""
    steps: Counter[tuple[float, float]] = Counter()
    for each in mechanisms:
        steps[each.sampling_rate, each.noise_multiplier] += each.steps
    return tuple(
        Mechanism(sampling_rate=rate, noise_multiplier=noise, steps=total)
        for (rate, noise), total in sorted(steps.items())
        if total and rate
    )


@lru_cache(maxsize=4096)
def _epsilon(mechanisms: tuple[Mechanism, ...], delta: float, accountant: Accountant) -> Spent:
    if not mechanisms:
        return Spent(epsilon=0.0, delta=delta, method=accountant, detail="nothing was spent")
    if accountant == "rdp":
        return _by_renyi(mechanisms, delta)
    if all(each.sampling_rate == 1 for each in mechanisms):
        mu = math.sqrt(math.fsum(each.steps / each.noise_multiplier**2 for each in mechanisms))
        return _gaussian(mu, delta, "every sample is in every batch: the Gaussian mechanism, composed exactly")
    return _by_privacy_loss(mechanisms, delta)


def _by_renyi(mechanisms: tuple[Mechanism, ...], delta: float) -> Spent:
    from opacus.accountants.analysis import rdp

    with _no_warnings():
        found, order = rdp.get_privacy_spent(orders=list(ORDERS), rdp=_renyi(mechanisms, ORDERS), delta=delta)
    return Spent(
        epsilon=max(0.0, float(found)),
        delta=delta,
        method="rdp",
        order=float(order),
        detail=f"Renyi, conversion of Balle et al. 2020, {ORDERS_IN_WORDS}",
    )


def _by_privacy_loss(mechanisms: tuple[Mechanism, ...], delta: float) -> Spent:
    delta_error = delta * PRV_DELTA_ERROR
    reach = _by_renyi(mechanisms, delta_error / 4).epsilon
    if reach > PRV_LIMIT:
        return _by_renyi(mechanisms, delta)
    error = max(PRV_ERROR, _coarsest_error(mechanisms, reach, delta_error))
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(each.noise_multiplier, each.sampling_rate, each.steps) for each in mechanisms]
    with _no_warnings():
        found = accountant.get_epsilon(delta, eps_error=error, delta_error=delta_error)
    return Spent(
        epsilon=float(found),
        delta=delta,
        method="prv",
        error=error,
        detail=f"privacy loss as a random variable, discretised; raised by {error:.2g} to be a bound",
    )


def _coarsest_error(mechanisms: tuple[Mechanism, ...], reach: float, delta_error: float) -> float:
    """The error with which a privacy loss of that reach has no more points than are affordable."""
    steps = sum(each.steps for each in mechanisms)
    return 2 * (reach + 3) / MOST_POINTS * math.sqrt(steps * math.log(12 / delta_error) / 2)


def _renyi(mechanisms: tuple[Mechanism, ...], orders: tuple[float, ...]) -> Floats:
    total = np.zeros(len(orders))
    for each in mechanisms:
        total += each.steps * _renyi_of_a_step(each.sampling_rate, each.noise_multiplier, orders)
    return total


@lru_cache(maxsize=1024)
def _renyi_of_a_step(sampling_rate: float, noise_multiplier: float, orders: tuple[float, ...]) -> Floats:
    from opacus.accountants.analysis import rdp

    with _no_warnings():
        found = rdp.compute_rdp(q=sampling_rate, noise_multiplier=noise_multiplier, steps=1, orders=list(orders))
    return np.asarray(found, dtype=np.float64)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Overflow far in a tail, and an optimum at the end of the orders: both only make the bound less tight."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


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
