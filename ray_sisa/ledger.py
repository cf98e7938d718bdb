"""The append-only, hash-chained list of deletion requests.

The next number goes to whoever creates it, so appending needs no lock and no database; an idempotency key that is
there already is the same request. So that a long ledger opens quickly, its requests are repeated in segments.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass

from ray_sisa.clock import now
from ray_sisa.digests import END, digest_bytes
from ray_sisa.errors import RequestError, StoreError
from ray_sisa.layout import LEDGER, SEGMENTS, numbered, segment
from ray_sisa.records import Place, Request, Scope
from ray_sisa.store import Store

logger = logging.getLogger(__name__)

SEGMENT = 1000  # requests
MIN_PAUSE_S, MAX_PAUSE_S = 0.005, 0.5
MAX_WINDOW = 64  # requests asked of a server at a time
LOST = "Restore the ledger from a backup"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ledger:
    """All requests up to one moment, in order, and the digest of each."""

    requests: tuple[Request, ...]
    digests: tuple[str, ...]

    @property
    def position(self) -> int:
        """Number of the last request; 0 where there is none."""
        return len(self.requests)

    def tip(self, position: int | None = None) -> str | None:
        """Digest of the request with a number (the last by default); None before the first."""
        position = self.position if position is None else position
        return self.digests[position - 1] if position else None

    def deleted(self, up_to: int | None = None) -> dict[int, set[str]]:
        """Ids of the samples deleted by the requests up to a number (all by default), by shard."""
        return deleted_by_shard(self.requests[:up_to])

    def touched(self, after: int, up_to: int | None = None) -> dict[int, int]:
        """The first slice of each shard of which requests after a number delete a sample that was live until then."""
        return first_slices(self.requests[after:up_to], self.deleted(after))

    def same_as(self, request: Request) -> Request | None:
        """The request that carries the idempotency key of this one, and means the same by it."""
        return self.with_key(request.idempotency_key, request.scope)

    def with_key(self, key: str, scope: Scope) -> Request | None:
        """The request that carries an idempotency key of this scope."""
        return next((r for r in self.requests if r.idempotency_key == key and r.scope == scope), None)


EMPTY = Ledger(requests=(), digests=())


def deleted_by_shard(requests: Iterable[Request]) -> dict[int, set[str]]:
    """Ids of the samples that these requests delete, by shard."""
    deleted: dict[int, set[str]] = {}
    for request in requests:
        for place in request.places:
            deleted.setdefault(place.shard, set()).update(place.samples)
    return deleted


def first_slices(requests: Iterable[Request], gone: Mapping[int, Set[str]]) -> dict[int, int]:
    """The first slice of each shard of which these requests delete a sample that is not `gone` (by shard) already."""
    first: dict[int, int] = {}
    for request in requests:
        for place in request.places:
            if not gone.get(place.shard, frozenset()) >= set(place.samples):
                first[place.shard] = min(place.slice, first.get(place.shard, place.slice))
    return first


def read_ledger(store: Store, known: Ledger = EMPTY) -> Ledger:
    """All requests, with their chain checked; those that are `known` are not read again.

    Raises:
        StoreError: a request is missing, damaged, or does not follow from the one before.
    """
    ledger = _follow(store, known)
    # A listing may lack what is written meanwhile: it says what must be there, and only reading says what is.
    while beyond := store.numbers(LEDGER, after=ledger.position):
        longer = _follow(store, ledger)
        if longer.position == ledger.position:
            rule = f"is not there, and request {beyond[0]} is: the ledger lost a request"
            raise StoreError(store.where(numbered(LEDGER, ledger.position + 1)), "", rule, LOST)
        ledger = longer
    if ledger is known and known.position and store.find(numbered(LEDGER, known.position)) is None:
        rule = f"had {known.position} requests and has fewer: it lost some"
        raise StoreError(store.where(LEDGER), "", rule, LOST)
    return ledger


def append(
    store: Store,
    places: Mapping[tuple[int, int], list[str]],
    reason: str,
    key: str | None,
    known: Ledger = EMPTY,
    requester: str = "",
) -> Request:
    """Appends a request and returns it; one with the same idempotency key is returned as it stands.

    Once this returns, the request is kept: a crash before the create leaves nothing, one after it leaves all.

    Args:
        store: of the run.
        places: ids by (shard, slice), all of them of this run.
        reason: free text, kept with the request.
        key: idempotency key; by default a digest of the ids, so that sending the same request twice is one request.
        known: what the caller has read already.
        requester: who asks; keys that one gives do not meet those of another.

    Raises:
        RequestError: the key was used for other samples, by the same requester.
    """
    named = tuple(Place(shard=s, slice=r, samples=tuple(sorted(ids))) for (s, r), ids in sorted(places.items()))
    ledger = read_ledger(store, known)
    pauses = _pauses()
    while True:
        request = Request(
            number=ledger.position + 1,
            idempotency_key=key or "",
            reason=reason,
            places=named,
            previous=ledger.tip(),
            created_at=now(),
            requester=requester,
        )
        if not key:
            request = request.model_copy(update={"idempotency_key": request.key_of_samples})
        there = ledger.same_as(request)
        if there is not None:
            return _same(there, named)
        if ledger.position and ledger.position % SEGMENT == 0:
            compact(store, ledger)
        if store.create(numbered(LEDGER, request.number), request.to_bytes()):
            return request
        time.sleep(next(pauses))
        ledger = _follow(store, ledger)


def _pauses() -> Iterator[float]:
    """How long to keep out of the way of others, in seconds, each time that one of them was first."""
    longest = MIN_PAUSE_S
    while True:
        yield random.uniform(0, longest)
        longest = min(2 * longest, MAX_PAUSE_S)


def compact(store: Store, ledger: Ledger) -> None:
    """Writes the segments that the ledger fills and the store lacks.

    A segment repeats requests, byte for byte, and none of them is deleted: the chain is checked the same through
    either, a process that is behind still finds its number taken, and a damaged segment is passed over.
    """
    there = set(store.numbers(SEGMENTS))
    for end in range(SEGMENT, ledger.position + 1, SEGMENT):
        if end not in there:
            store.create(segment(end), content_of_segment(store, end))


def content_of_segment(store: Store, end: int) -> bytes:
    """The requests up to number `end` that no earlier segment has, one after the other."""
    paths = [numbered(LEDGER, number) for number in range(end - SEGMENT + 1, end + 1)]
    return b"".join(data + b"\n" for data in store.find_all(paths) if data is not None)


def _follow(store: Store, known: Ledger) -> Ledger:
    """The ledger that starts with the requests known, read on until there is none."""
    chain, window = _Chain(store, known), 1
    while True:
        if len(chain.requests) % SEGMENT == 0 and chain.take_segment():
            continue
        left = SEGMENT - len(chain.requests) % SEGMENT
        if not chain.take_some(min(window, left)):
            break
        window = min(2 * window, MAX_WINDOW)
    if len(chain.requests) == known.position:
        return known
    return Ledger(requests=tuple(chain.requests), digests=tuple(chain.digests))


class _Chain:
    """Requests as they are read, each checked against the one before."""

    def __init__(self, store: Store, known: Ledger) -> None:
        self._store = store
        self.requests, self.digests = list(known.requests), list(known.digests)

    def take_some(self, number: int) -> bool:
        """Reads the next requests, up to a number at a time; False once there is none."""
        first = len(self.requests) + 1
        paths = [numbered(LEDGER, n) for n in range(first, first + number)]
        for path, data in zip(paths, self._store.find_all(paths), strict=True):
            if data is None:
                return False
            self._take(path, data)
        return True

    def take_segment(self) -> bool:
        """Reads the next segment; False where there is none, or none that can be used."""
        first = len(self.requests) + 1
        path = segment(first + SEGMENT - 1)
        content = self._store.find(path)
        if content is None:
            return False
        try:
            parts = [part + END for part in content.split(END + b"\n")]
            if len(parts) != SEGMENT + 1 or parts.pop() != END:
                raise StoreError(self._store.where(path), "", f"does not hold {SEGMENT} requests")
            for number, data in enumerate(parts, start=first):
                self._take(numbered(LEDGER, number), data)
            # A chain of its own, from its start on, hangs together as well: the last link tells whose it is.
            if self._store.find(numbered(LEDGER, first + SEGMENT - 1)) != parts[-1]:
                raise StoreError(self._store.where(path), "", "repeats the requests of another ledger")
        except StoreError as error:
            del self.requests[first - 1 :], self.digests[first - 1 :]
            logger.warning("%s is damaged and passed over; `ray-sisa check --repair` mends it: %s", path, error)
            return False
        return True

    def _take(self, path: str, data: bytes) -> None:
        request = self._store.parse(path, data, Request)
        if request.previous != (self.digests[-1] if self.digests else None):
            rule = "does not follow from the request before it: the ledger was edited or lost a request"
            raise StoreError(self._store.where(path), "", rule, LOST)
        self.requests.append(request)
        self.digests.append(digest_bytes(data))


def _same(known: Request, named: tuple[Place, ...]) -> Request:
    if known.places != named:
        rule = f"was used for other samples by request {known.number}"
        raise RequestError("idempotency key", known.idempotency_key, rule, "Give each request its own key")
    return known
