"""Acknowledging a deletion request: as a whole or not at all. Nothing is retrained or removed here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray_sisa import duplicates, heads, ids
from ray_sisa.census import Places
from ray_sisa.errors import RequestError, StoreError
from ray_sisa.ledger import Ledger, append
from ray_sisa.records import Request, given_by

if TYPE_CHECKING:
    from ray_sisa.run import Run


@dataclass(frozen=True, kw_only=True, slots=True)
class Forgotten:
    """A deletion request as acknowledged."""

    request: int
    samples: int
    """Live samples that it names."""
    already_forgotten: int
    unknown: int
    """Names that the run never had, as often as they were given; only where the caller chose to ignore them."""
    unknown_examples: tuple[str, ...]
    """The first few of them, cut where they are long."""
    copies: int | None = None
    """Live samples that were not named and have the very content of one that was: those that stay, or, where they were
    to be deleted too, those that `samples` counts besides. None where nobody looked, see `duplicates.is_quick`."""
    copies_deleted: bool = False


def acknowledge(
    run: Run,
    samples: ids.Ids,
    subjects: ids.Ids,
    reason: str,
    key: str | None,
    ignore_unknown: bool,
    requester: str,
    with_duplicates: bool,
) -> Forgotten:
    """Writes a request for samples and subjects into a run's ledger, once all of it is known to be right: see `Run`.

    Raises:
        RequestError: nothing is named, or names are unknown; nothing was written.
        StoreError: the ledger is not the one that the head in force respects.
    """
    for name, text in (("reason", reason), ("key", key or ""), ("requester", requester)):
        ids.as_text(text, name)
    found = run.locate(samples=samples, subjects=subjects)
    if not ignore_unknown:
        found.refuse_unknown(
            "unknown ids",
            "Correct the ids, or pass --ignore-unknown (ignore_unknown=True); the request was refused as a whole",
        )
    if not found.places:
        raise RequestError("request", "", "names no sample of this run", "Name samples or subjects")
    head = heads.latest_head(run.store)
    # A ledger that lost its end would give the number of a lost request to this one, and a restore would undo it.
    ledger = run.ledger()
    heads.check_respected(run.store, ledger, head)
    places, num_copies = found.places, None
    sent = ledger.with_key(key, given_by(requester)) if key else None
    if with_duplicates and sent and _covers(sent, places):
        places = {(p.shard, p.slice): list(p.samples) for p in sent.places}  # its copies are gone, and not found again
    elif with_duplicates:
        copies = duplicates.find(run.store, run.live, ledger, places)
        num_copies = _size(copies)
        places = {at: sorted([*places.get(at, ()), *copies.get(at, ())]) for at in places.keys() | copies.keys()}
    deleted = ledger.deleted()
    named = [(shard, sample) for (shard, _), here in places.items() for sample in here]
    gone = sum(sample in deleted.get(shard, ()) for shard, sample in named)
    request = append(run.store, places, reason, key, ledger, requester)
    # After the acknowledgement, which does not wait for it.
    num_copies = num_copies if with_duplicates else _copies_left(run, ledger, places)
    return Forgotten(
        request=request.number,
        samples=len(named) - gone,
        already_forgotten=gone,
        unknown=found.unknown,
        unknown_examples=found.unknown_examples,
        copies=num_copies,
        copies_deleted=with_duplicates,
    )


def _covers(request: Request, places: Places) -> bool:
    """Whether a request deletes all these samples."""
    deleted = {(place.shard, place.slice): set(place.samples) for place in request.places}
    return all(deleted.get(at, set()) >= set(samples) for at, samples in places.items())


def _size(places: Places) -> int:
    return sum(map(len, places.values()))


def _copies_left(run: Run, ledger: Ledger, places: Places) -> int | None:
    """How many copies of samples stay; None where that takes long to find out, or slices go meanwhile."""
    if not duplicates.is_quick(run.store):
        return None
    try:
        return _size(duplicates.find(run.store, run.live, ledger, places))
    except StoreError:
        return None
