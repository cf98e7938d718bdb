"""Torchvision's sets as samples: those that hold arrays, and those of single images.

Owns how a split is asked for. Ids are "NAME/train/00042", by the place in the set as torchvision has it.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from ray_sisa import images, local_path, uploads
from ray_sisa.config import DataConfig
from ray_sisa.errors import ConfigError, DataError, SisaError
from ray_sisa.image_form import Form
from ray_sisa.samples import Samples, make_samples


def load(config: DataConfig, *, has_arrays: bool) -> tuple[Samples, Samples]:
    """Training and test samples of a set.

    Args:
        config: whose `source` names the set.
        has_arrays: whether it holds all pixels as one array, and is no set of single images.

    Raises:
        ConfigError: no such set, no folder, or a set without a plain training and test split.
        DataError: a set that cannot be read, or images that are not of one form.
    """
    return _split(config, train=True, has_arrays=has_arrays), _split(config, train=False, has_arrays=has_arrays)


def count(config: DataConfig) -> int:
    """Number of training samples.

    Raises:
        ConfigError, DataError: as `load`.
    """
    return len(_open(config, config.source.partition(":")[2], train=True))


def _open(config: DataConfig, name: str, *, train: bool) -> Any:
    """One split of a torchvision set, as torchvision gives it."""
    from torchvision import datasets

    kind: Any = getattr(datasets, name, None)
    if datasets.VisionDataset not in getattr(kind, "__mro__", ()):
        raise ConfigError("data.source", config.source, "names no torchvision set", "For example torchvision:CIFAR10")
    if config.root is None:
        raise ConfigError("data.root", "none", f"must be the folder of {config.source}", "Set data.root")
    options = _options(kind, config, train=train)
    try:
        return kind(local_path.parse_field("data.root", config.root), **options)
    except SisaError:
        raise
    except Exception as error:  # absent, damaged, or its server is: torchvision's readers raise almost anything
        rule = f"does not hold {name}: {error}"
        remedy = uploads.remedy_of_absent(config.root, "Set data.download: true, or check data.root")
        raise DataError("data.root", config.root, rule, remedy) from error


def _options(kind: Any, config: DataConfig, *, train: bool) -> dict[str, Any]:
    """Arguments that choose the split: torchvision's sets have either `train` or `split`."""
    parameters = inspect.signature(kind).parameters
    required = [p.name for p in parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    split: dict[str, Any] = {"train": train} if "train" in parameters else {"split": "train" if train else "test"}
    if required != ["root"] or not split.keys() <= parameters.keys():
        rule = "is no set with just a train and a test split"
        raise ConfigError("data.source", config.source, rule, "Write it to Parquet, and use source: parquet")
    if not config.download:
        return split
    if "download" not in parameters:
        raise ConfigError("data.download", "true", f"{config.source} cannot be downloaded", "Fetch it by hand")
    return {**split, "download": True}


def _split(config: DataConfig, *, train: bool, has_arrays: bool) -> Samples:
    name = config.source.partition(":")[2]
    dataset = _open(config, name, train=train)
    prefix = f"{name}/{'train' if train else 'test'}"
    ids = [f"{prefix}/{i:05d}" for i in range(len(dataset))]
    if not ids:
        raise DataError("data.root", config.root, f"holds no samples of {prefix}", "Check the files")
    pixels, labels = _arrays(dataset) if has_arrays else _items(dataset, ids, Form.of(config))
    return make_samples(ids=ids, images=pixels, labels=labels)


def _arrays(dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels of a set that holds them as arrays: uint8 [N, H, W, C], int64 [N]."""
    pixels = np.asarray(dataset.data)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    elif pixels.shape[-1] != 3:  # SVHN is [N, C, H, W]
        pixels = pixels.transpose(0, 2, 3, 1)
    labels = dataset.targets if hasattr(dataset, "targets") else dataset.labels
    return np.ascontiguousarray(pixels), np.asarray(labels, dtype=np.int64)


def _items(dataset: Any, ids: Sequence[str], form: Form) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels of a set of (Pillow image, label) items: uint8 [N, H, W, C], int64 [N]."""
    labels = np.empty(len(ids), dtype=np.int64)
    with images.listed_formats_alone():
        shape = form.shape(lambda: images.to_array(_item(dataset, 0, ids[0])[0], ids[0], exif=form.exif).shape)
        pixels = np.empty((len(ids), *shape), dtype=np.uint8)
        for i, name in enumerate(ids):
            image, label = _item(dataset, i, name)
            pixels[i] = images.to_array(image, name, shape, fit=form.fit, exif=form.exif)
            labels[i] = _label(label, name)
    return pixels, labels


def _item(dataset: Any, i: int, name: str) -> tuple[Any, Any]:
    """Image and label of one sample, as the set opens it."""
    try:
        image, label = dataset[i]
    except SisaError:
        raise
    except Exception as error:
        raise images.unreadable(name, error) from error
    return image, label


def _label(label: Any, name: str) -> int:
    try:
        return operator.index(label)
    except TypeError:
        raise DataError("label", label, f"must be an integer, in {name}", "Use a classification set") from None
