"""Small runs to test laws on: 240 digits of 80 people in 3 shards of 3 slices, and ways to look into their stores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from sklearn.datasets import load_digits
from torch import nn

from ray_sisa.config import OptimizerConfig, Recipe, RunConfig, TrainingRecipe
from ray_sisa.config_values import make_config
from ray_sisa.data import Dataset
from ray_sisa.layout import stage_weights
from ray_sisa.run import Run
from ray_sisa.samples import Samples, make_samples
from ray_sisa.stages import load_stage
from ray_sisa.training import LabelledImages, initial_state, to_end, train_stage
from ray_sisa.weights import to_bytes

NUM_SAMPLES, NUM_TEST_SAMPLES, SAMPLES_A_SUBJECT = 240, 60, 3
COLUMNS = {"id": "id", "subject": "person", "image": "img", "label": "label"}

MLP: dict[str, Any] = {
    "model": "mlp",
    "optimizer": {"name": "adam", "lr": 0.01},
    "epochs_per_slice": 2,
    "batch_size": 32,
}
CNN: dict[str, Any] = {
    "model": "small_cnn",
    "optimizer": {"lr": 0.05, "weight_decay": 5e-4, "nesterov": True},
    "schedule": "one_cycle",
    "epochs_per_slice": 1,
    "batch_size": 32,
    "augment": ["crop", "flip", "cutout"],
    "label_smoothing": 0.1,
    "precision": "bfloat16",
}
DROPOUT = MLP | {"model": "small_runs:dropout_network"}
NOPEEK = MLP | {"nopeek": {"layer": "hidden1", "weight": 0.5}}
FROZEN: dict[str, Any] = {
    "model": "small_cnn",
    "backbone": "frozen",
    "optimizer": {"name": "adam", "lr": 0.05},
    "epochs_per_slice": 3,
    "batch_size": 32,
}
PRIVATE: dict[str, Any] = {
    "model": "small_cnn",
    "optimizer": {"name": "adam", "lr": 0.01},
    "epochs_per_slice": 1,
    "batch_size": 12,
    "augment": ["crop"],
    "dp": {"noise_multiplier": 0.7},
}
PRIVATE_MLP = MLP | {"dp": {"noise_multiplier": 1.0, "delta": 1e-3}}
RECIPES = {"mlp": MLP, "cnn": CNN, "dropout": DROPOUT, "nopeek": NOPEEK, "private": PRIVATE}


def dropout_network(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """A network that draws random numbers while it is trained."""
    size = torch.Size(image_shape).numel()
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, num_classes))


class Separable(nn.Module):
    """Layers as in an EfficientNet: 1x1 and depthwise convolutions, squeeze and excitation."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(channels, 24, 1, bias=False)
        self.depthwise = nn.Conv2d(24, 24, 5, stride=2, padding=2, groups=24, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.squeeze, self.excite = nn.Linear(24, 6), nn.Conv2d(6, 24, 1)
        self.project = nn.Conv2d(24, 40, 1)
        self.classifier = nn.Linear(40, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, C, H, W] to logits."""
        maps = nn.functional.relu6(self.norm(self.depthwise(self.widen(images))))
        gate = self.excite(self.squeeze(maps.mean((2, 3))).relu()[:, :, None, None]).sigmoid()
        logits: torch.Tensor = self.classifier(self.project(maps * gate).mean((2, 3)))
        return logits


def separable_network(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """A small network of the layers that an EfficientNet has."""
    return Separable(image_shape[2], num_classes)


class ByPlace(nn.Module):
    """What it makes of an image depends on the image's place in the batch, as kernels may in the last bits."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body, self.linear = nn.Linear(64, 16), nn.Linear(16, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 1, 8, 8] to logits."""
        logits: torch.Tensor = self.linear(self.body(images.flatten(1)) + torch.arange(len(images))[:, None])
        return logits


def by_place_network(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """A network whose rows depend on their place."""
    return ByPlace(num_classes)


class Scaled(nn.Module):
    """A network that does more after its last linear layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body, self.linear = nn.Linear(64, 32), nn.Linear(32, num_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images [B, 1, 8, 8] to scaled logits."""
        logits: torch.Tensor = self.linear(self.body(images.flatten(1)).relu()) * 2
        return logits


def scaled_network(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """A network whose last layer is no head."""
    return Scaled(num_classes)


def frozen_recipe(weights: Path) -> dict[str, Any]:
    """A recipe with a frozen backbone, whose weights are trained here, on digits of no run, and written to a file."""
    training = TrainingRecipe(
        recipe=Recipe(model="small_cnn", epochs_per_slice=1, batch_size=32, optimizer=OptimizerConfig(lr=0.05)),
        model_code=None,
        initial_weights=None,
        num_classes=5,  # as of another data set: its last layer is of no use to the run
        image_shape=(8, 8, 1),
        mean=(0.3,),
        std=(0.38,),
        epochs=(1,),
    )
    others = digits(NUM_SAMPLES + NUM_TEST_SAMPLES, 600)
    samples = LabelledImages(images=others.images, labels=others.labels // 2)
    start = initial_state(training, "backbone", None)
    trained = to_end(train_stage(start=start, samples=samples, training=training, key="backbone", epochs=2))
    weights.write_bytes(to_bytes(trained))
    return FROZEN | {"weights": str(weights)}


def digits(first: int, count: int) -> Samples:
    """`count` of scikit-learn's digits, no two alike, three to a person."""
    grey, labels = load_digits(return_X_y=True)
    rows = range(first, first + count)
    return make_samples(
        ids=[f"digit-{i:04d}" for i in rows],
        subjects=[f"person-{i // SAMPLES_A_SUBJECT:03d}" for i in rows],
        images=np.rint(grey[first : first + count] * 255 / 16).astype(np.uint8).reshape(count, 8, 8, 1),
        labels=labels[first : first + count],
    )


def all_samples() -> Samples:
    """The training samples D."""
    return digits(0, NUM_SAMPLES)


def without(samples: Samples, ids: Iterable[str]) -> Samples:
    """`samples` less those with these ids, in another order: the order of rows must not matter."""
    left = samples.select(set(samples.ids.to_pylist()) - set(ids))
    return left.take(np.random.default_rng(0).permutation(len(left)))


def dataset(train: Samples) -> Dataset:
    """These training samples and 60 others to test on."""
    test = digits(NUM_SAMPLES, NUM_TEST_SAMPLES)
    return Dataset(train=train, test=test, num_classes=10, mean=(0.3,), std=(0.38,))


def write_parquet(path: Path, samples: Samples) -> str:
    """Samples as a Parquet file, and its path as a configuration wants it."""
    columns = {
        "id": samples.ids,
        "person": samples.subjects,
        "img": pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(samples.images)),
        "label": samples.labels,
    }
    pq.write_table(pa.table(columns), path)
    return str(path)


def small_config(
    folder: Path,
    *,
    name: str = "run",
    recipe: dict[str, Any] = MLP,
    data: dict[str, Any] | None = None,
    placement: dict[str, Any] | None = None,
    scaling: dict[str, Any] | None = None,
    purge: dict[str, Any] | None = None,
) -> RunConfig:
    """A run in `folder`. What is given replaces or adds to the defaults, key by key."""
    source = {"source": "parquet", "train": "given-as-a-dataset", "columns": COLUMNS, "num_classes": 10}
    return make_config(
        {
            "name": name,
            "storage_path": str(folder),
            "data": source | {"mean": [0.3], "std": [0.38]} | (data or {}),
            "placement": {"shards": 3, "slices": 3, "key": "placement"} | (placement or {}),
            "recipe": recipe,
            "scaling": scaling or {},
            "purge": purge or {},
        }
    )


def block_over_two_shards(run: Run) -> list[str]:
    """The end of one shard and the beginning of the next."""
    return run.sample_ids(0, 3)[5:] + run.sample_ids(1, 1)[:5]


def every_id(run: Run) -> list[str]:
    """Ids of all samples, by shard and slice."""
    places = [(shard, number) for shard in range(3) for number in (1, 2, 3)]
    return [sample for place in places for sample in run.sample_ids(*place)]


FORGET_SETS: dict[str, Callable[[Run], list[str]]] = {
    "one sample in the last slice": lambda run: run.sample_ids(0, 3)[:1],
    "one sample in the first slice": lambda run: run.sample_ids(1, 1)[:1],
    "a block over two shards": block_over_two_shards,
    "a whole slice": lambda run: run.sample_ids(1, 2),
    "a whole shard": lambda run: [sample for number in (1, 2, 3) for sample in run.sample_ids(2, number)],
    "samples spread over all shards": lambda run: [run.sample_ids(shard, 3 - shard)[-1] for shard in range(3)],
    "all data": every_id,
}


def assert_same_models(one: Run, other: Run) -> None:
    """Both stores hold the same stages under the same keys, every tensor the same to the bit, and nothing besides."""
    ours, theirs = one.stages(), other.stages()
    assert [(r.shard, r.slice, r.key) for r in ours] == [(r.shard, r.slice, r.key) for r in theirs]
    keys = {record.key for record in ours}
    assert one.store.committed_stages() == other.store.committed_stages() == keys
    assert one.store.slice_digests() == other.store.slice_digests()
    for key in keys:
        mine, yours = load_stage(one.store, key), load_stage(other.store, key)
        assert mine.keys() == yours.keys()
        assert one.store.get(stage_weights(key)) == other.store.get(stage_weights(key))
        assert all(torch.equal(_bits(mine[name]), _bits(yours[name])) for name in mine)
    assert one.status().complete and other.status().complete
    assert one.status().ensemble_digest == other.status().ensemble_digest


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    # NaN is unequal to itself and -0.0 equal to 0.0: only bytes tell.
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@dataclass(frozen=True, kw_only=True, slots=True)
class FileState:
    """A file as it lies on disk."""

    inode: int
    changed_ns: int
    content: bytes


def files_of(folder: Path, *, leases: bool = False) -> dict[str, FileState]:
    """All files under a folder by relative path, whatever a store would list; without those of the lease."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and (leases or not name.startswith("lease/")):
            status = path.stat()
            found[name] = FileState(inode=status.st_ino, changed_ns=status.st_mtime_ns, content=path.read_bytes())
    return found


def folder_of(run: Run) -> Path:
    """Where the store of a local run lies."""
    return Path(run.store.uri)
