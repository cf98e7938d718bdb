"""Files to predict that lie or grow: an error that names the file, before memory is taken, and no traceback."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import measured
import numpy as np
import pytest

from ray_sisa import array_files, memory
from ray_sisa.data import load_inputs
from ray_sisa.errors import DataError

SHAPE = (8, 8, 1)
IMPORTS = "from ray_sisa.data import load_inputs\nimport numpy.lib.format, zipfile"


def npy(declared: object, values: bytes = bytes(64), version: bytes = b"\x01\x00") -> bytes:
    header = repr(declared).encode() if not isinstance(declared, bytes) else declared
    header += b" " * (-len(header) % 64) + b"\n"
    return b"\x93NUMPY" + version + len(header).to_bytes(2 if version[0] == 1 else 4, "little") + header + values


def of(shape: object, descr: object = "|u1", order: object = False) -> dict[str, object]:
    return {"descr": descr, "fortran_order": order, "shape": shape}


def npz(content: bytes, name: str = "a.npy") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return file.getvalue()


RIGHT = npy(of((1, 8, 8, 1)))
LYING = {
    "far more than is there": npy(of((1 << 50, 8, 8, 1))),
    "more than an integer holds": npy(of((1 << 70, 8, 8, 1))),
    "less than is there": npy(of((1, 8, 8, 1)), bytes(128)),
    "a negative number": npy(of((-1, 8, 8, 1))),
    "no shape": npy(of("all")),
    "a shape of text": npy(of(("1", 8, 8, 1))),
    "no dimension": npy(of(())),
    "booleans": npy(of((True, 8, 8, True))),
    "no type": npy(of((1, 8, 8, 1), descr=7)),
    "a type that is no type": npy(of((1, 8, 8, 1), descr="<u99999999")),
    "a structure": npy(of((1, 8, 8, 1), descr=[("a", "u1")])),
    "objects": npy(of((1, 8, 8, 1), descr="|O")),
    "no dictionary": npy(b"__import__('os').abort()"),
    "brackets without end": npy(b"(" * 60_000),
    "a header that is cut": RIGHT[:40],
    "another version": npy(of((1, 8, 8, 1)), version=b"\x09\x00"),
    "a long header": npy(b"{" + b" " * 1_000_000 + b"}", version=b"\x02\x00"),
    "an archive of something else": npz(b"text", "a.txt"),
    "an archive that is cut": npz(RIGHT)[:60],
    "an archive whose sum is wrong": npz(RIGHT).replace(zlib.crc32(RIGHT).to_bytes(4, "little"), bytes(4)),
    "an archive of nothing": npz(b""),
}


@pytest.mark.parametrize("what", LYING)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_what_lies_is_refused_by_name(what: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(LYING[what])
    with pytest.raises(DataError, match=r"inputs = .*a\.np"):
        load_inputs([str(path)], SHAPE)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("save", [np.save, np.savez, np.savez_compressed])
def test_what_is_right_is_read_as_numpy_reads_it(
    save: Callable[..., None], order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(array_files, "_PIECE", 100)
    wanted = np.asarray(np.random.default_rng(0).integers(0, 256, (5, *SHAPE)), np.uint8, order=order)
    path = tmp_path / ("a.npy" if save is np.save else "a.npz")
    save(path, wanted)
    names, read = load_inputs([str(path)], SHAPE)
    assert names == [f"{path}#{i}" for i in range(5)]
    assert (read == wanted).all()


def test_a_small_file_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    """Both where its shape is wrong and where it is right."""
    path = tmp_path / "a.npz"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("a.npy", "w", force_zip64=True) as to,
    ):
        to.write(npy(of((5_000_000, 8, 8, 1)), b""))
        for _ in range(20):
            to.write(bytes(16_000_000))
    assert path.stat().st_size < 1_000_000
    for shape in ((8, 8, 1), (8, 8, 3)):
        call = f"load_inputs([{str(path)!r}], {shape})"
        kind, message = measured.raised_by(call, imports=IMPORTS, megabytes=100)
        assert kind == "DataError", message
        assert "unpacks to 0.3 GB from 0.3 MB" in message


def test_more_than_memory_holds_is_refused_with_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", np.zeros((100, *SHAPE), np.uint8))
    monkeypatch.setattr(memory, "limit", lambda: 6400)
    with pytest.raises(DataError, match=r"uint8 \[100, 8, 8, 1\]: would take 0\.0 GB of memory"):
        load_inputs([str(tmp_path / "a.npy")], SHAPE)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".png"])
def test_pipes_and_devices_are_not_waited_for(suffix: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f"a{suffix}")
    (tmp_path / f"b{suffix}").symlink_to("/dev/zero")
    for name in ("a", "b"):
        with pytest.raises(DataError, match="is no regular file"):
            load_inputs([str(tmp_path / f"{name}{suffix}")], SHAPE)
