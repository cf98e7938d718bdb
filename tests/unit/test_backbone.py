"""The frozen backbone: a row of features follows from its image alone, whatever is run with it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from ray_sisa import backbone, model_code, models
from ray_sisa.backbone import Backbone
from ray_sisa.config import TrainingRecipe
from ray_sisa.errors import ConfigError

MakeTraining = Callable[..., TrainingRecipe]
CASES = {
    "resnet20": {"model": "resnet20", "image_shape": (32, 32, 3)},
    "resnet20 in bfloat16": {"model": "resnet20", "image_shape": (32, 32, 3), "precision": "bfloat16"},
    "resnet20 on two threads": {"model": "resnet20", "image_shape": (32, 32, 3), "threads": 2},
    "resized": {"model": "resnet20", "image_shape": (8, 8, 3), "input_size": 48, "upsampling": "bilinear"},
    "small_cnn": {"model": "small_cnn"},
    "mlp": {"model": "mlp"},
    "layers of an EfficientNet": {"model": "small_runs:separable_network", "image_shape": (16, 16, 3)},
}
BY_PLACE = "small_runs:by_place_network"


def frozen(make_training: MakeTraining, **settings: object) -> TrainingRecipe:
    settings = {"backbone": "frozen", "weights": "a file", **settings}
    name = str(settings["model"])
    return make_training(model_code=model_code.digest(name), **settings)


def public_of(training: TrainingRecipe, seed: int = 0) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return dict(models.build(training).state_dict())


def images_of(training: TrainingRecipe, count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, *training.image_shape), np.uint8)


@pytest.mark.parametrize("case", CASES)
def test_rows_depend_neither_on_their_place_nor_on_the_others(case: str, make_training: MakeTraining) -> None:
    training = frozen(make_training, **CASES[case])
    one, images = Backbone(training, public_of(training)), images_of(training, 70)
    known = one.features(images)
    assert known.dtype == np.float16 and len({row.tobytes() for row in known}) == 70
    order = np.random.default_rng(2).permutation(70)
    assert one.features(images[order]).tobytes() == known[order].tobytes()
    for rows in (slice(0, 1), slice(3, 40), slice(33, 66), slice(0, 70, 7)):
        assert one.features(images[rows]).tobytes() == known[rows].tobytes()
    assert Backbone(training, public_of(training)).features(images[::-1]).tobytes() == known[::-1].tobytes()
    assert one.features(images[:0]).shape == (0, known.shape[1])


def test_a_network_whose_bits_depend_on_the_place_is_run_an_image_at_a_time(make_training: MakeTraining) -> None:
    training = frozen(make_training, model=BY_PLACE)
    one, images = Backbone(training, public_of(training)), images_of(training, 5)
    assert one.batch_size == 1
    known = one.features(images)
    assert one.features(images[::-1]).tobytes() == known[::-1].tobytes()


@pytest.mark.parametrize(("side", "size"), [(8, 32), (32, 32), (64, 8), (224, 1)])
def test_large_images_are_run_few_at_a_time_on_a_cpu(side: int, size: int, make_training: MakeTraining) -> None:
    training = frozen(make_training, model="small_cnn", image_shape=(8, 8, 3), input_size=side)
    assert Backbone(training, public_of(training)).batch_size == size


def test_features_and_head_are_the_network(make_training: MakeTraining) -> None:
    training = frozen(make_training, model="small_cnn")
    public, images = public_of(training), images_of(training, 10)
    network = models.build(training)
    network.load_state_dict(public)
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    with torch.no_grad():
        expected = network.eval()(pixels).numpy()
    head = backbone.start(training, "any key", public)
    rows = Backbone(training, public).features(images).astype(np.float32)
    logits = rows @ head["linear.weight"].numpy().T + head["linear.bias"].numpy()
    np.testing.assert_allclose(logits, expected, rtol=2e-3, atol=2e-3)


def test_a_head_starts_as_in_the_file_only_where_it_is_for_as_many_classes(make_training: MakeTraining) -> None:
    training = frozen(make_training, model="small_cnn")
    same, other = public_of(training), public_of(training.model_copy(update={"num_classes": 7}))
    assert torch.equal(backbone.start(training, "key", same)["linear.weight"], same["linear.weight"])
    drawn, again, elsewhere = (backbone.start(training, key, other) for key in ("key", "key", "another key"))
    assert torch.equal(drawn["linear.weight"], again["linear.weight"])
    assert not torch.equal(drawn["linear.weight"], elsewhere["linear.weight"])


def test_what_trains_is_a_linear_layer_in_float32(make_training: MakeTraining) -> None:
    training = frozen(make_training, model="resnet20", image_shape=(32, 32, 3), precision="bfloat16")
    head = backbone.trained_part(training)
    assert (head.recipe.model, head.image_shape, head.recipe.precision) == ("linear", (64,), "float32")
    assert (head.num_classes, head.epochs, head.recipe.batch_size) == (3, training.epochs, 8)
    trained = make_training(model="resnet20", image_shape=(32, 32, 3))
    assert backbone.trained_part(trained) is trained


def test_features_that_float16_does_not_hold_are_refused(make_training: MakeTraining) -> None:
    training = frozen(make_training, model="small_cnn")
    public = {name: t * 1e6 if name == "bn3.weight" else t for name, t in public_of(training).items()}
    with pytest.raises(ConfigError, match="65504"):
        Backbone(training, public).features(images_of(training, 3))


@pytest.mark.parametrize(
    ("model", "says"),
    [("small_runs:scaled_network", "does not end in its last linear layer"), ("mlp", ""), ("small_cnn", "")],
)
def test_only_a_network_that_ends_in_a_linear_layer_has_a_backbone(
    model: str, says: str, make_training: MakeTraining
) -> None:
    training = frozen(make_training, model=model)
    network = models.build(training)
    if not says:
        return backbone.check(training, network)
    with pytest.raises(ConfigError, match=says):
        backbone.check(training, network)


def test_feature_vectors_have_no_backbone(make_training: MakeTraining) -> None:
    training = frozen(make_training, model="mlp", image_shape=(5,))
    with pytest.raises(ConfigError, match="needs images"):
        backbone.check(training, models.build(training))
