"""Epsilon of composed mechanisms: by Renyi divergence, by privacy loss as a random variable, and exactly. Pure.

Opacus discretises and converts; it is imported late because it loads torch. Each answer is an upper bound. What the
mechanisms are is `privacy`'s to say.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from scipy import fft, optimize, special

from ray_sisa.errors import ConfigError

if TYPE_CHECKING:
    from opacus.accountants.analysis.prv import Domain

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
MOST_MECHANISMS = 24
"""Different ones that are told apart; each takes a good part of a second."""
FINEST_RATIO = 1.001


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
    """An upper bound of epsilon, and how it was found.

    Attributes:
        epsilon: for the delta that was asked about.
        delta: that delta.
        method: `prv`, `rdp`, `gaussian` (exact, nothing sampled), `rdp 2020`, or `nothing`.
        detail: conversion, orders or discretisation, in words.
        order: of the Renyi divergence that gives the least epsilon, with `rdp`.
        error: what the estimate was raised by to be a bound, with `prv`.
    """

    epsilon: float
    delta: float
    method: str
    detail: str
    order: float | None = None
    error: float | None = None


def compose(groups: Sequence[Sequence[Mechanism]], delta: float, accountant: Accountant) -> tuple[Spent, ...]:
    """Epsilon of the first group of mechanisms, of the first two, and so on.

    Raises:
        ConfigError: `delta` is no probability above 0.
    """
    if not 0 < delta < 1:
        raise ConfigError("delta", delta, "must be above 0 and below 1", "It should be well below 1 / samples")
    merged, ratio = _few(groups)
    found = _compose(merged, delta, accountant)
    if ratio == 1:
        return found
    note = f"sampling rates rounded up by less than {100 * (ratio - 1):.2g} %"
    return tuple(replace(spent, detail=f"{spent.detail}; {note}") for spent in found)


def epsilon_2020(mechanisms: Sequence[Mechanism], delta: float) -> Spent:
    """Epsilon as TensorFlow Privacy gave it in 2020: few orders, and the conversion of Mironov 2017."""
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
    """Epsilon of the Gaussian mechanism, exactly (Balle and Wang 2018); `mu` is sensitivity over noise."""

    def excess(eps: float) -> float:
        log_tail = eps + float(special.log_ndtr(-eps / mu - mu / 2))
        return float(special.ndtr(mu / 2 - eps / mu)) - math.exp(log_tail) - delta

    if mu == 0 or excess(0.0) <= 0:
        return 0.0
    # The privacy loss has mean mu²/2 and standard deviation mu: no delta that a float holds is 40 of them away.
    return float(optimize.brentq(excess, 0.0, mu * mu / 2 + 40 * mu, xtol=1e-9))


def gaussian(participations: Iterable[tuple[int, float]], delta: float) -> Spent:
    """Epsilon of a sample that is in so many batches, each with a noise multiplier: nothing is gained by sampling."""
    mu = math.sqrt(math.fsum(times / noise**2 for times, noise in participations))
    detail = "the Gaussian mechanism over all participations, composed exactly"
    return Spent(epsilon=gaussian_epsilon(mu, delta), delta=delta, method="gaussian", detail=detail)


# --- which mechanisms are one


def _merged(mechanisms: Iterable[Mechanism]) -> tuple[Mechanism, ...]:
    """Equal mechanisms as one with the sum of their steps, in an order of their own: equal questions are then equal."""
    steps: Counter[tuple[float, float]] = Counter()
    for each in mechanisms:
        steps[each.sampling_rate, each.noise_multiplier] += each.steps
    return tuple(
        Mechanism(sampling_rate=rate, noise_multiplier=noise, steps=total)
        for (rate, noise), total in sorted(steps.items())
        if total and rate
    )


def _few(groups: Sequence[Sequence[Mechanism]]) -> tuple[tuple[tuple[Mechanism, ...], ...], float]:
    """The groups with few different mechanisms: rates are rounded up, to powers of a ratio, as little as it takes.

    A higher rate only spends more, so what follows is a bound still.
    """
    ratio, merged = 1.0, tuple(map(_merged, groups))
    while len({(m.sampling_rate, m.noise_multiplier) for group in merged for m in group}) > MOST_MECHANISMS:
        if ratio > 1.1:
            break  # as many noise multipliers, or slices of very different size
        ratio = 1 + (ratio - 1) * 2 if ratio > 1 else FINEST_RATIO
        merged = tuple(_merged(_rounded_up(each, ratio) for each in group) for group in groups)
    return merged, ratio


def _rounded_up(mechanism: Mechanism, ratio: float) -> Mechanism:
    power = math.floor(-math.log(mechanism.sampling_rate) / math.log(ratio)) if mechanism.sampling_rate else 0
    rate = min(1.0, max(mechanism.sampling_rate, ratio**-power))
    return replace(mechanism, sampling_rate=rate)


@lru_cache(maxsize=1024)
def _compose(groups: tuple[tuple[Mechanism, ...], ...], delta: float, accountant: Accountant) -> tuple[Spent, ...]:
    so_far = [_merged(each for group in groups[: number + 1] for each in group) for number in range(len(groups))]
    if accountant == "prv" and any(each.sampling_rate < 1 for group in groups for each in group):
        return _by_privacy_loss(groups, so_far, delta)
    return tuple(_at_once(mechanisms, delta, accountant) for mechanisms in so_far)


def _at_once(mechanisms: tuple[Mechanism, ...], delta: float, accountant: Accountant) -> Spent:
    if not mechanisms:
        return Spent(epsilon=0.0, delta=delta, method="nothing", detail="nothing was spent")
    if accountant == "rdp":
        return _by_renyi(mechanisms, delta)
    return gaussian(((each.steps, each.noise_multiplier) for each in mechanisms), delta)


# --- Renyi


def _by_renyi(mechanisms: tuple[Mechanism, ...], delta: float) -> Spent:
    from opacus.accountants.analysis import rdp

    with _no_warnings():
        found, order = rdp.get_privacy_spent(orders=list(ORDERS), rdp=_renyi(mechanisms, ORDERS), delta=delta)
    return Spent(
        epsilon=max(0.0, float(found)),
        delta=delta,
        method="rdp",
        order=float(order),
        detail=f"Renyi divergence, conversion of Balle et al. 2020, {ORDERS_IN_WORDS}",
    )


def _renyi(mechanisms: tuple[Mechanism, ...], orders: tuple[float, ...]) -> Floats:
    total = np.zeros(len(orders))
    for each in mechanisms:
        total += each.steps * _renyi_of_a_step(each.sampling_rate, each.noise_multiplier, orders)
    return total


@lru_cache(maxsize=1024)
def _renyi_of_a_step(sampling_rate: float, noise_multiplier: float, orders: tuple[float, ...]) -> Floats:
    """Mironov et al. 2019: whole orders by their finite sum, which is Opacus'; the others by quadrature.

    At rates from 0.05 on, which are usual in small slices, Opacus' series for the others takes long, and that of
    dp-accounting gives up.
    """
    from opacus.accountants.analysis import rdp

    alphas = np.array(orders)
    if sampling_rate == 1:
        return alphas / (2 * noise_multiplier**2)
    found = np.empty(len(alphas))
    is_whole = alphas == np.floor(alphas)
    with _no_warnings():
        found[is_whole] = rdp.compute_rdp(
            q=sampling_rate, noise_multiplier=noise_multiplier, steps=1, orders=alphas[is_whole].tolist()
        )
    found[~is_whole] = _log_moments(sampling_rate, noise_multiplier, alphas[~is_whole]) / (alphas[~is_whole] - 1)
    return found


def _log_moments(sampling_rate: float, noise_multiplier: float, alphas: Floats) -> Floats:
    """Logarithms of the moments of the ratio of densities: equation 3 of Mironov et al. 2019, by the trapezoidal rule.

    The rule is as good as exact where a function is smooth over many steps and vanishes at both ends. This one is
    smooth over the noise and over its square, and its bulk lies between 0 and the order.
    """
    variance = noise_multiplier**2
    step, tail = min(noise_multiplier, variance) / 4, 12 * noise_multiplier
    z = np.arange(-tail, alphas.max(initial=1.0) + tail, step)
    log_density = -(z**2) / (2 * variance)
    log_density -= special.logsumexp(log_density)
    log_ratio = np.logaddexp(math.log1p(-sampling_rate), math.log(sampling_rate) + (2 * z - 1) / (2 * variance))
    moments = [float(special.logsumexp(log_density + alpha * log_ratio)) for alpha in alphas]
    return np.array(moments).clip(min=0.0)


# --- privacy loss


def _by_privacy_loss(
    groups: Sequence[Sequence[Mechanism]], so_far: Sequence[tuple[Mechanism, ...]], delta: float
) -> tuple[Spent, ...]:
    """Gopi et al. 2021, with one grid for all, so that what the first groups spend is found on the way."""
    delta_error = delta * PRV_DELTA_ERROR
    reach = _reach(so_far[-1], delta_error)
    if reach > PRV_LIMIT:
        return tuple(_at_once(mechanisms, delta, "rdp") for mechanisms in so_far)
    from opacus.accountants.analysis.prv import DiscretePRV

    domain, error = _grid(so_far[-1], reach, delta_error)
    spectrum: npt.NDArray[np.complex128] = np.ones(domain.size // 2 + 1, dtype=np.complex128)
    shift, num_steps, found = 0.0, 0, []
    with _no_warnings():
        for group, mechanisms in zip(groups, so_far, strict=True):
            for each in group:
                of_a_step, shift_of_a_step = _spectrum(each, domain)
                spectrum *= of_a_step**each.steps
                shift, num_steps = shift + each.steps * shift_of_a_step, num_steps + each.steps
            if not mechanisms:
                found.append(_at_once(mechanisms, delta, "prv"))
                continue
            # A sum of indices counts the place of zero once for each of them.
            pmf = np.roll(fft.irfft(spectrum, domain.size), -(num_steps - 1) * (domain.size // 2 - 1) % domain.size)
            loss = DiscretePRV(pmf=pmf, domain=domain.shift_right(shift))
            *_, bound = loss.compute_epsilon(delta, delta_error, error)
            found.append(_bound(float(bound), delta, error))
    return tuple(found)


def _bound(epsilon: float, delta: float, error: float) -> Spent:
    detail = f"privacy loss as a random variable, on a grid; raised by {error:.2g} to be a bound"
    return Spent(epsilon=epsilon, delta=delta, method="prv", error=error, detail=detail)


def _reach(mechanisms: tuple[Mechanism, ...], delta_error: float) -> float:
    """How far the grid must reach on either side of zero (Gopi et al. 2021, remark 5.6)."""
    total = sum(each.steps for each in mechanisms)
    steps = [(replace(each, steps=1),) for each in mechanisms]
    alone = (_by_renyi(step, delta_error / (8 * total)).epsilon for step in steps)
    return max(_by_renyi(mechanisms, delta_error / 4).epsilon, *alone, PRV_ERROR) + 3


def _grid(mechanisms: Sequence[Mechanism], reach: float, delta_error: float) -> tuple[Domain, float]:
    """The grid, and the error that it makes: its length is one that Fourier transforms are quick at."""
    from opacus.accountants.analysis.prv import Domain

    total = sum(each.steps for each in mechanisms)
    steps_of_an_error = math.sqrt(total * math.log(12 / delta_error) / 2)
    error = max(PRV_ERROR, 2 * reach * steps_of_an_error / MOST_POINTS)
    step = error / steps_of_an_error
    size = 2 * int(fft.next_fast_len(math.ceil(reach / step) + 1, real=True))
    return Domain(t_min=-(size // 2 - 1) * step, t_max=size // 2 * step, size=size), error


def _spectrum(mechanism: Mechanism, domain: Domain) -> tuple[npt.NDArray[np.complex128], float]:
    """The transformed probabilities of the privacy loss of one step, and how far the grid is off its mean."""
    from opacus.accountants.analysis.prv import (
        PoissonSubsampledGaussianPRV,
        TruncatedPrivacyRandomVariable,
        discretize,
    )

    loss = PoissonSubsampledGaussianPRV(mechanism.sampling_rate, mechanism.noise_multiplier)
    discrete = discretize(TruncatedPrivacyRandomVariable(loss, domain.t_min, domain.t_max), domain)
    return fft.rfft(discrete.pmf), float(discrete.domain.shifts)


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Overflow far in a tail, and an optimum at the end of the orders: both only make the bound less tight."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
