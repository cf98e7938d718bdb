"""Heads, on local disk and on S3: what requests leave of an ensemble, and the numbered chain of what was in force."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_sisa.digests import digest_bytes, seal, unseal
from ray_sisa.errors import BusyError, StoreError
from ray_sisa.heads import constituent, ensemble_digest, in_force, latest_head, roll_back, write_head
from ray_sisa.layout import numbered, stage_record
from ray_sisa.ledger import Ledger
from ray_sisa.records import Ancestor, Constituent, Environment, Head, Place, Request, StageRecord
from ray_sisa.store import Store

ENVIRONMENT = Environment(device="cpu", device_name="", threads=1, python="", torch="", ray_sisa="", platform="")
NUM_SHARDS, NUM_SLICES = 3, 4


def key_of(shard: int, number: int) -> str:
    return f"key-{shard}-{number}"


def commit(store: Store, shard: int, number: int, ancestors: tuple[int, ...] | None = None) -> StageRecord:
    """A commit record without weights: all that heads read."""
    before = range(1, number) if ancestors is None else ancestors
    record = StageRecord(
        key=key_of(shard, number),
        shard=shard,
        slice=number,
        parent="",
        slice_digest="",
        num_samples=10 * number,
        epochs=1,
        ancestors=tuple(Ancestor(slice=r, key=key_of(shard, r)) for r in before),
        weights_digest=f"weights-{shard}-{number}",
        weights_bytes=0,
        weights_file_digest="",
        metrics=(),
        sample_passes=0,
        seconds=0,
        environment=ENVIRONMENT,
        committed_at="2026-01-01T00:00:00+00:00",
    )
    store.put(stage_record(record.key), record.to_bytes())
    return record


def request_for(*places: tuple[int, int], number: int = 1) -> Request:
    named = tuple(Place(shard=s, slice=r, samples=(f"{s}-{r}",)) for s, r in places)
    return Request(
        number=number,
        idempotency_key="",
        reason="",
        places=named,
        previous=None,
        created_at="2026-01-01T00:00:00+00:00",
    )


def ledger_of(*requests: Request) -> Ledger:
    return Ledger(requests=requests, digests=tuple(f"digest-{r.number}" for r in requests))


def touched_by(*places: tuple[int, int]) -> dict[int, int]:
    return ledger_of(request_for(*places)).touched(0)


NONE, ONE = ledger_of(), ledger_of(request_for((0, 1)))


@pytest.fixture
def full(store: Store) -> tuple[Constituent, ...]:
    """All stages of a 3 x 4 grid in the store, and the ensemble of the deepest."""
    records = [[commit(store, s, r) for r in range(1, NUM_SLICES + 1)] for s in range(NUM_SHARDS)]
    return tuple(constituent(chain[-1]) for chain in records)


def depths(constituents: tuple[Constituent, ...]) -> dict[int, int]:
    return {c.shard: c.slice for c in constituents}


# Rolling back.


def test_nothing_requested_changes_nothing(store: Store, full: tuple[Constituent, ...]) -> None:
    assert roll_back(store, full, {}) == full


@pytest.mark.parametrize(("touched", "depth"), [(4, 3), (3, 2), (2, 1)])
def test_a_shard_falls_back_before_the_touched_slice(
    store: Store, full: tuple[Constituent, ...], touched: int, depth: int
) -> None:
    left = roll_back(store, full, touched_by((1, touched)))
    assert depths(left) == {0: 4, 1: depth, 2: 4}
    assert (left[0], left[2]) == (full[0], full[2])
    assert left[1] == constituent(store.read(stage_record(key_of(1, depth)), StageRecord))


def test_the_first_touched_slice_counts(store: Store, full: tuple[Constituent, ...]) -> None:
    requests = [request_for((1, 4), (0, 2)), request_for((1, 3), (1, 4), number=2)]
    assert depths(roll_back(store, full, ledger_of(*requests).touched(0))) == {0: 1, 1: 2, 2: 4}


def test_a_shard_without_a_clean_stage_leaves(store: Store, full: tuple[Constituent, ...]) -> None:
    assert depths(roll_back(store, full, touched_by((0, 1)))) == {1: 4, 2: 4}
    assert roll_back(store, full, touched_by((0, 1), (1, 1), (2, 1))) == ()


def test_stages_that_are_gone_are_passed_over(store: Store, full: tuple[Constituent, ...]) -> None:
    store.delete([stage_record(key_of(1, 3)), stage_record(key_of(1, 2))])
    assert depths(roll_back(store, full, touched_by((1, 4)))) == {0: 4, 1: 1, 2: 4}
    store.delete([stage_record(key_of(1, 1))])
    assert depths(roll_back(store, full, touched_by((1, 4)))) == {0: 4, 2: 4}


def test_a_tainted_stage_whose_record_is_gone_leaves(store: Store, full: tuple[Constituent, ...]) -> None:
    store.delete([stage_record(key_of(1, 4))])
    assert depths(roll_back(store, full, touched_by((1, 4)))) == {0: 4, 2: 4}


def test_slices_that_made_no_stage_are_no_ancestors(store: Store) -> None:
    commit(store, 0, 1)
    deepest = constituent(commit(store, 0, 4, ancestors=(1,)))
    assert depths(roll_back(store, [deepest], touched_by((0, 3)))) == {0: 1}


def test_a_shard_that_is_shallow_already_stays(store: Store, full: tuple[Constituent, ...]) -> None:
    once = roll_back(store, full, touched_by((1, 3)))
    assert roll_back(store, once, touched_by((1, 3), (1, 4))) == once


@given(touched=st.sets(st.tuples(st.integers(0, NUM_SHARDS - 1), st.integers(1, NUM_SLICES))))
def test_no_touched_slice_is_left_and_no_more_is_lost(
    tmp_path_factory: pytest.TempPathFactory, touched: set[tuple[int, int]]
) -> None:
    store = Store(str(tmp_path_factory.mktemp("run")))
    full = tuple([constituent(commit(store, s, r)) for r in range(1, NUM_SLICES + 1)][-1] for s in range(NUM_SHARDS))
    first = {s: min(r for t, r in touched if t == s) for s, _ in touched}
    clean = {s: first.get(s, NUM_SLICES + 1) - 1 for s in range(NUM_SHARDS)}
    left = roll_back(store, full, touched_by(*sorted(touched)))
    assert depths(left) == {s: depth for s, depth in clean.items() if depth}


# Heads in force.


def test_a_request_in_the_ledger_takes_effect_before_a_head_knows_of_it(
    store: Store, full: tuple[Constituent, ...]
) -> None:
    head = write_head(store, full, ledger=NONE, complete=True)
    assert in_force(store, NONE, head) == full
    assert depths(in_force(store, ledger_of(request_for((1, 3))), head)) == {0: 4, 1: 2, 2: 4}
    assert in_force(store, NONE, None) == ()


def test_what_is_deleted_already_touches_nothing(store: Store, full: tuple[Constituent, ...]) -> None:
    head = write_head(store, full, ledger=ONE, complete=True)
    again = Ledger(requests=(*ONE.requests, request_for((0, 1), number=2)), digests=(*ONE.digests, "again"))
    assert in_force(store, again, head) == full
    assert depths(in_force(store, ledger_of(*ONE.requests, request_for((0, 1), (2, 2), number=2)), head)) == {
        0: 4,
        1: 4,
        2: 1,
    }


@pytest.mark.parametrize("digests", [(), ("edited",)], ids=["lost", "edited"])
def test_a_ledger_that_lost_what_a_head_respects_is_refused(
    store: Store, full: tuple[Constituent, ...], digests: tuple[str, ...]
) -> None:
    head = write_head(store, full, ledger=ONE, complete=True)
    ledger = Ledger(requests=ONE.requests[: len(digests)], digests=digests)
    with pytest.raises(StoreError, match="its request 1 is lost or was edited"):
        in_force(store, ledger, head)


def test_a_head_that_respects_fewer_requests_comes_too_late(store: Store, full: tuple[Constituent, ...]) -> None:
    write_head(store, full, ledger=ONE, complete=True)
    with pytest.raises(BusyError):
        write_head(store, full, ledger=NONE, complete=True)


def test_there_is_no_head_at_first(store: Store) -> None:
    assert latest_head(store) is None


def test_heads_are_numbered_and_chained(store: Store, full: tuple[Constituent, ...]) -> None:
    heads = [
        write_head(store, full, ledger=NONE, complete=True),
        write_head(store, full[:2], ledger=ONE, complete=False),
        write_head(store, full, ledger=ONE, complete=True),
    ]
    assert [h.number for h in heads] == [1, 2, 3]
    assert latest_head(store) == heads[-1]
    assert [store.read(numbered("heads", n), Head) for n in (1, 2, 3)] == heads
    previous = [None, *(digest_bytes(store.get(numbered("heads", n))) for n in (1, 2))]
    assert [h.previous for h in heads] == previous
    assert heads[0].ensemble_digest == heads[2].ensemble_digest != heads[1].ensemble_digest


def test_what_is_in_force_is_not_written_again(store: Store, full: tuple[Constituent, ...]) -> None:
    first = write_head(store, full, ledger=NONE, complete=True)
    assert write_head(store, full[::-1], ledger=NONE, complete=True) == first
    assert [write_head(store, full, ledger=ONE, complete=True).number, store.numbers("heads")] == [2, [1, 2]]
    assert write_head(store, full, ledger=ONE, complete=False).number == 3


def test_constituents_stand_in_the_order_of_shards(store: Store, full: tuple[Constituent, ...]) -> None:
    head = write_head(store, (full[2], full[0], full[1]), ledger=NONE, complete=True)
    assert [c.shard for c in head.constituents] == [0, 1, 2]
    assert write_head(store, (), ledger=ONE, complete=False).constituents == ()


def test_an_ensemble_is_named_by_its_stages_and_weights(full: tuple[Constituent, ...]) -> None:
    changes: list[Callable[[Constituent], Constituent]] = [
        lambda c: c.model_copy(update={"key": "other"}),
        lambda c: c.model_copy(update={"weights_digest": "other"}),
        lambda c: c.model_copy(update={"shard": 7}),
    ]
    named = {ensemble_digest([change(full[0]), *full[1:]]) for change in changes}
    assert len(named | {ensemble_digest(full), ensemble_digest(full[1:]), ensemble_digest([])}) == 6
    assert ensemble_digest(reversed(full)) == ensemble_digest(full)


class Overtaken(Store):
    """Another process writes the next head between this one's look and its write."""

    def create(self, path: str, data: bytes) -> bool:
        super().create(path, seal(unseal(data).replace(b'"complete": false', b'"complete": true')))
        return super().create(path, data)


def test_a_head_written_meanwhile_stands(store: Store, full: tuple[Constituent, ...]) -> None:
    with pytest.raises(BusyError, match="head = 1: was written by another process"):
        write_head(Overtaken(store.uri), full, ledger=NONE, complete=False)
    head = latest_head(store)
    assert head is not None
    assert head.complete


def test_a_damaged_head_is_named(store: Store, full: tuple[Constituent, ...]) -> None:
    write_head(store, full, ledger=NONE, complete=True)
    store.put(numbered("heads", 1), store.get(numbered("heads", 1))[:-2])
    with pytest.raises(StoreError, match=r"heads/00000001\.json: is not a valid Head"):
        latest_head(store)
