"""The append-only, hash-chained list of deletion requests.

The next number goes to whoever creates it, so appending needs no lock and no database; an idempotency key that is
there already is the same request.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from ray_sisa.clock import now
from ray_sisa.digests import digest_bytes, digest_json
from ray_sisa.errors import RequestError, StoreError
from ray_sisa.records import Place, Request
from ray_sisa.store import Store, numbered

FOLDER = "ledger"


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

    def with_key(self, idempotency_key: str) -> Request | None:
        """The request that carries an idempotency key."""
        return next((r for r in self.requests if r.idempotency_key == idempotency_key), None)


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
    requests, digests = list(known.requests), list(known.digests)
    last = max(store.numbers(FOLDER), default=0)
    # A listing may lack what is written meanwhile, in the middle as well: it says where to end, not what is there.
    for number in range(len(requests) + 1, last + 1):
        path = numbered(FOLDER, number)
        data = store.find(path)
        request = store.parse(path, data, Request) if data is not None else None
        tip = digests[-1] if digests else None
        if data is None or request is None or request.number != number or request.previous != tip:
            rule = "does not follow from the request before it: the ledger was edited or lost a request"
            raise StoreError(f"{store.uri}/{path}", "", rule, "Restore the ledger from a backup")
        requests.append(request)
        digests.append(digest_bytes(data))
    if last < known.position and store.find(numbered(FOLDER, known.position)) is None:
        rule = f"had {known.position} requests and has {last}: it lost some"
        raise StoreError(f"{store.uri}/{FOLDER}", "", rule, "Restore the ledger from a backup")
    return Ledger(requests=tuple(requests), digests=tuple(digests))


def append(
    store: Store, places: Mapping[tuple[int, int], list[str]], reason: str, key: str | None, known: Ledger = EMPTY
) -> Request:
    """Appends a request and returns it; one with the same idempotency key is returned as it stands.

    Once this returns, the request is kept: a crash before the create leaves nothing, one after it leaves all.

    Args:
        store: of the run.
        places: ids by (shard, slice), all of them of this run.
        reason: free text, kept with the request.
        key: idempotency key; by default a digest of the ids, so that sending the same request twice is one request.
        known: what the caller has read already.

    Raises:
        RequestError: the key was used for other samples.
    """
    named = tuple(Place(shard=s, slice=r, samples=tuple(sorted(ids))) for (s, r), ids in sorted(places.items()))
    key = key or digest_json([place.samples for place in named])
    while True:
        ledger = known = read_ledger(store, known)
        there = ledger.with_key(key)
        if there is not None:
            return _same(there, named)
        request = Request(
            number=ledger.position + 1,
            idempotency_key=key,
            reason=reason,
            places=named,
            previous=ledger.tip(),
            created_at=now(),
        )
        if store.create(numbered(FOLDER, request.number), request.to_bytes()):
            return request


def _same(known: Request, named: tuple[Place, ...]) -> Request:
    if known.places != named:
        rule = f"was used for other samples by request {known.number}"
        raise RequestError("idempotency key", known.idempotency_key, rule, "Give each request its own key")
    return known
