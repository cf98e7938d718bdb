"""The store on local disk: atomic, exclusive where asked, and clear about what it cannot do."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ray_sisa import layout
from ray_sisa.digests import seal
from ray_sisa.errors import StoreError
from ray_sisa.layout import numbered
from ray_sisa.location import join_run, resolve_uri
from ray_sisa.records import LeaseRecord, SliceEntry, StoredRecord
from ray_sisa.store import Store

not_as_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")


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


def test_nothing_is_there_and_nothing_is_made_by_looking(store: Store) -> None:
    assert store.find("run.json") is None
    assert store.sizes("") == store.sizes("stages") == {}
    assert store.numbers("ledger") == []
    assert (store.stage_files(), store.committed_stages(), store.slice_digests()) == ({}, set(), set())
    assert store.find_record("run.json", SliceEntry) is None
    with pytest.raises(StoreError, match=r"/run/run\.json: is not there"):
        store.get("run.json")
    assert not Path(store.uri).exists()


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5000], ids=len)
def test_bytes_come_back(store: Store, data: bytes) -> None:
    store.put("a/b.bin", data)
    assert store.get("a/b.bin") == data == Store(store.uri).get("a/b.bin")
    assert store.sizes("a") == {"a/b.bin": len(data)}
    store.put("a/b.bin", data)
    assert store.get("a/b.bin") == data


def test_create_is_once(store: Store) -> None:
    assert store.create("a.json", b"first")
    assert not store.create("a.json", b"second")
    assert store.get("a.json") == b"first"
    store.delete(["a.json"])
    assert store.create("a.json", b"third")


def test_delete_of_what_is_not_there(store: Store) -> None:
    store.delete(["a", "b/c"])
    store.put("a", b"1")
    store.put("b", b"1")
    store.delete(["nothing", "a", "c/d", "a"])
    assert store.sizes("") == {"b": 1}


def test_sizes_are_of_a_folder_and_not_of_a_prefix(store: Store) -> None:
    for path in ("stages/ab/x", "stages/abc/x", "stagesx/y"):
        store.put(path, b"12")
    assert store.sizes("stages") == {"stages/ab/x": 2, "stages/abc/x": 2}
    assert store.sizes("stages/ab") == {"stages/ab/x": 2}


def test_more_objects_than_a_page(store: Store) -> None:
    store.put("ledger/00000001.json", b"")
    for number in range(2, 1203):
        (Path(store.uri) / numbered("ledger", number)).touch()
    assert store.numbers("ledger") == list(range(1, 1203))


def test_numbers_are_of_numbered_objects(store: Store) -> None:
    for number in (3, 1, 12, 100_000_000):
        store.put(numbered("ledger", number), b"")
    for path in (
        "ledger/x.json",
        "ledger/1.json.tmp",
        "ledger/sub/00000007.json",
        "heads/00000009.json",
        "ledger/-1.json",
    ):
        store.put(path, b"")
    assert store.numbers("ledger") == [1, 3, 12, 100_000_000]


def test_stages_count_from_their_commit_record(store: Store) -> None:
    store.put(layout.stage_weights("aa"), b"w")
    store.put(layout.stage_weights("bb"), b"w")
    store.put(layout.stage_record("bb"), b"{}")
    store.put("stages/cc/partial/state", b"w")
    assert store.committed_stages() == {"bb"}
    assert set(store.stage_files()) == {"aa", "bb", "cc"}
    assert sorted(store.stage_files()["bb"]) == [layout.stage_record("bb"), layout.stage_weights("bb")]


def test_slices_are_named_by_their_digest(store: Store) -> None:
    store.put(layout.slice_object("d1"), b"")
    store.put(layout.slice_object("d2"), b"")
    assert store.slice_digests() == {"d1", "d2"}


# Records.


class Point(StoredRecord):
    x: int


def test_records(store: Store) -> None:
    store.put("p.json", Point(x=3).to_bytes())
    assert store.read("p.json", Point) == store.find_record("p.json", Point) == Point(x=3)
    with pytest.raises(StoreError, match="is not there"):
        store.read("q.json", Point)


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


def test_a_record_in_the_place_of_another_is_named(store: Store) -> None:
    lease = LeaseRecord(number=3, holder="me", expires_at=1.0)
    store.put(numbered("lease", 3), lease.to_bytes())
    store.put(numbered("lease", 4), lease.to_bytes())
    assert store.read(numbered("lease", 3), LeaseRecord) == lease
    with pytest.raises(StoreError, match=r"/lease/00000004\.json: is a LeaseRecord that belongs at lease/00000003"):
        store.read(numbered("lease", 4), LeaseRecord)


# Other processes.


def test_it_survives_pickling(store: Store) -> None:
    store.put("a", b"1")
    copy = pickle.loads(pickle.dumps(store))
    assert copy.uri == store.uri
    assert copy.get("a") == b"1"
    copy.put("b", b"2")
    assert store.get("b") == b"2"


def test_what_others_write_is_seen(store: Store) -> None:
    assert store.find("a") is None
    Store(store.uri).put("a", b"1")
    assert store.find("a") == b"1"
    assert store.sizes("") == {"a": 1}


RACER = """
import sys
from ray_sisa.store import Store

store = Store(sys.argv[1])
sys.stdin.readline()  # all start at once
print(sum(store.create(f"race/{i}", sys.argv[2].encode()) for i in range(200)))
"""


def test_create_has_one_winner_among_processes(store: Store) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, store.uri, str(r)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for r in range(4)
    ]
    for racer in racers:
        assert racer.stdin
        racer.stdin.write("\n")
        racer.stdin.flush()
    won = [int(racer.communicate()[0]) for racer in racers]
    winners = [Store(store.uri).get(f"race/{i}") for i in range(200)]
    assert won == [winners.count(str(r).encode()) for r in range(4)]
    assert sum(won) == 200


def test_create_has_one_winner_among_threads(store: Store) -> None:
    barrier, won = threading.Barrier(8), list[list[int]]()

    def race(racer: int) -> None:
        mine = []
        for i in range(50):
            barrier.wait(60)
            if store.create(f"race/{i}", str(racer).encode()):
                mine.append(i)
        won.append(mine)

    threads = [threading.Thread(target=race, args=(r,)) for r in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(i for mine in won for i in mine) == list(range(50))


def test_a_reader_sees_all_or_nothing(store: Store) -> None:
    """Two contents of different lengths under one name, written over and over; and no trace of what is under way."""
    contents = [b"a" * 300_000, b"b" * 100_000]
    store.put("object", contents[0])
    done = threading.Event()

    def write() -> None:
        for i in range(60):
            store.put("object", contents[i % 2])
        done.set()

    writer = threading.Thread(target=write)
    writer.start()
    seen = set()
    while not done.is_set():
        seen.add(store.get("object"))
        assert set(store.sizes("")) <= {"object"}
    writer.join(60)
    assert seen <= set(contents)
    assert os.listdir(store.uri) == ["object"]


# What cannot be done.


def test_a_path_that_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    for uri in (file, file / "below"):
        with pytest.raises(StoreError, match=str(file)) as caught:
            Store(str(uri)).put("run.json", b"")
        assert "Check the path" in caught.value.remedy
    assert file.read_text() == "text"


def test_an_object_that_is_a_folder(store: Store) -> None:
    store.put("a/b", b"1")
    with pytest.raises(StoreError, match="/a: cannot write it"):
        store.put("a", b"2")
    with pytest.raises(StoreError, match="cannot write it"):
        store.put("a/b/c", b"2")
    assert store.get("a/b") == b"1"


@not_as_root
def test_a_folder_that_may_not_be_written(store: Store) -> None:
    store.put("a", b"1")
    folder = Path(store.uri)
    folder.chmod(0o500)
    try:
        for write in (store.put, store.create):
            with pytest.raises(StoreError, match="cannot write it"):
                write("b", b"2")
        assert store.get("a") == b"1"
    finally:
        folder.chmod(0o700)


@not_as_root
def test_an_object_that_may_not_be_read(store: Store) -> None:
    store.put("a", b"1")
    (Path(store.uri) / "a").chmod(0)
    with pytest.raises(StoreError, match="cannot read it"):
        store.get("a")


def test_the_disk_is_full(tmp_path: Path) -> None:
    """A file size limit stands in for a full disk: the write fails in the middle."""
    code = """
import resource, signal, sys
from ray_sisa.errors import StoreError
from ray_sisa.store import Store

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = Store(sys.argv[1])
store.put("small", b"1")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (store.put, store.create):
    try:
        write("large", b"x" * 5000)
    except StoreError as error:
        print("cannot write it" in str(error), store.find("large"), sorted(store.sizes("")))
"""
    uri = str(tmp_path / "run")
    done = subprocess.run([sys.executable, "-c", code, uri], capture_output=True, text=True)
    assert done.stdout == "True None ['small']\n" * 2, done.stderr
