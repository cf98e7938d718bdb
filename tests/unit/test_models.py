"""Networks by name: sizes, shapes, initialisation, and every way in which a name can be wrong."""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ray_sisa import model_code, models
from ray_sisa.config import Recipe, TrainingRecipe
from ray_sisa.digests import digest_tensors
from ray_sisa.errors import ConfigError
from ray_sisa.training import LabelledImages, initial_state, to_end, train_stage

IMAGE_NETWORKS = ("small_cnn", "resnet20", "resnet32", "resnet44", "resnet56", "resnet110")
SHAPES = [(8, 8, 1), (32, 32, 3)]


def training(
    model: str, image_shape: tuple[int, ...] = (32, 32, 3), num_classes: int = 10, **recipe: Any
) -> TrainingRecipe:
    model_code.allow([model])
    return TrainingRecipe(
        recipe=Recipe(model=model, epochs_per_slice=1, **recipe),
        model_code=model_code.digest(model),
        initial_weights=None,
        num_classes=num_classes,
        image_shape=image_shape,
        mean=(0.5,) * image_shape[-1],
        std=(0.5,) * image_shape[-1],
        epochs=(1,),
    )


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def inputs(image_shape: tuple[int, ...], batch: int = 2) -> torch.Tensor:
    *sides, channels = image_shape
    return torch.randn(batch, channels, *sides)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
    ],
)
def test_resnets_have_the_published_sizes(name: str, count: int) -> None:
    assert num_parameters(models.build(training(name))) == count


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ["mlp", *IMAGE_NETWORKS])
def test_registered_networks_return_logits(name: str, shape: tuple[int, ...]) -> None:
    model = models.build(training(name, shape, num_classes=7))
    with torch.no_grad():
        assert model(inputs(shape)).shape == (2, 7)
    assert {(p.dtype, p.device.type) for p in model.parameters()} == {(torch.float32, "cpu")}
    assert models.head(model) == "linear"


@pytest.mark.parametrize("name", ["resnet20", "small_cnn"])
def test_odd_sides_and_channels_last_are_taken(name: str) -> None:
    model = models.build(training(name, (35, 29, 1))).eval()
    images = inputs((35, 29, 1))
    torch.testing.assert_close(model(images), model(images.contiguous(memory_format=torch.channels_last)))


def test_mlp_takes_features_and_resized_images() -> None:
    assert models.build(training("mlp", (13,)))(torch.randn(4, 13)).shape == (4, 10)
    assert models.build(training("mlp", (32, 32, 3), input_size=16))(inputs((16, 16, 3))).shape == (2, 10)


def test_resnet_state_is_named_as_in_the_published_weights() -> None:
    names = list(models.build(training("resnet20")).state_dict())
    assert names[:2] == ["conv1.weight", "bn1.weight"]
    assert {"layer1.0.conv1.weight", "layer2.0.bn2.running_var", "layer3.2.conv2.weight"} <= set(names)
    assert names[-2:] == ["linear.weight", "linear.bias"]
    assert not any("shortcut" in name for name in names)


def test_shortcut_halves_the_image_and_pads_channels_on_both_sides() -> None:
    block = models.BasicBlock(16, 32)
    nn.init.zeros_(block.bn2.weight)
    images = torch.rand(1, 16, 6, 6)
    out = block(images)
    assert torch.equal(out[:, 8:24], images[:, :, ::2, ::2])
    assert out[:, :8].count_nonzero() == out[:, 24:].count_nonzero() == 0


def test_resnet_is_initialised_by_kaiming_normal() -> None:
    torch.manual_seed(0)
    weight = models.build(training("resnet20")).get_parameter("layer3.2.conv1.weight")
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("name", ["mlp", "small_cnn", "resnet20", "torchvision:squeezenet1_1"])
def test_initial_weights_are_a_function_of_the_seed(name: str) -> None:
    def digest(seed: int) -> str:
        torch.manual_seed(seed)
        return digest_tensors(models.build(training(name)).state_dict())

    assert digest(1) == digest(1) != digest(2)


@pytest.mark.parametrize(("name", "head"), [("resnet18", "fc"), ("mobilenet_v3_small", "classifier.3")])
def test_torchvision_classifiers(name: str, head: str) -> None:
    model = models.build(training(f"torchvision:{name}", num_classes=7))
    assert model(inputs((32, 32, 3))).shape == (2, 7)
    assert models.head(model) == head


def test_torchvision_networks_with_auxiliary_heads_return_logits_alone() -> None:
    model = models.build(training("torchvision:googlenet", num_classes=7))
    assert model(inputs((32, 32, 3))).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "shape", "told"),
    [
        ("resnet21", (8, 8, 1), "mlp, small_cnn, resnet20"),
        ("resnet20", (13,), "Use mlp"),
        ("torchvision:resnet18", (13,), "Use mlp"),
        ("torchvision:resnet18", (8, 8, 1), "Convert to RGB"),
        ("torchvision:resnet-18", (8, 8, 3), "resnet18"),
        ("torchvision:ResNet18", (8, 8, 3), "resnet18"),
        ("torchvision:fasterrcnn_resnet50_fpn", (8, 8, 3), "no classifier of torchvision"),
        ("torchvision:", (8, 8, 3), "list_models"),
        ("no_such_package.networks:make", (8, 8, 3), "ModuleNotFoundError"),
        (":make", (8, 8, 3), "cannot be imported"),
        ("collections:no_such", (8, 8, 3), "has no function 'no_such'"),
        ("string:digits", (8, 8, 3), "has no function 'digits'"),
        ("string:capwords", (8, 8, 3), "capwords(num_classes=10, image_shape=(8, 8, 3)) failed: TypeError"),
        ("types:SimpleNamespace", (8, 8, 3), "returned SimpleNamespace"),
    ],
)
def test_names_that_cannot_be_built(name: str, shape: tuple[int, ...], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        models.build(training(name, shape))
    assert told in str(caught.value)
    assert caught.value.field == "recipe.model"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_head_needs_a_linear_layer() -> None:
    with pytest.raises(ConfigError, match="no linear layer"):
        models.head(models.build(training("torchvision:squeezenet1_1")))


SOURCE = """
from torch import nn

def make(*, num_classes, image_shape):
    height, width, channels = image_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(height * width * channels, num_classes))
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    folder = tmp_path / "networks_of_a_user"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "networks.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    yield folder
    for name in [name for name in sys.modules if name.startswith(folder.name)]:
        del sys.modules[name]  # the next test writes its own


CONVOLUTIONS = """
from torch import nn

def make(*, num_classes, image_shape):
    layers = nn.Conv2d(image_shape[2], 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, num_classes, 1)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


def test_a_network_need_not_have_a_linear_layer(package: Path) -> None:
    (package / "networks.py").write_text(CONVOLUTIONS)
    model = models.build(training("networks_of_a_user.networks:make", (8, 8, 1), num_classes=3))
    assert model(inputs((8, 8, 1))).shape == (2, 3)
    squeezenet = models.build(training("torchvision:squeezenet1_0", num_classes=7))
    assert squeezenet(inputs((32, 32, 3))).shape == (2, 7)


@pytest.mark.parametrize("name", ["networks_of_a_user.networks:make", "torchvision:squeezenet1_0"])
def test_a_network_without_a_linear_layer_trains(package: Path, name: str) -> None:
    (package / "networks.py").write_text(CONVOLUTIONS)
    recipe = training(name, num_classes=3, optimizer={"lr": 1e-3})
    start = initial_state(recipe, "chain", None)
    samples = LabelledImages(images=np.zeros((4, 32, 32, 3), np.uint8), labels=np.arange(4) % 3)
    trained = to_end(train_stage(start=start, samples=samples, training=recipe, key="stage", epochs=1))
    assert digest_tensors(trained) != digest_tensors(start)


def test_function_of_the_users(package: Path) -> None:
    model = models.build(training("networks_of_a_user.networks:make", (4, 4, 1), num_classes=3))
    assert model(inputs((4, 4, 1))).shape == (2, 3)
    assert models.head(model) == "1"


def test_code_digest_follows_the_source(package: Path) -> None:
    name = "networks_of_a_user.networks:make"
    before = model_code.digest(name)
    assert before is not None
    assert before == model_code.digest(name)
    (package / "networks.py").write_text(SOURCE + "\n# a change\n")
    assert model_code.digest(name) != before
    (package / "networks.py").write_text(SOURCE)
    assert model_code.digest(name) == before


@pytest.mark.parametrize("name", ["resnet20", "mlp", "torchvision:resnet18"])
def test_code_of_known_networks_has_no_digest(name: str) -> None:
    assert model_code.digest(name) is None


@pytest.mark.parametrize(
    ("name", "told"), [("no_such_package:make", "cannot be imported"), ("math:sqrt", "no readable source")]
)
def test_code_without_source(name: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        model_code.digest(name)
