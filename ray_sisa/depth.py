"""How many bits a sample of an image file has: Pillow cuts deep colours to 8 bits without a word.

Read from the file itself, since the mode of an opened image tells nothing of it. Never decodes a pixel.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from ray_sisa.errors import DataError

if TYPE_CHECKING:
    from PIL import Image
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

KEPT = 8  # bits of a sample that pixels keep

_REMEDY = "Convert it to 8-bit grey or RGB, by a rule that fits these data (such as a division by 257)"
_PNG, _PNG_HEADER = b"\x89PNG\r\n\x1a\n", b"IHDR"
_TIFF = (b"II*\0", b"MM\0*")
_BIG_TIFF = (b"II+\0", b"MM\0+")
_BITS_PER_SAMPLE, _COLOUR_MAP, _SAMPLE_FORMAT = 258, 320, 339
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3


def check(content: bytes, name: str) -> None:
    """Passes if pixels of 8 bits hold all that the samples of a PNG or TIFF file hold; other formats pass.

    Raises:
        DataError: samples of more bits, of floating point or with a sign, or a palette of more than 8 bits a colour.
    """
    if content.startswith(_PNG):
        if content[12:16] != _PNG_HEADER or len(content) <= 24:
            raise DataError("image", name, "is not a readable image: its header is missing", "Give it undamaged")
        _check_bits(content[24], name)
    elif content.startswith((*_TIFF, *_BIG_TIFF)):
        _check_tiff(_tags(content), name)


def check_open(image: Image.Image, name: str) -> None:
    """Passes if an open PPM image has values up to 255; other formats pass.

    Raises:
        DataError: values above 255, which Pillow scales down.
    """
    tile = getattr(image, "tile", None)
    if image.format == "PPM" and tile:
        arguments = tile[0][3]
        if image.mode == "I" and isinstance(arguments, str):  # how Pillow names two bytes a sample
            _check_bits(16, name)
        elif image.mode != "F" and isinstance(arguments, tuple):
            _check_bits(int(arguments[1]).bit_length(), name)


def _check_bits(bits: int, name: str, kind: str = "") -> None:
    if bits > KEPT:
        rule = f"has {kind}samples of {bits} bits, and pixels keep {KEPT}"
        raise DataError("image", name, rule, _REMEDY)


def _check_tiff(tags: ImageFileDirectory_v2, name: str) -> None:
    bits = max(tags.get(_BITS_PER_SAMPLE, (1,)))
    kinds = set(tags.get(_SAMPLE_FORMAT, (_UNSIGNED,)))
    _check_bits(bits, name, "floating-point " if _FLOAT in kinds else "")
    if _SIGNED in kinds:
        raise DataError("image", name, "has samples with a sign, and pixels are from 0 to 255", _REMEDY)
    # Colours of a palette have 16 bits: those of 8 stand there times 256, or times 257.
    if any(colour % 256 and colour % 257 for colour in tags.get(_COLOUR_MAP, ())):
        raise DataError("image", name, f"has a palette whose colours need more than {KEPT} bits", _REMEDY)


def _tags(content: bytes) -> ImageFileDirectory_v2:
    """The tags of the first image of a TIFF file."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    tags = ImageFileDirectory_v2(content[: 16 if content.startswith(_BIG_TIFF) else 8])
    file = io.BytesIO(content)
    file.seek(tags.next)
    tags.load(file)
    return tags
