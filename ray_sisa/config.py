"""What a user writes: one YAML file, validated whole before anything starts.

`RunConfig` is that file. `TrainingRecipe` is the recipe with all that data and placement add to it: everything that
determines weights besides the samples, and nothing else.
"""

from __future__ import annotations

import itertools
import math
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

# A user writes these too, so they are found here as well.
from ray_sisa.data_config import Columns as Columns
from ray_sisa.data_config import DataConfig as DataConfig
from ray_sisa.defences import DpConfig as DpConfig
from ray_sisa.defences import Noise as Noise
from ray_sisa.defences import NoPeek as NoPeek
from ray_sisa.modes import StorageMode as StorageMode
from ray_sisa.section import Section

Fraction = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Places = Annotated[int, Field(ge=1, le=100_000)]
LEAST_GPU = 1e-3
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"


class PlacementConfig(Section):
    """The function subject -> (shard, slice), fixed for the life of a run."""

    strategy: Literal["hash", "permutation", "distribution_aware"] = "hash"
    slice_order: Literal["shuffled", "churn"] = "shuffled"
    """Who of a shard lies in which slice: by keyed hash, or the likelier to be deleted the later."""
    shards: Places
    slices: Places
    key: str | None = Field(default=None, min_length=1)
    """Secret of the keyed hash, or seed of the permutation; made when the run is created, if absent."""

    @field_validator("key", mode="before")
    @classmethod
    def _key_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @property
    def needs_probabilities(self) -> bool:
        """Whether places depend on how likely each subject is to be deleted."""
        return self.strategy == "distribution_aware" or self.slice_order == "churn"


class OptimizerConfig(Section):
    """The optimiser of a stage; its state starts afresh with each stage."""

    name: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate of the head, and of the rest unless `backbone_lr` is given."""
    backbone_lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of everything but the head (the last layer)."""
    momentum: Fraction = 0.9
    nesterov: bool = False
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> OptimizerConfig:
        if self.nesterov and (self.name != "sgd" or self.momentum == 0):
            raise ValueError("nesterov: true needs name: sgd and a momentum above 0")
        return self


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


Augmentation = Literal["crop", "flip", "cutout"]
OnDivergence = Literal["fail", "exclude"]


class Recipe(Section):
    """All that determines weights besides samples and placement."""

    model: str
    """A registered network, `torchvision:NAME`, or `package.module:function`."""
    weights: str | None = None
    """Initial weights: a file (.safetensors, .pt, .pth, .th), `package:NAME/PATH/IN/PACKAGE`, `torchvision:ENUM.NAME`.

    The last layer is dropped when the class count differs. Known ones bring the mean and std they were trained with.
    """
    backbone: Literal["trained", "frozen"] = "trained"
    """`frozen`: all but the last layer stays as in `weights`, and only the last layer trains, on stored features."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: Literal["constant", "cosine", "one_cycle"] = "cosine"
    epochs_per_slice: Count | None = None
    total_epochs: Annotated[float, Field(gt=0, le=1e6)] | None = None
    """e', the epochs of an unsliced training of equal cost, spread over the slices by 2e'/(R+1)."""
    batch_size: Count = 128
    label_smoothing: Fraction = 0.0
    augment: Annotated[tuple[Augmentation, ...], BeforeValidator(_as_tuple)] = ()
    input_size: Count | None = None
    """Side in pixels to which images are resized on the device."""
    upsampling: Literal["nearest", "bilinear"] = "nearest"
    precision: Literal["float32", "bfloat16"] = "float32"
    threads: Count = 1
    """CPU threads of a stage; bits depend on it."""
    seed: int = 0
    dp: DpConfig | None = None
    nopeek: NoPeek | None = None
    on_divergence: OnDivergence = "fail"
    """What follows where a loss or weight of a stage is not finite: an error, or a vote without that stage and those
    behind it. It changes no weights, and may differ from what the run was made with."""

    @model_serializer(mode="wrap")
    def _without_what_is_usual(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Digests were taken of recipes before they had the field: what is usual is left out, and those stay.
        content: dict[str, Any] = handler(self)
        if self.on_divergence == "fail":
            content.pop("on_divergence", None)
        return content

    @model_validator(mode="after")
    def _nopeek_stands_alone(self) -> Recipe:
        if self.nopeek and self.dp:
            raise ValueError(
                "nopeek: must be left out with dp; its penalty is of a whole batch, DP-SGD's are of samples"
            )
        if self.nopeek and self.backbone == "frozen":
            raise ValueError("nopeek: must be left out with backbone: frozen; only its last layer trains")
        return self

    @model_validator(mode="after")
    def _one_epoch_budget(self) -> Recipe:
        if (self.epochs_per_slice is None) == (self.total_epochs is None):
            raise ValueError("epochs_per_slice, total_epochs: exactly one of the two must be given")
        return self

    @model_validator(mode="after")
    def _frozen_is_of_a_file_and_of_plain_images(self) -> Recipe:
        if self.backbone == "trained":
            return self
        if self.weights is None:
            raise ValueError(
                "weights: missing; with backbone: frozen it must name the file that the backbone comes from"
            )
        for name, value in (("augment", self.augment), ("optimizer.backbone_lr", self.optimizer.backbone_lr)):
            if value:
                raise ValueError(
                    f"{name}: {value!r} must be left out with backbone: frozen; only its last layer trains"
                )
        return self

    @model_validator(mode="after")
    def _upsampling_has_a_size(self) -> Recipe:
        if self.upsampling != "nearest" and self.input_size is None:
            raise ValueError(
                f"upsampling: {self.upsampling} must be given with input_size, to which images are resized"
            )
        return self


class CheckpointEvery(Section):
    """How often the state inside a stage is saved, so that a long stage that is cut short goes on from there."""

    epochs: Count | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None

    @model_validator(mode="after")
    def _one_of_the_two(self) -> CheckpointEvery:
        if (self.epochs is None) == (self.minutes is None):
            raise ValueError("epochs, minutes: exactly one of the two must be given")
        return self


class Scaling(Section):
    """How a run is spread over a cluster; nothing here changes weights, except the device that a GPU brings."""

    resources_per_worker: dict[str, Annotated[float, Field(ge=0)]] = Field(default={"CPU": 1})
    max_concurrent_shards: Count | None = None
    """Chains in flight at a time; by default as many as the cluster holds."""
    max_failures: Annotated[int, Field(ge=-1)] = 3
    """Workers that one shard may lose between two of its commits before the run gives up; -1 is without limit."""
    max_preemption_failures: Annotated[int, Field(ge=-1)] = -1
    """Workers that one shard may lose to preemption between two of its commits; -1 is without limit."""
    checkpoint_every: CheckpointEvery | None = CheckpointEvery(minutes=10)
    """How often the state inside a stage is saved; null for never."""
    label_selector: dict[str, str] = Field(default={})
    no_progress_timeout_s: Annotated[float, Field(gt=0)] = 1800.0

    @field_validator("resources_per_worker")
    @classmethod
    def _one_gpu_or_one_over_k(cls, value: dict[str, float]) -> dict[str, float]:
        gpus = value.get("GPU", 0)
        if gpus > 1:
            raise ValueError(f"GPU: {gpus:g} must be 1 or 1/k; a shard trains on one device")
        if 0 < gpus < LEAST_GPU:
            raise ValueError(f"GPU: {gpus:g} must be at least {LEAST_GPU:g}; that many workers fit no device")
        if gpus and not math.isclose(1 / gpus, round(1 / gpus)):
            raise ValueError(f"GPU: {gpus:g} must be 1 or 1/k; other fractions never pack onto a device")
        return value

    @property
    def num_gpus(self) -> float:
        """GPUs of one worker; above 0 stages train on CUDA."""
        return self.resources_per_worker.get("GPU", 0)


class EvaluationConfig(Section):
    """What is measured while training; none of it changes weights."""

    test_during_training: Literal["epoch", "stage", "never"] = "stage"


class PurgeConfig(Section):
    """What becomes of deleted objects that a bucket keeps; none of it changes weights."""

    versions: Literal["delete", "warn", "refuse"] = "warn"
    """`delete` removes old versions, `refuse` makes no run and completes no request where objects stay."""


class RunConfig(Section):
    """One run: its name, data, placement, recipe and scaling."""

    added: ClassVar[tuple[str, ...]] = ("ids", "purge", "storage_mode")

    name: str = Field(pattern=NAME)
    storage_path: str = "./runs"
    storage_mode: StorageMode = "owner"
    """Who may look into the folder of a new run: its owner, or all of its group. Of buckets it says nothing."""
    data: DataConfig
    placement: PlacementConfig
    recipe: Recipe
    scaling: Scaling = Scaling()
    evaluation: EvaluationConfig = EvaluationConfig()
    purge: PurgeConfig = PurgeConfig()
    ids: Literal["plain", "keyed"] = "plain"
    """Whether the store names samples and subjects by their ids or by keyed hashes of them: see `keyed_ids`."""

    @model_validator(mode="after")
    def _every_slice_is_trained(self) -> RunConfig:
        if 0 in epochs_by_slice(self.recipe, self.placement.slices):
            least = (self.placement.slices + 1) / 2
            raise ValueError(
                f"recipe.total_epochs: {self.recipe.total_epochs} must be at least (slices + 1) / 2 = {least:g}, "
                "so that each slice is trained for an epoch"
            )
        return self

    @model_validator(mode="after")
    def _workers_take_what_they_reserve(self) -> RunConfig:
        cpus = self.scaling.resources_per_worker.get("CPU", 0)
        # Below 1 a reservation says how many workers share a core: it is no count of threads.
        if cpus >= 1 and self.recipe.threads > cpus:
            raise ValueError(
                f"recipe.threads: {self.recipe.threads} must be at most scaling.resources_per_worker.CPU = {cpus:g}, "
                "or a worker would take more than it reserves"
            )
        return self

    @model_validator(mode="after")
    def _only_images_are_changed(self) -> RunConfig:
        if self.data.columns.features is not None:
            for name in ("augment", "input_size"):
                if value := getattr(self.recipe, name):
                    raise ValueError(f"recipe.{name}: {value!r} must be left out with data.columns.features, no images")
            if self.recipe.backbone == "frozen":
                raise ValueError("recipe.backbone: frozen must be left out with data.columns.features, no images")
        return self


class TrainingRecipe(Section):
    """A recipe with all that data and placement add: its digest is in every stage key.

    `initial_weights` is the digest of the tensors to start from, or None for random ones.
    """

    recipe: Recipe
    model_code: str | None
    """Digest of the source of a `package.module:function` model."""
    initial_weights: str | None
    num_classes: Count
    image_shape: tuple[int, ...]
    """(H, W, C) of images or (D,) of features."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    epochs: tuple[int, ...]
    """Epochs of the stage of each slice 1..R."""
    noise_multiplier: float | None = None
    """Of `recipe.dp`: as it was given, or solved for once, when the run was created."""
    semantics: Literal[1] = 1
    """Raised when the same recipe would give other weights by a change of this package."""

    @property
    def is_frozen(self) -> bool:
        """Whether only the last layer trains, on features of a backbone that never changes."""
        return self.recipe.backbone == "frozen"

    @property
    def is_repeatable(self) -> bool:
        """Whether a stage that is trained again comes to the same weights: not where its noise is drawn anew."""
        return self.recipe.dp is None or self.recipe.dp.noise == "reproducible"

    def cause(self) -> dict[str, Any]:
        """All that determines weights, as JSON values: what a recipe's digest is taken of."""
        cause = self.model_dump(mode="json")
        # A file's path and the way epochs were counted change nothing: its digest and `epochs` stand for them.
        for name in ("weights", "epochs_per_slice", "total_epochs"):
            del cause["recipe"][name]
        cause["recipe"].pop("on_divergence", None)  # what follows a divergence changes no weights
        # A field that came after names had been given is left out where it changes nothing: those names stay.
        if self.recipe.backbone == "trained":
            del cause["recipe"]["backbone"]
        if self.recipe.nopeek is None:
            del cause["recipe"]["nopeek"]
        if self.recipe.dp is None:
            del cause["recipe"]["dp"], cause["noise_multiplier"]
        else:  # what is told of the guarantee, and how the noise multiplier was found, changes no weights
            cause["recipe"]["dp"] = {name: cause["recipe"]["dp"][name] for name in ("max_grad_norm", "noise")}
        return cause


def epochs_by_slice(recipe: Recipe, num_slices: int) -> tuple[int, ...]:
    """Epochs of the stage of each slice 1..R.

    `total_epochs` e' is spread so that slicing costs what e' unsliced epochs cost: floor(i a) - floor((i-1) a) with
    a = 2e'/(R+1) (Bourtoule et al. 2021, section V-C, and their code).
    """
    if recipe.epochs_per_slice is not None:
        return (recipe.epochs_per_slice,) * num_slices
    assert recipe.total_epochs is not None  # one of the two is given: a rule of Recipe
    edges = [math.floor(i * 2 * recipe.total_epochs / (num_slices + 1)) for i in range(num_slices + 1)]
    return tuple(b - a for a, b in itertools.pairwise(edges))
