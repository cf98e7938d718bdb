"""The white-box attack: who has the weights of the device part looks for the image that gives the same activations.

He, Zhang and Lee, "Model inversion attacks against collaborative inference" (2019): regularised maximum likelihood
estimation, with total variation as the regulariser. Deterministic: it begins at an image that is given, the mean of the
public ones say, and draws nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ray_sisa.errors import ConfigError
from ray_sisa.training import deterministic

Device = Callable[[Tensor], Tensor]
"""Pixels float32 [B, H, W, C] in 0..1 to activations float32 [B, ...], differentiably."""

_AT_ONCE = 256  # images; each is looked for by itself, so their number changes nothing
_SMOOTH = 1e-6  # keeps the gradient of the total variation finite where an image is flat


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchConfig:
    """How an image is looked for.

    Attributes:
        steps: of Adam.
        lr: learning rate at first, in pixels of 0..1; it falls to 0 along a cosine.
        total_variation: weight of the total variation, beside the squared distance of the activations, both as means.
        threads: of the CPU; bits depend on it.
    """

    steps: int = 500
    lr: float = 0.005
    total_variation: float = 0.1
    threads: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError("white_box", f"{name} {getattr(self, name)}", "must be at least 1", "Correct it")
        if not (math.isfinite(self.lr) and self.lr > 0 and 0 <= self.total_variation < math.inf):
            value = f"lr {self.lr}, total_variation {self.total_variation}"
            raise ConfigError("white_box", value, "must be above 0, and at least 0", "Correct them")


def search(
    part: Device, activations: np.ndarray, start: np.ndarray, config: SearchConfig, device: str = "cpu"
) -> np.ndarray:
    """Images float32 [N, H, W, C] in 0..1 whose activations come near to those intercepted, float32 [N, ...].

    It begins at the image `start`, float32 [H, W, C] in 0..1: what activations do not tell stays as it is there. The
    distance is divided by the mean square of the intercepted activations, so that the weight of the total variation
    means the same at every layer.
    """
    found = np.empty((len(activations), *start.shape), np.float32)
    begin = torch.from_numpy(start).to(device)
    scale = float(np.mean(np.square(activations, dtype=np.float64))) or 1.0
    with deterministic(config.threads, device):
        for first in range(0, len(found), _AT_ONCE):
            wanted = torch.from_numpy(activations[first : first + _AT_ONCE]).to(device)
            pixels = begin.repeat(len(wanted), 1, 1, 1).requires_grad_()
            optimizer = torch.optim.Adam([pixels], config.lr)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
            for _ in range(config.steps):
                distance = (part(pixels) - wanted).square().flatten(1).mean(1) / scale
                loss = (distance + config.total_variation * total_variation(pixels)).sum()
                (pixels.grad,) = torch.autograd.grad(loss, [pixels])
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    pixels.clamp_(0, 1)
            found[first : first + _AT_ONCE] = pixels.detach().cpu().numpy()
    return found


def total_variation(pixels: Tensor) -> Tensor:
    """Mean length of the gradient of each image float32 [B, H, W, C]: float32 [B]."""
    down, right = pixels[:, 1:, :-1] - pixels[:, :-1, :-1], pixels[:, :-1, 1:] - pixels[:, :-1, :-1]
    lengths = (down.square() + right.square() + _SMOOTH).sqrt()
    return lengths.flatten(1).mean(1) if lengths.shape[1:].numel() else pixels.new_zeros(len(pixels))
