"""Files of NumPy arrays, .npy and .npz, judged by what they declare before memory is taken for a value of them.

A header may declare anything, and a few compressed bytes can be gigabytes. No pickle is read.
"""

from __future__ import annotations

import math
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, BinaryIO

import numpy as np

from ray_sisa import memory
from ray_sisa.errors import DataError

MAX_BYTES = 1 << 28
"""Of a file that is read whole: of an image, far more than its pixels may take."""
SMALL, MAX_EXPANSION = 1 << 26, 200
"""Bytes that a compressed array may always have, and how much more than its file a larger one may have."""
_PIECE = 1 << 24
_COPIES = 3  # of the array, at the height of a prediction
_NUMPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
_UNREADABLE = (
    *(ValueError, TypeError, LookupError, OverflowError, EOFError, RecursionError, SyntaxError, MemoryError),
    *(RuntimeError, zipfile.BadZipFile, zlib.error),  # RuntimeError: encrypted, or of an unknown compression
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Header:
    """What a file declares of its array."""

    shape: tuple[int, ...]
    is_fortran: bool
    dtype: np.dtype[np.generic]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@contextmanager
def opened(path: str, field: str = "inputs") -> Iterator[BinaryIO]:
    """A file to read; of devices and pipes, which may have no end, or no beginning, none.

    Raises:
        DataError: it cannot be opened.
        OSError: it cannot be read.
    """
    try:
        # Without waiting for somebody to write into a pipe.
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        raise DataError(field, path, f"cannot be read: {error}", "Check the path") from None
    with open(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise DataError(field, path, "cannot be read: it is no regular file", "Check the path")
        yield file


def read_bytes(path: str, field: str = "inputs") -> bytes:
    """The bytes of a file that is to be read whole.

    Raises:
        DataError: there are too many.
        OSError: it cannot be read.
    """
    with opened(path, field) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DataError(field, path, f"has more than {MAX_BYTES} bytes", "Give an image")
    return content


def read_array(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """The one array of a .npy or .npz file: uint8 [N, H, W, C] for a shape (H, W, C), float32 [N, D] for (D,).

    Raises:
        DataError: another kind of array or of file, a damaged one, or one that memory does not hold.
        OSError: it cannot be read.
    """
    try:
        with opened(path) as file:
            magic = file.read(len(_NUMPY))
            file.seek(0)
            if magic == _NUMPY:
                return _read(file, path, shape, os.fstat(file.fileno()).st_size)
            if magic.startswith(_ZIP):
                return _read_zipped(file, path, shape)
        raise ValueError("it begins as no .npy and no .npz file does")
    except _UNREADABLE as error:
        raise DataError("inputs", path, f"is no NumPy array: {error}", "Write it with numpy.save") from None


def _read_zipped(file: BinaryIO, path: str, shape: tuple[int, ...]) -> np.ndarray:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) != 1:
            names = [member.filename.removesuffix(".npy") for member in members[:10]]
            raise DataError("inputs", path, f"must hold one array, but holds {names}", "Save the one to predict alone")
        (member,) = members
        if member.file_size > max(SMALL, MAX_EXPANSION * member.compress_size):
            rule = f"unpacks to {member.file_size / 1e9:,.1f} GB from {member.compress_size / 1e6:,.1f} MB"
            raise DataError("inputs", path, rule, "Save such an array uncompressed, with numpy.save, or in parts")
        with archive.open(member) as stream:
            return _read(stream, path, shape, member.file_size)


def _read(stream: IO[bytes], path: str, shape: tuple[int, ...], size: int) -> np.ndarray:
    """The array of a stream of so many bytes, once its header is known to be right."""
    header = _header(stream)
    _check(header, path, shape)
    if size != stream.tell() + header.num_bytes:
        raise ValueError(f"it declares {header.num_bytes} bytes of values, and has {size - stream.tell()}")
    content = np.empty(header.num_bytes, np.uint8)
    for first in range(0, len(content), _PIECE):
        piece = stream.read(min(_PIECE, len(content) - first))
        if len(piece) != min(_PIECE, len(content) - first):
            raise EOFError("it ends within its values")
        content[first : first + len(piece)] = np.frombuffer(piece, np.uint8)
    if stream.read(1):  # at whose end the checksum of an archive is compared
        raise ValueError("it has more than its values")
    values = content.view(header.dtype)
    return values.reshape(header.shape[::-1]).T if header.is_fortran else values.reshape(header.shape)


def _header(stream: IO[bytes]) -> _Header:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"it is of version {version}, which holds structures")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, is_fortran, dtype = read(stream)
    if dtype.hasobject:
        raise ValueError("Object arrays are pickles, which could run code")
    return _Header(shape=shape, is_fortran=is_fortran, dtype=dtype)


def _check(header: _Header, path: str, shape: tuple[int, ...]) -> None:
    dtype = "uint8" if len(shape) == 3 else "float32"
    met = header.shape
    if header.dtype != dtype or met[1:] != shape or met[0] < 1:
        rule = f"must be {dtype} [N, {', '.join(map(str, shape))}] with N at least 1"
        remedy = "Give pixels as they were stored, from 0 to 255" if dtype == "uint8" else "Convert the array"
        raise DataError("inputs", f"{path}: {header.dtype} {list(met)}", rule, remedy)
    if _COPIES * header.num_bytes > memory.limit():
        rule = f"would take {_COPIES * header.num_bytes / 1e9:,.1f} GB of memory, and there are "
        rule += f"{memory.limit() / 1e9:,.1f} GB"
        raise DataError("inputs", f"{path}: {header.dtype} {list(met)}", rule, "Give fewer at a time")
