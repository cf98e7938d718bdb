"""Parquet files of every supported layout, written and read back; and each way in which a file can be wrong."""

from __future__ import annotations

import io
import logging
import pickle
import tempfile
import traceback
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ray_sisa import parquet
from ray_sisa.config import Columns, DataConfig
from ray_sisa.errors import ConfigError, DataError, SisaError
from ray_sisa.image_form import Form
from ray_sisa.samples import Samples

HUB = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
WITH_ID = Columns(id="id")


def png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(out, "PNG")
    return out.getvalue()


def random_images(count: int, shape: tuple[int, ...] = (4, 5, 3), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def hub_column(images: Sequence[np.ndarray]) -> pa.Array:
    return pa.array([{"bytes": png(image), "path": f"{i}.png"} for i, image in enumerate(images)], HUB)


def hub_table(images: Sequence[np.ndarray], **columns: object) -> pa.Table:
    """Images in the layout of data hubs, with ids "a0", "a1", ... and labels 0, 1, 2, 0, ..."""
    count = len(images)
    defaults = {"id": [f"a{i}" for i in range(count)], "label": [i % 3 for i in range(count)]}
    return pa.table({"img": hub_column(images), **defaults, **columns})


def write(folder: Path, table: pa.Table, name: str = "train.parquet") -> str:
    pq.write_table(table, folder / name, row_group_size=7)
    return str(folder / name)


def content(samples: Samples) -> set[tuple[str, bytes, int]]:
    rows = zip(samples.ids.to_pylist(), samples.images, samples.labels.tolist(), strict=True)
    return {(name, image.tobytes(), label) for name, image, label in rows}


# Layouts.


@pytest.mark.parametrize("shape", [(4, 5, 3), (4, 5, 1)])
def test_hub_layout(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = random_images(20, shape)
    samples = parquet.read(write(tmp_path, hub_table(images)), WITH_ID)
    assert np.array_equal(samples.images, images)
    assert samples.ids.to_pylist() == samples.subjects.to_pylist() == [f"a{i}" for i in range(20)]
    assert samples.labels.tolist() == [i % 3 for i in range(20)]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_plain_binary(tmp_path: Path, kind: pa.DataType) -> None:
    images = random_images(5)
    table = hub_table(images, img=pa.array([png(i) for i in images], kind))
    assert np.array_equal(parquet.read(write(tmp_path, table), WITH_ID).images, images)


@pytest.mark.parametrize("shape", [(4, 5, 3), (4, 5, 1), (4, 5)])
def test_fixed_shape_tensors(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = random_images(20, shape)
    table = hub_table(random_images(20), img=pa.FixedShapeTensorArray.from_numpy_ndarray(images))
    samples = parquet.read(write(tmp_path, table), WITH_ID)
    assert np.array_equal(samples.images, images.reshape(20, *shape[:2], -1))


def test_feature_columns(tmp_path: Path) -> None:
    table = pa.table({"x": [1, 2], "y": [0.5, -0.5], "z": pa.array([1, 2], pa.float32()), "label": [0, 1]})
    samples = parquet.read(write(tmp_path, table), Columns(features=("z", "y", "x")))
    assert samples.images.dtype == np.float32
    assert samples.images.tolist() == [[1.0, 0.5, 1.0], [2.0, -0.5, 2.0]]


def test_ids_and_subjects_become_text(tmp_path: Path) -> None:
    who = pa.array(["ann", "bob", "ann"]).dictionary_encode()
    table = hub_table(random_images(3), id=pa.array([7, -8, 2**40]), who=who, label=pa.array([0, 1, 2], pa.uint8()))
    samples = parquet.read(write(tmp_path, table), Columns(id="id", subject="who"))
    assert samples.ids.to_pylist() == ["7", "-8", "1099511627776"]
    assert samples.subjects.to_pylist() == ["ann", "bob", "ann"]


def test_more_rows_than_a_batch(tmp_path: Path) -> None:
    images = random_images(parquet.BATCH_ROWS + 10, (1, 2, 1))
    path = str(tmp_path / "large.parquet")
    pq.write_table(hub_table(images), path)
    assert np.array_equal(parquet.read(path, WITH_ID).images, images)


# Locations.


def test_folder_list_and_uri_give_the_same(tmp_path: Path) -> None:
    table = hub_table(random_images(12))
    files = [write(tmp_path, table.slice(6 * i, 6), f"part-{i}.parquet") for i in (1, 0)]
    (tmp_path / "README.txt").write_text("no data")
    forward = [f"a{i}" for i in range(12)]
    for location in (str(tmp_path), f"{tmp_path}/", tmp_path.as_uri(), files[::-1]):
        assert parquet.read(location, WITH_ID).ids.to_pylist() == forward
        assert parquet.count(location) == 12
    assert parquet.read(files, WITH_ID).ids.to_pylist() == forward[6:] + forward[:6]


def test_a_file_without_rows_among_others_is_skipped(tmp_path: Path) -> None:
    table = hub_table(random_images(4))
    write(tmp_path, table.slice(0, 0), "a.parquet")
    write(tmp_path, table, "b.parquet")
    assert len(parquet.read(str(tmp_path), WITH_ID)) == 4


def test_count_decodes_nothing(tmp_path: Path) -> None:
    table = hub_table(random_images(3), img=pa.array([b"no image"] * 3, pa.binary()))
    assert parquet.count(write(tmp_path, table)) == 3


@pytest.mark.parametrize("name", ["absent.parquet", "absent/", "file:///absent.parquet"])
def test_missing_file(tmp_path: Path, name: str) -> None:
    location = name if "://" in name else str(tmp_path / name)
    for read in (lambda: parquet.read(location, WITH_ID), lambda: parquet.count(location)):
        with pytest.raises(DataError, match=r"data.train = .*absent.*does not exist"):
            read()


def test_locations_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"without \*.parquet files"):
        parquet.read(str(tmp_path), WITH_ID)
    with pytest.raises(DataError, match=r"data.test = gopher://data/a.parquet: cannot be opened"):
        parquet.read("gopher://data/a.parquet", WITH_ID, "data.test")
    secret = "hunter2"
    with pytest.raises(DataError, match="holds credentials") as error:
        parquet.read(f"gopher://KEY:{secret}@data/a.parquet", WITH_ID)
    assert secret not in "".join(traceback.format_exception(error.value))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 but not for long")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        parquet.read(str(tmp_path), WITH_ID)


def test_a_file_damaged_in_the_middle(tmp_path: Path) -> None:
    path = Path(write(tmp_path, hub_table(random_images(50))))
    content = bytearray(path.read_bytes())
    content[10:2000] = bytes(1990)
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        parquet.read(str(path), WITH_ID)


@pytest.mark.parametrize("empty", [True, False])
def test_no_samples(tmp_path: Path, empty: bool) -> None:
    location = () if empty else write(tmp_path, hub_table(random_images(2)).slice(0, 0))
    with pytest.raises(DataError, match="holds no samples"):
        parquet.read(location, WITH_ID)


# Ids from content.


def test_content_ids_tell_duplicates_apart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images = random_images(3)[[0, 1, 0, 0, 2]]
    path = write(tmp_path, hub_table(images, label=[0, 1, 0, 1, 2]))
    with caplog.at_level(logging.INFO, logger="ray_sisa.parquet"):
        ids = parquet.read(path, Columns()).ids.to_pylist()
    assert ids[2] == f"{ids[0]}#2"
    assert ids[3].partition("#")[0] != ids[0], "the label is part of the id"
    assert all(len(i.partition("#")[0]) == 32 for i in ids)
    assert caplog.messages == [
        "No id column: 5 samples are named by a digest of their content; 1 repeat an earlier one"
    ]


def test_content_ids_are_fixed_for_ever(tmp_path: Path) -> None:
    table = hub_table(np.zeros((1, 2, 2, 1), np.uint8), label=[3])
    ids = parquet.read(write(tmp_path, table), Columns()).ids.to_pylist()
    assert ids == [blake2b(b'[3,"uint8",[2,2,1]]' + bytes(4), digest_size=32).hexdigest()[:32]]
    assert ids == ["0cab553302d7abade2054a83a442bdcd"]


@settings(max_examples=25)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.booleans(), st.data())
def test_order_of_rows_changes_no_sample(kinds: list[int], with_id: bool, data: st.DataObject) -> None:
    """The set of (id, pixels, label) does not depend on the order of rows, identical ones included."""
    order = data.draw(st.permutations(range(len(kinds))))
    table = hub_table(random_images(6, (2, 2, 1))[kinds], label=[kind % 2 for kind in kinds])
    columns = WITH_ID if with_id else Columns()
    with tempfile.TemporaryDirectory() as folder:
        before = parquet.read(write(Path(folder), table), columns)
        after = parquet.read(write(Path(folder), table.take(order)), columns)
    assert content(after) == content(before)
    assert len(content(before)) == len(kinds)


# Rows and columns that are wrong.


@pytest.mark.parametrize(
    ("columns", "field"),
    [
        (Columns(id="key"), "data.columns.id = key"),
        (Columns(subject="who"), "data.columns.subject = who"),
        (Columns(image="image"), "data.columns.image = image"),
        (Columns(label="fine"), "data.columns.label = fine"),
        (Columns(deletion_probability="risk"), "data.columns.deletion_probability = risk"),
        (Columns(features=("label", "x")), r"data.columns.features\[1\] = x"),
    ],
)
def test_wrong_column_name_lists_the_columns(tmp_path: Path, columns: Columns, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"{field}: .*whose columns are: img, id, label\. Correct"):
        parquet.read_with_probabilities(write(tmp_path, hub_table(random_images(2))), columns)


def test_no_feature_column(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must name at least one"):
        parquet.read(write(tmp_path, hub_table(random_images(2))), Columns(features=()))


@pytest.mark.parametrize(
    ("column", "values", "name"),
    [
        ("id", ["a", "b", None], "row 2 of"),
        ("who", ["ann", None, None], r"null in 2 row\(s\), first in a1 \(row 1 of"),
        ("label", [0, None, 1], "a1 "),
        ("img", pa.array([{"bytes": png(random_images(1)[0])}, None, None], HUB), "null in 2 .*a1 "),
        ("img", pa.array([{"path": "elsewhere.png"}] * 3, HUB), "null in 3 .*first in a0 "),
    ],
)
def test_nulls(tmp_path: Path, column: str, values: object, name: str) -> None:
    table = hub_table(random_images(3), **{"who": ["ann", "bob", "cid"], column: values})
    with pytest.raises(DataError, match=rf"null.*{name}.*Fill the column"):
        parquet.read(write(tmp_path, table), Columns(id="id", subject="who"))


def test_null_within_a_tensor(tmp_path: Path) -> None:
    kind = pa.fixed_shape_tensor(pa.uint8(), (1, 2))
    storage = pa.array([[1, 2], [3, None]], kind.storage_type)
    table = hub_table(random_images(2), img=pa.ExtensionArray.from_storage(kind, storage))
    with pytest.raises(DataError, match="null within tensors"):
        parquet.read(write(tmp_path, table), WITH_ID)


@pytest.mark.parametrize(
    ("column", "values", "rule"),
    [
        ("id", [0.5, 1.5], "id = double: must be strings or integers"),
        ("label", [0.0, 1.0], "label = double: must be integers"),
        ("label", ["cat", "dog"], "label = string: must be integers"),
        ("label", [True, False], "label = bool: must be integers"),
        ("img", ["a.png", "b.png"], "img = string: must be struct"),
        ("img", [{"path": "a.png"}] * 2, "must be struct{bytes, path}"),
        ("img", [{"bytes": "text"}] * 2, "must be struct{bytes, path}"),
        ("img", pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 4, 4))), "must be tensors of uint8"),
        ("img", pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 4), np.uint8)), "must be tensors of uint8"),
    ],
)
def test_wrong_types(tmp_path: Path, column: str, values: object, rule: str) -> None:
    with pytest.raises(DataError, match=f"{rule}.*train.parquet.*convert this one"):
        parquet.read(write(tmp_path, hub_table(random_images(2), **{column: values})), WITH_ID)


@pytest.mark.parametrize(
    ("values", "rule"),
    [(["a", "b"], "must be numbers"), ([1.0, float("nan")], "must be finite"), ([1e300, 0.0], "must be finite")],
)
def test_wrong_features(tmp_path: Path, values: object, rule: str) -> None:
    table = pa.table({"x": values, "label": [0, 1]})
    with pytest.raises(DataError, match=f"x = .*{rule}"):
        parquet.read(write(tmp_path, table), Columns(features=("x",)))


RISK = Columns(id="id", deletion_probability="risk")


@pytest.mark.parametrize("kind", ["float16", "float32", "float64", "dictionary"])
def test_deletion_probabilities(tmp_path: Path, kind: str) -> None:
    risks = pa.array([0.0, 0.5, 1.0, 0.25], pa.float64())
    stored = risks.dictionary_encode() if kind == "dictionary" else risks.cast(getattr(pa, kind)())
    path = write(tmp_path, hub_table(random_images(4), risk=stored))
    samples, found = parquet.read_with_probabilities(path, RISK)
    assert found.dtype == np.float64
    assert found.tolist() == risks.to_pylist()
    assert content(samples) == content(parquet.read(path, RISK))
    assert parquet.read_with_probabilities(path, WITH_ID)[1] is None


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ([0.5, None], "risk = null: is null in 1 row.*a1 "),
        ([0.5, 1.5], r"risk = 1.5: must be from 0 to 1, in a1 \(row 1 of .*1 of 2 rows"),
        ([-0.1, 0.5], "risk = -0.1: must be from 0 to 1, in a0 "),
        ([float("nan")] * 2, "risk = nan: must be from 0 to 1, in a0 .*2 of 2 rows"),
        ([0, 1], "risk = int64: must be floating-point numbers from 0 to 1"),
        (["high", "low"], "risk = string: must be floating-point"),
    ],
)
def test_wrong_deletion_probabilities(tmp_path: Path, values: object, rule: str) -> None:
    path = write(tmp_path, hub_table(random_images(2), risk=values))
    with pytest.raises(DataError, match=rule):
        parquet.read_with_probabilities(path, RISK)


def test_corrupt_image_is_named(tmp_path: Path) -> None:
    encoded = [png(i) for i in random_images(12)]
    encoded[9] = encoded[9][:40]
    path = write(tmp_path, hub_table(random_images(12), img=pa.array(encoded, pa.binary())))
    with pytest.raises(DataError, match=r"image = a9 \(row 9 of .*train.parquet\): is not a readable image"):
        parquet.read(path, WITH_ID)
    with pytest.raises(DataError, match=r"image = row 9 of .*train.parquet: is not a readable image"):
        parquet.read(path, Columns())


def test_unequal_sizes_are_named(tmp_path: Path) -> None:
    images = [*random_images(3), *random_images(2, (6, 5, 3))]
    with pytest.raises(DataError, match=r"a3 .*is 6 x 5 pixels \(height x width\), but 4 x 5 are expected"):
        parquet.read(write(tmp_path, hub_table(images)), WITH_ID)


def test_unequal_tensors_are_named(tmp_path: Path) -> None:
    for name, shape in (("a", (4, 5, 3)), ("b", (4, 4, 3))):
        tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(random_images(2, shape))
        write(tmp_path, hub_table(random_images(2), img=tensors), f"{name}.parquet")
    with pytest.raises(DataError, match=r"b.parquet: has shape \[4, 4, 3\], but \[4, 5, 3\] is expected"):
        parquet.read(str(tmp_path), Columns())


def test_duplicate_ids(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"twice.*must be unique"):
        parquet.read(write(tmp_path, hub_table(random_images(3), id=["a", "twice", "twice"])), WITH_ID)


def test_errors_survive_pickling(tmp_path: Path) -> None:
    with pytest.raises(SisaError) as error:
        parquet.read(str(tmp_path / "absent"), WITH_ID)
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


# The form of images.


def mixed_table() -> pa.Table:
    """Two coloured images and between them a grey one, and one that is stored as coloured and is grey."""
    colour, grey = random_images(2), random_images(1, (4, 5, 1))[0]
    return hub_table([colour[0], grey, colour[1], np.repeat(grey, 3, axis=2)])


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [1, 0, 3, 2], [3, 1], [1, 3]])
def test_mixed_images_are_refused_where_nothing_says_what_they_are_to_be(tmp_path: Path, order: list[int]) -> None:
    path = write(tmp_path, mixed_table().take(order))
    with pytest.raises(
        DataError, match=r"image = a\d .*nothing says what all are to be.*Set data.channels: 3, .* or 1"
    ):
        parquet.read(path, WITH_ID)
    assert parquet.read(path, WITH_ID, form=Form(channels=3)).shape == (4, 5, 3)


def test_grey_images_get_three_channels_and_coloured_ones_one(tmp_path: Path) -> None:
    path = write(tmp_path, mixed_table())
    three = parquet.read(path, WITH_ID, form=Form(channels=3)).images
    one = parquet.read(path, WITH_ID, form=Form(channels=1, may_lose_colour=True)).images
    assert np.array_equal(three[1], three[3])
    assert np.array_equal(three[1], np.repeat(one[1], 3, axis=2))
    assert np.array_equal(one[0, :, :, 0], np.asarray(Image.fromarray(three[0]).convert("L")))
    with pytest.raises(
        DataError, match=r"a0 .*is coloured, but one channel is expected.*data.channels: 1 .*three values"
    ):
        parquet.read(path, WITH_ID, form=Form(channels=1))
    grey = write(tmp_path, mixed_table().take([3, 1]))
    assert np.array_equal(parquet.read(grey, WITH_ID, form=Form(channels=1)).images, one[[3, 1]])


@pytest.mark.parametrize("channels", [1, 3])
def test_tensors_take_the_same_form_as_encoded_images(tmp_path: Path, channels: int) -> None:
    form = Form(channels=channels, may_lose_colour=True)
    for name, shape in (("a", (4, 5, 3)), ("b", (4, 5)), ("c", (4, 5, 1))):
        images = random_images(3, shape)
        tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(images)
        encoded = hub_table(images.reshape(3, 4, 5, -1), label=[0] * 3)
        write(tmp_path, encoded.drop_columns("img").append_column("img", tensors), f"{name}.parquet")
        write(tmp_path, encoded, f"{name}.encoded")
        read = [parquet.read(str(tmp_path / f), WITH_ID, form=form) for f in (f"{name}.parquet", f"{name}.encoded")]
        assert content(read[0]) == content(read[1])
    with pytest.raises(DataError, match="nothing says what all are to be"):
        parquet.read([str(tmp_path / f"{name}.parquet") for name in "ba"], Columns())
    with pytest.raises(DataError, match=r"has 1 channel\(s\), but 4 are expected"):
        parquet.read(str(tmp_path / "b.parquet"), Columns(), form=Form(channels=4))


def test_a_size_that_is_said_is_that_of_all(tmp_path: Path) -> None:
    path = write(tmp_path, hub_table([*random_images(1, (6, 5, 3)), *random_images(3)]))
    with pytest.raises(DataError, match=r"a0 .*is 6 x 5 pixels .*, but 4 x 5 are expected"):
        parquet.read(path, WITH_ID, form=Form(size=(4, 5)))
    with pytest.raises(DataError, match=r"a1 .*is 4 x 5 pixels .*, but 6 x 5 are expected"):
        parquet.read(path, WITH_ID)


def test_the_form_follows_from_the_configuration() -> None:
    def form(**settings: object) -> Form:
        return Form.of(DataConfig.model_validate({"source": "parquet", "train": "a", "num_classes": 2, **settings}))

    assert form() == Form()
    assert form(mean=[0.5], std=[0.5]) == Form(channels=1)
    assert form(channels=1, image_size=[4, 5]) == Form(channels=1, size=(4, 5), may_lose_colour=True)
    assert form(channels=3, image_size=32).shape(lambda: pytest.fail("an image was asked")) == (32, 32, 3)
    assert form(mean=[0.5], std=[0.5], columns={"features": ["x", "y"]}) == Form()
