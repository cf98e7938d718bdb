"""Networks and functions that misbehave in a worker; networks tell what they did in the folder that FOLDER names."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from torch import Tensor, nn

from ray_sisa.errors import DataError

FOLDER = "RAY_SISA_TEST_FOLDER"  # in the environment of driver and workers


class Linear(nn.Module):
    """A linear network on flattened images."""

    def __init__(self, image_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(torch.Size(image_shape).numel(), num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.linear(images.flatten(1))
        return logits


class Raises(Linear):
    """Raises an error whenever it is trained, a line each in `raised`."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        with (_folder() / "raised").open("a") as lines:
            print(os.getpid(), file=lines)
        raise ZeroDivisionError("this network divides by zero")


class Waits(Linear):
    """Where there is a named pipe `waits`: writes its process id to it in the second stage, and waits to be killed."""

    stages_begun = 0  # in this process

    def __init__(self, image_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(image_shape, num_classes)
        self._fresh = True

    def forward(self, images: Tensor) -> Tensor:
        if self.training and self._fresh:
            self._fresh = False
            Waits.stages_begun += 1
            pipe = _folder() / "waits"
            if Waits.stages_begun > 1 and pipe.exists():
                pipe.write_text(str(os.getpid()))
                signal.pause()
        return super().forward(images)


def raises(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """See `Raises`."""
    return Raises(image_shape, num_classes)


def waits(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """See `Waits`."""
    return Waits(image_shape, num_classes)


def add(shared: int, item: int) -> int:
    """Behaves."""
    return shared + item


def dies_once(folder: str, item: int) -> int:
    """Squares; kills its process at the first attempt at item 3."""
    died = Path(folder) / "died-3"
    if item == 3 and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def kills(shared: int, item: int) -> int:
    """Kills its process at the item `shared`."""
    if item == shared:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def refuses(shared: str, item: int) -> int:
    """Raises an error of the package at every item."""
    raise DataError("item", item, shared)


def _folder() -> Path:
    return Path(os.environ[FOLDER])
