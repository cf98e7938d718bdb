"""Folders of torchvision's sets as somebody else may have filled them: no program is started, and no pickle runs.

Real: torchvision, Pillow and the files. In place of Ghostscript stands a program that leaves a mark.
"""

from __future__ import annotations

import os
import pickle
import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image
from test_no_pickle import Marks

from ray_sisa.config import DataConfig
from ray_sisa.data import load
from ray_sisa.errors import DataError

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def config(name: str, root: Path) -> DataConfig:
    known = {"num_classes": 10, "mean": (0.5,) * 3, "std": (0.5,) * 3} if name in ("Country211", "GTSRB") else {}
    return DataConfig.model_validate({"source": f"torchvision:{name}", "root": str(root), **known})


def places(name: str, root: Path) -> list[Path]:
    """The images of a set of two, for training and for testing: Country211 opens them by a loader, GTSRB by itself."""
    if name == "Country211":
        return [root / "country211" / split / "A" / "1.jpg" for split in ("train", "test")]
    base = root / "gtsrb"
    (base / "GTSRB/Final_Test/Images").mkdir(parents=True)
    (base / "GT-final_test.csv").write_text("Filename;ClassId\n1.ppm;0\n")
    return [base / "GTSRB/Training/00000/1.ppm", base / "GTSRB/Final_Test/Images/1.ppm"]


def fill(name: str, root: Path, content: bytes | None = None) -> None:
    for path in places(name, root):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (200, 0, 0)).save(path)
        if content is not None:
            path.write_bytes(content)


@pytest.fixture
def ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The mark of a Ghostscript that was started."""
    mark, program = tmp_path / "mark", tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {mark}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)  # looked for anew
    return mark


@pytest.mark.parametrize("name", ["Country211", "GTSRB"])
def test_only_listed_formats_are_opened(name: str, tmp_path: Path, ghostscript: Path) -> None:
    usual = Image.open
    fill(name, tmp_path)
    assert load(config(name, tmp_path)).train.shape == (8, 8, 3)
    fill(name, tmp_path / "eps", EPS)
    with pytest.raises(DataError, match=rf"image = {name}/train/00000: is not a readable image.*Give one of PNG, JPEG"):
        load(config(name, tmp_path / "eps"))
    assert not ghostscript.exists()
    assert Image.open is usual


def test_the_mark_would_appear(tmp_path: Path, ghostscript: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(EPS)
    with pytest.raises(OSError), Image.open(tmp_path / "1.jpg") as image:
        image.load()
    assert ghostscript.exists()


@pytest.mark.parametrize("name", ["Country211", "GTSRB"])
def test_an_image_that_declares_gigabytes_is_refused_before_it_is_decoded(name: str, tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8192, 8192, 8, 2, 0, 0, 0)
    fill(name, tmp_path, b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(DataError, match="declares 8192 x 8192 pixels, more than the limit"):
        load(config(name, tmp_path))


FILES = {
    "CIFAR10": ["cifar-10-batches-py/" + name for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]],
    "CIFAR100": ["cifar-100-python/train", "cifar-100-python/test", "cifar-100-python/meta"],
    "MNIST": ["MNIST/processed/training.pt", "MNIST/processed/test.pt"],
}


@pytest.mark.parametrize("name", FILES)
def test_pickles_in_the_folder_of_a_set_are_not_loaded(name: str, tmp_path: Path) -> None:
    """CIFAR's own files are pickles: torchvision compares their digests with the published ones before it loads any."""
    mark = tmp_path / "mark"
    for file in (*FILES[name], "cifar-10-batches-py/batches.meta"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        if name == "MNIST":
            torch.save(Marks(mark), tmp_path / file)
        else:
            (tmp_path / file).write_bytes(pickle.dumps(Marks(mark)))
    with pytest.raises(DataError, match=f"does not hold {name}"):
        load(config(name, tmp_path))
    assert not mark.exists()
