"""The ensemble in force, loaded: constituents that vote, and none that saw a deleted sample."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ray_sisa.errors import DataError, StoreError
from ray_sisa.heads import check_voters, head_in_force, in_force
from ray_sisa.layout import HEADS, LEDGER, RUN, UNREACHABLE, damaged, numbered, stage_weights
from ray_sisa.ledger import EMPTY, Ledger, read_ledger
from ray_sisa.live import LiveSet
from ray_sisa.records import Constituent, RunRecord
from ray_sisa.samples import check_finite
from ray_sisa.store import Store
from ray_sisa.voting import Rule, undefined, vote

if TYPE_CHECKING:
    from torch import nn

    from ray_sisa.backbone import Backbone


logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """An ensemble as it was in force at one instant: what one prediction is made with, as a whole."""

    ledger: Ledger
    """All requests that it respects."""
    head: int
    """Number of the head in force."""
    constituents: tuple[Constituent, ...]
    """Who votes, by shard."""
    networks: Mapping[str, nn.Module]
    """Of the constituents, by key."""


NOTHING = Snapshot(ledger=EMPTY, head=0, constituents=(), networks={})


class Ensemble:
    """The constituents in force, loaded on one device.

    Before each prediction it looks whether a request or a head came since, and reloads if so: from the instant that
    `forget` returns, no prediction begins with a model that saw the samples. Threads may share one: each prediction is
    made with one snapshot, which no other thread changes.
    """

    def __init__(self, store: Store, run: RunRecord, device: str = "cpu") -> None:
        """Loads all constituents, every byte checked.

        Raises:
            StoreError: nothing is trained yet, or a stage is absent or damaged.
        """
        self._store, self._run, self._device = store, run, device
        self._backbone: Backbone | None = None
        self._loading, self._extracting = threading.Lock(), threading.Lock()
        self._snapshot = NOTHING
        self._told = threading.local()
        self.refresh()

    @property
    def head(self) -> int:
        """Number of the head in force when it was last looked at."""
        return self._snapshot.head

    @property
    def constituents(self) -> tuple[Constituent, ...]:
        """Who voted then, by shard."""
        return self._snapshot.constituents

    @property
    def silent(self) -> dict[int, int]:
        """Of this thread's last prediction: for how many inputs a shard gave no numbers, and so had no vote."""
        found: dict[int, int] = getattr(self._told, "silent", {})
        return found

    def refresh(self) -> Snapshot:
        """What is in force now; loads what has come into force since the last look, and lets go of the rest.

        A snapshot that is looked at after a request was acknowledged respects it, whichever thread loaded it.
        """
        snapshot = self._snapshot
        if not self._outdated(snapshot):
            return snapshot
        # One thread loads at a time, from the snapshot that the one before it left: so none takes a later one back.
        with self._loading:
            while self._outdated(self._snapshot):
                self._snapshot = self._next(self._snapshot)
            return self._snapshot

    def _next(self, known: Snapshot) -> Snapshot:
        """What follows a snapshot, or itself where the store moved on meanwhile; what still votes stays loaded."""
        # The head first: it respects no request that is not in a ledger read after it.
        head = head_in_force(self._store)
        ledger = read_ledger(self._store, known.ledger)
        try:
            constituents = in_force(self._store, ledger, head)
            networks = {c.key: known.networks.get(c.key) or self._load(c, head.number) for c in constituents}
        except StoreError:
            if self._is_newer(ledger.position, head.number):
                return known  # what was to be read may have been purged meanwhile, as it should be
            raise
        return Snapshot(ledger=ledger, head=head.number, constituents=constituents, networks=networks)

    def predict_proba(self, images: np.ndarray, rule: Rule = "mean") -> np.ndarray:
        """Aggregated scores, float [N, K], rows summing to 1: the higher, the likelier the class.

        Args:
            images: uint8 [N, H, W, C], or float32 [N, D] features, as the run was trained on.
            rule: `mean` probability, `majority` of labels, or `weighted` by live samples.

        Raises:
            DataError: images of another kind or shape, or not finite; or no constituent left to vote.
        """
        from ray_sisa.backbone import trained_part
        from ray_sisa.training import log_probabilities

        self._check(images)
        now = self.refresh()
        if not now.constituents:  # only then is it looked at what is live: predictions are many
            check_voters((), LiveSet(self._store, self._run).num_samples(now.ledger))
        training = trained_part(self._run.training)
        if self._run.training.is_frozen:
            images = self._features(images)  # once, for all constituents
        outputs = [log_probabilities(now.networks[c.key], images, training, self._device) for c in now.constituents]
        self._told.silent = silent(outputs, now.constituents)
        return aggregate(outputs, now.constituents, rule)

    def predict(self, images: np.ndarray, rule: Rule = "mean") -> np.ndarray:
        """Labels, int64 [N]; ties go to the lowest label."""
        labels: np.ndarray = self.predict_proba(images, rule).argmax(1)
        return labels

    def _features(self, images: np.ndarray) -> np.ndarray:
        from ray_sisa.backbone import Backbone
        from ray_sisa.stages import load_initial

        with self._extracting:  # it sets threads and algorithms of the whole process, and puts them back
            if self._backbone is None:
                public = load_initial(self._store, self._run.training.initial_weights)
                self._backbone = Backbone(self._run.training, public or {}, self._device)
            return self._backbone.features(images)

    def _outdated(self, snapshot: Snapshot) -> bool:
        """Two reads: the next request and the next head go to the next number."""
        return snapshot.head == 0 or self._is_newer(snapshot.ledger.position, snapshot.head)

    def _is_newer(self, position: int, head: int) -> bool:
        newer = (numbered(LEDGER, position + 1), numbered(HEADS, head + 1))
        return any(self._store.find(path) is not None for path in newer)

    def _load(self, constituent: Constituent, head: int) -> nn.Module:
        from ray_sisa.backbone import trained_part
        from ray_sisa.digests import digest_tensors
        from ray_sisa.stages import load_stage
        from ray_sisa.training import load_network

        weights = load_stage(self._store, constituent.key, self._run.training)
        if digest_tensors(weights) != constituent.weights_digest:
            path = stage_weights(constituent.key)
            rule = f"is not what head {head} put in force"
            raise StoreError(self._store.where(path), "", rule, damaged(path))
        return load_network(trained_part(self._run.training), weights, self._device)

    def _check(self, images: np.ndarray) -> None:
        shape = self._run.training.image_shape
        kind = "uint8" if len(shape) == 3 else "float32"
        if tuple(images.shape[1:]) != shape or str(images.dtype) != kind:
            met = f"{images.dtype} {list(images.shape)}"
            raise DataError(
                "images", met, f"must be {kind} [N, {', '.join(map(str, shape))}]", "Resize or convert them"
            )
        check_finite(images, "images", lambda row: f"row {row}")


def aggregate(outputs: Sequence[np.ndarray], constituents: Sequence[Constituent], rule: Rule) -> np.ndarray:
    """Scores [N, K] of log-probabilities [N, K] of each constituent."""
    num_samples = [c.num_samples for c in constituents]
    probabilities = np.exp(np.stack(outputs)) if outputs else np.empty((0, 0, 0), np.float32)
    votes = vote(probabilities, rule, num_samples)
    for shard, number in silent(outputs, constituents).items():
        logger.warning(
            "shard %d gives no numbers for %d of %d records, and has no vote there", shard, number, len(votes)
        )
    return votes


def silent(outputs: Sequence[np.ndarray], constituents: Sequence[Constituent]) -> dict[int, int]:
    """How many records each shard gives no numbers for, and so has no vote on; none that votes on all."""
    numbers = (int(undefined(output[None]).sum()) for output in outputs)
    return {c.shard: number for c, number in zip(constituents, numbers, strict=True) if number}


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What constituents are asked about, the same for all."""

    store: Store
    run: RunRecord
    images: np.ndarray
    """Or features float16 [N, D], where the backbone is frozen."""
    device: str


def constituent_outputs(inputs: Inputs, key: str) -> np.ndarray:
    """Log-probabilities float32 [N, K] of the stage `key`: one job of an evaluation."""
    from ray_sisa.backbone import trained_part
    from ray_sisa.stages import load_stage
    from ray_sisa.training import predict_log_probabilities

    inputs.store.get(RUN, UNREACHABLE)  # a node that sees another folder says so, and not that a stage is lost
    weights = load_stage(inputs.store, key, inputs.run.training)
    return predict_log_probabilities(weights, inputs.images, trained_part(inputs.run.training), inputs.device)
