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

import logging
import time
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace

from ray_sisa import creation, exclusions, features, heads, measurements, retention, seals
from ray_sisa.activity import ActivityWriter
from ray_sisa.certificates import certify
from ray_sisa.engine.driver import run_chains
from ray_sisa.engine.runner import OpenRunner, Runner, device_of
from ray_sisa.engine.work import ChainWork, Event
from ray_sisa.errors import StoreError, TrainingError
from ray_sisa.foreign_text import escaped
from ray_sisa.layout import (
    ACTIVITY,
    FEATURES,
    HEADS,
    LEDGER,
    SEALS,
    divergence_record,
    kind_of,
    numbered,
    samples_of,
    sealed_by,
    slice_object,
    stage_record,
    stage_weights,
    test_object,
    whole_approximations,
)
from ray_sisa.lease import Lease, hold_lease
from ray_sisa.ledger import EMPTY, Ledger, compact, read_ledger
from ray_sisa.lineage import Chain, plan
from ray_sisa.live import LiveSet
from ray_sisa.records import Certificate, Excluded, Head, RunRecord, StageRecord
from ray_sisa.retention import Kept
from ray_sisa.store import Store

logger = logging.getLogger(__name__)

MAX_POSITIONS = 10  # of the ledger, looked at to tell what a purged name was


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
    excluded: tuple[Excluded, ...] = ()
    """Shards whose training diverged."""


class Reconciler:
    """One reconcile of one run."""

    def __init__(self, store: Store, run: RunRecord, tell: Callable[[Event], None], known: Ledger = EMPTY) -> None:
        """Takes a run, who hears of its training, and what of its ledger has been read already."""
        self._store, self._run, self._tell, self._ledger = store, run, tell, known
        self._live = LiveSet(store, run)
        self._began = time.perf_counter()
        self._seconds_to_effective = 0.0
        self._is_first = False
        """Whether nobody worked on the run before."""
        self._purged = 0
        self._trained: list[StageRecord] = []
        self._kept = Kept()

    def run(self, open_runner: OpenRunner, wait_s: float | None = None) -> Reconciliation:
        """Runs all steps; `open_runner` is called only if a stage is missing.

        Raises:
            BusyError: another process reconciles this run.
            TrainingError, StoreError, ResourcesError: the run is left where the same command goes on.
        """
        self._kept = Kept(retention=retention.look(self._store, self._run.config.purge))
        with hold_lease(self._store, wait_s=wait_s) as lease:
            self._is_first = heads.latest_head(self._store) is None
            while True:
                ledger = self._make_effective()
                chains = self._live.chains(ledger)
                self._check_ours(chains)
                self._purge(chains, ledger, lease)
                self._train(chains, ledger, open_runner, lease)
                # A request that came meanwhile starts the next round: it is in the ledger, so it is not lost. One that
                # only names what is deleted changes no chain, and is completed with this round: else whoever sends
                # such requests without end would keep all others pending.
                newer = read_ledger(self._store, ledger)
                if not newer.touched(ledger.position):
                    ledger = newer
                    break
            head = self._complete(chains, ledger, lease)
            certificates = certify(self._store, self._live, ledger, self._kept)
            compact(self._store, ledger)
        return self._summary(head, chains, certificates)

    def _make_effective(self) -> Ledger:
        head = heads.latest_head(self._store)  # before the ledger: it respects no request that comes later
        ledger = self._ledger = read_ledger(self._store, self._ledger)
        kept = heads.in_force(self._store, ledger, head)
        touched = ledger.touched(head.ledger) if head is not None else {}
        if head is not None and touched:
            excluded = exclusions.untouched(head.excluded, touched)
            heads.write_head(self._store, kept, ledger=ledger, complete=False, excluded=excluded)
            self._seconds_to_effective = time.perf_counter() - self._began
        return ledger

    def _check_ours(self, chains: Sequence[Chain]) -> None:
        """Passes if what is in force is of this run: else all that is there would be purged as strange to it."""
        head, names = heads.latest_head(self._store), _names(chains)[0]
        if head is not None and (strange := [c.key for c in head.constituents if c.key not in names]):
            rule = f"names stages that do not follow from run.json and the ledger: {', '.join(strange)}"
            remedy = "Another run's objects lie here. Run `ray-sisa check RUN`, and restore what it names"
            raise StoreError(self._store.where(numbered(HEADS, head.number)), "", rule, remedy)

    def _purge(self, chains: Sequence[Chain], ledger: Ledger, lease: Lease) -> None:
        lease.check()
        self._store.sweep_unfinished()
        # Save before delete: the smaller slices are made from the larger ones.
        self._live.write_slices(chains, ledger)
        keys, slices = _names(chains)
        doomed = {k: paths for k, paths in self._store.stage_files().items() if k not in keys}
        kept = {slice_object(digest) for digest in slices}
        doomed_slices = [path for path in self._store.sizes("slices") if path not in kept]
        with_features = {*slices, self._run.test_digest} if self._run.training.is_frozen else set()
        doomed_slices += [path for path in self._store.sizes(FEATURES) if samples_of(path) not in with_features]
        doomed_slices += [path for path in self._store.sizes(SEALS) if sealed_by(path) not in kept | self._test()]
        attempts = set(creation.left_by_others(self._store, self._run)) - kept if self._is_first else set()
        # Listed before the check, deleted after it: whoever took over since may have made what is wanted now, and that
        # was not there yet. What was there and is not wanted now never will be, since requests only come.
        lease.check()
        if attempts:
            logger.info("%d objects of another attempt to create this run are removed", len(attempts))
        told = {path for path in doomed_slices if kind_of(path) != SEALS}
        self._tell_strays(doomed.keys(), told - attempts, ledger)
        self._store.delete([*doomed_slices, *(attempts - set(doomed_slices))])
        measurements.purge(self._store, ledger, retires=bool(doomed))
        # The commit records first: without its own a stage is absent, however little else was deleted.
        self._store.delete(stage_record(key) for key in doomed)
        self._store.delete(path for key, paths in doomed.items() for path in paths if path != stage_record(key))
        self._store.delete([*self._left_inside(), ACTIVITY])
        self._purged += len(doomed)
        if self._kept.retention.versions and self._run.config.purge.versions == "delete":
            self._kept = replace(self._kept, objects=retention.remove_versions(self._store))

    def _test(self) -> set[str]:
        """The test set, if there is one."""
        return {test_object(self._run.test_digest)} if self._run.test_digest else set()

    def _left_inside(self) -> list[str]:
        """What a kill left inside stages that have ended: states of their training, half an approximation."""
        left: list[str] = []
        for key, paths in self._store.stage_files().items():
            whole, there = {stage_record(key), stage_weights(key)}, set(paths)
            if whole <= there:
                approximations = whole_approximations(paths)
                left += sorted(there - whole - approximations.keys() - set(approximations.values()))
            elif divergence_record(key) in there and self._run.config.recipe.on_divergence == "exclude":
                left += sorted(there - {divergence_record(key)})
        return left

    def _tell_strays(self, keys: Set[str], slices: Set[str], ledger: Ledger) -> None:
        """Logs what is about to be removed although no request since the last full head explains it."""
        if not keys and not slices:
            return
        since = heads.history(self._store, ledger.position + 1)
        # Whoever worked on a later state of the ledger wrote a head for it; before the first head nobody did.
        positions = {head.ledger for head in since} or set(
            range(max(0, ledger.position - MAX_POSITIONS), ledger.position)
        )
        for position in sorted(positions | {ledger.position}):
            explained = _names(self._live.chains(ledger, up_to=position))
            keys, slices = keys - explained[0], {path for path in slices if samples_of(path) not in explained[1]}
        for name in [f"stages/{key}" for key in sorted(keys)] + sorted(slices):
            rule = "must not exist: a late writer or a restored backup left it; it is removed"
            logger.warning("%s %s", escaped(name), rule)

    def _train(self, chains: Sequence[Chain], ledger: Ledger, open_runner: OpenRunner, lease: Lease) -> None:
        policy = self._run.config.recipe.on_divergence
        # Where a divergence is an error, what one process passed over is tried again by the next.
        diverged = self._store.diverged_stages() if policy == "exclude" else frozenset()
        missing = plan([chain.before(diverged) for chain in chains], self._store.committed_stages())
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
                lease=lease.record,
                checkpoint_every=self._run.config.scaling.checkpoint_every,
                test_during_training=self._run.config.evaluation.test_during_training,
                on_divergence=policy,
            )
            for chain in missing
        ]
        with open_runner() as runner:
            self._prepare_test(runner, device, lease)
            tick = self._watch(ledger, lease)
            activity = ActivityWriter(self._store, lease.record.holder, works)

            def tell(event: Event) -> None:
                activity.hear(event)
                self._tell(event)

            try:
                scaling = self._run.config.scaling
                self._trained += run_chains(works, runner, scaling, tell=tell, tick=tick, watch=activity.watch)
            except TrainingError:
                lease.check()  # whoever took over may have removed what a chain was reading: that is the reason then
                raise
            finally:
                activity.end()

    def _prepare_test(self, runner: Runner, device: str, lease: Lease) -> None:
        """Features of the test set, which all chains read and no request changes."""
        digest = self._run.test_digest
        if not self._run.training.is_frozen or digest is None:
            return
        if self._run.config.evaluation.test_during_training == "never":
            return
        made = features.make_for_test(self._store, self._run, runner, device)
        lease.check()
        if made is not None:
            features.write(self._store, digest, made)

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
        diverged = self._store.diverged_stages()
        reached = [chain.before(diverged) for chain in chains]
        excluded = exclusions.excluded(chains, diverged)
        if excluded:
            logger.warning("training diverged, so the vote is without %s", exclusions.shown(excluded))
        deepest = [chain.stages[-1].key for chain in reached if chain.stages]
        records = [self._store.read(stage_record(key), StageRecord) for key in deepest]
        constituents = [heads.constituent(record) for record in records]
        head = heads.write_head(self._store, constituents, ledger=ledger, complete=True, excluded=excluded)
        self._purge(chains, ledger, lease)  # what a stray writer left meanwhile
        keys, slices = _names(chains)
        # Of runs from before there were seals, and where a kill came between an object and its own.
        seals.add_missing(self._store, {*map(slice_object, slices), *self._test()}, self._store.sizes(SEALS))
        left = {f"stages/{key}" for key in self._store.stage_files().keys() - keys}
        known = {*slices, self._run.test_digest}
        left |= {path for path in self._store.sizes(FEATURES) if samples_of(path) not in known}
        if left:
            rule = "appeared again while it was being removed: another process writes to this run"
            raise StoreError(self._store.where(""), sorted(left), rule, "Stop it and run the command again")
        return head

    def _summary(self, head: Head, wanted: Sequence[Chain], certificates: Sequence[Certificate]) -> Reconciliation:
        chains = [chain.before({each.key for each in head.excluded}) for chain in wanted]
        return Reconciliation(
            head=head.number,
            ensemble_digest=head.ensemble_digest,
            requests=tuple(certificate.request for certificate in certificates),
            affected_shards=tuple(sorted({shard for c in certificates for shard in c.affected_shards})),
            stages_trained=len(self._trained),
            stages_reused=sum(len(chain.stages) for chain in chains)
            - len({r.key for r in self._trained} & {k for c in chains for k in c.keys}),
            stages_purged=self._purged,
            sample_passes=sum(record.sample_passes for record in self._trained),
            full_training_sample_passes=self._live.full_sample_passes,
            scratch_sample_passes=sum(c.sample_passes for c in chains),
            seconds_to_effective=self._seconds_to_effective,
            seconds_to_complete=time.perf_counter() - self._began,
            excluded=head.excluded,
        )


def _names(chains: Iterable[Chain]) -> tuple[set[str], set[str]]:
    """Keys of the stages of some chains, and digests of their slices."""
    stages = [stage for chain in chains for stage in chain.stages]
    return {stage.key for stage in stages}, {stage.slice_digest for stage in stages}
