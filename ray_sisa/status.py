"""A run as its store says it is: who votes, what is missing, which requests are pending. One listing, no weights."""

from __future__ import annotations

import time
from collections.abc import Set
from dataclasses import dataclass

from ray_sisa import heads
from ray_sisa.activity import Activity, read_activity
from ray_sisa.errors import StoreError
from ray_sisa.layout import CERTIFICATES
from ray_sisa.lease import holder_of
from ray_sisa.ledger import Ledger
from ray_sisa.lineage import Chain
from ray_sisa.live import LiveSet
from ray_sisa.records import Constituent, Head, RunRecord
from ray_sisa.retention import Retention, retention_of
from ray_sisa.store import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardStatus:
    """One shard as it votes now."""

    shard: int
    depth: int
    """Slice of the stage that votes; 0 where the shard has left the vote."""
    stage: str | None
    clean: bool
    """Whether the stage in the head saw no deleted sample; where not, readers already fall back before it."""
    samples: int
    """Live samples of the shard."""
    committed: int
    """Slice of the deepest stage that is in the store and should exist; 0 where there is none. While a run trains, what
    is committed votes once all shards are done."""
    diverged: int | None = None
    """Slice whose stage diverged, so that the shard votes with an earlier one or not at all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """Who works on a run now."""

    holder: str
    """Of the lease: host, process and a random part."""
    lease_ends_in_s: float
    """Unless it is renewed."""
    activity: Activity | None
    """What it said last of the stages that it trains; None where it trains none, or has only begun."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """A run at one moment, read from its store alone."""

    name: str
    head: int
    complete: bool
    """Whether the ensemble is as deep as it gets and every request is done."""
    requests: int
    pending_requests: tuple[int, ...]
    live_samples: int
    shards: tuple[ShardStatus, ...]
    stages_missing: int
    ensemble_digest: str | None
    retention: Retention
    """What the store keeps of deleted objects."""
    work: Work | None
    """None where nobody works on it, or the lease is damaged (`check` says so)."""
    test_samples: int
    test_samples_in_training: int | None
    """Of the test samples; None where they were not counted when the run was created, or there are none."""


def read_status(store: Store, run: RunRecord, live: LiveSet, ledger: Ledger, head: Head | None) -> Status:
    """The status of a run; the head was read before the ledger."""
    certified = set(store.numbers(CERTIFICATES))
    chains, present = live.chains(ledger), store.committed_stages()
    pending = tuple(r.number for r in ledger.requests if r.number not in certified)
    diverged = store.diverged_stages()
    missing = sum(len(chain.before(diverged).missing(present)) for chain in chains)
    serving = {c.shard: c for c in heads.in_force(store, ledger, head)}
    tainted = ledger.touched(head.ledger) if head else {}
    in_head = {c.shard: c for c in head.constituents} if head else {}
    return Status(
        name=run.config.name,
        head=head.number if head else 0,
        complete=bool(head and head.complete and not pending and not missing),
        requests=ledger.position,
        pending_requests=pending,
        live_samples=live.num_samples(ledger),
        shards=tuple(_shard_status(chain, present, serving, in_head, tainted, diverged) for chain in chains),
        stages_missing=missing,
        ensemble_digest=head.ensemble_digest if head else None,
        retention=retention_of(store),
        work=_work(store),
        test_samples=run.num_test_samples,
        test_samples_in_training=run.test_samples_in_training,
    )


def _work(store: Store) -> Work | None:
    try:
        lease = holder_of(store)
    except StoreError:
        return None
    if lease is None:
        return None
    left = max(0.0, lease.expires_at - time.time())
    return Work(holder=lease.holder, lease_ends_in_s=left, activity=read_activity(store, lease))


def _shard_status(
    chain: Chain,
    present: Set[str],
    serving: dict[int, Constituent],
    in_head: dict[int, Constituent],
    tainted: dict[int, int],
    diverged: Set[str],
) -> ShardStatus:
    excluded = chain.excluded(diverged)
    votes, named = serving.get(chain.shard), in_head.get(chain.shard)
    return ShardStatus(
        shard=chain.shard,
        depth=votes.slice if votes else 0,
        stage=votes.key if votes else None,
        clean=named is None or named.slice < tainted.get(chain.shard, named.slice + 1),
        samples=chain.stages[-1].num_samples if chain.stages else 0,
        committed=max((stage.slice for stage in chain.stages if stage.key in present), default=0),
        diverged=excluded.slice if excluded else None,
    )
