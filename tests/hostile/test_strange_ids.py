"""Ids of every kind live a whole life: ingested, forgotten in Python and on the command line, verified, evaluated.

Two that look equal stay two, none becomes a path, and what can be no id is refused by name.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_runs import digits, files_of, folder_of, small_config
from typer.testing import CliRunner

from ray_sisa import ids
from ray_sisa.cli import app
from ray_sisa.errors import DataError, RequestError
from ray_sisa.run import Run
from ray_sisa.samples import Samples, make_samples

STRANGE = [
    "a/b",
    "..",
    "../../../etc/passwd",
    "/",
    "C:\\con",
    "",
    " outer spaces ",
    "a,b",
    "a#2",
    "%2e%2e%2f",
    '"quoted"',
    "line\nbreak",
    "\r\n",
    "nul\0byte",
    "\u2028",
    "\ufeffmark",
    "\u202egnp.exe",
    "\x1b[2J",
    "\u00e9",
    "e\u0301",
    "\U0001f993",
    "\uffff",
    "x" * 10_000,
    "7",
    "007",
    "-8",
]
LAYOUT = re.compile(r"[a-z]+(\.json|/[0-9a-zA-Z.-]+(/[a-z-]+\.[a-z]+)?)")
PLACEMENT = {"shards": 2, "slices": 2, "key": "k"}


def strange_samples() -> Samples:
    """80 digits, of which the first have strange ids; each is its own subject."""
    plain = digits(0, 80)
    names = STRANGE + plain.ids.to_pylist()[len(STRANGE) :]
    return make_samples(ids=names, images=plain.images, labels=plain.labels)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained on strange ids out of a Parquet file."""
    folder = tmp_path_factory.mktemp("strange")
    for name, samples in (("train", strange_samples()), ("test", digits(80, 40))):
        images = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(samples.images))
        pq.write_table(
            pa.table({"id": samples.ids, "img": images, "label": samples.labels}), folder / f"{name}.parquet"
        )
    columns = {"id": "id", "subject": None, "image": "img", "label": "label"}
    data = {"train": str(folder / "train.parquet"), "test": str(folder / "test.parquet"), "columns": columns}
    run = Run.create(small_config(folder / "runs", data=data, placement=PLACEMENT))
    run.train(runner="local")
    return run


def answer(*arguments: object, code: int = 0) -> dict[str, Any]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == code, result.output
    fields: dict[str, Any] = json.loads(result.stdout)
    return fields


def test_a_whole_life(run: Run, tmp_path: Path) -> None:
    in_python, in_file, on_line = STRANGE[:12], STRANGE[12:-2], STRANGE[-2:]
    assert run.forget(samples=in_python).samples == len(in_python)
    path = tmp_path / "ids.jsonl"
    path.write_text("\n".join(json.dumps(name) for name in in_file))
    assert answer("forget", run.store.uri, "--from", path)["samples"] == len(in_file)
    assert answer("forget", run.store.uri, "--samples", ",".join(on_line))["samples"] == len(on_line)
    named = {sample for request in run.ledger().requests for sample in request.sample_ids}
    assert named == set(STRANGE)
    assert answer("unlearn", run.store.uri, "--runner", "local")["requests"] == [1, 2, 3]
    assert run.status().live_samples == 80 - len(STRANGE)
    assert run.verify(runner="local").ok
    assert run.evaluate(forget=STRANGE, runner="local").forget.num_samples == len(STRANGE)
    assert answer("evaluate", run.store.uri, "--forget", path, "--runner", "local")["forget"]["num_samples"] == len(
        in_file
    )
    files = files_of(folder_of(run))
    assert all(LAYOUT.fullmatch(name) for name in files), sorted(files)
    assert not list(Path("/etc").glob("passwd*.arrow"))


def test_what_looks_equal_is_not(run: Run) -> None:
    composed, combined = "\u00e9", "e\u0301"
    assert unicodedata.normalize("NFC", combined) == composed
    one, other = (run.locate(samples=[name]).places for name in (composed, combined))
    assert [names for places in (one, other) for names in places.values()] == [[composed], [combined]]
    with pytest.raises(RequestError, match=r"'a\\u0301'"):
        run.forget(samples=["a\u0301"])  # "\u00e1" would look the same in the message


def test_integers_are_their_decimal_text(run: Run) -> None:
    assert run.locate(samples=[7, np.int64(-8)]).places == run.locate(samples=["7", "-8"]).places
    assert run.locate(samples=[7]).places != run.locate(samples=["007"]).places


def test_a_parquet_column_of_integers(tmp_path: Path) -> None:
    samples = digits(0, 40)
    images = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(samples.images))
    table = pa.table({"id": np.arange(40, dtype=np.int32), "img": images, "label": samples.labels})
    pq.write_table(table, tmp_path / "train.parquet")
    data = {"train": str(tmp_path / "train.parquet"), "columns": {"id": "id", "subject": None}}
    run = Run.create(small_config(tmp_path, data=data, placement=PLACEMENT))
    (tmp_path / "ids.jsonl").write_text('7\n"8"\n')
    assert answer("forget", run.store.uri, "--samples", "7")["samples"] == 1
    assert answer("forget", run.store.uri, "--from", tmp_path / "ids.jsonl")["samples"] == 1
    assert run.forget(samples=[9]).samples == 1


NO_IDS = [
    ("\ud800", "half of a surrogate pair"),
    ("a\udcffb", "half of a surrogate pair"),
    ("x" * (ids.MAX_BYTES + 1), "more than 65536"),
    ("\u00e9" * (ids.MAX_BYTES // 2 + 1), "more than 65536"),
    (b"bytes", "neither text nor an integer"),
    (None, "neither text nor an integer"),
    (1.0, "neither text nor an integer"),
    (True, "neither text nor an integer"),
    (10**5000, "thousands of digits"),
]


@pytest.mark.parametrize(("name", "rule"), NO_IDS, ids=range(len(NO_IDS)))
def test_what_can_be_no_id(run: Run, name: Any, rule: str) -> None:
    before = run.ledger().position
    for request in ({"samples": ["a/b", name]}, {"subjects": [name]}, {"samples": [name], "ignore_unknown": True}):
        with pytest.raises(RequestError, match=rule) as error:
            run.forget(**request)
        str(error.value).encode()  # the message itself can be written
    assert run.ledger().position == before
    plain = digits(0, 2)
    with pytest.raises(DataError):
        make_samples(ids=["a", name], images=plain.images, labels=plain.labels)


@pytest.mark.parametrize("request_", [{"samples": "abc"}, {"samples": b"abc"}, {"subjects": "7"}])
def test_one_text_is_no_list_of_ids(run: Run, request_: Any) -> None:
    with pytest.raises(RequestError, match="is one text, not several ids"):
        run.forget(**request_)


@pytest.mark.parametrize("field", ["reason", "key"])
def test_reason_and_key_are_text_too(run: Run, field: str) -> None:
    with pytest.raises(RequestError, match=f"{field} = .*half of a surrogate pair"):
        run.forget(samples=["a/b"], **{field: "\udcff"})


def test_duplicates_in_data_are_named() -> None:
    plain = digits(0, 4)
    with pytest.raises(DataError, match=r"id = 'e\\u0301', e: must be unique; 2 id\(s\)"):
        make_samples(ids=["e\u0301", "e", "e", "e\u0301"], images=plain.images, labels=plain.labels)


# --- files of ids


def ids_in(path: Path) -> list[str]:
    return list(ids.read("--from", str(path)))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", []),
        (b"\n\r\n \n", []),
        (b"a", ["a"]),
        (b"a\r\nb\r\n", ["a", "b"]),
        (b"\xef\xbb\xbfa\nb", ["a", "b"]),
        (b"\xef\xbb\xbf\r\n", []),
        (b" a b \n\tc\n", ["a b", "c"]),
        (b"a\rb\n", ["a\rb"]),
        (b"nul\0byte\n", ["nul\0byte"]),
        ("\u2028\x85\x0b\n".encode(), ["\u2028\x85\x0b"]),
        (b"x" * 10_000, ["x" * 10_000]),
    ],
)
def test_lines(tmp_path: Path, content: bytes, expected: list[str]) -> None:
    (tmp_path / "ids.txt").write_bytes(content)
    assert ids_in(tmp_path / "ids.txt") == expected


def test_json_lines_carry_any_id(tmp_path: Path) -> None:
    path = tmp_path / "ids.jsonl"
    path.write_text("\ufeff" + "\r\n\r\n".join(json.dumps(name) for name in STRANGE))
    assert ids_in(path) == STRANGE
    path.write_text('"\\u0000' + "\\u0000" * 9_999 + '"\n12\n-3')
    assert ids_in(path) == ["\0" * 10_000, "12", "-3"]


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("a", "is not one JSON string or integer"),
        ('"a" "b"', "is not one JSON string or integer"),
        ("[" * 100_000, "is not one JSON string or integer"),
        ("9" * 5000, "is not one JSON string or integer"),
        ("1.0", "neither text nor an integer"),
        ("null", "neither text nor an integer"),
        ("true", "neither text nor an integer"),
        ('["a"]', "neither text nor an integer"),
        ("NaN", "neither text nor an integer"),
        ('"\\ud800"', "half of a surrogate pair"),
    ],
)
def test_json_lines_that_are_no_ids(tmp_path: Path, line: str, rule: str) -> None:
    (tmp_path / "ids.jsonl").write_text(f'"a"\n{line}\n')
    with pytest.raises(RequestError, match=rf"ids.jsonl, line 2.*{rule}"):
        ids_in(tmp_path / "ids.jsonl")


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"a\n\xff\xfe\n", "line 2: cannot be read: it is not UTF-8"),
        ("a\n".encode("utf-16"), "line 1: cannot be read: it is not UTF-8"),
        (b"\xed\xa0\x80", "line 1: cannot be read: it is not UTF-8"),
        (b"a\n" + b"x" * (ids.MAX_LINE + 1), "has more than 1048576 bytes in line 2"),
    ],
)
def test_files_that_are_no_lists_of_ids(tmp_path: Path, content: bytes, rule: str) -> None:
    (tmp_path / "ids.txt").write_bytes(content)
    with pytest.raises(RequestError, match=rule):
        ids_in(tmp_path / "ids.txt")


@pytest.mark.parametrize(
    ("path", "rule"), [("/dev/zero", "more than 1048576 bytes in line 1"), (".", "cannot be read")]
)
def test_devices_and_folders(run: Run, path: str, rule: str) -> None:
    for option in ("--from", "--subjects-from"):
        assert rule in answer("forget", run.store.uri, option, path, code=1)["error"]["rule"]
    assert rule in answer("evaluate", run.store.uri, "--forget", path, "--runner", "local", code=1)["error"]["rule"]
    assert rule in answer("plan", run.store.uri, "--from", path, code=1)["error"]["rule"]


def test_a_path_that_is_none() -> None:
    with pytest.raises(RequestError, match="cannot be read"):
        list(ids.read("--from", "a\0b"))


def test_ids_are_taken_as_the_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_bytes(b"a\n\xff")
    names: Iterator[str] = ids.read("--from", str(tmp_path / "ids.txt"))
    assert next(names) == "a"
    with pytest.raises(RequestError):
        next(names)


def test_messages_do_not_let_ids_pose_as_something_else(run: Run) -> None:
    result = CliRunner().invoke(app, ["forget", run.store.uri, "--samples", "\x1b[2J\u202e,x\ny", "--ignore-unknown"])
    assert result.exit_code == 1
    text = (
        CliRunner()
        .invoke(app, ["forget", run.store.uri, "--samples", "digit-0070,\x1b[2J\u202e", "--ignore-unknown"])
        .stdout
    )
    assert r"'\x1b[2J\u202e'" in text
    assert "\x1b" not in text
