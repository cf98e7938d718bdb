"""What a recipe may ask for so that models, and what their layers give, tell less of samples.

The settings alone: `private_training.py` and `nopeek.py` do what they say.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from ray_sisa.section import Section

Noise = Literal["reproducible", "secure"]


class DpConfig(Section):
    """Differentially private training of every stage: DP-SGD (Abadi et al. 2016) with Poisson sampling."""

    noise_multiplier: Annotated[float, Field(gt=0)] | None = None
    """Standard deviation of the noise, in units of `max_grad_norm`."""
    target_epsilon: Annotated[float, Field(gt=0)] | None = None
    """Largest epsilon of a sample once everything is trained, before any deletion; solved for the noise multiplier."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """L2 norm to which the gradient of each sample is clipped."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    accountant: Literal["prv", "rdp"] = "prv"
    """How epsilon is bounded: privacy random variables (Gopi et al. 2021) or Renyi (Mironov et al. 2019)."""
    noise: Noise = "reproducible"
    """`reproducible`: from the stage key, so that stages can be replayed; whoever knows the key can take the noise off.

    Such noise is only as secret as `seed`. `secure`: from the operating system; such a stage cannot be replayed.
    """

    @model_validator(mode="after")
    def _one_way_to_say_how_much(self) -> DpConfig:
        if (self.noise_multiplier is None) == (self.target_epsilon is None):
            raise ValueError("noise_multiplier, target_epsilon: exactly one of the two must be given")
        return self


class NoPeek(Section):
    """A penalty that makes activations tell less of the input: distance correlation (Vepakomma et al. 2020)."""

    layer: str
    """Name of the layer whose output leaves the device."""
    weight: Annotated[float, Field(gt=0)]
    """What the distance correlation is multiplied by, beside the cross-entropy."""
