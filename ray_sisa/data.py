"""Data sources as samples: scikit-learn's digits, torchvision sets, Parquet files; and inputs for prediction.

Owns the constants that describe a source: class count, and mean and standard deviation of a channel. They are
published or configured, never computed from samples, which may be deleted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ray_sisa import array_files, omniglot, parquet, parquet_sources, torchvision_sets
from ray_sisa.config import Columns, DataConfig
from ray_sisa.data_config import Exif
from ray_sisa.errors import ConfigError, DataError
from ray_sisa.ids import shown
from ray_sisa.image_form import Form
from ray_sisa.preprocessing import CIFAR10, CIFAR100
from ray_sisa.samples import Samples, check_finite, make_samples


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """Training and test samples, and the constants that describe them.

    Pixels are kept as they were stored, uint8 from 0 to 255: whatever scales them, `mean` and `std` do so on the
    device. Floating-point images are refused, since nothing says whether they were scaled already; float32 is for
    feature vectors (`samples.make_samples` checks both).

    Attributes:
        train: samples to train on; at least one.
        test: samples of the same shape to test on, or None.
        num_classes: labels are 0 .. num_classes - 1.
        mean: what to subtract: of each channel, images scaled to [0, 1]; of each feature, or of all.
        std: what to divide by after that, likewise.
        deletion_probabilities: float64 [N], how likely the subject of each training sample is to ask for deletion,
            or None; for placements that depend on it. It must have been known before anybody asked.
        configured: whether somebody gave mean and std for this use; else known weights bring their own.
        has_names: whether equal ids mean the same sample, in the training and in the test set, as ids of a column do;
            else only content tells.
        is_published: whether the publisher of the data cut them into training and test set.

    Raises:
        DataError: labels out of range, splits of different shapes, or probabilities that are outside 0..1 or not one
            value a subject.
    """

    train: Samples
    test: Samples | None
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    deletion_probabilities: np.ndarray | None = None
    configured: bool = True
    has_names: bool = False
    is_published: bool = False

    def __post_init__(self) -> None:
        if self.test is not None and self.test.shape != self.train.shape:
            rule = f"must have the shape of the training samples, {list(self.train.shape)}"
            remedy = "Bring both splits to one shape; data.channels does so for grey and coloured images"
            raise DataError("test samples", list(self.test.shape), rule, remedy)
        for split in (self.train, self.test):
            if split is not None:
                _check_labels(split, self.num_classes)
        if self.deletion_probabilities is not None:
            _check_probabilities(self.train, self.deletion_probabilities)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Constants:
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


# Constants in common use of the public sets, so none depends on the samples that a run holds or deletes.
_PUBLISHED = {
    "digits": _Constants(num_classes=10, mean=(0.3,), std=(0.38,)),
    "torchvision:MNIST": _Constants(num_classes=10, mean=(0.1307,), std=(0.3081,)),
    "torchvision:FashionMNIST": _Constants(num_classes=10, mean=(0.2860,), std=(0.3530,)),
    "torchvision:CIFAR10": _Constants(num_classes=10, mean=CIFAR10[0], std=CIFAR10[1]),
    "torchvision:CIFAR100": _Constants(num_classes=100, mean=CIFAR100[0], std=CIFAR100[1]),
    omniglot.SOURCE: _Constants(num_classes=omniglot.NUM_CLASSES["alphabet"], mean=omniglot.MEAN, std=omniglot.STD),
    "torchvision:SVHN": _Constants(num_classes=10, mean=(0.4377, 0.4438, 0.4728), std=(0.1980, 0.2010, 0.1970)),
}
_NUM_DIGITS = 1797
_PROBABILITIES = "deletion_probabilities"


def load(config: DataConfig) -> Dataset:
    """The samples of a source, checked, with its constants.

    Mean and standard deviation are those configured; else the published ones of a known set; else 0.5 and 0.5 of each
    channel of images, 0 and 1 of features. Ids: "digits/0000", "NAME/train/00042" for torchvision, those of its files
    for Omniglot, and for Parquet the id column or a digest of the content (`parquet.read`).

    Raises:
        ConfigError: constants or columns that are missing or do not fit the source.
        DataError: samples that cannot be read, or that break a rule.
    """
    check_apart(config)
    return _load(config)


def _load(config: DataConfig) -> Dataset:
    known = _PUBLISHED.get(config.source)
    num_classes = config.num_classes or _num_classes(config)
    if num_classes is None:
        raise _unknown_set(config, "data.num_classes")
    if known is not None and (config.channels or config.size):
        field = "data.channels" if config.channels else "data.image_size"
        rule = f"must be left out: images of {config.source} are all of one form"
        raise ConfigError(field, config.channels or config.image_size, rule, "Leave it out")
    if config.source.startswith("torchvision:") and known is None and config.mean is None:
        raise _unknown_set(config, "data.mean, data.std")
    train, test, probabilities = _splits(config)
    mean, std = _scaling(config, train.shape)
    return Dataset(
        train=train,
        test=test,
        num_classes=num_classes,
        mean=mean,
        std=std,
        deletion_probabilities=probabilities,
        configured=config.mean is not None,
        has_names=config.columns.id is not None if config.source == "parquet" else True,
        is_published=config.source not in ("parquet", omniglot.SOURCE),
    )


def check_apart(config: DataConfig) -> None:
    """Passes if no file of a Parquet source is named twice, or as training and as test file; reads none.

    Raises:
        DataError: one is, and `allow_overlap` does not let it through.
    """
    if config.source == "parquet" and config.train is not None:
        parquet_sources.check_apart(config.train, None if config.allow_overlap else config.test)


def load_training(config: DataConfig, shape: tuple[int, ...]) -> Samples:
    """The training samples alone, for a run that exists, in the shape that its records have.

    What was judged when the run was created is not judged again.

    Raises:
        ConfigError, DataError: as `load`.
    """
    columns = config.columns.model_copy(update={"deletion_probability": None})  # placement is fixed
    only = config.model_copy(update={"columns": columns, "test": None})
    if len(shape) == 3 and columns.features is None and config.source not in _PUBLISHED:
        only = only.model_copy(update={"channels": shape[2], "image_size": shape[:2]})
    return _load(only).train


def count(config: DataConfig) -> int:
    """Number of training samples; of Parquet files from their metadata, so nothing is decoded.

    Raises:
        ConfigError, DataError: a source that cannot be found.
    """
    kind = config.source.partition(":")[0]
    if kind == "digits":
        return int(_digits_for_training().sum())
    if config.source == omniglot.SOURCE:
        return omniglot.count(config)
    if kind == "torchvision":
        return torchvision_sets.count(config)
    assert config.train is not None  # a rule of DataConfig
    return parquet.count(config.train)


def load_inputs(
    paths: Sequence[str], shape: tuple[int, ...], columns: Columns | None = None, exif: Exif | None = None
) -> tuple[list[str], np.ndarray]:
    """Inputs to predict: a name for each, and one array of all.

    Args:
        paths: image files, which become grey or RGB as `shape` says but are not resized; .npy or .npz files of one
            array; .parquet files.
        shape: of one input, (H, W, C) or (D,).
        columns: of Parquet files, where they differ from the default names; the label need not be there.
        exif: what to do about orientation tags, as the run did; `apply` by default.

    Returns:
        names: the path of an image, "PATH#row" in an array, the id or "PATH#row" in Parquet.
        inputs: uint8 [N, H, W, C] or float32 [N, D].

    Raises:
        ConfigError: Parquet columns that are not there.
        DataError: a file that cannot be read, or holds numbers that are not finite or another shape or kind of array:
            images must be uint8, so floating-point pixels, scaled or not, are refused.
    """
    if not paths:
        raise DataError("inputs", "()", "must be at least one file", "Name image, .npy, .npz or .parquet files")
    parts = [_inputs(path, shape, columns or Columns(), exif) for path in paths]
    return [name for names, _ in parts for name in names], np.concatenate([array for _, array in parts])


def _num_classes(config: DataConfig) -> int | None:
    """Classes of a set that is known."""
    if config.source == omniglot.SOURCE:
        return omniglot.num_classes(config)
    known = _PUBLISHED.get(config.source)
    return known.num_classes if known else None


def _unknown_set(config: DataConfig, field: str) -> ConfigError:
    rule = f"must be given for {config.source}: it is not computed from data that may be deleted"
    known = ", ".join(source.partition(":")[2] for source in _PUBLISHED if ":" in source)
    return ConfigError(field, "none", rule, f"Known are those of {known}")


def _scaling(config: DataConfig, shape: tuple[int, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation for records of `shape`."""
    known = _PUBLISHED.get(config.source)
    if config.mean is not None and config.std is not None:
        mean, std = config.mean, config.std
    elif known is not None:
        mean, std = known.mean, known.std
    elif len(shape) == 1:
        mean, std = (0.0,), (1.0,)
    else:
        mean, std = (0.5,) * shape[-1], (0.5,) * shape[-1]
    allowed = {shape[-1]} if len(shape) == 3 else {1, shape[-1]}
    for field, value in (("data.mean", mean), ("data.std", std)):
        if len(value) not in allowed:
            rule = f"must have {' or '.join(map(str, sorted(allowed)))} value(s) for records of shape {list(shape)}"
            raise ConfigError(field, value, rule, "Give one for each channel")
    return mean, std


def _check_labels(samples: Samples, num_classes: int) -> None:
    bad = np.flatnonzero((samples.labels < 0) | (samples.labels >= num_classes))
    if len(bad):
        some = {samples.ids[int(i)].as_py(): int(samples.labels[i]) for i in bad[:5]}
        rule = f"must be from 0 to num_classes - 1 = {num_classes - 1}; {len(bad)} sample(s) break this"
        raise DataError("label", some, rule, "Correct data.num_classes or the label column")


def _check_probabilities(train: Samples, probabilities: np.ndarray) -> None:
    if probabilities.dtype != np.float64 or probabilities.shape != (len(train),):
        value = f"{probabilities.dtype} {list(probabilities.shape)}"
        raise DataError(
            _PROBABILITIES, value, f"must be float64 [{len(train)}], one for each training sample", "Convert them"
        )
    bad = np.flatnonzero(~((probabilities >= 0) & (probabilities <= 1)))  # NaN is neither
    if len(bad):
        some = {train.ids[int(i)].as_py(): float(probabilities[i]) for i in bad[:5]}
        raise DataError(_PROBABILITIES, some, f"must be from 0 to 1; {len(bad)} sample(s) break this", "Correct them")
    who = train.subjects.dictionary_encode()
    codes = who.indices.to_numpy()
    of_subject = np.empty(len(who.dictionary))
    of_subject[codes] = probabilities
    differing = np.unique(codes[of_subject[codes] != probabilities])
    if len(differing):
        named = ", ".join(shown(who.dictionary[int(i)].as_py()) for i in differing[:5])
        rule = f"must be one value a subject, since requests are; {len(differing)} subject(s) have several"
        raise DataError(
            _PROBABILITIES, named, rule, "Give all samples of a subject the probability that the subject asks"
        )


def _splits(config: DataConfig) -> tuple[Samples, Samples | None, np.ndarray | None]:
    """Training and test samples, and the deletion probabilities of the former."""
    kind = config.source.partition(":")[0]
    if kind == "digits":
        return *_digits(), None
    if config.source == omniglot.SOURCE:
        return *omniglot.load(config), None
    if kind == "torchvision":
        return *torchvision_sets.load(config, has_arrays=config.source in _PUBLISHED), None
    assert config.train is not None  # a rule of DataConfig
    form = Form.of(config)
    train, probabilities = parquet.read_with_probabilities(config.train, config.columns, "data.train", form)
    test = None if config.test is None else parquet.read(config.test, config.columns, "data.test", form)
    return train, test, probabilities


def _digits_for_training() -> np.ndarray:
    """Which of the digits are for training, bool [1797]: every fifth is for testing."""
    return np.not_equal(np.arange(_NUM_DIGITS) % 5, 4)


def _digits() -> tuple[Samples, Samples]:
    from sklearn.datasets import load_digits

    grey, labels = load_digits(return_X_y=True)  # float64 [1797, 64] from 0 to 16
    samples = make_samples(
        ids=[f"digits/{i:04d}" for i in range(_NUM_DIGITS)],
        images=np.rint(grey * 255 / 16).astype(np.uint8).reshape(_NUM_DIGITS, 8, 8, 1),
        labels=labels,
    )
    for_training = _digits_for_training()
    return samples.take(np.flatnonzero(for_training)), samples.take(np.flatnonzero(~for_training))


def _inputs(path: str, shape: tuple[int, ...], columns: Columns, exif: Exif | None) -> tuple[list[str], np.ndarray]:
    suffix = Path(path).suffix.lower()
    if suffix == ".parquet":
        return parquet.read_inputs(path, columns, shape, exif)
    try:
        if suffix in {".npy", ".npz"}:
            array = array_files.read_array(path, shape)
            check_finite(array, "inputs", lambda row: f"{path}#{row}")
            return [f"{path}#{i}" for i in range(len(array))], array
        content = array_files.read_bytes(path)
    except OSError as error:
        raise DataError("inputs", path, f"cannot be read: {error}", "Check the path") from error
    if len(shape) != 3:
        raise DataError("inputs", path, f"is an image, but {list(shape)} is expected", "Give feature vectors")
    return [path], Form.of_run(shape, exif).decode(content, path, shape)[None]
