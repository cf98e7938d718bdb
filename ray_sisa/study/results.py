"""What a study of unlearning measures: frozen values, from one state of one model up to the whole record.

Accuracies are shares in [0, 1], times are seconds, costs are sample passes: forward and backward passes of a sample.
"""

from __future__ import annotations

from dataclasses import dataclass

from ray_sisa.evaluation.accuracy import Accuracy
from ray_sisa.evaluation.agreement import Agreement


@dataclass(frozen=True, kw_only=True, slots=True)
class Attack:
    """Membership inference from losses (`evaluation.membership`), without its curve."""

    accuracy: float
    ci_low: float
    ci_high: float
    null_mean: float
    null_sd: float
    auc: float
    num_members: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardAttack:
    """The attack on one constituent, with those of the forget set as members that its shard held."""

    shard: int
    num_held: int
    attack: Attack | None
    """None where it held too few."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One model, or ensemble, in one state."""

    voters: int
    test: Accuracy
    retain: Accuracy
    """Of samples drawn from the retained set; see `retain.num_samples`."""
    forget: Accuracy
    attack: Attack | None
    """On the model or ensemble as a whole; None where the forget set is too small."""
    shard_attacks: tuple[ShardAttack, ...]
    arrays: str
    """Where its outputs are kept: log-probabilities `test` and `forget`, float32 [N, K]."""
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Accuracies over the epochs of one stage."""

    shard: int
    slice: int
    train_top1: tuple[float, ...]
    test_top1: tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A run, trained."""

    uri: str
    ensemble_digest: str
    shards: int
    slices: int
    sample_passes: int
    device_seconds: float
    """Summed over the stages."""
    wall_seconds: float
    checkpoint_bytes: int
    """Of all stages."""
    curves: tuple[Curve, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Requested:
    """A deletion request in a copy of a run: what it was predicted to cost, and how long until it was respected."""

    uri: str
    samples: int
    predicted_sample_passes: int
    predicted_stages: int
    full_sample_passes: int
    voters: int
    """Constituents that still vote from then on."""
    seconds_to_effective: float
    """From the call of `forget` to its return: no reader is served the samples' models from then on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completed:
    """A request, completed."""

    sample_passes: int
    stages: int
    stages_purged: int
    wall_seconds: float | None
    """From the start of `unlearn` to its end; None where it was cut short and went on later."""
    device_seconds: float
    """Summed over the stages trained again."""
    ensemble_digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Approximated:
    """An approximate method, applied."""

    key: str
    sample_passes: int
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Unlearning:
    """One forget set forgotten by one run, exactly."""

    arm: str
    pattern: str
    seed: int
    shards: int
    slices: int
    requested: Requested
    completed: Completed
    before: Measured
    rolled_back: Measured | None
    """None where no constituent was left to vote."""
    after: Measured


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodResult:
    """One method on the whole model: S = 1, R = 1."""

    method: str
    seed: int
    exact: bool
    sample_passes: int
    seconds: float
    """Of one device, training alone."""
    measured: Measured
    agreement: Agreement | None
    """With the model retrained under the same seed, on test and forget set; None for that one itself."""
    null_agreement: tuple[Agreement, ...]
    """Of the retrained model with those of other seeds: what two honest retrainings agree in."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Votes:
    """An ensemble on the test set."""

    mean: Accuracy
    """By mean probability."""
    majority: Accuracy
    constituents: tuple[float, ...]
    """Top-1 of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GridPoint:
    """SISA with one number of shards and slices."""

    arm: str
    seed: int
    trained: Trained
    votes: Votes


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalised:
    """One trained network, its inputs normalised in one way."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    is_own: bool
    """Whether it was trained so."""
    test: Accuracy


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacementPoint:
    """What K requests, drawn by the deletion probabilities, cost under one placement."""

    strategy: str
    requests: int
    mean_sample_passes: float
    sd_sample_passes: float
    """Over the draws."""
    full_sample_passes: int
    draws: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Placed:
    """One placement: its accuracy, what it saves, and one drawn batch of requests that was really carried out."""

    strategy: str
    shard_sizes: tuple[int, ...]
    test: Accuracy
    points: tuple[PlacementPoint, ...]
    carried_out: Unlearning


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """How a record was made, and where."""

    preset: str
    command: str
    commit: str
    started_at: str
    seconds: float
    """Of the last call; a study that was continued took longer."""
    step_seconds: float
    """Of all steps, whoever did them, summed."""
    machine: str
    device: str
    torch: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts(Provenance):
    """What the study was made of, and how."""

    num_train: int
    num_test: int
    num_classes: int
    frozen_num_train: int
    frozen_num_test: int


@dataclass(frozen=True, kw_only=True, slots=True)
class StudyRecord:
    """All that was measured."""

    facts: Facts
    normalisations: tuple[Normalised, ...]
    methods: tuple[MethodResult, ...]
    grid: tuple[GridPoint, ...]
    unlearnings: tuple[Unlearning, ...]
    placements: tuple[Placed, ...]
