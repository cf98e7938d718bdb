"""The network of the model-inversion study: a convnet that runs on a device, and a dense part that runs on a server.

What leaves the device is 32 numbers an image. Layers and sizes are those of S. Keydana, "Hacking deep learning: model
inversion attack by example" (2020), for images of 105 x 105; smaller images have the smaller kernels of `_SMALL`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from ray_sisa.errors import ConfigError

WIDTH = 32
# Kernel of each convolution, then kernel and stride of the pooling after it.
_LARGE = ((7, 3, 3), (7, 3, 2), (5, 2, 2), (3, 2, 2))
_SMALL = ((5, 3, 2), (5, 3, 2), (2, 2, 2), (1, 2, 2))
_LEAST_SIDE = {99: _LARGE, 35: _SMALL}

Norm = Literal["batch", "group", "affine"]
GROUPS = 8


class SplitConvNet(nn.Module):
    """Part `device`: four times convolution, ReLU, normalisation, pooling, dropout. Part `server`: two dense layers.

    `norm` is `batch` for batch normalisation with Keras' constants; `group` for eight groups of four channels, which
    DP-SGD can train; or `affine` for a factor and an offset a channel: what batch normalisation comes to that is never
    put into training mode, but for its factor of 0.9995 (an epsilon of 1e-3 beside a variance of 1).
    """

    def __init__(self, shape: tuple[int, ...], num_classes: int, *, norm: Norm, dropout: float) -> None:
        """Takes images of `shape` (H, W, C).

        Raises:
            ConfigError: images that are none, or under 35 pixels wide or high.
        """
        super().__init__()
        layers = _layers_for(shape)
        self.device = nn.Sequential(*_blocks(layers, shape[2], norm, dropout))
        with torch.no_grad():
            positions = self.device.eval()(torch.zeros(1, shape[2], *shape[:2]))[0, 0].numel()
        self.device.train()
        self.server = nn.Sequential(
            ChannelsLast(),
            nn.Linear(WIDTH, 256),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(256 * positions, num_classes),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                assert module.bias is not None  # as made above
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits [B, num_classes]."""
        logits: Tensor = self.server(self.device(images))
        return logits


class ChannelsLast(nn.Module):
    """[B, C, H, W] to [B, H, W, C], so that a dense layer works on channels."""

    def forward(self, maps: Tensor) -> Tensor:
        """The same numbers, channels last."""
        return maps.permute(0, 2, 3, 1)


class Affine(nn.Module):
    """A factor and an offset a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [B, C, H, W] to [B, C, H, W]."""
        weight, bias = (each.to(maps.dtype)[:, None, None] for each in (self.weight, self.bias))  # as autocast has maps
        return maps * weight + bias


def _layers_for(shape: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    side = min(shape[:2]) if len(shape) == 3 else 0
    for least, layers in _LEAST_SIDE.items():
        if side >= least:
            return layers
    rule = f"takes images of at least {min(_LEAST_SIDE)} pixels a side, and the data are of shape {list(shape)}"
    raise ConfigError("recipe.model", "split_convnet", rule, "Set recipe.input_size, or choose another network")


def _blocks(layers: tuple[tuple[int, int, int], ...], channels: int, norm: Norm, dropout: float) -> list[nn.Module]:
    blocks: list[nn.Module] = []
    for kernel, pool, stride in layers:
        blocks += [nn.Conv2d(channels, WIDTH, kernel), nn.ReLU()]
        blocks += [_normalisation(norm), nn.MaxPool2d(pool, stride), nn.Dropout(dropout)]
        channels = WIDTH
    return blocks


def _normalisation(norm: Norm) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(WIDTH, eps=1e-3, momentum=0.01)  # Keras' 0.99 is what it keeps, PyTorch's what it takes
    return nn.GroupNorm(GROUPS, WIDTH) if norm == "group" else Affine(WIDTH)


SPLIT_CONVNETS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "split_convnet": functools.partial(SplitConvNet, norm="batch", dropout=0.2),
    "split_convnet_group": functools.partial(SplitConvNet, norm="group", dropout=0.0),
    "split_convnet_affine": functools.partial(SplitConvNet, norm="affine", dropout=0.0),
    "split_convnet_no_dropout": functools.partial(SplitConvNet, norm="batch", dropout=0.0),
}
