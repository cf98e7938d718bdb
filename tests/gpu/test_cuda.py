"""The laws on a CUDA device: same keys, same bytes, twice; unlearned equals never trained. Real training, no fakes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ray_sisa import data, models
from ray_sisa.backbone import MOST_ON_CUDA, Backbone
from ray_sisa.config import Recipe, TrainingRecipe
from ray_sisa.config_values import make_config
from ray_sisa.data import Dataset
from ray_sisa.digests import digest_tensors
from ray_sisa.run import Run
from ray_sisa.training import LabelledImages, initial_state, to_end, train_stage

pytestmark = pytest.mark.gpu

FORGET_EVERY = 97


def create(folder: Path, dataset: Dataset, precision: str, gpus: int = 1, **recipe: object) -> Run:
    config = make_config(
        {
            "name": "cuda",
            "storage_path": str(folder),
            "data": {"source": "digits"},
            "placement": {"shards": 2, "slices": 3, "key": "cuda"},
            "recipe": {
                "model": "resnet20",
                "epochs_per_slice": 2,
                "batch_size": 64,
                "optimizer": {"lr": 0.05, "nesterov": True, "weight_decay": 5e-4},
                "augment": ["crop", "flip", "cutout"],
                "input_size": 16,
                "upsampling": "bilinear",
                "precision": precision,
                **recipe,
            },
            "scaling": {"resources_per_worker": {"CPU": 1, "GPU": gpus}},
        }
    )
    return Run.create(config, dataset)


PRIVATE = {"dp": {"noise_multiplier": 1.0}, "batch_size": 16}
NOPEEK = {"nopeek": {"layer": "layer2", "weight": 0.5}}


@pytest.mark.parametrize("recipe", [{}, PRIVATE, NOPEEK], ids=["plain", "private", "nopeek"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_unlearned_is_never_trained_bit_for_bit(tmp_path: Path, precision: str, recipe: dict[str, object]) -> None:
    everything = data.load(make_config_data())
    ids = everything.train.ids.to_pylist()
    forget = ids[::FORGET_EVERY]
    kept = everything.train.select(set(ids) - set(forget))
    without = Dataset(train=kept, test=everything.test, num_classes=10, mean=everything.mean, std=everything.std)
    run = create(tmp_path / "unlearned", everything, precision, **recipe)
    before = run.train(runner="local")
    again = create(tmp_path / "again", everything, precision, **recipe).train(runner="local")
    assert before.ensemble_digest == again.ensemble_digest
    run.forget(samples=forget)
    after = run.unlearn(runner="local")
    never = create(tmp_path / "never", without, precision, **recipe).train(runner="local")
    assert after.ensemble_digest == never.ensemble_digest != before.ensemble_digest
    assert run.verify(runner="local").ok
    assert {stage.environment.device for stage in run.stages()} == {"cuda"}


def test_a_stage_has_one_name_on_both_devices_and_predictions_agree(tmp_path: Path) -> None:
    everything = data.load(make_config_data())
    on_cuda = create(tmp_path / "cuda", everything, "float32")
    on_cpu = create(tmp_path / "cpu", everything, "float32", gpus=0)
    on_cuda.train(runner="local")
    on_cpu.train(runner="local")
    assert [s.key for s in on_cuda.stages()] == [s.key for s in on_cpu.stages()]
    assert everything.test is not None
    images = everything.test.images
    same_weights = on_cuda.ensemble("cuda").predict_proba(images), on_cuda.ensemble("cpu").predict_proba(images)
    np.testing.assert_allclose(*same_weights, atol=1e-4)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_row_of_features_depends_neither_on_its_place_nor_on_the_others(precision: str) -> None:
    recipe = Recipe.model_validate(
        {"model": "resnet20", "weights": "given", "backbone": "frozen", "epochs_per_slice": 1, "precision": precision}
    )
    training = TrainingRecipe(
        recipe=recipe,
        model_code=None,
        initial_weights=None,
        num_classes=10,
        image_shape=(32, 32, 3),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        epochs=(1,),
    )
    one = Backbone(training, models.build(training).state_dict(), "cuda")
    assert one.batch_size == MOST_ON_CUDA
    images = np.random.default_rng(0).integers(0, 256, (600, 32, 32, 3), np.uint8)
    known, order = one.features(images), np.random.default_rng(1).permutation(600)
    assert one.features(images[order]).tobytes() == known[order].tobytes()
    assert one.features(images[300:301]).tobytes() == known[300:301].tobytes()


def make_config_data() -> data.DataConfig:
    return data.DataConfig(source="digits")


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_efficientnet_trains_to_the_same_bits(precision: str) -> None:
    training = TrainingRecipe(
        recipe=Recipe(
            model="efficientnet_lite0", epochs_per_slice=1, precision=precision, input_size=64, batch_size=16
        ),
        model_code=None,
        initial_weights=None,
        num_classes=3,
        image_shape=(32, 32, 3),
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        epochs=(2,),
    )
    images = np.random.default_rng(0).integers(0, 256, (40, 32, 32, 3)).astype(np.uint8)
    samples = LabelledImages(images=images, labels=np.arange(40) % 3)
    start = initial_state(training, "chain", None)
    options = {"start": start, "samples": samples, "training": training, "key": "stage", "epochs": 2, "device": "cuda"}
    first, second = (digest_tensors(to_end(train_stage(**options))) for _ in range(2))
    assert first == second != digest_tensors(start)
