"""Omniglot from torchvision's folder and from Parquet files: equal samples; labels by the published list.

Folders are written in the official layout, images of one bit as in the official archives; where torchvision asks for
the digest of an archive, the expected digest is all that is replaced.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ray_sisa import data, omniglot
from ray_sisa.config import DataConfig
from ray_sisa.config_values import make_config
from ray_sisa.errors import ConfigError, DataError
from ray_sisa.planning import plan_config
from ray_sisa.samples import Samples, image_digests, is_among, make_samples
from ray_sisa.slices import sort_by_id

SMALL1 = {"Balinese": 24, "Early_Aramaic": 22, "Greek": 24, "Korean": 40, "Latin": 26}  # characters of alphabets


def drawing(number: int) -> np.ndarray:
    """A picture of its own for each number: uint8 [105, 105], a stroke and the bits of the number in ink."""
    picture = np.full((105, 105), 255, np.uint8)
    picture[10:90, 50] = 0
    picture[2, [3 * bit for bit in range(16) if number >> bit & 1]] = 0
    return picture


def write(folder: Path, name: str, picture: np.ndarray) -> None:
    path = folder / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).convert("1").save(path)


def config(root: Path | None, **options: Any) -> DataConfig:
    given = None if root is None else str(root)
    return DataConfig.model_validate({"source": "torchvision:Omniglot", "root": given, "train": "small1", **options})


@pytest.fixture(scope="module")
def small1(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the alphabets of small1, 20 drawings of each character, never to be changed."""
    root = tmp_path_factory.mktemp("small1")
    number = 0
    for alphabet, characters in SMALL1.items():
        for character in range(1, characters + 1):
            for drawer in range(1, 21):
                name = f"{alphabet}/character{character:02d}/{character:04d}_{drawer:02d}"
                write(root / "omniglot-py" / "images_background", name, drawing(number))
                number += 1
    return root


@pytest.fixture
def greek_only(tmp_path: Path, small1: Path) -> Path:
    """A root with one alphabet of five."""
    inside = Path("omniglot-py", "images_background", "Greek")
    shutil.copytree(small1 / inside, tmp_path / "root" / inside)
    return tmp_path / "root"


def test_samples_of_a_split(small1: Path) -> None:
    loaded = data.load(config(small1))
    train = loaded.train
    assert loaded.test is None
    assert train.images.shape == (2720, 105, 105, 1) and train.images.dtype == np.uint8
    assert all(np.array_equal(image[..., 0], drawing(i)) for i, image in enumerate(train.images))
    assert (train.ids[0].as_py(), train.subjects[0].as_py()) == ("Balinese/character01/0001_01", "Balinese/01")
    assert (train.ids[-1].as_py(), train.subjects[-1].as_py()) == ("Latin/character26/0026_20", "Latin/20")
    assert len(train.subjects.unique()) == 5 * 20
    assert np.unique(train.labels).tolist() == [5, 11, 14, 20, 21]
    assert (loaded.num_classes, loaded.mean, loaded.std) == (50, (0.92,), (0.27,))
    assert data.count(config(small1)) == 2720


def test_characters_are_counted_over_all_alphabets(small1: Path) -> None:
    loaded = data.load(config(small1, columns={"label": "character"}))
    assert loaded.num_classes == 1623
    assert (loaded.train.labels[0], loaded.train.labels[-1]) == (156, 698)
    assert np.bincount(loaded.train.labels).tolist()[156:180] == [20] * 24


def test_splits_by_field(small1: Path) -> None:
    loaded = data.load(config(small1, test="small1", num_classes=60, mean=[0.5], std=[0.5]))
    assert loaded.test is not None and loaded.test.ids.equals(loaded.train.ids)
    assert (loaded.num_classes, loaded.mean, loaded.std) == (60, (0.5,), (0.5,))


def test_the_published_list() -> None:
    assert omniglot.NUM_CLASSES == {"alphabet": 50, "character": 1623}
    assert {name: len(alphabets) for name, alphabets in omniglot.SPLITS.items()} == {
        "background": 30,
        "evaluation": 20,
        "small1": 5,
        "small2": 5,
    }
    assert {*omniglot.SPLITS["small1"], *omniglot.SPLITS["small2"]} <= {*omniglot.SPLITS["background"]}


def test_a_run_can_be_planned(tmp_path: Path, small1: Path) -> None:
    run = {
        "name": "run",
        "data": {"source": "torchvision:Omniglot", "root": str(small1), "train": "small1"},
        "placement": {"shards": 2, "slices": 2},
        "recipe": {"model": "split_convnet", "epochs_per_slice": 2},
    }
    assert plan_config(make_config(run)).sample_passes == 2 * 1.5 * 2720


def test_download(tmp_path: Path, small1: Path, monkeypatch: pytest.MonkeyPatch, mirror: Callable[[Path], str]) -> None:
    from torchvision.datasets import Omniglot

    packed = Path(shutil.make_archive(str(tmp_path / "images_background"), "zip", small1 / "omniglot-py"))
    monkeypatch.setattr(Omniglot, "download_url_prefix", mirror(tmp_path).rstrip("/"))
    monkeypatch.setattr(Omniglot, "zips_md5", {"images_background": hashlib.md5(packed.read_bytes()).hexdigest()})
    with pytest.raises(DataError, match=r"does not hold omniglot-py/images_background"):
        data.count(config(tmp_path / "root"))
    assert data.count(config(tmp_path / "root", download=True)) == 2720
    packed.unlink()  # what is there is not fetched again
    assert data.count(config(tmp_path / "root", download=True)) == 2720


def test_failed_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import Omniglot

    monkeypatch.setattr(Omniglot, "download_url_prefix", (tmp_path / "nothing").as_uri())
    with pytest.raises(DataError, match=r"data.root = .*cannot be downloaded"):
        data.count(config(tmp_path, download=True))


def test_an_archive_that_is_not_unpacked(tmp_path: Path, small1: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import Omniglot

    folder = tmp_path / "omniglot-py"
    folder.mkdir()
    (folder / "images_background.zip").write_bytes(b"archive")
    monkeypatch.setattr(Omniglot, "zips_md5", {"images_background": hashlib.md5(b"archive").hexdigest()})
    with pytest.raises(DataError, match=r"Unpack images_background.zip there"):
        data.count(config(tmp_path, download=True))


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"train": "small3"}, r"data.train = small3: is no split .* background, evaluation, small1, small2"),
        ({"train": ["small1", "train"]}, r"data.train = train: is no split"),
        ({"test": "test"}, r"data.test = test: is no split"),
        ({"columns": {"label": "drawer"}}, r"data.columns.label = drawer: is no label .* alphabet or character"),
        ({"columns": {"label": "drawer"}, "num_classes": 5}, r"data.columns.label = drawer"),
    ],
)
def test_wrong_configurations(small1: Path, options: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        data.load(config(small1, **options))


def test_a_folder_must_be_named() -> None:
    with pytest.raises(ConfigError, match=r"data.root = none: must be the folder of torchvision:Omniglot"):
        data.load(config(None))


def test_a_folder_without_an_alphabet(greek_only: Path) -> None:
    with pytest.raises(DataError, match=r"lacks omniglot-py/images_background/Balinese. Unpack images_background.zip"):
        data.load(config(greek_only))
    with pytest.raises(DataError, match=r"does not hold omniglot-py/images_evaluation"):
        data.load(config(greek_only, train="evaluation"))


def test_images_that_are_missing_are_told(greek_only: Path, small1: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = greek_only / "omniglot-py" / "images_background"
    for alphabet in SMALL1.keys() - {"Greek"}:
        (folder / alphabet).symlink_to(small1 / "omniglot-py" / "images_background" / alphabet)
    (folder / "Greek" / "character03" / "0003_07.png").unlink()
    (folder / "Greek" / "character03" / "._0003_08.png").write_bytes(b"what some systems leave beside each file")
    with caplog.at_level(logging.WARNING):
        train = data.load(config(greek_only)).train
    assert len(train) == 2719 and "Greek/character03/0003_07" not in train.ids.to_pylist()
    assert "holds 2719 of the 2720 images of Omniglot's small1" in caplog.text


def test_a_damaged_image_is_named(greek_only: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(omniglot.SPLITS, "greek", ("Greek",))
    path = greek_only / "omniglot-py" / "images_background" / "Greek" / "character02" / "0002_05.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"image = Greek/character02/0002_05: is not a readable image"):
        data.load(config(greek_only, train="greek"))


# Images made smaller, and images that stand in two sets.


def samples_of(images: np.ndarray) -> Samples:
    return make_samples(ids=[str(i) for i in range(len(images))], images=images, labels=[0] * len(images))


@pytest.mark.parametrize("side", [105, 35, 21, 1])
def test_shrinking_takes_means(side: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 105, 105, 1), dtype=np.uint8)
    smaller = omniglot.shrink(samples_of(images), side)
    step = 105 // side
    for row, column in ((0, 0), (side - 1, side // 2)):
        square = images[:, row * step : (row + 1) * step, column * step : (column + 1) * step]
        assert np.array_equal(smaller.images[:, row, column], np.rint(square.mean((1, 2))))
    assert smaller.images.shape == (3, side, side, 1) and smaller.images.dtype == np.uint8
    assert smaller.ids.to_pylist() == ["0", "1", "2"]


@pytest.mark.parametrize(("shape", "side"), [((105, 105, 1), 50), ((105, 105, 1), 0), ((105, 35, 1), 35)])
def test_sizes_that_cannot_be_shrunk(shape: tuple[int, ...], side: int) -> None:
    with pytest.raises(DataError, match=f"images = .*to a side of {side}"):
        omniglot.shrink(samples_of(np.zeros((2, *shape), np.uint8)), side)


def test_overlap_is_of_pixels() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 6, 1), dtype=np.uint8)
    one, other = samples_of(images), samples_of(images[[4, 2, 4]])
    assert is_among(one, other).tolist() == [False, False, True, False, True]
    assert is_among(other, one).all()
    assert not is_among(samples_of(images[:2]), other).any()


# The real images, where a folder of them is named.


def from_parquet(folder: Path, split: str, label: str = "alphabet") -> Samples:
    columns = {"id": "id", "subject": "drawer", "image": "img", "label": label}
    path = str(folder / "omniglot" / f"{split}.parquet")
    given = {"source": "parquet", "train": path, "columns": columns, "num_classes": omniglot.NUM_CLASSES[label]}
    return sort_by_id(data.load(DataConfig.model_validate(given)).train)


@pytest.fixture(scope="module")
def unpacked(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both small splits as torchvision unpacks them."""
    root = tmp_path_factory.mktemp("omniglot")
    for split in ("small1", "small2"):
        samples = from_parquet(real_data, split)
        for name, image in zip(samples.ids.to_pylist(), samples.images, strict=True):
            write(root / "omniglot-py" / "images_background", name, image[..., 0])
    return root


def assert_same(one: Samples, other: Samples) -> None:
    assert one.ids.equals(other.ids) and one.subjects.equals(other.subjects)
    assert np.array_equal(one.labels, other.labels) and np.array_equal(one.images, other.images)


@pytest.mark.parametrize(("split", "label"), [("small1", "alphabet"), ("small2", "character")])
def test_both_ways_give_equal_samples(real_data: Path, unpacked: Path, split: str, label: str) -> None:
    loaded = data.load(config(unpacked, train=split, columns={"label": label}))
    assert_same(sort_by_id(loaded.train), from_parquet(real_data, split, label))


def test_torchvision_reads_the_same_images(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import Omniglot

    (unpacked / "omniglot-py" / "images_background.zip").write_bytes(b"archive")
    monkeypatch.setattr(Omniglot, "zips_md5", {"images_background": hashlib.md5(b"archive").hexdigest()})
    theirs = Omniglot(unpacked)
    ours = data.load(config(unpacked, train="small1")).train
    places = {Path(name).stem: i for i, (name, _) in enumerate(theirs._flat_character_images)}
    for row in range(0, len(ours), 97):
        image, _ = theirs[places[ours.ids[row].as_py().rpartition("/")[2]]]
        assert np.array_equal(np.asarray(image), ours.images[row, ..., 0])


@pytest.mark.parametrize(
    ("split", "num_images", "num_alphabets"), [("background", 19280, 30), ("evaluation", 13180, 20)]
)
def test_the_real_halves(real_data: Path, split: str, num_images: int, num_alphabets: int) -> None:
    samples = from_parquet(real_data, split)
    assert (len(samples), len(samples.subjects.unique())) == (num_images, 20 * num_alphabets)
    alphabets = [name.partition("/")[0] for name in samples.subjects.to_pylist()]
    assert {alphabet: int(label) for alphabet, label in zip(alphabets, samples.labels, strict=True)} == {
        name: number
        for number, name in enumerate(omniglot.SPLITS["background"] + omniglot.SPLITS["evaluation"])
        if name in omniglot.SPLITS[split]
    }
    ink = float((samples.images == 0).mean())
    assert 1 - ink == pytest.approx(omniglot.MEAN[0], abs=0.005)
    assert np.sqrt(ink * (1 - ink)) == pytest.approx(omniglot.STD[0], abs=0.01)


def test_the_small_splits_share_a_thousand_images(real_data: Path) -> None:
    small1, small2 = from_parquet(real_data, "small1"), from_parquet(real_data, "small2")
    shared = is_among(small2, small1)
    assert len({d for d, is_shared in zip(image_digests(small2), shared, strict=True) if is_shared}) == 1000
    held = [name for name, is_shared in zip(small2.ids.to_pylist(), shared, strict=True) if is_shared]
    assert len(held) == 1000 and {name.partition("/")[0] for name in held} == {"Greek", "Latin"}
