"""What each deletion request cost, and what all of them cost together: for the report, from the store alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from ray_sisa.ledger import Ledger
from ray_sisa.records import Certificate, Request
from ray_sisa.run import Run

MAX_NAMED = 8  # requests of one batch that are named in a row of the table


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestRow:
    """One deletion request and what it cost; the certificate is None while the request is pending."""

    number: int
    num_samples: int
    shards: tuple[int, ...]
    certificate: Certificate | None
    shared_with: tuple[int, ...]
    """Requests of the same batch in the same shards: the certificate counts what was done for all of them."""
    seconds_to_effective: float | None
    seconds_to_complete: float | None

    @property
    def together(self) -> str:
        """What the certificate counts besides this request, in words; empty where it counts nothing else."""
        if not self.shared_with:
            return ""
        if len(self.shared_with) > MAX_NAMED:
            return f"together with {len(self.shared_with)} other requests"
        plural = "s" if len(self.shared_with) > 1 else ""
        return f"together with request{plural} {', '.join(map(str, self.shared_with))}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What all completed requests took, each sample, stage and sample pass counted once."""

    num_requests: int
    num_samples: int
    num_stages: int
    sample_passes: int
    full_training_sample_passes: int


def request_rows(run: Run, ledger: Ledger) -> tuple[RequestRow, ...]:
    """All requests, pending ones among them."""
    certificates = {certificate.request: certificate for certificate in run.certificates()}
    return tuple(_request(request, certificates) for request in ledger.requests)


def _request(request: Request, certificates: Mapping[int, Certificate]) -> RequestRow:
    certificate = certificates.get(request.number)
    return RequestRow(
        number=request.number,
        num_samples=len(request.sample_ids),
        shards=tuple(sorted({place.shard for place in request.places})),
        certificate=certificate,
        shared_with=_sharing(certificate, certificates) if certificate else (),
        seconds_to_effective=_elapsed(request.created_at, certificate.effective_at) if certificate else None,
        seconds_to_complete=_elapsed(request.created_at, certificate.completed_at) if certificate else None,
    )


def _sharing(certificate: Certificate, certificates: Mapping[int, Certificate]) -> tuple[int, ...]:
    own = set(certificate.affected_shards)
    first, last = certificate.batch
    batch = range(first, last + 1)
    others = (certificates[n] for n in batch if n in certificates and n != certificate.request)
    return tuple(other.request for other in others if own & set(other.affected_shards))


def total_costs(run: Run, ledger: Ledger, requests: Sequence[RequestRow]) -> Costs | None:
    """What all completed requests took, or None where none is. Certificates that share stages cannot be added up."""
    certificates = [row.certificate for row in requests if row.certificate]
    if not certificates:
        return None
    completed = {certificate.request for certificate in certificates}
    retrained = {key for certificate in certificates for key in certificate.retrained_stages}
    sharing = [row.certificate for row in requests if row.certificate and row.shared_with]
    alone = sum(c.sample_passes for c in certificates) - sum(c.sample_passes for c in sharing)
    # Each shared shard as its batch left it: what was retrained may have been retired since.
    shared = sorted(
        {(certificate.batch[-1], shard) for certificate in sharing for shard in certificate.affected_shards}
    )
    chains = [run.live.chain(shard, ledger.deleted(end).get(shard, set())) for end, shard in shared]
    return Costs(
        num_requests=len(certificates),
        num_samples=len({sample for r in ledger.requests if r.number in completed for sample in r.sample_ids}),
        num_stages=len(retrained),
        sample_passes=alone + sum(s.sample_passes for chain in chains for s in chain.stages if s.key in retrained),
        full_training_sample_passes=certificates[-1].full_training_sample_passes,
    )


def _elapsed(start: str, end: str) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
