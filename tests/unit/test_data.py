"""Every source of samples, and inputs for prediction.

Torchvision's own classes read files that the tests write in the official layouts; where those are recognised by a
digest, the expected digest is all that is replaced.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_sisa import data
from ray_sisa.config import Columns, DataConfig
from ray_sisa.errors import ConfigError, DataError
from ray_sisa.samples import make_samples


def pixels_of(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(out, "PNG")
    return out.getvalue()


def write_images(path: Path, images: np.ndarray, labels: list[int]) -> str:
    ids = [f"{path.stem}/{i}" for i in range(len(images))]
    pq.write_table(pa.table({"id": ids, "img": [png(image) for image in images], "label": labels}), path)
    return str(path)


def parquet_config(folder: Path, images: np.ndarray, labels: list[int], **options: object) -> DataConfig:
    train = write_images(folder / "train.parquet", images, labels)
    settings = {"source": "parquet", "train": train, "columns": Columns(id="id"), "num_classes": 3, **options}
    return DataConfig.model_validate(settings)


def test_import_is_light() -> None:
    heavy = {"torch", "ray", "torchvision", "PIL", "sklearn"}
    code = f"import sys, ray_sisa.data; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


# Digits.


def test_digits() -> None:
    config = DataConfig(source="digits")
    digits = data.load(config)
    assert digits.test is not None
    assert (len(digits.train), len(digits.test), digits.num_classes) == (1438, 359, 10)
    assert data.count(config) == len(digits.train)
    assert digits.train.shape == digits.test.shape == (8, 8, 1)
    assert (int(digits.train.images.min()), int(digits.train.images.max())) == (0, 255)
    assert digits.train.ids[:5].to_pylist() == [f"digits/000{i}" for i in (0, 1, 2, 3, 5)]
    assert digits.test.ids[0].as_py() == "digits/0004"
    assert digits.train.labels[:5].tolist() == [0, 1, 2, 3, 5]
    assert digits.train.images[0, 0, :, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert (digits.mean, digits.std) == ((0.3,), (0.38,))


# Torchvision.


def write_idx(path: Path, array: np.ndarray) -> None:
    """An array of uint8 in the IDX format of MNIST."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes())


def write_mnist(root: Path, name: str, train: np.ndarray, test: np.ndarray) -> None:
    for split, images in (("train", train), ("t10k", test)):
        write_idx(root / name / "raw" / f"{split}-images-idx3-ubyte", images)
        write_idx(root / name / "raw" / f"{split}-labels-idx1-ubyte", np.arange(len(images), dtype=np.uint8) % 10)


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_mnist(tmp_path: Path, name: str) -> None:
    train, test = pixels_of(12, 28, 28), pixels_of(4, 28, 28, seed=1)
    write_mnist(tmp_path, name, train, test)
    config = DataConfig(source=f"torchvision:{name}", root=str(tmp_path))
    loaded = data.load(config)
    assert loaded.test is not None
    assert np.array_equal(loaded.train.images, train[..., None])
    assert np.array_equal(loaded.test.images, test[..., None])
    assert loaded.train.labels.tolist() == [*range(10), 0, 1]
    assert loaded.train.ids[11].as_py() == f"{name}/train/00011"
    assert loaded.test.ids[3].as_py() == f"{name}/test/00003"
    assert (loaded.num_classes, len(loaded.mean), len(loaded.std)) == (10, 1, 1)
    assert data.count(config) == 12


def test_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mirror: Callable[[Path], str]) -> None:
    from torchvision.datasets import MNIST

    write_mnist(tmp_path, "MNIST", pixels_of(3, 28, 28), pixels_of(2, 28, 28))
    raw = tmp_path / "MNIST" / "raw"
    resources = []
    for path in sorted(raw.iterdir()):
        packed = path.with_name(path.name + ".gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        resources.append((packed.name, hashlib.md5(packed.read_bytes()).hexdigest()))
    monkeypatch.setattr(MNIST, "mirrors", [mirror(raw)])
    monkeypatch.setattr(MNIST, "resources", resources)
    config = DataConfig(source="torchvision:MNIST", root=str(tmp_path / "root"), download=True)
    assert data.count(config) == 3
    assert len(data.load(config).train) == 3


def test_other_torchvision_sets_are_read_item_by_item(tmp_path: Path) -> None:
    train = pixels_of(6, 28, 28)
    write_mnist(tmp_path, "KMNIST", train, train[:2])
    options = {"source": "torchvision:KMNIST", "root": str(tmp_path)}
    with pytest.raises(ConfigError, match=r"data.num_classes = none: must be given for torchvision:KMNIST"):
        data.load(DataConfig(**options))
    with pytest.raises(ConfigError, match=r"data.mean, data.std = none: must be given"):
        data.load(DataConfig(**options, num_classes=10))
    loaded = data.load(DataConfig(**options, num_classes=12, mean=(0.2,), std=(0.3,)))
    assert np.array_equal(loaded.train.images, train[..., None])
    assert loaded.train.labels.tolist() == list(range(6))
    assert (loaded.num_classes, loaded.mean, loaded.std) == (12, (0.2,), (0.3,))


def test_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faithful but for the digests of the official files, which torchvision would ask for."""
    from torchvision.datasets import CIFAR10

    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    images = pixels_of(12, 32, 32, 3)
    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    for i, name in enumerate(names):
        rows = images[2 * i : 2 * i + 2].transpose(0, 3, 1, 2).reshape(2, -1)
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": [i, i + 1]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    monkeypatch.setattr(CIFAR10, "train_list", [[name, None] for name in names[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [[names[5], None]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": None})
    loaded = data.load(DataConfig(source="torchvision:CIFAR10", root=str(tmp_path)))
    assert loaded.test is not None
    assert np.array_equal(np.concatenate([loaded.train.images, loaded.test.images]), images)
    assert loaded.train.labels.tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5]
    assert loaded.train.images.flags.c_contiguous
    assert len(loaded.mean) == 3


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch, images: np.ndarray, labels: list[int]) -> DataConfig:
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    for split in ("train", "test"):
        content = {"X": images.transpose(1, 2, 3, 0), "y": np.array(labels, np.uint8)[:, None]}
        savemat(root / f"{split}_32x32.mat", content)
    monkeypatch.setattr(SVHN, "split_list", {k: [*v[:2], None] for k, v in SVHN.split_list.items()})
    return DataConfig(source="torchvision:SVHN", root=str(root))


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = pixels_of(4, 32, 32, 3)
    train = data.load(write_svhn(tmp_path, monkeypatch, images, [1, 10, 2, 3])).train
    assert np.array_equal(train.images, images)
    assert train.labels.tolist() == [1, 0, 2, 3]


def test_torchvision_set_without_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write_svhn(tmp_path, monkeypatch, pixels_of(0, 32, 32, 3), [])
    with pytest.raises(DataError, match="no samples of SVHN/train"):
        data.load(config)


@pytest.mark.parametrize("name", ["MNIST", "CIFAR10", "CIFAR100", "SVHN"])
def test_absent_torchvision_set(tmp_path: Path, name: str) -> None:
    config = DataConfig(source=f"torchvision:{name}", root=str(tmp_path / "absent"))
    for read in (data.load, data.count):
        with pytest.raises(DataError, match=r"data.root = .*absent: .*Set data.download: true, or check data.root"):
            read(config)


def test_damaged_torchvision_set(tmp_path: Path) -> None:
    write_mnist(tmp_path, "MNIST", pixels_of(3, 28, 28), pixels_of(3, 28, 28))
    (tmp_path / "MNIST/raw/train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03junk")
    with pytest.raises(DataError, match="does not hold MNIST"):
        data.load(DataConfig(source="torchvision:MNIST", root=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("CIFAR11", "names no torchvision set"),
        ("wrap_dataset_for_transforms_v2", "names no torchvision set"),
        ("FakeData", "no set with just a train and a test split"),
        ("EuroSAT", "no set with just a train and a test split"),
        ("FER2013", "cannot be downloaded"),
    ],
)
def test_torchvision_names_that_cannot_be_used(tmp_path: Path, name: str, rule: str) -> None:
    options = {"root": str(tmp_path), "download": True, "num_classes": 2, "mean": (0.5,), "std": (0.5,)}
    with pytest.raises(ConfigError, match=rule):
        data.load(DataConfig(source=f"torchvision:{name}", **options))


def test_torchvision_needs_a_root() -> None:
    with pytest.raises(ConfigError, match=r"data.root = none: must be the folder of torchvision:MNIST"):
        data.load(DataConfig(source="torchvision:MNIST"))


def test_torchvision_sets_of_one_form_are_told_none(tmp_path: Path) -> None:
    for source, settings in (("digits", {"channels": 3}), ("torchvision:MNIST", {"image_size": 28})):
        field = next(iter(settings))
        with pytest.raises(ConfigError, match=f"data.{field} = .*must be left out: images of {source}"):
            data.load(DataConfig(source=source, root=str(tmp_path), **settings))


def test_single_images_of_torchvision_are_of_the_form_that_is_configured(tmp_path: Path) -> None:
    write_mnist(tmp_path, "KMNIST", pixels_of(6, 28, 28), pixels_of(2, 28, 28))
    options = {"source": "torchvision:KMNIST", "root": str(tmp_path), "num_classes": 10}
    loaded = data.load(DataConfig(**options, mean=(0.5,) * 3, std=(0.5,) * 3))
    assert loaded.train.shape == (28, 28, 3)
    with pytest.raises(DataError, match=r"is 28 x 28 pixels .*, but 32 x 32 are expected"):
        data.load(DataConfig(**options, mean=(0.5,), std=(0.5,), image_size=32))


# Parquet, and the rules for all sources. The files themselves: test_parquet.py.


def test_parquet(tmp_path: Path) -> None:
    images = pixels_of(6, 4, 4, 3)
    test = write_images(tmp_path / "test.parquet", images[:2], [0, 1])
    config = parquet_config(tmp_path, images, [0, 1, 2] * 2, test=test)
    loaded = data.load(config)
    assert loaded.test is not None
    assert np.array_equal(loaded.train.images, images)
    assert loaded.test.ids.to_pylist() == ["test/0", "test/1"]
    assert (loaded.num_classes, loaded.mean, loaded.std) == (3, (0.5,) * 3, (0.5,) * 3)
    assert data.count(config) == 6


def test_parquet_without_test_files(tmp_path: Path) -> None:
    config = parquet_config(tmp_path, pixels_of(3, 4, 4, 1), [0, 1, 2], mean=(0.1,), std=(0.2,))
    loaded = data.load(config)
    assert loaded.test is None
    assert (loaded.mean, loaded.std) == ((0.1,), (0.2,))


def feature_config(folder: Path, **options: object) -> DataConfig:
    pq.write_table(pa.table({"x": [1.0, 2.0], "y": [3.0, 4.0], "label": [0, 1]}), folder / "f.parquet")
    columns = Columns(features=("x", "y"))
    settings = {"source": "parquet", "train": str(folder / "f.parquet"), "columns": columns, "num_classes": 2}
    return DataConfig.model_validate({**settings, **options})


@pytest.mark.parametrize("mean", [None, (1.0,), (1.0, 2.0)])
def test_features(tmp_path: Path, mean: tuple[float, ...] | None) -> None:
    loaded = data.load(feature_config(tmp_path, mean=mean, std=mean))
    assert (loaded.mean, loaded.std) == (((0.0,), (1.0,)) if mean is None else (mean, mean))
    assert loaded.train.shape == (2,)


def test_scaling_must_match_the_channels(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is coloured, but one channel is expected.*data.std three values"):
        data.load(parquet_config(tmp_path, pixels_of(3, 4, 4, 3), [0, 1, 2], mean=(0.5,), std=(0.5,) * 3))
    with pytest.raises(ConfigError, match=r"data.std = \(0.5, 0.5\): must have 3 value\(s\)"):
        data.load(parquet_config(tmp_path, pixels_of(3, 4, 4, 3), [0, 1, 2], mean=(0.5,) * 3, std=(0.5,) * 2))
    with pytest.raises(ConfigError, match=r"data.mean = .* must have 1 or 2 value\(s\)"):
        data.load(feature_config(tmp_path, mean=(0.5,) * 3, std=(0.5,) * 3))


@pytest.mark.parametrize("bad", [3, -1, 2**40])
def test_labels_out_of_range_name_samples(tmp_path: Path, bad: int) -> None:
    config = parquet_config(tmp_path, pixels_of(3, 4, 4, 3), [0, bad, 2])
    with pytest.raises(DataError, match=rf"label = {{'train/1': {bad}}}: must be from 0 to num_classes - 1 = 2; 1 "):
        data.load(config)


def test_labels_too_large_for_int64(tmp_path: Path) -> None:
    labels = pa.array([0, 2**64 - 1], pa.uint64())
    table = pa.table({"img": [png(p) for p in pixels_of(2, 4, 4, 3)], "label": labels})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="must be from 0"):
        data.load(DataConfig(source="parquet", train=str(tmp_path / "a.parquet"), num_classes=2))


def test_labels_of_the_test_set_are_checked(tmp_path: Path) -> None:
    test = write_images(tmp_path / "test.parquet", pixels_of(1, 4, 4, 3), [7])
    with pytest.raises(DataError, match="test/0"):
        data.load(parquet_config(tmp_path, pixels_of(3, 4, 4, 3), [0, 1, 2], test=test))


def test_train_and_test_must_have_one_shape(tmp_path: Path) -> None:
    test = write_images(tmp_path / "test.parquet", pixels_of(1, 4, 5, 3), [0])
    with pytest.raises(DataError, match=r"test samples = \[4, 5, 3\]: .*\[4, 4, 3\]"):
        data.load(parquet_config(tmp_path, pixels_of(3, 4, 4, 3), [0, 1, 2], test=test))


@pytest.mark.parametrize(
    ("risks", "rule"),
    [
        (np.array([0.1, 0.1, 2.0]), "= {'c': 2.0}: must be from 0 to 1; 1 sample"),
        (np.array([0.1, 0.1, np.nan]), "= {'c': nan}: must be from 0 to 1"),
        (np.array([0.1, 0.2, 0.3]), "= ann: must be one value a subject.*1 subject"),
        (np.array([0.1, 0.1]), r"= float64 \[2\]: must be float64 \[3\]"),
        (np.array([0, 0, 1]), r"= int64 \[3\]: must be float64"),
    ],
)
def test_deletion_probabilities_are_one_number_a_subject(risks: np.ndarray, rule: str) -> None:
    train = make_samples(
        ids=["a", "b", "c"],
        subjects=["ann", "ann", "bob"],
        images=np.zeros((3, 2, 2, 1), np.uint8),
        labels=[0, 1, 0],
    )
    whole = data.Dataset(train=train, test=None, num_classes=2, mean=(0.5,), std=(0.5,))
    assert whole.deletion_probabilities is None
    replace(whole, deletion_probabilities=np.array([0.0, 0.0, 1.0]))
    with pytest.raises(DataError, match=f"deletion_probabilities {rule}"):
        replace(whole, deletion_probabilities=risks)


def test_missing_test_file_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data.test = absent.parquet: does not exist"):
        data.load(parquet_config(tmp_path, pixels_of(1, 4, 4, 3), [0], test="absent.parquet"))


def test_real_cifar100(real_data: Path) -> None:
    path = str(real_data / "cifar100" / "test.parquet")
    columns = Columns(id="id", image="img", label="fine_label")
    config = DataConfig(source="parquet", train=path, columns=columns, num_classes=100)
    assert data.count(config) == 10_000
    train = data.load(config).train
    assert train.images.shape == (10_000, 32, 32, 3)
    assert train.ids[0].as_py() == "test/00000"
    assert np.bincount(train.labels, minlength=100).tolist() == [100] * 100
    mean = train.images.mean(axis=(0, 1, 2), dtype=np.float64) / 255
    assert mean == pytest.approx((0.50880, 0.48739, 0.44194), abs=1e-4)


# Inputs for prediction.


def test_inputs_of_every_kind(tmp_path: Path) -> None:
    images = pixels_of(8, 4, 5, 3)
    (tmp_path / "a.png").write_bytes(png(images[0]))
    Image.fromarray(images[1]).save(tmp_path / "b.JPG")
    np.save(tmp_path / "c.npy", images[2:4])
    np.savez(tmp_path / "d.npz", images[4:6])
    write_images(tmp_path / "e.parquet", images[6:8], [0, 1])
    paths = [str(tmp_path / name) for name in ("a.png", "b.JPG", "c.npy", "d.npz", "e.parquet")]
    names, inputs = data.load_inputs(paths, (4, 5, 3))
    a, b, c, d, e = paths
    assert names == [a, b, f"{c}#0", f"{c}#1", f"{d}#0", f"{d}#1", f"{e}#0", f"{e}#1"]
    assert inputs.dtype == np.uint8
    assert np.array_equal(np.delete(inputs, 1, axis=0), np.delete(images, 1, axis=0))
    assert data.load_inputs([e], (4, 5, 3), Columns(id="id"))[0] == ["e/0", "e/1"]


def test_inputs_become_grey_or_rgb(tmp_path: Path) -> None:
    colour = pixels_of(2, 4, 5, 3)
    (tmp_path / "a.png").write_bytes(png(colour[0]))
    paths = [str(tmp_path / "a.png"), write_images(tmp_path / "b.parquet", colour, [0, 0])]
    _, inputs = data.load_inputs(paths, (4, 5, 1))
    expected = [np.asarray(Image.fromarray(c).convert("L")) for c in (colour[0], *colour)]
    assert np.array_equal(inputs[..., 0], expected)
    (tmp_path / "c.png").write_bytes(png(inputs[0]))
    assert np.array_equal(data.load_inputs([str(tmp_path / "c.png")], (4, 5, 3))[1][0, :, :, 1], inputs[0, :, :, 0])


def test_inputs_need_no_label_or_subject(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1.0, 2.0], "y": [3, 4]}), tmp_path / "f.parquet")
    np.save(tmp_path / "f.npy", np.ones((1, 2), np.float32))
    paths = [str(tmp_path / "f.parquet"), str(tmp_path / "f.npy")]
    _, inputs = data.load_inputs(paths, (2,), Columns(features=("x", "y"), subject="who"))
    assert inputs.dtype == np.float32
    assert inputs.tolist() == [[1, 3], [2, 4], [1, 1]]


@pytest.mark.parametrize(
    ("shape", "array", "rule"),
    [
        ((4, 4, 3), np.zeros((2, 4, 4, 3)), r"float64 \[2, 4, 4, 3\]: must be uint8 \[N, 4, 4, 3\]"),
        ((4, 4, 3), np.full((2, 4, 4, 3), 0.5, np.float32), r"float32 .*: must be uint8 .*\. Give pixels .* 0 to 255"),
        ((4, 4, 3), np.zeros((2, 4, 4, 3), np.int64), r"int64 \[2, 4, 4, 3\]: must be uint8"),
        ((3,), np.zeros((2, 3), np.uint8), r"uint8 \[2, 3\]: must be float32 \[N, 3\]"),
        ((4, 4, 3), np.zeros((2, 4, 4, 1), np.uint8), r"must be uint8 \[N, 4, 4, 3\]"),
        ((4, 4, 3), np.zeros((0, 4, 4, 3), np.uint8), "with N at least 1"),
        ((4, 4, 3), np.uint8(3), r"must be uint8 \[N, 4, 4, 3\]"),
        ((3,), np.zeros((2, 3)), r"float64 \[2, 3\]: must be float32 \[N, 3\]"),
        ((3,), np.zeros((2, 4), np.float32), r"must be float32 \[N, 3\]"),
        ((3,), np.array([[object()]]), "is no NumPy array: Object arrays"),
    ],
)
def test_wrong_arrays(tmp_path: Path, shape: tuple[int, ...], array: np.ndarray, rule: str) -> None:
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=rf"inputs = .*a.npy.*{rule}"):
        data.load_inputs([str(tmp_path / "a.npy")], shape)


def test_scaled_pixels_in_parquet_are_refused(tmp_path: Path) -> None:
    pixels = pa.FixedShapeTensorArray.from_numpy_ndarray(np.full((2, 4, 4, 3), 0.5, np.float32))
    pq.write_table(pa.table({"img": pixels, "label": [0, 1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="must be tensors of uint8"):
        data.load_inputs([str(tmp_path / "a.parquet")], (4, 4, 3))
    with pytest.raises(DataError, match="must be tensors of uint8"):
        data.load(DataConfig(source="parquet", train=str(tmp_path / "a.parquet"), num_classes=2))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_no_input_and_no_sample(tmp_path: Path, value: float) -> None:
    features = np.ones((5, 3), np.float32)
    features[2, 1], features[4, 0] = value, np.nan
    np.save(tmp_path / "a.npy", features)
    np.savez(tmp_path / "a.npz", features)
    for name in ("a.npy", "a.npz"):
        with pytest.raises(DataError, match=rf"{name}#2: must be finite numbers; .* is number 1 of the first of 2 row"):
            data.load_inputs([str(tmp_path / name)], (3,))
    with pytest.raises(DataError, match="images = s2: must be finite numbers"):
        make_samples(ids=[f"s{i}" for i in range(5)], images=features, labels=[0] * 5)


def test_wrong_inputs(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(pixels_of(1, 4, 5, 3)[0]))
    (tmp_path / "junk.npz").write_bytes(b"junk")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savez(tmp_path / "two.npz", x=np.zeros(1), y=np.zeros(1))
    write_images(tmp_path / "b.parquet", pixels_of(1, 4, 5, 3), [0])
    cases = [
        ("a.png", (4, 4, 3), r"a.png: is 4 x 5 pixels .*but 4 x 4 are expected"),
        ("a.png", (60,), r"a.png: is an image, but \[60\] is expected"),
        ("absent.png", (4, 4, 3), r"absent.png: cannot be read"),
        (".", (4, 4, 3), "cannot be read"),
        ("junk.npz", (4, 4, 3), "junk.npz: is no NumPy array"),
        ("empty.npy", (4, 4, 3), "empty.npy: is no NumPy array"),
        ("two.npz", (4, 4, 3), r"two.npz: must hold one array, but holds \['x', 'y'\]"),
        ("b.parquet", (5, 5, 3), r"row 0 of .*b.parquet: is 4 x 5 pixels"),
        ("b.parquet", (60,), r"b.parquet: is an image, but \[60\] is expected"),
        ("absent.parquet", (4, 4, 3), "inputs = .*absent.parquet: does not exist"),
    ]
    for name, shape, rule in cases:
        with pytest.raises(DataError, match=rule):
            data.load_inputs([str(tmp_path / name)], shape)
    with pytest.raises(DataError, match="at least one file"):
        data.load_inputs([], (4, 4, 3))
    with pytest.raises(ConfigError, match="whose columns are: id, img, label"):
        data.load_inputs([str(tmp_path / "b.parquet")], (4, 5, 3), Columns(image="picture"))
