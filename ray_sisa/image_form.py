"""The form that all images of a source are brought to: how many channels they have, and which size.

It is what a user wrote, or what every single image has by itself: never what one of them has, since it may be deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ray_sisa import images
from ray_sisa.data_config import DataConfig, Exif
from ray_sisa.images import Shape


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """What images become.

    Attributes:
        channels: that all get, or None where all must have the same number as they are.
        size: (height, width) that all must have, or None where it is that of each other.
        may_lose_colour: whether coloured images become grey where one channel is wanted; else they are refused.
        exif: what is done about orientation tags.
    """

    channels: int | None = None
    size: tuple[int, int] | None = None
    may_lose_colour: bool = False
    exif: Exif | None = None

    @classmethod
    def of(cls, config: DataConfig) -> Form:
        """That of a source: `channels`, or as many as `mean` has values, and `image_size`."""
        by_mean = len(config.mean) if config.mean is not None and config.columns.features is None else None
        return cls(
            channels=config.channels or by_mean,
            size=config.size,
            may_lose_colour=config.channels == 1,
            exif=config.exif,
        )

    @classmethod
    def of_run(cls, shape: Shape, exif: Exif | None) -> Form:
        """That of a run whose records have this shape: what it is asked about is brought to it."""
        if len(shape) != 3:
            return cls(exif=exif)
        return cls(channels=shape[2], size=(shape[0], shape[1]), may_lose_colour=True, exif=exif)

    def shape(self, own: Callable[[], Shape]) -> Shape:
        """(H, W, C) of all images; what is not said is that of any of them, whose own shape is asked for."""
        if self.size is not None and self.channels is not None:
            return *self.size, self.channels
        height, width, channels = own()
        return *(self.size or (height, width)), self.channels or channels

    @property
    def fit(self) -> images.Fit:
        """Which change of channels is allowed."""
        if self.channels is None:
            return "same"
        return "any" if self.may_lose_colour else "lossless"

    def decode(self, content: bytes, name: str, shape: Shape | None = None) -> np.ndarray:
        """Pixels of an encoded image, in this form where a shape is given, else as it is: see `images.decode`."""
        return images.decode(content, name, shape, fit=self.fit, exif=self.exif)

    def bring(self, pixels: np.ndarray, name: Callable[[int], str], shape: Shape) -> np.ndarray:
        """Arrays of pixels, uint8 [n, H, W, C], in this form; of sizes the caller judges."""
        return images.to_channels(pixels, name, shape[2], self.fit)
