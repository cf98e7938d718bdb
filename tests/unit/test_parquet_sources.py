"""Which files folders, patterns and lists mean, locally and on a server; and sources that share files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from ray_sisa import parquet, parquet_sources
from ray_sisa.config import Columns
from ray_sisa.errors import ConfigError, DataError

HUB = ("data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet")
HIVE = ("keyed/label=0/part-0.parquet", "keyed/label=1/part-0.parquet", "keyed/label=1/part-1.parquet")
OTHERS = ("data/README.md", "data/old/train-1.parquet", "data/.hidden.parquet.crc", "keyed/_SUCCESS")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with data in the layouts of hubs and of Hive."""
    for name in (*HUB, *HIVE, *OTHERS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(location: parquet_sources.Location) -> list[str]:
    return [os.path.normpath(file.name) for file in parquet_sources.find(location, "data.train")]


@pytest.mark.parametrize(
    ("location", "found"),
    [
        ("data", sorted(HUB)),
        ("data/", sorted(HUB)),
        ("data/train-*.parquet", HUB[:2]),
        ("./data/train-0000?-of-*.parquet", HUB[:2]),
        ("data/train-0000[1-9]-*", HUB[1:2]),
        ("*/test-*.parquet", HUB[2:]),
        ("data/**/train-*.parquet", ("data/old/train-1.parquet", *HUB[:2])),
        ("**/*.parquet", sorted((*HUB, *HIVE, "data/old/train-1.parquet"))),
        ("data/**", sorted((*HUB, "data/README.md", "data/old/train-1.parquet"))),
        ("keyed", HIVE),
        ("keyed/label=1", HIVE[1:]),
        ("keyed/*=*/*.parquet", HIVE),
        ((HUB[1], "data/test-*", HUB[0]), (HUB[1], HUB[2], HUB[0])),
    ],
)
def test_what_a_place_means(root: Path, location: str | tuple[str, ...], found: Sequence[str]) -> None:
    assert names(location) == list(found)
    parts = [location] if isinstance(location, str) else location
    absolute = [str(root / part) for part in parts]
    assert names(absolute) == [str(root / name) for name in found]
    if not any("?" in part for part in parts):  # which begins the options of a URI
        uris = [f"{root.as_uri()}/{part.removeprefix('./')}" for part in parts]
        assert names(uris) == [os.path.normpath(f"{root.as_uri()}/{name}") for name in found]


def test_a_name_that_is_there_is_no_pattern(root: Path) -> None:
    (root / "a[1].parquet").touch()
    (root / "a1.parquet").touch()
    assert names("a[1].parquet") == ["a[1].parquet"]
    (root / "a[1].parquet").unlink()
    assert names("a[1].parquet") == ["a1.parquet"]


def test_links_that_lead_around_in_circles_are_not_followed_by_a_pattern(root: Path) -> None:
    (root / "data/old/up").symlink_to(root / "data")
    (root / "data/old/again").symlink_to(root / "data")
    assert names("data/**/train-1.parquet") == ["data/old/train-1.parquet"]


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("data/old/absent-*.parquet", "is a pattern that no file matches. A pattern is for files"),
        ("keyed/label=*", "is a pattern that no file matches"),
        ("absent/*.parquet", "does not exist"),
        (".", r"without \*.parquet files; of the folders in it only those named KEY=VALUE are read. .*\*\*"),
    ],
)
def test_a_place_without_files(root: Path, location: str, error: str) -> None:
    with pytest.raises(DataError, match=rf"data.train = .*{error}"):
        parquet_sources.find(location, "data.train")


def test_files_beside_folders_of_a_key_are_refused(root: Path) -> None:
    (root / "keyed/label=1/more=1").mkdir()
    (root / "keyed/label=1/more=1/a.parquet").touch()
    with pytest.raises(DataError, match=r"keyed/label=1: holds both .* such as more=1.*data/\*=\*/\*.parquet"):
        parquet_sources.find("keyed", "data.train")


# Sources that share files.


@pytest.mark.parametrize(
    ("train", "test", "shared"),
    [
        ("data", HUB[2], 1),
        ("data", "data", 3),
        ("data", "data/t*.parquet", 3),
        ("data", ["keyed/label=0", HUB[0]], 1),
        (["data/train-*.parquet", "link.parquet"], HUB[2], 1),
        ("data", "hard.parquet", 1),
        ("twin", HUB[2], 1),
        ("**/*.parquet", "keyed/label=1", 2),
    ],
)
def test_a_test_source_within_the_training_source_is_refused(
    root: Path, train: str | list[str], test: str | list[str], shared: int
) -> None:
    (root / "link.parquet").symlink_to(root / HUB[2])
    (root / "hard.parquet").hardlink_to(root / HUB[2])
    (root / "twin").symlink_to(root / "data")
    if train == "**/*.parquet":
        (root / "link.parquet").unlink(), (root / "hard.parquet").unlink()
    rule = rf"data.test = .*shares {shared} of its \d file\(s\) with data.train.*train-\*.parquet, or set data.allow_"
    for as_uris in (False, True):
        place = [f"{root.as_uri()}/{part}" for part in ([test] if isinstance(test, str) else test)]
        with pytest.raises(DataError, match=rule):
            parquet_sources.check_apart(train, place if as_uris else test)


def test_sources_apart(root: Path) -> None:
    parquet_sources.check_apart("data/train-*.parquet", "data/test-*.parquet")
    parquet_sources.check_apart("data", "data/old")  # which is not read of the folder
    parquet_sources.check_apart("data", None)


def test_a_file_named_twice(root: Path) -> None:
    with pytest.raises(DataError, match=r"data.train = data/test.*stands twice in the source, the first time as "):
        parquet_sources.check_apart(["data", HUB[2]], None)
    with pytest.raises(DataError, match=r"data.test = .*stands twice"):
        parquet_sources.check_apart("keyed", [HUB[2], HUB[2]])


# Columns that folders name.


def write_keyed(root: Path, folders: dict[str, int]) -> str:
    """Two rows of features in each folder."""
    for i, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        table = pa.table({"x": [float(i), i + 0.5], "name": [f"{i}a", f"{i}b"]})
        pq.write_table(table, root / folder / "part.parquet")
    return str(root)


def test_labels_and_subjects_from_folders(tmp_path: Path) -> None:
    place = write_keyed(tmp_path, {"label=3/who=0%2F1": 0, "label=12/who=007": 0})
    columns = Columns(id="name", subject="who", features=("x",))
    for location in (place, f"{place}/*=*/*=*/*.parquet", Path(place).as_uri()):
        samples = parquet.read(location, columns)
        found = zip(samples.ids.to_pylist(), samples.labels.tolist(), samples.subjects.to_pylist(), strict=True)
        assert sorted(found) == [("0a", 3, "0/1"), ("0b", 3, "0/1"), ("1a", 12, "007"), ("1b", 12, "007")]
    assert parquet.first_row(place, columns).column_names == ["name", "x", "who", "label"]


def test_numbers_from_folders(tmp_path: Path) -> None:
    place = write_keyed(tmp_path, {"label=0/y=0.5": 0, "label=0/y=-2": 0})
    assert parquet.read(place, Columns(features=("x", "y"))).images.tolist() == [
        [1, -2],
        [1.5, -2],
        [0, 0.5],
        [0.5, 0.5],
    ]


def test_a_column_of_the_file_is_before_that_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "label=7").mkdir()
    pq.write_table(pa.table({"x": [1.0], "label": [2]}), tmp_path / "label=7/a.parquet")
    assert parquet.read(str(tmp_path), Columns(features=("x",))).labels.tolist() == [2]


@pytest.mark.parametrize(
    ("folder", "error"),
    [
        ("label=cat", "label = string: must be integers"),
        ("label=1.5", "label = double: must be integers"),
        ("label=1_0", "label = string: must be integers"),
        ("label=__HIVE_DEFAULT_PARTITION__", r"label = null: is null in 2 row\(s\)"),
        ("lable=1", "data.columns.label = label: must be the name of one column .*x, name, lable"),
    ],
)
def test_folders_that_say_no_label(tmp_path: Path, folder: str, error: str) -> None:
    with pytest.raises((DataError, ConfigError), match=error):
        parquet.read(write_keyed(tmp_path, {folder: 0}), Columns(features=("x",)))


# One way to name samples is as good as another.


def test_folder_list_and_pattern_give_the_same_samples(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 3, (30, 2)).astype(np.float32)  # with repeated ones, and no ids
    for i in range(3):
        part = rows[10 * i : 10 * i + 10]
        pq.write_table(pa.table({"x": part[:, 0], "y": part[:, 1], "label": [0] * 10}), tmp_path / f"p{i}.parquet")
    columns = Columns(features=("x", "y"))
    listed = [str(tmp_path / f"p{i}.parquet") for i in (2, 0, 1)]
    read = [parquet.read(place, columns) for place in (str(tmp_path), f"{tmp_path}/p*.parquet", listed)]
    contents = [set(zip(s.ids.to_pylist(), map(bytes, s.images), strict=True)) for s in read]
    assert len(contents[0]) == 30
    assert contents[0] == contents[1] == contents[2]
