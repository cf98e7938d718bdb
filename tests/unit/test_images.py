"""Which encoded images are read, and what the refused ones are told."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ray_sisa import images
from ray_sisa.errors import DataError


def encode(pixels: np.ndarray, format: str = "PNG", mode: str | None = None) -> bytes:
    image = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    out = io.BytesIO()
    (image if mode is None else image.convert(mode)).save(out, format)
    return out.getvalue()


def encode_image(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def png_that_declares(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header declares a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def gradient(height: int, width: int, channels: int) -> np.ndarray:
    size = height * width * channels
    return (np.arange(size) * 7 % 251).astype(np.uint8).reshape(height, width, channels)


pixel_arrays = st.sampled_from([1, 3]).flatmap(lambda c: hnp.arrays(np.uint8, (3, 5, c)))


@given(pixel_arrays)
def test_png_gives_back_its_pixels(pixels: np.ndarray) -> None:
    assert np.array_equal(images.decode(encode(pixels), "a"), pixels)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "JPEG", "WEBP"])
def test_formats(format: str) -> None:
    assert images.decode(encode(gradient(8, 6, 3), format), "a").shape == (8, 6, 3)


def test_modes_without_loss_are_converted() -> None:
    grey, colour = gradient(4, 4, 1), gradient(4, 4, 3)
    bits = np.where(grey > 100, 255, 0).astype(np.uint8)
    assert np.array_equal(images.decode(encode(bits, mode="1"), "a"), bits)
    assert np.array_equal(images.decode(encode(colour, mode="RGBA"), "a"), colour)
    assert np.array_equal(images.decode(encode(grey, mode="LA"), "a"), grey)
    palette = Image.fromarray(colour).quantize(16)
    assert np.array_equal(images.decode(encode_image(palette), "a"), np.asarray(palette.convert("RGB")))


def test_shape_brings_grey_to_rgb_and_back() -> None:
    grey = gradient(4, 4, 1)
    wide = images.decode(encode(grey), "a", (4, 4, 3))
    assert np.array_equal(wide, np.repeat(grey, 3, axis=2))
    assert np.array_equal(images.decode(encode(wide), "a", (4, 4, 1)), grey)


def test_colour_becomes_grey_only_when_asked() -> None:
    colour = gradient(4, 4, 3)
    with pytest.raises(DataError, match=r"kitten.*is coloured"):
        images.decode(encode(colour), "kitten", (4, 4, 1))
    luma = images.decode(encode(colour), "kitten", (4, 4, 1), fit="any")
    assert np.array_equal(luma[:, :, 0], np.asarray(Image.fromarray(colour).convert("L")))


@pytest.mark.parametrize("content", [b"", b"no image", encode(gradient(64, 64, 3))[:-200], b"\xff\xd8\xff\xe0junk"])
def test_damaged_bytes_name_the_image(content: bytes) -> None:
    with pytest.raises(DataError, match=r"image = kitten: is not a readable image.*undamaged"):
        images.decode(content, "kitten")


@given(st.integers(0, 400), st.integers(0, 255))
def test_any_damage_is_a_data_error_or_an_image(position: int, value: int) -> None:
    content = bytearray(encode(gradient(16, 16, 3)))
    content[position % len(content)] = value
    try:
        assert images.decode(bytes(content), "a", (16, 16, 3)).shape == (16, 16, 3)
    except DataError as error:
        assert error.value == "a"


def test_formats_that_start_programs_are_not_tried() -> None:
    out = io.BytesIO()
    Image.fromarray(gradient(4, 4, 3)).save(out, "EPS")
    with pytest.raises(DataError, match="not a readable image"):
        images.decode(out.getvalue(), "a")


def test_size_is_judged_before_decoding() -> None:
    with pytest.raises(DataError, match="declares 5000 x 5000 pixels, more than the limit"):
        images.decode(png_that_declares(5000, 5000), "bomb")
    with pytest.raises(DataError, match=r"bomb.*is 4000 x 3000 pixels .*but 4 x 4 are expected"):
        images.decode(png_that_declares(3000, 4000), "bomb", (4, 4, 3))


@pytest.mark.parametrize("side", [10_000, 60_000])
def test_a_decompression_bomb_is_an_error(side: int) -> None:
    with pytest.raises(DataError, match="DecompressionBomb"):
        images.decode(png_that_declares(side, side), "bomb")


def test_pixels_that_do_not_fit_are_refused() -> None:
    deep = encode_image(Image.fromarray(np.full((4, 4), 40_000, np.uint16)))
    with pytest.raises(DataError, match="has samples of 16 bits"):
        images.decode(deep, "deep")
    clear = encode_image(Image.new("RGBA", (4, 4), (1, 2, 3, 128)))
    with pytest.raises(DataError, match="has transparent pixels"):
        images.decode(clear, "clear")
    keyed = encode_image(Image.new("RGB", (4, 4), (1, 2, 3)), transparency=(1, 2, 3))
    with pytest.raises(DataError, match="has transparent pixels"):
        images.decode(keyed, "keyed")
    with pytest.raises(DataError, match="2 channels are expected"):
        images.decode(encode(gradient(4, 4, 1)), "two", (4, 4, 2))
