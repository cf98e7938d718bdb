"""What a run is made of under its ledger: live slices, and the chains of stages that should exist."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Set
from functools import cached_property

import numpy as np

from ray_sisa import features
from ray_sisa.digests import digest_bytes
from ray_sisa.errors import StoreError
from ray_sisa.index import ShardIndex, SliceSummary, index_from_bytes
from ray_sisa.keyed_ids import known_as
from ray_sisa.layout import shard_index, slice_object
from ray_sisa.ledger import Ledger, deleted_by_shard
from ray_sisa.lineage import Chain, Stage, make_chain, recipe_digest
from ray_sisa.records import RunRecord
from ray_sisa.samples import Samples
from ray_sisa.seals import put_sealed
from ray_sisa.slices import TAMPERED, digest_of_slice, read_slice, slice_to_bytes
from ray_sisa.store import Store


class LiveSet:
    """The samples of a run less those that its ledger deletes; reads the index of a shard only where it must."""

    def __init__(self, store: Store, run: RunRecord) -> None:
        self._store, self.run = store, run
        self._recipe = recipe_digest(run.training)
        self._indexes: dict[int, ShardIndex] = {}

    def index(self, shard: int) -> ShardIndex:
        """The index of a shard as it was at ingest.

        Raises:
            StoreError: it is absent or was changed.
        """
        if shard not in self._indexes:
            digest = self.run.index_digests[shard]
            path = shard_index(digest)
            data = self._store.get(path)
            if digest_bytes(data) != digest:
                raise StoreError(self._store.where(path), "", "is not the index that was written", TAMPERED)
            self._indexes[shard] = index_from_bytes(data, self._store.where(path))
        return self._indexes[shard]

    def slices(self, shard: int, deleted: Set[str]) -> tuple[SliceSummary, ...]:
        """Slices 1..R of a shard without the deleted samples."""
        if not deleted:
            return self._at_ingest(shard)
        return self._summaries(self.index(shard).without(deleted))

    def chain(self, shard: int, deleted: Set[str]) -> Chain:
        """The chain of a shard without the deleted samples."""
        return make_chain(self.run.training, self._recipe, shard, self.slices(shard, deleted))

    def chains(self, ledger: Ledger, up_to: int | None = None) -> tuple[Chain, ...]:
        """The chains of all shards under the requests up to a number (all by default)."""
        deleted = ledger.deleted(up_to)
        return tuple(self.chain(shard, deleted.get(shard, set())) for shard in range(len(self.run.slices)))

    @cached_property
    def full_sample_passes(self) -> int:
        """What training all samples, as they were at ingest, costs."""
        total = 0
        for shard in self.run.slices:
            sizes = itertools.accumulate(entry.num_samples for entry in shard)
            total += sum(
                epochs * size
                for epochs, size, entry in zip(self.run.training.epochs, sizes, shard, strict=True)
                if entry.digest
            )
        return total

    def num_samples(self, ledger: Ledger) -> int:
        """How many samples are live."""
        return self.run.num_samples - sum(len(ids) for ids in ledger.deleted().values())

    def write_slices(self, chains: Iterable[Chain], ledger: Ledger) -> list[str]:
        """Writes the slice objects that these chains need and the store lacks, from the larger ones that it has.

        Returns:
            Digests of the objects written.

        Raises:
            StoreError: no object that holds the samples of such a slice is left.
        """
        present = self._store.slice_digests()
        lacking = [stage for chain in chains for stage in chain.stages if stage.slice_digest not in present]
        deleted = ledger.deleted() if lacking else {}
        for stage in lacking:
            self._shrink(stage, deleted.get(stage.shard, set()), ledger, present)
        return [stage.slice_digest for stage in lacking]

    def samples(self, stage: Stage, ledger: Ledger, present: Set[str]) -> Samples:
        """The live samples of the slice of a stage, from its object or a larger one: of those `present`, by digest.

        Raises:
            StoreError: no object that holds them is left, or it is damaged.
        """
        if stage.slice_digest in present:
            return read_slice(self._store, stage.slice_digest)
        return self._of_larger(stage, ledger.deleted().get(stage.shard, set()), ledger, present)[2]

    def _shrink(self, stage: Stage, deleted: Set[str], ledger: Ledger, present: Set[str]) -> None:
        """Writes the slice object of a stage from a larger one, less the samples deleted from its shard."""
        larger, is_kept, live = self._of_larger(stage, deleted, ledger, present)
        # Before the slice: once that is there, nobody looks for what it can be made from.
        features.shrink(self._store, self.run, larger, stage.slice_digest, is_kept)
        put_sealed(self._store, slice_object(stage.slice_digest), slice_to_bytes(live))

    def _of_larger(
        self, stage: Stage, deleted: Set[str], ledger: Ledger, present: Set[str]
    ) -> tuple[str, np.ndarray, Samples]:
        """Digest of a larger slice, which of its samples are live, bool [N], and these."""
        for larger in self.larger_digests(stage.shard, stage.slice, ledger):
            if larger in present:
                samples = read_slice(self._store, larger)
                is_kept = np.array([i not in deleted for i in known_as(self.run, samples.ids).to_pylist()])
                live = samples.take(np.flatnonzero(is_kept))
                assert digest_of_slice(live) == stage.slice_digest  # both follow from the index and the ledger
                return larger, is_kept, live
        rule = f"is not there, nor any object to make it from (shard {stage.shard}, slice {stage.slice})"
        remedy = "Restore the slices folder from a backup; what was deleted is swept from it by `ray-sisa unlearn`"
        raise StoreError(self._store.where(slice_object(stage.slice_digest)), "", rule, remedy)

    def larger_digests(self, shard: int, number: int, ledger: Ledger) -> Iterable[str]:
        """Digests that a slice had before each request that touched it, the last first."""
        for request in reversed(ledger.requests):
            if any((place.shard, place.slice) == (shard, number) for place in request.places):
                before = deleted_by_shard(ledger.requests[: request.number - 1]).get(shard, set())
                digest = self.slices(shard, before)[number - 1].digest
                if digest:
                    yield digest

    def _summaries(self, index: ShardIndex) -> tuple[SliceSummary, ...]:
        return index.summaries(len(self.run.training.epochs), self.run.training.image_shape)

    def _at_ingest(self, shard: int) -> tuple[SliceSummary, ...]:
        return tuple(SliceSummary(digest=e.digest, num_samples=e.num_samples) for e in self.run.slices[shard])
