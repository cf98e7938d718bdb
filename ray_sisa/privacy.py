"""What DP-SGD spends: the mechanism that a stage is, and epsilon of several composed. Pure: no storage, no torch.

Adjacency is to add or remove one sample. The number of samples of a stage is taken to be public.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


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
