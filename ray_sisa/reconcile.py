"""Reconcile: make the store what the ledger says it should be. Training, resuming and unlearning are all this.

    (1) read ledger and live set
    (2) head carries deleted samples? write the rolled-back head        -> effective
    (3) write the smaller slices, then remove tainted stages and slices
    (4) train what is missing
    (5) write the full head
    (6) sweep, check, write certificates                                -> complete

Each step can be repeated and each follows from the store alone, so a crash anywhere is followed by the same command.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from ray_sisa import heads
from ray_sisa.clock import now
from ray_sisa.digests import digest_bytes
from ray_sisa.engine.driver import run_chains
from ray_sisa.engine.runner import OpenRunner, device_of
from ray_sisa.engine.work import ChainWork, Event
from ray_sisa.errors import StoreError
from ray_sisa.lease import Lease, hold_lease
from ray_sisa.ledger import EMPTY, Ledger, read_ledger
from ray_sisa.ledger import FOLDER as LEDGER
from ray_sisa.lineage import Chain, plan
from ray_sisa.live import LiveSet
from ray_sisa.records import Certificate, Head, Request, RunRecord, StageRecord
from ray_sisa.store import Store, numbered, slice_object, stage_record

CERTIFICATES = "certificates"
CLAIM = (
    "The stages named as retired were trained on samples of this request; none of them is in the store. The ensemble "
    "in force is, by name, what training without these samples gives; `ray-sisa verify` trains it again and compares "
    "every bit, on a machine with the environment that each stage's record names."
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconciliation:
    """What a reconcile did."""

    head: int
    ensemble_digest: str
    requests: tuple[int, ...]
    """Deletion requests that it completed."""
    affected_shards: tuple[int, ...]
    stages_trained: int
    stages_reused: int
    stages_purged: int
    sample_passes: int
    full_training_sample_passes: int
    """What training all samples, as they were at ingest, costs."""
    scratch_sample_passes: int
    """What training all that are live now from scratch would cost."""
    seconds_to_effective: float
    """From the start of the reconcile to the instant from which no head carried deleted samples."""
    seconds_to_complete: float


class Reconciler:
    """One reconcile of one run."""

    def __init__(self, store: Store, run: RunRecord, tell: Callable[[Event], None], known: Ledger = EMPTY) -> None:
        """Takes a run, who hears of its training, and what of its ledger has been read already."""
        self._store, self._run, self._tell, self._ledger = store, run, tell, known
        self._live = LiveSet(store, run)
        self._began = time.perf_counter()
        self._seconds_to_effective = 0.0
        self._purged = 0
        self._trained: list[StageRecord] = []

    def run(self, open_runner: OpenRunner, wait_s: float = 0.0) -> Reconciliation:
        """Runs all steps; `open_runner` is called only if a stage is missing.

        Raises:
            BusyError: another process reconciles this run.
            TrainingError, StoreError, ResourcesError: the run is left where the same command goes on.
        """
        with hold_lease(self._store, wait_s=wait_s) as lease:
            while True:
                ledger = self._make_effective()
                chains = self._live.chains(ledger)
                self._purge(chains, ledger, lease)
                self._train(chains, ledger, open_runner, lease)
                # A request that came meanwhile starts the next round: it is in the ledger, so it is not lost.
                if read_ledger(self._store, ledger).position == ledger.position:
                    break
            head = self._complete(chains, ledger, lease)
            completed = self._certify(ledger)
        return self._summary(head, chains, ledger, completed)

    def _make_effective(self) -> Ledger:
        ledger = self._ledger = read_ledger(self._store, self._ledger)
        head = heads.latest_head(self._store)
        kept = heads.in_force(self._store, ledger, head)
        if head is not None and head.ledger < ledger.position:
            heads.write_head(self._store, kept, ledger=ledger, complete=False)
            self._seconds_to_effective = time.perf_counter() - self._began
        return ledger

    def _purge(self, chains: Sequence[Chain], ledger: Ledger, lease: Lease) -> None:
        lease.check()
        self._store.sweep_unfinished()
        # Save before delete: the smaller slices are made from the larger ones.
        self._live.write_slices(chains, ledger)
        slices = {stage.slice_digest for chain in chains for stage in chain.stages}
        doomed = self._store.slice_digests() - slices
        lease.check()  # whoever took over may have made smaller slices, which this process does not know of
        self._store.delete(slice_object(digest) for digest in doomed)
        wanted = {stage.key for chain in chains for stage in chain.stages}
        for key, paths in self._store.stage_files().items():
            if key not in wanted:
                # The commit record first: without it the stage is absent, however little else was deleted.
                self._store.delete(sorted(paths, key=lambda path: path != stage_record(key)))
                self._purged += 1

    def _train(self, chains: Sequence[Chain], ledger: Ledger, open_runner: OpenRunner, lease: Lease) -> None:
        missing = plan(chains, self._store.committed_stages())
        if not missing:
            return
        full = {chain.shard: chain for chain in chains}
        device = device_of(self._run.config.scaling)
        works = [
            ChainWork(
                store=self._store,
                chain=full[chain.shard],
                missing=frozenset(chain.keys),
                device=device,
                ledger=ledger.position,
                test_during_training=self._run.config.evaluation.test_during_training,
            )
            for chain in missing
        ]
        with open_runner() as runner:
            tick = self._watch(ledger, lease)
            self._trained += run_chains(works, runner, self._run.config.scaling, tell=self._tell, tick=tick)

    def _watch(self, ledger: Ledger, lease: Lease) -> Callable[[], Set[int]]:
        """Between two events: stops if the lease is lost, and makes a new request effective at once."""
        seen = ledger.position

        def tick() -> Set[int]:
            nonlocal seen
            lease.check()
            if self._store.find(numbered(LEDGER, seen + 1)) is None:
                return frozenset()
            newer = self._make_effective()
            tainted = newer.touched(seen).keys()
            seen = newer.position
            return tainted

        return tick

    def _complete(self, chains: Sequence[Chain], ledger: Ledger, lease: Lease) -> Head:
        lease.check()
        deepest = [chain.stages[-1].key for chain in chains if chain.stages]
        records = [self._store.read(stage_record(key), StageRecord) for key in deepest]
        constituents = [heads.constituent(record) for record in records]
        head = heads.write_head(self._store, constituents, ledger=ledger, complete=True)
        self._purge(chains, ledger, lease)  # what a stray writer left meanwhile
        left = self._store.committed_stages() - {stage.key for chain in chains for stage in chain.stages}
        if left:
            rule = "appeared again while it was being removed: another process writes to this run"
            raise StoreError(f"{self._store.uri}/stages", sorted(left), rule, "Stop it and run the command again")
        return head

    def _certify(self, ledger: Ledger) -> tuple[Request, ...]:
        certified = set(self._store.numbers(CERTIFICATES))
        completed = tuple(request for request in ledger.requests if request.number not in certified)
        history = heads.all_heads(self._store) if completed else []
        for request in completed:
            certificate = self._certificate(request, ledger, history)
            self._store.create(numbered(CERTIFICATES, request.number), certificate.to_bytes())
        return completed

    def _certificate(self, request: Request, ledger: Ledger, history: Sequence[Head]) -> Certificate:
        """What was done for a request together with those that were completed with it."""
        head = next(h for h in history if h.complete and h.ledger >= request.number)
        earlier = max((h.ledger for h in history if h.complete and h.ledger < request.number), default=0)
        shards = sorted(ledger.touched(request.number - 1, request.number))
        before, after = ledger.deleted(earlier), ledger.deleted(head.ledger)
        old = {k for s in shards for k in self._live.chain(s, before.get(s, set())).keys}
        new = {stage.key: stage for s in shards for stage in self._live.chain(s, after.get(s, set())).stages}
        retrained = [stage for key, stage in new.items() if key not in old]
        return Certificate(
            request=request.number,
            request_digest=digest_bytes(self._store.get(numbered(LEDGER, request.number))),
            batch=tuple(range(earlier + 1, head.ledger + 1)),
            num_samples=len(request.sample_ids),
            affected_shards=tuple(shards),
            retired_stages=tuple(sorted(old - new.keys())),
            retrained_stages=tuple(stage.key for stage in retrained),
            sample_passes=sum(stage.sample_passes for stage in retrained),
            full_training_sample_passes=self._live.full_sample_passes,
            head=head.number,
            ensemble_digest=head.ensemble_digest,
            requested_at=request.created_at,
            effective_at=next(h.created_at for h in history if h.ledger >= request.number),
            completed_at=now(),
            claim=CLAIM,
        )

    def _summary(
        self, head: Head, chains: Sequence[Chain], ledger: Ledger, completed: Sequence[Request]
    ) -> Reconciliation:
        return Reconciliation(
            head=head.number,
            ensemble_digest=head.ensemble_digest,
            requests=tuple(request.number for request in completed),
            affected_shards=tuple(
                sorted({shard for r in completed for shard in ledger.touched(r.number - 1, r.number)})
            ),
            stages_trained=len(self._trained),
            stages_reused=sum(len(chain.stages) for chain in chains)
            - len({r.key for r in self._trained} & {k for c in chains for k in c.keys}),
            stages_purged=self._purged,
            sample_passes=sum(record.sample_passes for record in self._trained),
            full_training_sample_passes=self._live.full_sample_passes,
            scratch_sample_passes=sum(c.sample_passes for c in chains),
            seconds_to_effective=self._seconds_to_effective,
            seconds_to_complete=time.perf_counter() - self._began,
        )
