"""The attacker's network: transposed convolutions from intercepted activations to an image, built by rule.

`study` is the decoder of S. Keydana, "Hacking deep learning: model inversion attack by example" (2020), of which the
one for activations [32, 1, 1] and images of 105 x 105 is a case. `wide` is a stronger one: it reads activations on one
scale, normalises its own, keeps several channels to the end and gives pixels between 0 and 1. Nothing here trains.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ray_sisa.errors import ConfigError

Style = Literal["study", "wide"]
Size = tuple[int, int]
_SMALLEST = 9  # rows or columns that a decoder is not begun above
_STUDY_WIDTH = 32
_FARTHEST = 10.0  # deviations from the mean at which what the wide decoder reads is cut
_NARROWEST, _WIDEST = 16, 64  # channels of the wide decoder, at the image's size and at the least


def build_decoder(activation_shape: tuple[int, ...], image_shape: tuple[int, ...], style: Style) -> DecoderNetwork:
    """A decoder of activations float32 [B, *activation_shape] to pixels float32 [B, C, H, W], 0 for 0 and 1 for 255.

    Args:
        activation_shape: [D] of vectors, or [C, H, W] of maps.
        image_shape: [H, W, C].
        style: which decoder.

    Raises:
        ConfigError: activations of another number of axes.
    """
    if len(activation_shape) not in {1, 3} or 0 in activation_shape:
        rule = "must be vectors [D] or maps [C, H, W]"
        raise ConfigError("activations", list(activation_shape), rule, "Cut the network at another layer")
    height, width, channels = image_shape
    sizes = _sizes((height, width))
    given: Size = (activation_shape[1], activation_shape[2]) if len(activation_shape) == 3 else (1, 1)
    first = next((i for i, size in enumerate(sizes) if _holds(size, given)), len(sizes) - 1)
    make = _study_layers if style == "study" else _wide_layers
    decoder = DecoderNetwork(activation_shape[0], sizes[first], make(activation_shape[0], sizes[first:], channels))
    for module in decoder.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(module.weight)  # Keras' "glorot uniform"
            assert module.bias is not None  # as made below
            nn.init.zeros_(module.bias)
    return decoder


class DecoderNetwork(nn.Module):
    """Layers after a change of size, which has no weights: maps that are no size of the rule are brought to one."""

    means: Tensor
    deviations: Tensor

    def __init__(self, width: int, size: Size, layers: nn.Sequential) -> None:
        """Takes the channels that are intercepted, the size that `layers` begin with, and these."""
        super().__init__()
        self._size, self.layers = size, layers
        self._standardises = False
        self.register_buffer("means", torch.zeros(width))
        self.register_buffer("deviations", torch.ones(width))

    def standardise(self, activations: Tensor) -> None:
        """From now on brings each channel to the mean 0 and the deviation 1 that it has in these [N, ...]."""
        rows = activations.double().transpose(0, 1).flatten(1)
        deviations = rows.std(1, correction=0)
        self.means.copy_(rows.mean(1))
        self.deviations.copy_(torch.where(deviations > 0, deviations, 1.0))
        self._standardises = True

    def forward(self, activations: Tensor) -> Tensor:
        """Activations [B, D] or [B, C, H, W] to pixels [B, C, H, W]."""
        maps = activations if activations.ndim == 4 else activations[:, :, None, None]
        if self._standardises:
            maps = (maps - self.means[:, None, None]) / self.deviations[:, None, None]
            maps = maps.clamp(-_FARTHEST, _FARTHEST)
        if maps.shape[2:] != self._size:
            larger = maps.shape[2] > self._size[0] or maps.shape[3] > self._size[1]
            # No gradient passes here: these operations have none that is deterministic on CUDA.
            maps = F.adaptive_avg_pool2d(maps, self._size) if larger else F.interpolate(maps, self._size)
        pixels: Tensor = self.layers(maps)
        return pixels


def _sizes(image: Size) -> list[Size]:
    """Heights and widths from [1, 1] to the image's: each but the first is doubled, and a little, to give the next."""
    sizes = [image]
    while max(sizes[0]) > _SMALLEST or len(sizes) == 1:
        kernel = 5 if len(sizes) == 1 else 7
        smaller = tuple((side - _kernel(kernel, side)) // 2 + 1 for side in sizes[0])
        if min(smaller) < 1:
            break
        sizes.insert(0, (smaller[0], smaller[1]))
    return sizes if sizes[0] == (1, 1) else [(1, 1), *sizes]


def _kernel(odd: int, side: int) -> int:
    """The kernel of a layer that doubles: odd where it gives an odd side, else one more."""
    return odd if side % 2 else odd + 1


def _holds(size: Size, given: Size) -> bool:
    return size[0] >= given[0] and size[1] >= given[1]


def _kernel_and_stride(small: Size, large: Size) -> tuple[Size, int]:
    """Of the transposed convolution, without padding, from one size to the next."""
    stride = 1 if small == (1, 1) else 2
    kernel = (large[0] - (small[0] - 1) * stride, large[1] - (small[1] - 1) * stride)
    return kernel, stride


def _study_layers(width: int, sizes: list[Size], channels: int) -> nn.Sequential:
    """Transposed convolutions with ReLU, also after the last; the last two have as many channels as the image."""
    count = max(1, len(sizes) - 1)
    widths = [_STUDY_WIDTH if i < max(1, count - 2) else channels for i in range(count - 1)] + [channels]
    layers: list[nn.Module] = []
    for i, out in enumerate(widths):
        if len(sizes) == 1:  # the maps are as large as the image
            layers += [nn.ConvTranspose2d(width, out, 5, padding=2), nn.ReLU()]
        else:
            kernel, stride = _kernel_and_stride(sizes[i], sizes[i + 1])
            layers += [nn.ConvTranspose2d(width, out, kernel, stride), nn.ReLU()]
        width = out
    return nn.Sequential(*layers)


def _wide_layers(width: int, sizes: list[Size], channels: int) -> nn.Sequential:
    """Twice as many channels at half the size, normalised at each; at the end a convolution and a sigmoid."""
    count = len(sizes) - 1
    layers: list[nn.Module] = []
    for i in range(count):
        out = min(_WIDEST, _NARROWEST * 2 ** (count - 1 - i))
        kernel, stride = _kernel_and_stride(sizes[i], sizes[i + 1])
        layers += [nn.ConvTranspose2d(width, out, kernel, stride), *_normalised(out)]
        width = out
    if not count:
        layers += [nn.Conv2d(width, _NARROWEST, 3, padding=1), *_normalised(_NARROWEST)]
        width = _NARROWEST
    return nn.Sequential(*layers, nn.Conv2d(width, channels, 3, padding=1), nn.Sigmoid())


def _normalised(width: int) -> list[nn.Module]:
    # Not over the batch: the last one of an epoch may be a single image.
    return [nn.GroupNorm(math.gcd(width, 8), width), nn.ReLU()]
