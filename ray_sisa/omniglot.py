"""Omniglot (Lake, Salakhutdinov and Tenenbaum 2015): alphabets, splits, and images from torchvision's folder.

Owns how labels are numbered: by the published list of alphabets, never by what lies on a disk. torchvision is asked for
nothing but the download: it numbers characters by the order of a folder, and knows no alphabet, drawer or small split.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ray_sisa import images, local_path, uploads
from ray_sisa.config import DataConfig
from ray_sisa.errors import ConfigError, DataError
from ray_sisa.samples import Samples, make_samples

logger = logging.getLogger(__name__)

SOURCE = "torchvision:Omniglot"
SHAPE = (105, 105, 1)
MEAN, STD = (0.92,), (0.27,)
"""Of paper 1 and ink 0, of which there is 8 %: 1 - 0.08, and the root of 0.08 * 0.92."""

_BACKGROUND = {
    "Alphabet_of_the_Magi": 20,
    "Anglo-Saxon_Futhorc": 29,
    "Arcadian": 26,
    "Armenian": 41,
    "Asomtavruli_(Georgian)": 40,
    "Balinese": 24,
    "Bengali": 46,
    "Blackfoot_(Canadian_Aboriginal_Syllabics)": 14,
    "Braille": 26,
    "Burmese_(Myanmar)": 34,
    "Cyrillic": 33,
    "Early_Aramaic": 22,
    "Futurama": 26,
    "Grantha": 43,
    "Greek": 24,
    "Gujarati": 48,
    "Hebrew": 22,
    "Inuktitut_(Canadian_Aboriginal_Syllabics)": 16,
    "Japanese_(hiragana)": 52,
    "Japanese_(katakana)": 47,
    "Korean": 40,
    "Latin": 26,
    "Malay_(Jawi_-_Arabic)": 40,
    "Mkhedruli_(Georgian)": 41,
    "N_Ko": 33,
    "Ojibwe_(Canadian_Aboriginal_Syllabics)": 14,
    "Sanskrit": 42,
    "Syriac_(Estrangelo)": 23,
    "Tagalog": 17,
    "Tifinagh": 55,
}
_EVALUATION = {
    "Angelic": 20,
    "Atemayar_Qelisayer": 26,
    "Atlantean": 26,
    "Aurek-Besh": 26,
    "Avesta": 26,
    "Ge_ez": 26,
    "Glagolitic": 45,
    "Gurmukhi": 45,
    "Kannada": 41,
    "Keble": 26,
    "Malayalam": 47,
    "Manipuri": 40,
    "Mongolian": 30,
    "Old_Church_Slavonic_(Cyrillic)": 45,
    "Oriya": 46,
    "Sylheti": 28,
    "Syriac_(Serto)": 23,
    "Tengwar": 25,
    "Tibetan": 42,
    "ULOG": 26,
}
_CHARACTERS = _BACKGROUND | _EVALUATION  # of each alphabet, in the order in which labels count
_DRAWERS = 20
NUM_CLASSES = {"alphabet": len(_CHARACTERS), "character": sum(_CHARACTERS.values())}
"""Classes by what is the label."""

SPLITS: dict[str, tuple[str, ...]] = {
    "background": tuple(_BACKGROUND),
    "evaluation": tuple(_EVALUATION),
    "small1": ("Balinese", "Early_Aramaic", "Greek", "Korean", "Latin"),
    "small2": ("Greek", "Japanese_(katakana)", "Latin", "Sanskrit", "Tagalog"),
}
"""Alphabets of each split. The small ones are parts of `background`, and share Greek and Latin."""

_FOLDER = "omniglot-py"  # torchvision's name
_FILE = re.compile(r"\d{4}_\d{2}\.png")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Drawing:
    """One image file, and what its place says of it."""

    path: Path
    alphabet: str
    character: int
    """From 1, within the alphabet."""

    @property
    def id(self) -> str:
        return f"{self.alphabet}/character{self.character:02d}/{self.path.stem}"

    @property
    def drawer(self) -> str:
        return f"{self.alphabet}/{self.path.stem.partition('_')[2]}"


def load(config: DataConfig) -> tuple[Samples, Samples | None]:
    """Training and test samples of the splits that `config` names: uint8 [N, 105, 105, 1], ink 0 and paper 255.

    Ids are "ALPHABET/character01/0123_05", subjects the drawers of an alphabet: "ALPHABET/05". Labels count the 50
    alphabets or the 1,623 characters of both halves, whichever half is read.

    Raises:
        ConfigError: an unknown split or label, or no folder.
        DataError: images that are absent, cannot be fetched or are damaged.
    """
    num_classes(config)  # a label that is none shows before images are read
    train = _samples(config, "data.train", config.train or "background")
    return train, None if config.test is None else _samples(config, "data.test", config.test)


def count(config: DataConfig) -> int:
    """Number of training samples, of which none is read.

    Raises:
        ConfigError, DataError: as `load`.
    """
    return len(_drawings(config, "data.train", config.train or "background"))


def num_classes(config: DataConfig) -> int:
    """Classes of what `data.columns.label` names.

    Raises:
        ConfigError: it is neither `alphabet` nor `character`.
    """
    return NUM_CLASSES[_label(config)]


def shrink(samples: Samples, side: int) -> Samples:
    """The samples with images of `side` x `side` pixels, each the mean of a square of pixels, rounded.

    Raises:
        DataError: images that are not square, or of a side that `side` does not divide.
    """
    shape = samples.shape
    if len(shape) != 3 or shape[0] != shape[1] or side < 1 or shape[0] % side:
        rule = f"cannot be shrunk to a side of {side} by the means of whole squares"
        raise DataError("images", list(shape), rule, "Give square images, and a divisor of their side")
    step = shape[0] // side
    squares = samples.images.reshape(len(samples), side, step, side, step, shape[2])
    sums = squares.sum((2, 4), dtype=np.uint32)
    means = ((sums + step * step // 2) // (step * step)).astype(np.uint8)
    return Samples(ids=samples.ids, subjects=samples.subjects, images=means, labels=samples.labels)


def _label(config: DataConfig) -> str:
    name = config.columns.label
    # `label` stands in every configuration that was written out, whoever named it.
    name = "alphabet" if name == "label" else name
    if name not in NUM_CLASSES:
        raise ConfigError("data.columns.label", name, f"is no label of {SOURCE}", f"Choose {' or '.join(NUM_CLASSES)}")
    return name


def _samples(config: DataConfig, field: str, splits: str | tuple[str, ...]) -> Samples:
    drawings = _drawings(config, field, splits)
    names = list(_CHARACTERS)
    alphabets = np.array([names.index(d.alphabet) for d in drawings])
    # The characters of all alphabets before this one come first.
    before = np.array([0, *itertools.accumulate(_CHARACTERS.values())])
    labels = alphabets
    if _label(config) == "character":
        labels = before[alphabets] + np.array([d.character for d in drawings]) - 1
    pixels = np.empty((len(drawings), *SHAPE), np.uint8)
    for i, drawing in enumerate(drawings):
        pixels[i] = images.decode(_bytes(config, drawing.path), drawing.id, SHAPE, exif=config.exif)
    return make_samples(
        ids=[d.id for d in drawings], subjects=[d.drawer for d in drawings], images=pixels, labels=labels
    )


def _bytes(config: DataConfig, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        rule = f"does not let {path.name} be read: {error}"
        raise DataError("data.root", config.root, rule, "Check the folder") from error


def _drawings(config: DataConfig, field: str, splits: str | tuple[str, ...]) -> list[_Drawing]:
    """The images of splits, each once, by alphabet, character and drawer."""
    names = (splits,) if isinstance(splits, str) else splits
    for name in names:
        if name not in SPLITS:
            raise ConfigError(field, name, f"is no split of {SOURCE}", f"Choose of {', '.join(SPLITS)}")
    alphabets = dict.fromkeys(alphabet for name in names for alphabet in SPLITS[name])
    found = [d for alphabet in alphabets for d in _drawings_of(config, alphabet)]
    expected = _DRAWERS * sum(_CHARACTERS[alphabet] for alphabet in alphabets)
    if len(found) != expected:
        logger.warning(
            "%s: %s holds %s of the %s images of Omniglot's %s",
            *(field, config.root, len(found), expected, ", ".join(names)),
        )
    return found


def _drawings_of(config: DataConfig, alphabet: str) -> Iterator[_Drawing]:
    folder = _half(config, background=alphabet in _BACKGROUND) / alphabet
    if not folder.is_dir():
        rule = f"lacks {folder.relative_to(folder.parents[2])}"
        raise DataError(
            "data.root", config.root, rule, f"Unpack {folder.parent.name}.zip in its folder {_FOLDER} again"
        )
    for character in range(1, _CHARACTERS[alphabet] + 1):
        files = (folder / f"character{character:02d}").glob("*.png")
        for path in sorted(path for path in files if _FILE.fullmatch(path.name)):
            yield _Drawing(path=path, alphabet=alphabet, character=character)


def _half(config: DataConfig, *, background: bool) -> Path:
    """Folder of the alphabets of one half, fetched by torchvision where that is asked for and it is not there."""
    if config.root is None:
        raise ConfigError("data.root", "none", f"must be the folder of {SOURCE}", "Set data.root")
    root = local_path.parse_field("data.root", config.root)
    folder = root / _FOLDER / f"images_{'background' if background else 'evaluation'}"
    if folder.is_dir():
        return folder
    if config.download:
        _download(config, root, background=background)
    if not folder.is_dir():
        rule = f"does not hold {_FOLDER}/{folder.name}"
        remedy = f"Unpack {folder.name}.zip there, or set data.download: true"
        raise DataError("data.root", config.root, rule, uploads.remedy_of_absent(config.root, remedy))
    return folder


def _download(config: DataConfig, root: Path, *, background: bool) -> None:
    from torchvision.datasets import Omniglot

    try:
        Omniglot(root, background=background, download=True)
    except FileNotFoundError:
        return  # an archive lay there already, and torchvision unpacks only what it has just fetched: the caller tells
    except (OSError, RuntimeError, ValueError) as error:  # the server does not answer, or sends something else
        rule = f"does not hold Omniglot, which cannot be downloaded: {error}"
        raise DataError("data.root", config.root, rule, "Fetch it by hand, or check data.root") from error
