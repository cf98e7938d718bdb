"""What the model-inversion study measures: frozen values, from one attack up to the whole record.

Errors of pixels are of values in [0, 1], accuracies are shares in [0, 1], times are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ray_sisa.evaluation.inversion import Estimate, Reconstruction
from ray_sisa.study.results import Provenance

Part = Literal["public", "victims", "unseen", "seen"]
"""Public images; all victims; those that the attacker did not train on, and those that it did."""
WHITE_BOX = "white-box"
"""The attacker that knows the weights; it has victims of its own, all unseen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A network whose device part is attacked: the weights that a step kept, and the recipe that they belong to."""

    name: str
    arrays: str
    """Under which a study's steps keep its tensors."""
    recipe: str
    """`TrainingRecipe` as JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spending:
    """What a run trained with DP-SGD has spent."""

    epsilon: float
    """The largest of all places."""
    by_slice: tuple[tuple[float, ...], ...]
    """By shard, then slice."""
    delta: float
    accountant: str
    noise_multiplier: float
    label: str
    """All that the number assumes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearntTarget:
    """A target, trained to its end."""

    target: Target
    train_top1: tuple[float, ...]
    """By epoch, while it trained."""
    validation_top1: tuple[float, ...]
    """By epoch, in evaluation mode."""
    seconds: float

    @property
    def accuracy(self) -> float:
        """Of the validation images, at the end."""
        return self.validation_top1[-1]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedTarget(LearntTarget):
    """One that a run trained."""

    uri: str
    spending: Spending | None


@dataclass(frozen=True, kw_only=True, slots=True)
class UnboundedTarget(LearntTarget):
    """One trained as the original trained its private ones, with batch normalisation: it is not private."""

    noise_multiplier: float


@dataclass(frozen=True, kw_only=True, slots=True)
class StoppedTarget:
    """A target whose training was stopped where its validation accuracy was nearest to a given one."""

    target: Target
    wanted: float
    accuracy: float
    steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NoisyTarget:
    """The noise on the activations of a target that brings its validation accuracy to a given one."""

    noise: str
    wanted: float
    accuracy: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Attacked:
    """One attacker against one target."""

    target: str
    attacker: str
    """`kernel`, `study` or `wide` decoders, or `WHITE_BOX`."""
    noise: str | None
    training_mse: tuple[float, ...]
    """Of a decoder, by epoch, as it trained; of a kernel, the one error of public images that were left out."""
    quality: dict[Part, Reconstruction]
    arrays: str
    """Where pictures are kept, `shown` uint8 [N, H, W], and the error of each victim, `mse` float32 [N]."""
    seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Baseline:
    """A reconstruction that asks no target: the mean image, white, or principal components of equal width."""

    name: str
    asks: bool
    """Whether it has seen the victim, as principal components have."""
    quality: dict[Part, Reconstruction]
    arrays: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SubjectAttack:
    """A constituent of a SISA run, attacked with the images of subjects as victims."""

    shard: int
    state: Literal["before", "after"]
    accuracy: float
    """Of the constituent, on the validation images."""
    held: Reconstruction | None
    """Images of subjects that its shard held; None where it held none."""
    others: Reconstruction | None
    """Images of subjects that other shards held."""
    unseen: Reconstruction
    """Victims that nobody trained on."""
    arrays: str
    """Where per-image errors are kept: `held`, `others` and `unseen`, float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivateSisa:
    """A SISA run trained with DP-SGD: what it has spent, before and after a deletion."""

    shards: int
    slices: int
    num_forgotten: int
    accuracy_before: float
    accuracy_after: float
    before: Spending
    after: Spending


@dataclass(frozen=True, kw_only=True, slots=True)
class Accounting:
    """The original's claim of one noise multiplier, told by several methods."""

    noise_multiplier: float
    reported: float
    claimed: dict[str, float]
    """Of n = 13,180, by method: `2020`, `rdp`, `prv`, `unamplified`."""
    as_run: dict[str, float]
    """Of n = 11,000, from which its batches came."""
    refusals: tuple[str, ...]
    """Why neither is a guarantee."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Faithful:
    """The original's experiment at one resolution, once: its target without privacy, its private ones, or all."""

    side: int
    truth: str
    """Where the victims that are shown are kept as they are, `shown` uint8 [N, H, W]."""
    plain: tuple[TrainedTarget, ...]
    """Normalisation inert, as the original's loop runs it; then in training mode."""
    unbounded: tuple[UnboundedTarget, ...]
    """As the original trained its private targets, one a noise multiplier."""
    private: tuple[TrainedTarget, ...]
    """For each of `unbounded`: with DP-SGD."""
    accounting: tuple[Accounting, ...]
    attacks: tuple[Attacked, ...]
    baselines: tuple[Baseline, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class HonestSeed:
    """One seed of the honest arm: a network with DP-SGD at several noises, and controls of equal accuracy."""

    seed: int
    plain: TrainedTarget
    private: tuple[TrainedTarget, ...]
    """One a noise multiplier."""
    stopped: tuple[StoppedTarget, ...]
    """For each of `private`: not private, stopped at its accuracy."""
    noisy: tuple[NoisyTarget, ...]
    """For each of `private`: the plain target, noise on its activations to that accuracy."""
    nopeek: tuple[TrainedTarget, ...]
    attacks: tuple[Attacked, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """What one target leaks less what another does, under the same attacker, over all seeds; of unseen victims.

    Below 0 the first leaks less.
    """

    noise_multiplier: float
    """Of the private target that the pair is about."""
    one: str
    other: str
    """`private`, `stopped` or `noisy`."""
    accuracy: float
    """Mean over seeds, of `one`, on the validation images."""
    other_accuracy: float
    r2: float
    """Mean over seeds, of `one`."""
    other_r2: float
    by_seed: tuple[float, ...]
    """Difference of R2 under each seed."""
    difference: Estimate
    """Of R2, errors of each image averaged over seeds first; the interval is over characters."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Honest:
    """The honest arm."""

    side: int
    num_train: int
    truth: str
    """As in `Faithful`."""
    seeds: tuple[HonestSeed, ...]
    pairs: tuple[Pair, ...]
    """By noise multiplier: private less stopped, private less noisy, noisy less stopped."""
    baselines: tuple[Baseline, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class OnSisa:
    """The attack on constituents, before and after subjects are forgotten."""

    side: int
    num_subjects: int
    num_images: int
    attacks: tuple[SubjectAttack, ...]
    private: PrivateSisa


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts(Provenance):
    """What the study was made of, and how."""

    num_train: int
    num_validation: int
    num_public: int
    num_victims: int
    num_seen: int
    """Victims that are among the public images."""
    shown: int
    """Of the pictures that are kept of each attack, how many are of unseen victims; those after them are of seen."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InversionRecord:
    """All that was measured."""

    facts: Facts
    faithful: tuple[Faithful, ...]
    """By resolution: the first has the targets without privacy, the last the private ones; they may be one."""
    honest: Honest
    sisa: OnSisa
