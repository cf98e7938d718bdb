"""The JSON records that a run keeps in its store; all are frozen, sealed, and validated when read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from ray_sisa.approximate.methods import Method
from ray_sisa.clock import Moment
from ray_sisa.config import OnDivergence, RunConfig, TrainingRecipe
from ray_sisa.defences import Noise
from ray_sisa.digests import digest_json, seal
from ray_sisa.layout import (
    CERTIFICATES,
    HEADS,
    LEASES,
    LEDGER,
    RUN,
    approximation_record,
    charges,
    numbered,
    partial_record,
    seal_of,
    stage_record,
)
from ray_sisa.section import Section


class StoredRecord(BaseModel):
    """A record of a store."""

    # Strict JSON has no NaN and no infinity: what holds one is never made.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @property
    def path(self) -> str | None:
        """Where in the store the record says that it belongs; None for a part of another."""
        return None

    def to_bytes(self) -> bytes:
        """The record as JSON that a person can read, sealed."""
        return seal(self.model_dump_json(indent=1).encode())


class SliceEntry(StoredRecord):
    """A slice as it was at ingest."""

    digest: str | None
    num_samples: int


class RunRecord(StoredRecord):
    """run.json: the run in full. Written once, after all that it names."""

    config: RunConfig
    training: TrainingRecipe
    num_samples: int
    num_test_samples: int
    test_digest: str | None
    slices: tuple[tuple[SliceEntry, ...], ...]
    """By shard, then slice 1..R."""
    index_digests: tuple[str, ...]
    """Of the index object of each shard: ids decide what a deletion means, so none may change."""
    fingerprint: str
    """Digest of all slice digests: the data set as it was at ingest."""
    created_at: Moment
    test_samples_in_training: int | None = None
    """Test samples that are training samples too, by id or content; None where nobody counted, or there is no test."""
    ids_key_mark: str | None = None
    """What tells the key of its ids from others; None where they are plain."""

    @model_validator(mode="before")
    @classmethod
    def _without_a_choice_tags_were_ignored(cls, content: Any) -> Any:
        match content:
            case {"config": {"data": dict(data)}}:
                data.setdefault("exif", "ignore")
        return content

    @property
    def path(self) -> str:
        """Where it belongs."""
        return RUN

    def changed(self, on_divergence: OnDivergence | None, sections: Mapping[str, Section | None]) -> RunRecord:
        """The same run with what may differ from one process to the next."""
        recipe = self.config.recipe
        recipe = recipe.model_copy(update={"on_divergence": on_divergence or recipe.on_divergence})
        given = {name: section for name, section in sections.items() if section is not None}
        return self.model_copy(update={"config": self.config.model_copy(update={**given, "recipe": recipe})})


def _finite_or_none(value: object) -> object:
    # Records were written with NaN before a network that diverged ended its stage: they are readable all the same.
    return None if isinstance(value, float) and not math.isfinite(value) else value


class SealRecord(StoredRecord):
    """seals/<digest>/{slices,test}.json: what the bytes of an object that is named by its samples are."""

    object: str
    """Path of a slice object or of the test set."""
    digest: str
    """Of its bytes."""

    @property
    def path(self) -> str:
        """Where it belongs."""
        return seal_of(self.object)


class EpochMetrics(StoredRecord):
    """What one epoch measured; test accuracies are None where they were not taken."""

    epoch: int
    loss: Annotated[float | None, BeforeValidator(_finite_or_none)]
    """Mean of what was minimised: cross-entropy, and the penalty where there is one. None where it is not finite."""
    train_top1: float
    test_top1: float | None = None
    test_top5: float | None = None


class Environment(StoredRecord):
    """What bits may depend on besides the key; equality is claimed where it is equal."""

    device: str
    device_name: str
    threads: int
    python: str
    torch: str
    ray_sisa: str
    platform: str


class Ancestor(StoredRecord):
    """An earlier stage of the same chain."""

    slice: int
    key: str


class StageRecord(StoredRecord):
    """stages/<key>/stage.json: the commit record of a stage. Without it the stage is absent."""

    key: str
    shard: int
    slice: int
    parent: str
    slice_digest: str
    num_samples: int
    epochs: int
    ancestors: tuple[Ancestor, ...]
    """Stages of the chain before this one, the first slice first."""
    weights_digest: str
    """Digest of the tensors."""
    weights_bytes: int
    weights_file_digest: str
    """Digest of the container file, to tell a damaged file before it is parsed."""
    metrics: tuple[EpochMetrics, ...]
    sample_passes: int
    seconds: float
    environment: Environment
    committed_at: Moment

    @property
    def path(self) -> str:
        """Where it belongs."""
        return stage_record(self.key)


class Excluded(StoredRecord):
    """A shard without a vote at its full depth: the stage of this slice diverged, so those behind it are not made."""

    shard: int
    slice: int
    key: str


class WithExclusions(StoredRecord):
    """A record that tells of shards whose training diverged."""

    excluded: tuple[Excluded, ...] = ()
    """Such a shard votes with its last stage before that, if there is one."""

    @model_serializer(mode="wrap")
    def _without_what_is_usual(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Where nothing diverged, records are as they were before there were exclusions.
        content: dict[str, Any] = handler(self)
        if not self.excluded:
            del content["excluded"]
        return content


class PartialRecord(StoredRecord):
    """stages/<key>/partial/<n>.json: the state inside a stage, beside it. Without this record the state is absent."""

    key: str
    number: int
    """Steps done in the stage."""
    epoch: int
    """Epochs that have ended."""
    batch: int
    """Batches done of the epoch after them."""
    num_batches: int
    """Batches of an epoch."""
    metrics: tuple[EpochMetrics, ...]
    """Of the epochs that have ended."""
    seconds: float
    """What the stage has cost so far; the seconds of its commit record go on from there."""
    state_bytes: int
    state_digest: str
    """Digest of the file."""
    environment: Environment
    saved_at: Moment

    @property
    def path(self) -> str:
        """Where it belongs."""
        return partial_record(self.key, self.number)


class Approximation(StoredRecord):
    """stages/<key>/approximate/<key>.json: a model that an approximate method made from the stage it lies in.

    It is no constituent of any ensemble, and nothing is certified of it. It names no sample.
    """

    key: str
    stage: str
    """Key of the stage that it was made from."""
    method: Method
    forget_digest: str
    """Digest of the ids that it was to forget."""
    num_forget: int
    num_retained: int
    sample_passes: int
    """Samples that went forward and backward."""
    forward_passes: int
    """Samples that went forward alone."""
    weights_digest: str
    """Digest of the tensors."""
    weights_bytes: int
    weights_file_digest: str
    seconds: float
    environment: Environment
    committed_at: Moment

    @property
    def path(self) -> str:
        """Where it belongs."""
        return approximation_record(self.stage, self.key)


class Constituent(StoredRecord):
    """The model of one shard in a head."""

    shard: int
    key: str
    slice: int
    num_samples: int
    weights_digest: str


class Head(WithExclusions):
    """heads/<n>.json: the ensemble in force. Shards without a clean stage are not in it."""

    number: int
    ledger: int
    """Number of the last request that it respects."""
    ledger_tip: str | None
    """Digest of that request, so that a ledger which lost its end is noticed."""
    complete: bool
    """Whether every shard has its deepest stage, or the deepest before it diverged."""
    constituents: tuple[Constituent, ...]
    ensemble_digest: str
    previous: str | None
    """Digest of head n-1."""
    created_at: Moment

    @property
    def path(self) -> str:
        """Where it belongs."""
        return numbered(HEADS, self.number)


class Place(StoredRecord):
    """Samples of a request in one (shard, slice)."""

    shard: int
    slice: int
    samples: tuple[str, ...]


Scope = tuple[str, str] | None
"""Whose an idempotency key is; None where it follows from the samples."""


def given_by(requester: str) -> Scope:
    """The scope of the keys that a requester gives."""
    return ("given", requester)


class Request(StoredRecord):
    """ledger/<n>.json: deletion request n."""

    number: int
    idempotency_key: str
    reason: str
    places: tuple[Place, ...]
    previous: str | None
    """Digest of request n-1."""
    created_at: Moment
    requester: str = ""
    """Who asked, where whoever took the request said so: its idempotency key is theirs alone."""

    @model_serializer(mode="wrap")
    def _without_what_is_usual(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content: dict[str, Any] = handler(self)
        if not self.requester:
            del content["requester"]
        return content

    @property
    def path(self) -> str:
        """Where it belongs."""
        return numbered(LEDGER, self.number)

    @property
    def key_of_samples(self) -> str:
        """The idempotency key of whoever gives none: a digest of the samples."""
        return digest_json([place.samples for place in self.places])

    @property
    def scope(self) -> Scope:
        """Whose its idempotency key is; None where it follows from the samples.

        Only requests of one scope meet: else a request under the key that another is about to use would stop that one.
        """
        return None if self.idempotency_key == self.key_of_samples else given_by(self.requester)

    @property
    def sample_ids(self) -> list[str]:
        """Ids of all samples that it names."""
        return [sample for place in self.places for sample in place.samples]


class Certificate(WithExclusions):
    """certificates/<n>.json: what was done for request n, how to check it. Exclusions are of the shards it touches."""

    request: int
    request_digest: str
    num_samples: int
    batch: tuple[int, int]
    """First and last of the requests completed together: what follows is of all, in the shards that this touches."""
    affected_shards: tuple[int, ...]
    retired_stages: tuple[str, ...]
    """Stage keys that existed because of the samples; none of them is in the store."""
    retrained_stages: tuple[str, ...]
    """Stage keys that took their place."""
    sample_passes: int
    """What training these costs."""
    full_training_sample_passes: int
    """What training all samples, as they were at ingest, costs."""
    head: int
    ensemble_digest: str
    requested_at: Moment
    effective_at: Moment
    completed_at: Moment
    claim: str
    deleted_objects: Literal["gone", "kept", "unknown"] | None = None
    """Whether the store kept what was deleted, when the request was completed; None where nobody asked."""
    retention: str = ""
    """What the store keeps of deleted objects, and for how long, or why that is unknown."""
    kept_objects: tuple[str, ...] = ()
    """Deleted objects of which versions were to be removed and could not."""
    removed_measurements: tuple[str, ...] = ()
    """Reports of models that saw the samples: they were removed."""

    @property
    def path(self) -> str:
        """Where it belongs."""
        return numbered(CERTIFICATES, self.request)


class ProcessRecord(StoredRecord):
    """A process, told from all others that ever ran: see `process`."""

    host: str
    boot: str
    """Id that the kernel drew when the machine started."""
    namespaces: str
    """Of process ids and of time: a container has its own."""
    pid: Annotated[int, Field(gt=0, lt=1 << 31)]
    started: int
    """Clock ticks from the start of the machine to that of the process."""


class LeaseRecord(StoredRecord):
    """lease/<n>.json: who reconciles, until when."""

    number: int
    holder: str
    expires_at: float
    """Seconds since the epoch."""
    process: ProcessRecord | None = None
    """Of the holder, so that the next one need not wait for a dead one; None where the system does not tell."""

    @property
    def path(self) -> str:
        """Where it belongs."""
        return numbered(LEASES, self.number)


class Charge(StoredRecord):
    """spent/<stage key>/<n>.json: privacy that the n-th training of a stage spends of each sample of slices 1..r.

    It is never removed: what was spent stays spent when the stage is purged. It names no sample.
    """

    key: str
    """Key of the stage."""
    number: int
    shard: int
    slice: int
    num_samples: int
    epochs: int
    batch_size: int
    sampling_rate: float
    steps: int
    noise_multiplier: float
    max_grad_norm: float
    noise: Noise
    created_at: Moment

    @property
    def path(self) -> str:
        """Where it belongs."""
        return numbered(charges(self.key), self.number)
