"""Image files written byte by byte, of the kinds that Pillow reads and cannot write."""

from __future__ import annotations

import struct
import zlib

import numpy as np

PNG_KINDS = {"grey": 0, "RGB": 2, "palette": 3, "LA": 4, "RGBA": 6}
TIFF_KINDS = {"white is zero": 0, "grey": 1, "RGB": 2, "palette": 3}


def png(samples: np.ndarray, kind: str, bits: int, *, colours: bytes = b"") -> bytes:
    """A PNG file of samples [H, W, C] of 1, 2, 4, 8 or 16 bits, with a palette for kind `palette`."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, PNG_KINDS[kind], 0, 0, 0)
    rows = b"".join(b"\0" + _packed(row, bits, ">") for row in samples)
    palette = _chunk(b"PLTE", colours) if colours else b""
    end = _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + palette + end


def tiff(
    samples: np.ndarray, kind: str, bits: int, *, format: int = 1, order: str = "<", colours: tuple[int, ...] = ()
) -> bytes:
    """An uncompressed TIFF file of samples [H, W, C]; format 1 is unsigned, 2 signed, 3 floating point."""
    height, width, channels = samples.shape
    pixels = b"".join(_packed(row, bits, order) for row in samples)
    tags = {
        256: [width],
        257: [height],
        258: [bits] * channels,
        259: [1],
        262: [TIFF_KINDS[kind]],
        273: [0],
        277: [channels],
        278: [height],
        279: [len(pixels)],
        320: list(colours),
        338: [2] * (channels - 3 if kind == "RGB" else channels - 1),
        339: [format] * channels,
    }
    tags = {tag: values for tag, values in tags.items() if values}
    start = 8 + 2 + 12 * len(tags) + 4
    tags[273] = [start + sum(2 * len(v) for v in tags.values() if len(v) > 2)]
    entries, behind = b"", b""
    for tag, values in tags.items():
        packed = struct.pack(f"{order}{len(values)}H", *values)
        if len(values) > 2:
            where = struct.pack(f"{order}I", start + len(behind))
            behind += packed
        else:
            where = packed.ljust(4, b"\0")
        entries += struct.pack(f"{order}HHI", tag, 3, len(values)) + where
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + bytes(4) + behind + pixels


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _packed(row: np.ndarray, bits: int, order: str) -> bytes:
    """Samples of a row as they lie in a file, high bits first."""
    flat = row.ravel()
    if bits >= 8:
        return flat.astype(flat.dtype.newbyteorder(order)).tobytes()
    places = (flat[:, None] >> np.arange(bits)[::-1]) & 1
    return np.packbits(places.astype(np.uint8).ravel()).tobytes()
