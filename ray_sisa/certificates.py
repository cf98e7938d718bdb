"""Certificates: what was done for each deletion request, written once the store is as the requests want it.

Requests that were completed together share a batch, and what retraining they caused is told of the batch as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ray_sisa import exclusions, heads, measurements
from ray_sisa.clock import now
from ray_sisa.errors import StoreError
from ray_sisa.layout import CERTIFICATES, damaged, numbered
from ray_sisa.ledger import Ledger, deleted_by_shard, first_slices
from ray_sisa.lineage import Chain
from ray_sisa.live import LiveSet
from ray_sisa.records import Certificate, Head, Request
from ray_sisa.retention import Kept
from ray_sisa.store import Store

_RETIRED = "The stages named as retired were trained on samples of this request; none of them is in the store. "
CLAIM = _RETIRED + (
    "The ensemble in force is, by name, what training without these samples gives; `ray-sisa verify` trains it again "
    "and compares every bit, on a machine with the environment that each stage's record names."
)
CLAIM_OF_SECURE_NOISE = _RETIRED + (
    "The stages of the ensemble in force are named by all that they were made from, and never saw these samples. Their "
    "noise was drawn by the operating system and not kept, so training again gives other bits and cannot prove it; "
    "`ray-sisa verify` checks records, names, samples and stored weights."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    """Requests that one complete head was the first to respect."""

    earlier: int
    """Number of the last request of the batch before."""
    heads: tuple[Head, ...]
    """The heads since then; the last one is complete."""
    requests: tuple[Request, ...]
    shards: tuple[tuple[int, ...], ...]
    """The shards that each request touches."""
    old: dict[int, Chain]
    """Chain before the batch, of each shard touched."""
    new: dict[int, Chain]
    """Chain after it."""


def certify(store: Store, live: LiveSet, ledger: Ledger, kept: Kept) -> tuple[Certificate, ...]:
    """Writes the certificates that the requests of a ledger lack, and returns them.

    A crash leaves some written: the rest are written by the next call, and say the same but for the time.

    Args:
        store, live, ledger: of the run.
        kept: what the store keeps of what was deleted.
    """
    certified = set(store.numbers(CERTIFICATES))
    first = next((r.number for r in ledger.requests if r.number not in certified), None)
    if first is None:
        return ()
    removed = measurements.removed_by_request(store)
    written = []
    for batch in _batches(heads.history(store, first), live, ledger, certified):
        for request, shards in zip(batch.requests, batch.shards, strict=True):
            if request.number not in certified:
                gone = removed.get(request.number, ())
                certificate = _certificate(batch, request, shards, ledger, live, kept, gone)
                store.create(numbered(CERTIFICATES, request.number), certificate.to_bytes())
                written.append(certificate)
    return tuple(written)


def read_certificates(store: Store, ledger: Ledger) -> list[Certificate]:
    """What was done for each completed request.

    Raises:
        StoreError: one is damaged, or is not of the request that the ledger has.
    """
    found = [store.read(numbered(CERTIFICATES, number), Certificate) for number in store.numbers(CERTIFICATES)]
    for certificate in found:
        if [certificate.request_digest] != list(ledger.digests[certificate.request - 1 : certificate.request]):
            rule = f"is not of request {certificate.request} as the ledger has it"
            raise StoreError(store.where(certificate.path), "", rule, damaged(certificate.path))
    return found


def _batches(history: Sequence[Head], live: LiveSet, ledger: Ledger, certified: set[int]) -> Iterator[_Batch]:
    """The requests between one complete head and the next, for each that lacks a certificate and a history holds."""
    earlier, rolled = 0, list[Head]()
    for head in history:
        rolled.append(head)
        if head.complete:
            # A history begins with the first head there ever was, or with the complete one before what it is about.
            lacks = not certified.issuperset(range(earlier + 1, head.ledger + 1))
            if lacks and (head is not history[0] or head.number == 1):
                yield _batch(earlier, rolled, live, ledger)
            earlier, rolled = head.ledger, []


def _batch(earlier: int, rolled: Sequence[Head], live: LiveSet, ledger: Ledger) -> _Batch:
    head = rolled[-1]
    requests = ledger.requests[earlier : head.ledger]
    before, after = ledger.deleted(earlier), ledger.deleted(head.ledger)
    gone = ledger.deleted(earlier)
    shards = []
    for request in requests:
        shards.append(tuple(sorted(first_slices([request], gone))))
        for shard, ids in deleted_by_shard([request]).items():
            gone.setdefault(shard, set()).update(ids)
    touched = sorted({shard for found in shards for shard in found})
    return _Batch(
        earlier=earlier,
        heads=tuple(rolled),
        requests=requests,
        shards=tuple(shards),
        old={s: live.chain(s, before.get(s, set())) for s in touched},
        new={s: live.chain(s, after.get(s, set())) for s in touched},
    )


def _certificate(
    batch: _Batch,
    request: Request,
    shards: tuple[int, ...],
    ledger: Ledger,
    live: LiveSet,
    kept: Kept,
    removed: tuple[str, ...],
) -> Certificate:
    head = batch.heads[-1]
    excluded = tuple(each for each in head.excluded if each.shard in shards)
    old = {key for s in shards for key in batch.old[s].keys}
    new = {stage.key: stage for s in shards for stage in batch.new[s].stages}
    made = {stage.key for s in shards for stage in batch.new[s].before({each.key for each in excluded}).stages}
    retrained = [stage for key, stage in new.items() if key not in old and key in made]
    return Certificate(
        request=request.number,
        request_digest=ledger.digests[request.number - 1],
        batch=(batch.earlier + 1, head.ledger),
        num_samples=len(request.sample_ids),
        affected_shards=shards,
        retired_stages=tuple(sorted(old - new.keys())),
        retrained_stages=tuple(stage.key for stage in retrained),
        sample_passes=sum(stage.sample_passes for stage in retrained),
        full_training_sample_passes=live.full_sample_passes,
        head=head.number,
        ensemble_digest=head.ensemble_digest,
        requested_at=request.created_at,
        effective_at=next(h.created_at for h in batch.heads if h.ledger >= request.number),
        completed_at=now(),
        claim=_claim(live, head) + kept.reservation,
        deleted_objects=kept.fate,
        retention=kept.retention.sentence,
        kept_objects=kept.objects or (),
        excluded=excluded,
        removed_measurements=removed,
    )


def _claim(live: LiveSet, head: Head) -> str:
    claim = CLAIM if live.run.training.is_repeatable else CLAIM_OF_SECURE_NOISE
    if not head.excluded:
        return claim
    return f"{claim} Training diverged, and the vote is without {exclusions.shown(head.excluded)}."
