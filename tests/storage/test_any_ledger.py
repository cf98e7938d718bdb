"""The ledger, on local disk and on S3: append-only, chained, each request once, and every damage found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_sisa import ledger as ledger_module
from ray_sisa.clock import now
from ray_sisa.errors import RequestError, StoreError
from ray_sisa.layout import numbered
from ray_sisa.ledger import Ledger, append, compact, deleted_by_shard, first_slices, read_ledger
from ray_sisa.records import Place, Request
from ray_sisa.store import Store

place_maps = st.dictionaries(
    st.tuples(st.integers(0, 3), st.integers(1, 4)),
    st.lists(st.sampled_from("abcdefgh"), min_size=1, unique=True),
    max_size=5,
)


def append_some(store: Store, count: int) -> list[Request]:
    return [append(store, {(i % 2, 1 + i % 3): [f"id-{i}"]}, f"reason {i}", f"key-{i}") for i in range(count)]


def path_of(number: int) -> str:
    return numbered("ledger", number)


def request_of(number: int, places: dict[tuple[int, int], list[str]]) -> Request:
    return Request(
        number=number,
        idempotency_key=f"key-{number}",
        reason="",
        places=tuple(Place(shard=s, slice=r, samples=tuple(ids)) for (s, r), ids in places.items()),
        previous=None,
        created_at="2026-01-01T00:00:00+00:00",
    )


def test_an_empty_ledger(store: Store) -> None:
    ledger = read_ledger(store)
    assert (ledger.requests, ledger.tip(), ledger.position, ledger.deleted()) == ((), None, 0, {})
    assert store.sizes("") == {}


def test_append_and_read_back(store: Store) -> None:
    made = append_some(store, 5)
    ledger = read_ledger(Store(store.uri))
    assert list(ledger.requests) == made
    assert [r.number for r in made] == [1, 2, 3, 4, 5]
    assert ledger.position == 5
    assert read_ledger(store, read_ledger(store)) == ledger
    assert ledger.tip(2) == made[2].previous
    assert ledger.same_as(made[2]) == made[2]
    assert ledger.same_as(made[2].model_copy(update={"idempotency_key": "no such"})) is None
    assert made[0].previous is None
    assert len({r.previous for r in made}) == 5


def test_any_id_and_reason_survive(store: Store) -> None:
    ids = ["a/b", "../..", "line\nbreak", "nul\0", "é 漢 🜚", "x" * 10_000, ' "quoted" ', ""]
    made = append(store, {(0, 1): ids}, "reason\n\0\"'", "key\0/..")
    assert sorted(read_ledger(store).requests[0].sample_ids) == sorted(ids)
    assert read_ledger(store).requests[0] == made


# Idempotency.


def test_a_key_applied_twice_is_one_request(store: Store) -> None:
    first = append(store, {(0, 1): ["a", "b"], (1, 2): ["c"]}, "gdpr", "key")
    assert append(store, {(1, 2): ["c"], (0, 1): ["b", "a"]}, "another reason", "key") == first
    assert read_ledger(store).position == 1


def test_a_key_for_other_samples_is_refused(store: Store) -> None:
    append(store, {(0, 1): ["a"]}, "", "key")
    with pytest.raises(RequestError, match=r"key: was used for other samples by request 1\. ") as caught:
        append(store, {(0, 1): ["a", "b"]}, "", "key")
    assert caught.value.field == "idempotency key"
    assert read_ledger(store).position == 1


@pytest.mark.parametrize("key", [None, ""])
def test_without_a_key_content_decides(store: Store, key: str | None) -> None:
    first = append(store, {(0, 1): ["a", "b"]}, "one", key)
    assert append(store, {(0, 1): ["b", "a"]}, "two", key) == first
    assert append(store, {(0, 1): ["a"]}, "one", key).number == 2
    assert append(store, {(0, 1): ["a", "b"]}, "one", "own key").number == 3


def test_the_key_that_another_is_about_to_use_stops_nobody(store: Store) -> None:
    """Who knows which samples another will name knows the key of that request, and may send another one under it."""
    victim = {(0, 1): ["a", "b"]}
    default = Request(number=1, idempotency_key="", reason="", places=(), previous=None, created_at=now())
    places = (Place(shard=0, slice=1, samples=("a", "b")),)
    guessed = default.model_copy(update={"places": places}).key_of_samples
    assert append(store, {(0, 1): ["c"]}, "", guessed).number == 1
    assert append(store, victim, "", None).number == 2
    assert append(store, victim, "", None).number == 2
    assert append(store, {(0, 1): ["c"]}, "", guessed).number == 1
    assert append(store, victim, "", guessed).number == 2  # as whoever sends a kept ledger again does


def test_keys_of_one_requester_are_not_those_of_another(store: Store) -> None:
    assert append(store, {(0, 1): ["a"]}, "", "ticket-1", requester="ada").number == 1
    assert append(store, {(0, 1): ["b"]}, "", "ticket-1", requester="bob").number == 2
    assert append(store, {(0, 1): ["c"]}, "", "ticket-1").number == 3
    assert append(store, {(0, 1): ["b"]}, "", "ticket-1", requester="bob").number == 2
    with pytest.raises(RequestError, match="was used for other samples by request 1"):
        append(store, {(0, 1): ["b"]}, "", "ticket-1", requester="ada")
    assert [r.requester for r in read_ledger(store).requests] == ["ada", "bob", ""]
    assert b"requester" not in store.get("ledger/00000003.json")  # as requests were before there were requesters


# The chain.


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("what", ["edit", "delete", "copy of another", "truncate", "empty", "flip a byte"])
def test_damage_before_the_tip_is_found(store: Store, number: int, what: str) -> None:
    append_some(store, 5)
    path = path_of(number)
    data = store.get(path)
    if what == "edit":
        store.put(path, data.replace(b"reason", b"season"))
    elif what == "delete":
        store.delete([path])
    elif what == "copy of another":
        store.put(path, store.get(path_of(5)))
    elif what == "truncate":
        store.put(path, data[:-1])
    elif what == "empty":
        store.put(path, b"")
    else:
        store.put(path, data[:40] + bytes([data[40] ^ 1]) + data[41:])
    with pytest.raises(StoreError) as caught:
        read_ledger(store)
    # An edit that is still a valid record shows in the one after it.
    assert caught.value.field in {store.where(path_of(n)) for n in (number, number + 1)}
    assert "backup" in caught.value.remedy
    with pytest.raises(StoreError):
        append(store, {(0, 1): ["z"]}, "", None)


@pytest.mark.parametrize("what", ["number", "previous", "unknown field", "truncate", "empty", "copy of another"])
def test_damage_of_the_tip_is_found(store: Store, what: str) -> None:
    """What the chain can find there; a lost or plausibly edited last request shows against head and certificate."""
    append_some(store, 3)
    path = path_of(3)
    content = json.loads(store.get(path))
    if what == "truncate":
        store.put(path, store.get(path)[:-1])
    elif what == "empty":
        store.put(path, b"")
    elif what == "copy of another":
        store.put(path, store.get(path_of(1)))
    else:
        changed = {"number": {"number": 7}, "previous": {"previous": None}, "unknown field": {"extra": 1}}[what]
        store.put(path, json.dumps(content | changed).encode())
    with pytest.raises(StoreError, match="00000003"):
        read_ledger(store)


@pytest.mark.parametrize(("a", "b"), [(1, 2), (2, 3), (1, 3)])
def test_swapped_requests_are_found(store: Store, a: int, b: int) -> None:
    append_some(store, 3)
    one, other = store.get(path_of(a)), store.get(path_of(b))
    store.put(path_of(a), other)
    store.put(path_of(b), one)
    with pytest.raises(StoreError, match="objects were swapped"):
        read_ledger(store)


def test_objects_of_other_names_are_no_requests(store: Store) -> None:
    made = append_some(store, 2)
    for name in ("notes.txt", "00000003.json.bak", "x00000003.json", "sub/00000003.json"):
        store.put(f"ledger/{name}", b"{}")
    assert list(read_ledger(store).requests) == made


class LaggingListing(Store):
    """Lists a folder as readdir(3) may while others write into it: a name from the middle is missing."""

    def numbers(self, folder: str, after: int = 0) -> list[int]:
        return [n for n in super().numbers(folder, after) if n != 2]


def test_a_listing_that_lags_is_no_damage(store: Store) -> None:
    made = append_some(store, 3)
    assert list(read_ledger(LaggingListing(store.uri)).requests) == made


# What requests mean.


@given(parts=st.lists(place_maps, max_size=5), up_to=st.integers(0, 6))
def test_deleted_is_the_union(parts: list[dict[tuple[int, int], list[str]]], up_to: int) -> None:
    ledger = Ledger(requests=tuple(request_of(n, p) for n, p in enumerate(parts, 1)), digests=())
    expected: dict[int, set[str]] = {}
    for part in parts[:up_to]:
        for (shard, _), ids in part.items():
            expected.setdefault(shard, set()).update(ids)
    assert ledger.deleted(up_to) == expected
    assert ledger.deleted() == deleted_by_shard(ledger.requests)


@given(parts=st.lists(place_maps, max_size=5))
def test_first_slices_is_the_least(parts: list[dict[tuple[int, int], list[str]]]) -> None:
    requests = [request_of(n, p) for n, p in enumerate(parts, 1)]
    touched = {place for part in parts for place in part}
    assert first_slices(requests, {}) == {s: min(r for t, r in touched if t == s) for s, _ in touched}


# Segments.


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(ledger_module, "SEGMENT", 3)
    return 3


class Counting(Store):
    """Counts the objects that it reads."""

    def find(self, path: str) -> bytes | None:
        self.reads = [*getattr(self, "reads", []), path]
        return super().find(path)


def test_a_long_ledger_is_read_in_segments(store: Store, short_segments: int) -> None:
    made = append_some(store, 11)
    assert store.numbers("segments") == [3, 6, 9]  # each written by the append that came after it was full
    counting = Counting(store.uri)
    assert list(read_ledger(counting).requests) == made
    assert sorted(counting.reads) == [  # of a server several at a time, in any order
        # And the last of each segment, to see that it is this ledger's.
        *(f"ledger/{n:08d}.json" for n in (3, 6, 9, 10, 11, 12)),
        *(f"segments/{n:08d}.jsonl" for n in (3, 6, 9, 12)),
    ]


def test_segments_change_nothing(store: Store, short_segments: int) -> None:
    append_some(store, 7)
    with_them = read_ledger(store)
    store.delete(store.sizes("segments"))
    assert read_ledger(store) == with_them
    compact(store, with_them)
    assert store.numbers("segments") == [3, 6]
    assert read_ledger(store) == with_them
    assert read_ledger(store, read_ledger(store)) == with_them


@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: d[:-9], lambda d: d[:50] + b"!" + d[51:], lambda d: d * 2])
def test_a_damaged_segment_is_passed_over(
    store: Store, short_segments: int, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    append_some(store, 7)
    expected = read_ledger(store)
    assert not caplog.text
    path = "segments/00000006.jsonl"
    store.put(path, damage(store.get(path)))
    assert read_ledger(store) == expected
    assert "segments/00000006.jsonl is damaged and passed over" in caplog.text


def test_a_segment_of_other_requests_is_passed_over(store: Store, tmp_path: Path, short_segments: int) -> None:
    append_some(store, 7)
    other = Store(str(tmp_path / "other"))
    append_some(other, 7)  # the same samples at other times
    path = "segments/00000006.jsonl"
    store.put(path, other.get(path))
    expected = tuple(store.read(numbered("ledger", n), Request) for n in range(1, 8))
    assert read_ledger(store).requests == expected


def test_who_is_behind_finds_its_number_taken(store: Store, short_segments: int) -> None:
    append_some(store, 2)
    behind = read_ledger(store)
    for n in range(3, 9):
        append(store, {(0, 1): [f"sample-{n}"]}, "", f"key-{n}", read_ledger(store))
    assert append(store, {(0, 1): ["late"]}, "", "late", behind).number == 9
    assert read_ledger(store).position == 9


def test_a_lost_request_is_missed_though_later_ones_are_there(store: Store, short_segments: int) -> None:
    append_some(store, 5)
    store.delete([path_of(5)])
    store.delete([path_of(4)])
    assert read_ledger(store).position == 3
    store.put(numbered("ledger", 6), b"{}")
    with pytest.raises(StoreError, match=r"00000004\.json: is not there, and request 6 is"):
        read_ledger(store)
