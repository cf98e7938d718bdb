"""Networks and functions that misbehave in a worker; networks tell what they did in the folder that FOLDER names."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Generator
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


class RaisesDeepDown(Linear):
    """Raises an error that another caused, deep in a recursion, with a long message, and that cannot be unpickled."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            descend(50)
        return super().forward(images)


class Unpicklable(Exception):
    """Pickles, but cannot be made anew: its argument is not that of its constructor."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(LONG)


LONG = "a long message, " * 1000 + "and its end"


def descend(depth: int) -> None:
    """Raises at the bottom."""
    if depth:
        descend(depth - 1)
    try:
        raise KeyError("the first cause")
    except KeyError as error:
        raise Unpicklable(1, 2) from error


class Exits(Linear):
    """Ends its process as a program would."""

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            raise SystemExit(7)
        return super().forward(images)


class Disturbed(Linear):
    """Trains undisturbed, but for the files in the folder.

    `slow`: each batch takes longer. `held`: no process goes on with its second stage as long as the file is there.
    `waits`, `stops`, `hungry`: the first process to come to its second stage takes the file, by giving it its process
    id as an ending, and waits for ever, stops itself, or takes ever more memory.
    """

    stages_begun = 0  # in this process

    def __init__(self, image_shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(image_shape, num_classes)
        self._fresh = True

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            if self._fresh:
                self._fresh = False
                Disturbed.stages_begun += 1
                self._disturb()
            if (_folder() / "slow").exists():
                time.sleep(BATCH_S)
        return super().forward(images)

    def _disturb(self) -> None:
        if Disturbed.stages_begun < 2:
            return
        while (_folder() / "held").exists():
            time.sleep(BATCH_S)
        if _takes("waits"):
            signal.pause()
        if _takes("stops"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if _takes("hungry"):
            eaten = [b"x" * 2**26 for _ in range(MOST_EATEN // 2**26) if not time.sleep(0.01)]
            raise MemoryError(f"nobody minded {len(eaten)} times 64 MiB")


BATCH_S = 0.05
MOST_EATEN = 6 * 2**30  # bytes


def _takes(name: str) -> bool:
    try:
        (_folder() / name).rename(_folder() / f"{name}-{os.getpid()}")
    except FileNotFoundError:
        return False
    return True


def raises(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """See `Raises`."""
    return Raises(image_shape, num_classes)


def waits(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """See `Waits`."""
    return Waits(image_shape, num_classes)


def raises_deep_down(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """See `RaisesDeepDown`."""
    return RaisesDeepDown(image_shape, num_classes)


def exits(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """See `Exits`."""
    return Exits(image_shape, num_classes)


def disturbed(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """See `Disturbed`."""
    return Disturbed(image_shape, num_classes)


def process_id(shared: None, item: int) -> int:
    """Where it ran."""
    return os.getpid()


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


def counts(folder: str, number: int) -> Generator[str, None, int]:
    """Tells each number below its own and returns its own; the first time, 3 dies after it told of 1."""
    for below in range(number):
        yield f"{below} of {number}"
        if (number, below) == (3, 1) and not (Path(folder) / "died").exists():
            (Path(folder) / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    return number
