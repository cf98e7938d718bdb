"""The store's contract, on local disk and on S3: bytes come back, `create` is once, a listing is whole."""

from __future__ import annotations

import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import programs
import pytest

from ray_sisa import layout
from ray_sisa.errors import StoreError
from ray_sisa.layout import numbered
from ray_sisa.location import join_run
from ray_sisa.records import LeaseRecord, SliceEntry, StoredRecord
from ray_sisa.store import Store

# Objects.


def test_nothing_is_there(store: Store) -> None:
    assert store.find("run.json") is None
    assert store.find_all(["run.json", "a/b", "c"]) == [None] * 3
    assert store.sizes("") == store.sizes("stages") == {}
    assert store.numbers("ledger") == store.numbers("ledger", after=3) == []
    assert (store.stage_files(), store.committed_stages(), store.slice_digests()) == ({}, set(), set())
    assert store.find_record("run.json", SliceEntry) is None
    with pytest.raises(StoreError, match=r"/run/run\.json: is not there\. Restore it"):
        store.get("run.json")


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5000, b"large" * 3_000_000], ids=len)
def test_bytes_come_back(store: Store, data: bytes) -> None:
    store.put("a/b.bin", data)
    assert store.get("a/b.bin") == data == Store(store.uri).get("a/b.bin")
    assert store.sizes("a") == {"a/b.bin": len(data)}
    store.put("a/b.bin", data)
    assert store.get("a/b.bin") == data


def test_many_come_back_in_order(store: Store) -> None:
    for i in range(40):
        store.put(f"a/{i}", str(i).encode())
    wanted = [f"a/{i}" for i in range(39, -3, -1)]
    assert store.find_all(wanted) == [str(i).encode() for i in range(39, -1, -1)] + [None, None]
    assert store.find_all([]) == []


def test_create_is_once(store: Store) -> None:
    assert store.create("a.json", b"first")
    assert not store.create("a.json", b"second")
    assert store.get("a.json") == b"first"
    store.delete(["a.json"])
    assert store.create("a.json", b"third")


def test_delete_of_what_is_not_there(store: Store) -> None:
    store.delete([])
    store.delete(["a", "b/c"])
    store.put("a", b"1")
    store.put("b", b"1")
    store.delete(path for path in ("nothing", "a", "c/d", "a"))
    assert store.sizes("") == {"b": 1}


def test_sizes_are_of_a_folder_and_not_of_a_prefix(store: Store) -> None:
    for path in ("stages/ab/x", "stages/abc/x", "stagesx/y"):
        store.put(path, b"12")
    assert store.sizes("stages") == {"stages/ab/x": 2, "stages/abc/x": 2}
    assert store.sizes("stages/ab") == {"stages/ab/x": 2}


def test_a_store_does_not_see_its_neighbours(storage_path: str) -> None:
    stores = [Store(join_run(storage_path, name)) for name in ("run", "run2", "run/inner")]
    for i, store in enumerate(stores[:2]):
        store.put("a", str(i).encode())
    assert [s.find("a") for s in stores] == [b"0", b"1", None]
    assert stores[0].sizes("") == {"a": 1}


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
    assert store.numbers("ledger", after=1) == [3, 12, 100_000_000]
    assert store.numbers("ledger", after=3) == [12, 100_000_000]
    assert store.numbers("ledger", after=12) == [100_000_000]
    assert store.numbers("ledger", after=100_000_000) == []


def test_more_objects_than_a_page(store: Store) -> None:
    with ThreadPoolExecutor(16) as writers:
        list(writers.map(lambda n: store.put(numbered("ledger", n), b""), range(1, 1203)))
    assert store.numbers("ledger") == list(range(1, 1203))
    assert store.numbers("ledger", after=1100) == list(range(1101, 1203))
    assert len(store.sizes("")) == 1202
    store.delete(store.sizes("ledger"))
    assert store.sizes("") == {}


def test_segments_are_numbered(store: Store) -> None:
    store.put(layout.segment(1000), b"")
    store.put(layout.segment(2000), b"")
    assert store.numbers("segments") == [1000, 2000]
    assert store.numbers("segments", after=1000) == [2000]


def test_stages_count_from_their_commit_record(store: Store) -> None:
    store.put(layout.stage_weights("aa"), b"w")
    store.put(layout.stage_weights("bb"), b"w")
    store.put(layout.stage_record("bb"), b"{}")
    store.put("stages/cc/partial/state", b"w")
    store.put(layout.stage_record("dd"), b"{}")
    assert store.committed_stages() == {"bb"}
    assert set(store.stage_files()) == {"aa", "bb", "cc", "dd"}
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


NUM_RACES = 30


def race(uri: str, racer: str) -> None:
    """Prints how many of the races this racer won; all begin when the object `go` is there."""
    store = Store(uri)
    store.put(f"ready/{racer}", b"")
    while store.find("go") is None:
        pass
    print(sum(store.create(f"race/{i}", racer.encode()) for i in range(NUM_RACES)))


def test_create_has_one_winner_among_eight_processes(store: Store) -> None:
    racers = [programs.start(race, store.uri, str(r)) for r in range(8)]
    while len(store.sizes("ready")) < len(racers):
        assert all(racer.alive for racer in racers)
    store.put("go", b"")
    won = [int(racer.wait().out) for racer in racers]
    winners = [data for data in store.find_all([f"race/{i}" for i in range(NUM_RACES)]) if data]
    assert won == [winners.count(str(r).encode()) for r in range(8)]
    assert sum(won) == NUM_RACES


def test_create_has_one_winner_among_threads(store: Store) -> None:
    rounds = 50 if store.is_local else 4  # a SeaweedFS server makes who comes second wait for a second
    barrier, won = threading.Barrier(8), list[list[int]]()

    def compete(racer: int) -> None:
        mine = []
        for i in range(rounds):
            barrier.wait(60)
            if store.create(f"race/{i}", str(racer).encode()):
                mine.append(i)
        won.append(mine)

    threads = [threading.Thread(target=compete, args=(r,)) for r in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(i for mine in won for i in mine) == list(range(rounds))


def test_equal_bytes_of_another_writer(store: Store) -> None:
    """On S3 they may be its own, of a write whose reply was lost; whoever writes the same means the same."""
    assert store.create("a", b"the same")
    assert store.create("a", b"the same") == (not store.is_local)


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
    if store.is_local:
        assert os.listdir(store.uri) == ["object"]
