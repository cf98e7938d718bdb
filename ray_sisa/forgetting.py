"""Acknowledging a deletion request: as a whole or not at all. Nothing is retrained or removed here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray_sisa import heads, ids
from ray_sisa.errors import RequestError
from ray_sisa.ledger import append

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


def acknowledge(
    run: Run,
    *,
    samples: ids.Ids,
    subjects: ids.Ids,
    reason: str,
    key: str | None,
    ignore_unknown: bool,
    requester: str = "",
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
    deleted = ledger.deleted()
    named = [(shard, sample) for (shard, _), here in found.places.items() for sample in here]
    gone = sum(sample in deleted.get(shard, ()) for shard, sample in named)
    request = append(run.store, found.places, reason, key, ledger, requester)
    return Forgotten(
        request=request.number,
        samples=len(named) - gone,
        already_forgotten=gone,
        unknown=found.unknown,
        unknown_examples=found.unknown_examples,
    )
