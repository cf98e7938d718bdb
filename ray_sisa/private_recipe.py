"""The recipe of a private run: its noise multiplier, and the sizes at which its guarantee would mean nothing.

All of it follows from counts and from what a user wrote, never from what samples hold. It trains nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np

from ray_sisa.config import PlacementConfig, Recipe, RunConfig
from ray_sisa.defences import DpConfig
from ray_sisa.errors import ConfigError

SECRET_BITS = 64  # about; whoever draws 128 at random has as many in all but one of 2^64 draws

logger = logging.getLogger(__name__)

Sizes = Sequence[Sequence[int]]
"""Samples of each slice, by shard."""


def slice_sizes(config: PlacementConfig, places: np.ndarray) -> list[list[int]]:
    """Samples of each slice of each shard.

    Args:
        config: how many shards and slices there are.
        places: int64 [N], the place of each sample.
    """
    counts = np.bincount(places, minlength=config.shards * config.slices)
    sizes: list[list[int]] = counts.reshape(config.shards, config.slices).tolist()
    return sizes


def noise_multiplier(config: RunConfig, sizes: Sizes | None, epochs: Sequence[int]) -> float | None:
    """That of `recipe.dp`, as it is given or solved for; None where nothing is private, or it cannot be solved for.

    Args:
        config: of the run.
        sizes: of its slices, as they are when the run is created; None where they are not known.
        epochs: of the stage of each slice 1..R.

    Raises:
        ConfigError: stages too small for the batches, or a delta too large for the samples.
    """
    dp, batch_size = config.recipe.dp, config.recipe.batch_size
    if dp is None or sizes is None:
        return dp.noise_multiplier if dp else None
    if seed_too_short(config.recipe):
        logger.warning(
            "recipe.seed: noise that is reproducible is only as secret as the seed, and this one has fewer than %d "
            "bits: whoever guesses it can take the noise off",
            SECRET_BITS,
        )
    stages = [_stages(shard, epochs) for shard in sizes]
    check_sizes(config, sizes)
    return _solve(dp, [s for s in stages if s], batch_size)


def seed_too_short(recipe: Recipe) -> tuple[str, ...]:
    """Why the noise of a recipe is no secret; empty where it is one, or nothing is private."""
    if recipe.dp is None or recipe.dp.noise == "secure" or recipe.seed.bit_length() >= SECRET_BITS:
        return ()
    return (f"recipe.seed has fewer than {SECRET_BITS} bits: whoever guesses it can take the noise off",)


def check_sizes(config: RunConfig, sizes: Sizes) -> None:
    """Passes if the batches and the delta of a private run fit slices of these sizes.

    Raises:
        ConfigError: they do not.
    """
    if config.recipe.dp:
        _check_batch_size(sizes, config.recipe.batch_size)
        _check_delta(sizes, config.recipe.dp.delta)


def _solve(dp: DpConfig, stages: Sequence[Sequence[tuple[int, int]]], batch_size: int) -> float | None:
    if dp.target_epsilon is None or not stages:  # of a run without samples nothing is ever trained
        return dp.noise_multiplier
    from ray_sisa.privacy import solve_noise_multiplier  # accountants take seconds to import

    solved: float = solve_noise_multiplier(dp.target_epsilon, stages, batch_size, dp.delta, dp.accountant)
    return solved


def _stages(sizes: Sequence[int], epochs: Sequence[int]) -> list[tuple[int, int]]:
    """Samples and epochs of each stage of a shard; an empty slice adds none."""
    totals = np.cumsum(sizes).tolist()
    return [(total, e) for size, total, e in zip(sizes, totals, epochs, strict=True) if size]


def _check_batch_size(sizes: Sizes, batch_size: int) -> None:
    # The first stage of a shard is the smallest.
    firsts = [(size, shard, r) for shard, slices in enumerate(sizes) for r, size in _first(slices)]
    if firsts and batch_size > min(firsts)[0]:
        size, shard, r = min(firsts)
        rule = (
            f"is more than the {size} samples of shard {shard} slice {r}, the smallest first stage: no batch could "
            "have so many, and with every sample in every batch sampling would add nothing to privacy"
        )
        raise ConfigError("recipe.batch_size", batch_size, rule, f"Set at most {size}, or use fewer shards or slices")


def _first(sizes: Sequence[int]) -> list[tuple[int, int]]:
    return [(r, size) for r, size in enumerate(sizes, start=1) if size][:1]


def _check_delta(sizes: Sizes, delta: float) -> None:
    # The guarantee is about the whole data set: giving away a sample of any shard breaks it.
    total = sum(map(sum, sizes))
    if total and delta >= 1 / total:
        rule = (
            f"is not below 1/{total}, and the run has {total} samples: giving one of them away whole would be within "
            "the guarantee"
        )
        raise ConfigError("recipe.dp.delta", delta, rule, f"Set one well below {1 / total:.2g}")
