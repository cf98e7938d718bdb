"""Ensembles in force: append-only, numbered, each naming one clean stage of every shard that votes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

from ray_sisa.clock import now
from ray_sisa.digests import digest_bytes, digest_json
from ray_sisa.errors import BusyError, DataError, StoreError
from ray_sisa.layout import HEADS, LEDGER, numbered, stage_record
from ray_sisa.ledger import Ledger
from ray_sisa.records import Constituent, Excluded, Head, StageRecord
from ray_sisa.store import Store

logger = logging.getLogger(__name__)


def latest_head(store: Store) -> Head | None:
    """The head in force, or None where there is none yet."""
    numbers = store.numbers(HEADS)
    return store.read(numbered(HEADS, numbers[-1]), Head) if numbers else None


def head_in_force(store: Store) -> Head:
    """The latest head.

    Raises:
        StoreError: there is none yet.
    """
    head = latest_head(store)
    if head is None:
        rule = "has no ensemble yet: its training has not ended"
        raise StoreError("run", store.uri, rule, "Run `ray-sisa train` to its end")
    return head


def history(store: Store, since: int = 1) -> list[Head]:
    """The heads that respect request `since` or a later one, and the complete head before them; the oldest first."""
    found: list[Head] = []
    for number in reversed(store.numbers(HEADS)):
        try:
            head = store.read(numbered(HEADS, number), Head)
        except StoreError as error:
            if not found:
                raise
            # What is in force does not depend on it: requests may only seem to have been effective later.
            _pass_over(error)
            continue
        found.append(head)
        if head.complete and head.ledger < since:
            break
    return found[::-1]


def _pass_over(error: StoreError) -> None:
    logger.warning("a head of the past is passed over: %s", error)


def readable(store: Store) -> list[Head]:
    """All heads there ever were, the oldest first, as far as they can be read."""
    paths = [numbered(HEADS, number) for number in store.numbers(HEADS)]
    found: list[Head] = []
    for path, data in zip(paths, store.find_all(paths), strict=True):
        try:
            head = store.parse(path, data, Head) if data is not None else None
        except StoreError as error:
            _pass_over(error)
            continue
        found += [head] if head else []
    return found


def constituent(record: StageRecord) -> Constituent:
    """The constituent that a committed stage gives."""
    return Constituent(
        shard=record.shard,
        key=record.key,
        slice=record.slice,
        num_samples=record.num_samples,
        weights_digest=record.weights_digest,
    )


def ensemble_digest(constituents: Iterable[Constituent]) -> str:
    """The name of an ensemble: which stage votes for each shard, and its weights."""
    return digest_json([[c.shard, c.key, c.weights_digest] for c in sorted(constituents, key=lambda c: c.shard)])


def in_force(store: Store, ledger: Ledger, head: Head | None) -> tuple[Constituent, ...]:
    """Who votes: a head, less what requests that it does not know of yet have tainted.

    Raises:
        StoreError: the ledger lacks or changed a request that the head respects.
    """
    check_respected(store, ledger, head)
    return roll_back(store, head.constituents, ledger.touched(head.ledger)) if head else ()


def check_respected(store: Store, ledger: Ledger, head: Head | None) -> None:
    """Passes if a ledger has what a head respects. Read the head first: requests may come between the two.

    Raises:
        StoreError: the ledger lacks or changed a request that the head respects.
    """
    if head is None:
        return
    if head.ledger > ledger.position or ledger.tip(head.ledger) != head.ledger_tip:
        rule = f"is not the ledger that head {head.number} respects: its request {head.ledger} is lost or was edited"
        raise StoreError(store.where(LEDGER), f"{ledger.position} requests", rule, "Restore the ledger from a backup")


def roll_back(store: Store, constituents: Sequence[Constituent], touched: Mapping[int, int]) -> tuple[Constituent, ...]:
    """What is left of an ensemble whose shards are touched from these slices on: reads two records a shard touched.

    A shard falls back to its deepest committed stage before the first slice touched, or leaves.
    """
    kept = (
        c if c.slice < touched.get(c.shard, c.slice + 1) else _fall_back(store, c, touched[c.shard])
        for c in constituents
    )
    return tuple(c for c in kept if c is not None)


def _fall_back(store: Store, tainted: Constituent, first_slice: int) -> Constituent | None:
    record = store.find_record(stage_record(tainted.key), StageRecord)
    for ancestor in reversed(record.ancestors if record else ()):
        if ancestor.slice < first_slice:
            clean = store.find_record(stage_record(ancestor.key), StageRecord)
            if clean is not None:
                return constituent(clean)
    return None


def check_voters(constituents: Sequence[object], num_live: int) -> None:
    """Passes if somebody is left to vote.

    Args:
        constituents: who votes.
        num_live: samples of the run that are not deleted.

    Raises:
        DataError: nobody is, for now or for good.
    """
    if constituents:
        return
    if not num_live:
        rule = "no constituent is left to vote, nor will there be one: all samples of this run are deleted"
        raise DataError("ensemble", "0 constituents", rule, "Make a new run, of other samples")
    remedy = "Run `ray-sisa unlearn RUN` to its end; `ray-sisa status RUN` says what is missing"
    raise DataError("ensemble", "0 constituents", "no constituent is left to vote until training has ended", remedy)


def write_head(
    store: Store,
    constituents: Sequence[Constituent],
    *,
    ledger: Ledger,
    complete: bool,
    excluded: Sequence[Excluded] = (),
) -> Head:
    """Puts an ensemble that respects a ledger in force, unless the one in force already is this one.

    Raises:
        BusyError: another process wrote a head meanwhile, or one that respects more requests.
    """
    previous = latest_head(store)
    head = Head(
        number=previous.number + 1 if previous else 1,
        ledger=ledger.position,
        ledger_tip=ledger.tip(),
        complete=complete,
        constituents=tuple(sorted(constituents, key=lambda c: c.shard)),
        ensemble_digest=ensemble_digest(constituents),
        previous=digest_bytes(store.get(numbered(HEADS, previous.number))) if previous else None,
        created_at=now(),
        excluded=tuple(excluded),
    )
    if previous and _same(previous, head):
        return previous
    overtaken = previous is not None and previous.ledger > head.ledger
    if overtaken or not store.create(numbered(HEADS, head.number), head.to_bytes()):
        raise BusyError("head", head.number, "was written by another process", "Run the command again")
    return head


def _same(one: Head, other: Head) -> bool:
    names = ("ensemble_digest", "ledger_tip", "complete", "excluded")
    return all(getattr(one, name) == getattr(other, name) for name in names)
