"""The store on local disk: which folder it is, and its records. What holds of every store is in tests/storage."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from ray_sisa.digests import seal
from ray_sisa.errors import StoreError
from ray_sisa.location import join_run, resolve_uri
from ray_sisa.records import StoredRecord
from ray_sisa.store import Store

# Where a run lives.


def test_one_folder_has_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "runs", target_is_directory=True)
    (tmp_path / "runs").mkdir()
    names = ["runs", "./runs", "runs/", "./x/../runs", str(tmp_path / "runs"), f"file://{tmp_path}/runs", "link"]
    assert {resolve_uri(name) for name in names} == {str(tmp_path / "runs")}
    assert join_run("runs/", "a") == str(tmp_path / "runs/a")


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_uri("~/runs") == str(tmp_path / "runs")


@pytest.mark.parametrize("uri", ["s3://bucket", "s3://bucket/a/prefix", "gs://bucket/a", "az://container/a"])
def test_uris_are_kept(uri: str) -> None:
    assert resolve_uri(uri) == uri
    assert resolve_uri(uri + "/") == uri
    assert join_run(uri, "a") == f"{uri}/a"


def test_a_store_on_s3_is_opened_without_being_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    opened = Store("s3://bucket/prefix")
    assert (opened.uri, opened.is_local) == ("s3://bucket/prefix", False)
    assert pickle.loads(pickle.dumps(opened)).uri == opened.uri


@pytest.mark.parametrize("uri", ["nonsense://bucket/a", "s3://"])
def test_what_is_no_store_is_refused(uri: str) -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        Store(uri)


@pytest.mark.parametrize("folder", ["plain", "with space", "a%20b", "a#b", "é漢", "a+b&c=d", "a?b"])
def test_any_folder_will_do(tmp_path: Path, folder: str) -> None:
    made = Store(str(tmp_path / folder))
    made.put("heads/00000001.json", b"x")
    assert (tmp_path / folder / "heads" / "00000001.json").read_bytes() == b"x"
    again = Store(made.uri)
    assert again.get("heads/00000001.json") == b"x"
    assert again.sizes("") == {"heads/00000001.json": 1}


# Objects.


def test_nothing_is_made_by_looking(store: Store) -> None:
    assert store.find("run.json") is None
    assert (store.sizes(""), store.numbers("ledger")) == ({}, [])
    assert not Path(store.uri).exists()


# Records.


class Point(StoredRecord):
    x: int


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"x": "three"}', b"{}", b"\xff\xfe", b"null", b'{"x": 1}}'])
def test_what_is_no_record_is_named(store: Store, data: bytes) -> None:
    store.put("p.json", seal(data))
    for read in (store.read, store.find_record):
        with pytest.raises(StoreError, match=r"/p\.json: is not a valid Point") as caught:
            read("p.json", Point)
        assert "backup" in caught.value.remedy


def test_no_byte_of_a_record_changes_unnoticed(store: Store) -> None:
    data = Point(x=3).to_bytes()
    assert b'"x": 3' in data
    for i in range(len(data)):
        for changed in (data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :], data[:i], data[:i] + data[i + 1 :]):
            with pytest.raises(StoreError, match=r"/p\.json: is not a valid Point"):
                store.parse("p.json", changed, Point)


# What cannot be done.


def test_an_object_that_is_a_folder(store: Store) -> None:
    store.put("a/b", b"1")
    with pytest.raises(StoreError, match="/a: cannot write it"):
        store.put("a", b"2")
    with pytest.raises(StoreError, match="cannot write it"):
        store.put("a/b/c", b"2")
    assert store.get("a/b") == b"1"
