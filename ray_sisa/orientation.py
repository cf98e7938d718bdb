"""The orientation tag of photographs (EXIF 0x0112): cameras store pixels as the sensor lies, and viewers turn them.

Pillow turns TIFF files by itself as it decodes them, so for those nothing is left to do here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

TAG = 0x0112
UPRIGHT = 1

# The transposition that each value asks for. `ImageOps.exif_transpose` does the same and writes the other tags anew,
# which fails on tags that cameras in use get wrong.
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
_SIDEWAYS = 5  # from this value on, height and width change places


def of(image: Image.Image) -> int:
    """The value of an image's tag, 2 to 8; `UPRIGHT` without one, or where it cannot be read."""
    behind = is_behind(image)
    try:
        value = image.getexif().get(TAG, UPRIGHT)
    except Exception:  # damaged tags raise almost anything, and viewers show such images as they are stored
        if behind:
            raise  # of the pixels: Pillow would give them out as they are when it is asked a second time
        return UPRIGHT
    return value if isinstance(value, int) and value in _TURNS else UPRIGHT


def is_behind(image: Image.Image) -> bool:
    """Whether a tag, if there is one, comes after the pixels, so that they are decoded to look for it."""
    return image.format == "PNG" and "exif" not in image.info


def size(image: Image.Image, value: int) -> tuple[int, int]:
    """Height and width once the image is turned."""
    width, height = image.size
    return (width, height) if value >= _SIDEWAYS and not _turns_itself(image) else (height, width)


def turned(image: Image.Image, value: int) -> Image.Image:
    """The image as a viewer shows it."""
    from PIL import Image

    if value == UPRIGHT or _turns_itself(image):
        return image
    return image.transpose(Image.Transpose[_TURNS[value]])


def _turns_itself(image: Image.Image) -> bool:
    return image.format == "TIFF"
