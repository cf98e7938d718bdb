"""Encoded images (PNG, JPEG, ...) as arrays of pixels, read with Pillow.

Owns what counts as a readable image: 8-bit grey or RGB, opaque, of a limited size. Never resizes or drops information
unasked; turns photographs as their orientation tag says, unless told to ignore it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ray_sisa import depth, orientation
from ray_sisa.data_config import Exif
from ray_sisa.errors import DataError, SisaError

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 1 << 24
"""Declared pixels above which an image is refused, undecoded: a few bytes can declare gigabytes."""

# Named, since Pillow reads more, some through programs of the system (EPS through Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

Shape = tuple[int, ...]
Fit = Literal["same", "lossless", "any"]
"""Which change of an image's channels is allowed: none; none that loses colour; or any."""

_MODES = {1: "grey", 3: "coloured (RGB)"}


def decode(
    content: bytes, name: str, shape: Shape | None = None, *, fit: Fit = "lossless", exif: Exif | None = None
) -> np.ndarray:
    """Pixels of one encoded image: uint8 [H, W, C], C 1 or 3.

    Args:
        content: the bytes of the file.
        name: what errors call the image.
        shape: (H, W, C) that it must have; without one its own is taken.
        fit: which change of its channels to those of `shape` is allowed.
        exif: whether to `apply` an orientation tag, which is the default, or to `ignore` it.

    Raises:
        DataError: bytes that are no image, another size, or pixels that do not fit without loss.
    """
    from PIL import Image

    try:
        depth.check(content, name)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            _check_still(image, name)
            return to_array(image, name, shape, fit=fit, exif=exif)
    except SisaError:
        raise
    except Exception as error:  # Pillow's decoders raise almost anything on bytes that are damaged
        raise unreadable(name, error) from error


def unreadable(name: str, error: Exception) -> DataError:
    """The error to raise where reading an image raised this one."""
    rule = f"is not a readable image: {type(error).__name__}: {error}"
    return DataError("image", name, rule, f"Give one of {', '.join(FORMATS)}, undamaged")


@contextmanager
def listed_formats_alone() -> Iterator[None]:
    """Has Pillow open images of `FORMATS` alone, and none that is too large: for libraries that open images themselves.

    It holds for the whole process meanwhile.
    """
    from PIL import Image

    usual = Image.open

    def open_listed(file: Any, mode: Literal["r"] = "r", formats: object = None) -> Any:
        image = usual(file, mode, FORMATS)
        try:
            _check_limit(image, str(file))
        except DataError:
            image.close()
            raise
        return image

    Image.open = open_listed  # type: ignore[assignment]
    try:
        yield
    finally:
        Image.open = usual


def to_array(
    image: Image.Image, name: str, shape: Shape | None = None, *, fit: Fit = "lossless", exif: Exif | None = None
) -> np.ndarray:
    """Pixels of an open Pillow image, under the rules of `decode`: uint8 [H, W, C]."""
    _check_limit(image, name)
    depth.check_open(image, name)
    if shape is not None and orientation.is_behind(image) and sorted(image.size) != sorted(shape[:2]):
        _check_shape(image.size[::-1], name, shape, orientation.UPRIGHT, orientation.UPRIGHT)  # undecoded
    tag = orientation.of(image)
    turn = orientation.UPRIGHT if exif == "ignore" else tag
    if shape is not None:
        _check_shape(orientation.size(image, turn), name, shape, tag, turn)
    pixels = np.asarray(_without_palette_or_alpha(orientation.turned(image, turn), name))
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return pixels if shape is None else to_channels(pixels[None], lambda _: name, shape[2], fit)[0]


def to_channels(pixels: np.ndarray, name: Callable[[int], str], channels: int, fit: Fit) -> np.ndarray:
    """Images with so many channels: grey ones get three equal ones; coloured ones become grey where that is allowed.

    Args:
        pixels: uint8 [n, H, W, C].
        name: what errors call the image of a row.
        channels: that are wanted.
        fit: which change is allowed.

    Raises:
        DataError: it is not.
    """
    own = pixels.shape[3]
    if own == channels:
        return pixels
    if {own, channels} != {1, 3}:
        rule = f"has {own} channel(s), but {channels} are expected"
        raise DataError("image", name(0), rule, "Bring all images to one number of channels, or correct data.channels")
    if fit == "same":
        rule = f"is {_MODES[own]}, but others are {_MODES[channels]}, and nothing says what all are to be"
        remedy = "Set data.channels: 3, which gives grey images three equal channels, or 1, which takes colour away"
        raise DataError("image", name(0), rule, remedy)
    return np.repeat(pixels, 3, axis=3) if channels == 3 else _grey(pixels, name, fit)


def _check_still(image: Image.Image, name: str) -> None:
    # Of a JPEG, further pictures are previews or depth: the first is the photograph.
    if getattr(image, "is_animated", False) and image.format not in {"JPEG", "MPO"}:
        raise DataError("image", name, "holds several frames", "Give one image each")


def _check_limit(image: Image.Image, name: str) -> None:
    """Judges the declared size, before any pixel is decoded."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        rule = f"declares {height} x {width} pixels, more than the limit of {MAX_PIXELS}"
        raise DataError("image", name, rule, "Shrink the image")


def _check_shape(size: Shape, name: str, shape: Shape, tag: int, turn: int) -> None:
    if size != shape[:2]:
        met = (
            ""
            if tag == orientation.UPRIGHT
            else f", its orientation tag {tag} {'applied' if turn == tag else 'ignored'}"
        )
        rule = f"is {size[0]} x {size[1]} pixels (height x width{met}), but {shape[0]} x {shape[1]} are expected"
        raise DataError("image", name, rule, "Bring all images to one size")
    if shape[2] not in (1, 3):
        rule = f"is an encoded image, but {shape[2]} channels are expected"
        raise DataError("image", name, rule, "Give the pixels as an array")


def _without_palette_or_alpha(image: Image.Image, name: str) -> Image.Image:
    """The same pixels in mode L or RGB."""
    if image.mode not in {"1", "L", "LA", "P", "PA", "RGB", "RGBA"}:
        raise DataError("image", name, f"has mode {image.mode}, not 8-bit grey or RGB", "Convert it")
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise DataError("image", name, "has transparent pixels", "Flatten it onto a background")
    plain = "L" if image.mode in {"1", "L", "LA"} else "RGB"
    return image if image.mode == plain else image.convert(plain)


def _grey(pixels: np.ndarray, name: Callable[[int], str], fit: Fit) -> np.ndarray:
    """One channel of three: that of grey pixels, or their luma (ITU-R 601-2, as Pillow has it)."""
    from PIL import Image

    is_grey = (pixels == pixels[..., :1]).all((1, 2, 3))
    if is_grey.all():
        return pixels[..., :1]
    if fit == "lossless":
        rule = "is coloured, but one channel is expected"
        remedy = "Set data.channels: 1 to turn coloured images grey, or give data.mean and data.std three values"
        raise DataError("image", name(int(np.argmin(is_grey))), rule, remedy)
    rows = Image.fromarray(pixels.reshape(-1, *pixels.shape[2:])).convert("L")  # of all images, one below the other
    return np.asarray(rows).reshape(*pixels.shape[:3], 1)
