"""Batches from resident arrays: shuffling, augmentation and normalisation on the device, no data-loader processes.

Random draws come from one CPU generator an epoch, so they are the same on every device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_sisa import privacy
from ray_sisa.config import TrainingRecipe
from ray_sisa.digests import derive_seed


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """The random draws for n rows, on the device.

    Attributes:
        order: int64 [n], the samples in the order in which they are read.
        offsets: int64 [n, 2], top and left of the crop in the padded image.
        flips: bool [n], left to right.
        holes: int64 [n, 2], centre of the cut-out square.
    """

    order: Tensor
    offsets: Tensor
    flips: Tensor
    holes: Tensor


class Batches:
    """A stage's samples, at least one, on the device, and the batches of its epochs.

    Crops are of images padded with zeros by an eighth of their height (4 pixels of 32); the cut-out square has a
    quarter of the height (8 of 32, DeVries and Taylor 2017).
    """

    def __init__(self, images: Tensor, labels: Tensor, training: TrainingRecipe, device: str) -> None:
        """Moves `images` (uint8 [n, H, W, C] or float32 [n, D]) and `labels` (int64 [n]) to the device."""
        self._augment = training.recipe.augment if images.ndim == 4 else ()
        self._normalise = Normalise(training, device)
        self._pad = images.shape[1] // 8 if "crop" in self._augment else 0
        self._height, self._width = (*images.shape[1:3], 1)[:2] if images.ndim == 4 else (1, 1)
        resident = images.to(device)
        self._images = F.pad(resident, (0, 0, self._pad, self._pad, self._pad, self._pad)) if self._pad else resident
        self._labels = labels.to(device)
        self._device = device

        self._edges = _batch_edges(len(labels), training.recipe.batch_size)

    def __len__(self) -> int:
        return len(self._edges) - 1

    @property
    def num_rows(self) -> int:
        """Rows of an epoch: n, and two where there is one sample, which is then read twice."""
        return self._edges[-1]

    def epoch(self, key: str, number: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch of the stage `key`: float32 [B, C, H, W] channels last (or [B, D]), int64 [B].

        Those before `first` are left out, and change nothing in those after.
        """
        draws = self._draw(torch.Generator().manual_seed(derive_seed(key, f"epoch-{number}")))
        for start, end in pairwise(self._edges[first:]):
            batch = slice(start, end)
            rows = draws.order[batch]
            yield self._normalise(self._read(rows, draws, batch)), self._labels[rows]

    def _draw(self, generator: torch.Generator) -> Draws:
        return self._draws(torch.randperm(self.num_rows, generator=generator) % len(self._labels), generator)

    def _draws(self, order: Tensor, generator: torch.Generator) -> Draws:
        n = len(order)
        # All are always drawn, in this order, so that one augmentation does not change another's stream.
        offsets = torch.randint(0, 2 * self._pad + 1, (n, 2), generator=generator)
        flips = torch.rand(n, generator=generator) < 0.5
        holes = (torch.rand(n, 2, generator=generator) * torch.tensor([self._height, self._width])).long()
        to = self._device
        return Draws(order=order.to(to), offsets=offsets.to(to), flips=flips.to(to), holes=holes.to(to))

    def _read(self, rows: Tensor, draws: Draws, batch: slice) -> Tensor:
        if not self._augment:
            return self._images[rows]
        down = torch.arange(self._height, device=self._device) + draws.offsets[batch, :1]
        right = torch.arange(self._width, device=self._device).expand(len(rows), -1)
        if "flip" in self._augment:
            right = torch.where(draws.flips[batch, None], self._width - 1 - right, right)
        right = right + draws.offsets[batch, 1:]
        images = self._images[rows[:, None, None], down[:, :, None], right[:, None, :]]
        return self._cut_out(images, draws.holes[batch]) if "cutout" in self._augment else images

    def _cut_out(self, images: Tensor, holes: Tensor) -> Tensor:
        half = max(1, self._height // 8)
        down = torch.arange(self._height, device=self._device) - holes[:, :1]
        right = torch.arange(self._width, device=self._device) - holes[:, 1:]
        # Even sides have no middle: the square is [-half, half) about its centre.
        down, right = (down >= -half) & (down < half), (right >= -half) & (right < half)
        return images.masked_fill((down[:, :, None] & right[:, None, :])[..., None], 0)


def num_batches(num_samples: int, training: TrainingRecipe) -> int:
    """Batches of an epoch over so many samples."""
    if training.recipe.dp:
        return privacy.num_steps(num_samples, training.recipe.batch_size)
    return len(_batch_edges(num_samples, training.recipe.batch_size)) - 1


def _batch_edges(num_samples: int, batch_size: int) -> list[int]:
    """Where batches begin and end. One row left over joins the batch before it: BatchNorm cannot take one alone."""
    num_rows = max(2, num_samples)
    edges = [*range(0, num_rows, batch_size), num_rows]
    if len(edges) > 2 and edges[-1] - edges[-2] == 1:
        del edges[-2]
    return edges


class Normalise:
    """Pixels to what a network reads: scaled to [0, 1], less the mean, over the deviation, resized where asked."""

    def __init__(self, training: TrainingRecipe, device: str) -> None:
        """Takes the constants of a recipe to a device."""
        is_image = len(training.image_shape) == 3
        scale = 255.0 if is_image else 1.0
        # Tensors of doubles folded in Python, so that one multiplication and one addition are left a pixel.
        self._factor = torch.tensor([1.0 / (scale * s) for s in training.std], dtype=torch.float32, device=device)
        offset = [-m / s for m, s in zip(training.mean, training.std, strict=True)]
        self._offset = torch.tensor(offset, dtype=torch.float32, device=device)
        self._is_image = is_image
        self._size = training.recipe.input_size
        self._mode = training.recipe.upsampling

    def __call__(self, images: Tensor) -> Tensor:
        """float32 [B, C, H, W] channels last of uint8 [B, H, W, C]; float32 [B, D] of the same."""
        scaled = (images.float() * self._factor).add_(self._offset)
        if not self._is_image:
            return scaled
        batch = scaled.permute(0, 3, 1, 2)  # a view: NHWC memory is channels-last NCHW
        if self._size is None:
            return batch
        align = None if self._mode == "nearest" else False
        return F.interpolate(batch, size=(self._size, self._size), mode=self._mode, align_corners=align)
