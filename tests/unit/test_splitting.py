"""Networks cut in two: the same bits as in one piece, layers at which that cannot be, and noise on what leaves."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_sisa import models
from ray_sisa.config import Recipe, TrainingRecipe
from ray_sisa.errors import ConfigError
from ray_sisa.split_convnet import SPLIT_CONVNETS, Affine
from ray_sisa.splitting import ActivationNoise, check_parts, layers, split


def build(model: str, shape: tuple[int, ...]) -> nn.Module:
    recipe = Recipe(model=model, epochs_per_slice=1)
    values: dict[str, Any] = {"model_code": None, "initial_weights": None, "num_classes": 7, "epochs": (1,)}
    torch.manual_seed(0)
    return models.build(TrainingRecipe(recipe=recipe, image_shape=shape, mean=(0.5,), std=(0.5,), **values))


@pytest.mark.parametrize(
    ("name", "shape", "some"),
    [
        ("linear", (8, 8, 1), ["linear"]),
        ("mlp", (8, 8, 1), ["hidden1", "hidden2"]),
        ("small_cnn", (8, 8, 1), ["conv1", "bn2", "linear"]),
        ("resnet20", (16, 16, 3), ["conv1", "layer1.1", "layer2"]),
        ("resnet32", (16, 16, 3), ["layer2"]),
        ("resnet44", (16, 16, 3), ["layer2"]),
        ("resnet56", (16, 16, 3), ["layer2"]),
        ("resnet110", (16, 16, 3), ["layer2"]),
        ("split_convnet", (35, 35, 1), ["device", "device.3", "server.1"]),
        ("split_convnet_affine", (35, 35, 1), ["device"]),
        ("split_convnet_group", (35, 35, 1), ["device", "device.8"]),
        ("split_convnet_no_dropout", (35, 35, 1), ["device"]),
        ("efficientnet_lite0", (32, 32, 3), ["_blocks.4"]),
        ("torchvision:resnet18", (32, 32, 3), ["layer3"]),
    ],
)
def test_the_two_parts_give_the_bits_of_the_whole(name: str, shape: tuple[int, ...], some: list[str]) -> None:
    model = build(name, shape).eval()
    images = torch.randn(3, shape[2], *shape[:2])
    with torch.no_grad():
        whole = model(images)
    can = layers(model)
    assert set(some) <= set(can)
    for layer in some:
        device, server = split(model, layer)
        with torch.no_grad():
            assert torch.equal(server(device(images)), whole), layer


def test_the_network_of_the_study_is_the_original_s() -> None:
    """Of its 105 pixels and 50 alphabets: layers, sizes of maps, constants, and the number of parameters."""
    network = SPLIT_CONVNETS["split_convnet"]((105, 105, 1), 50)
    assert sum(parameter.numel() for parameter in network.parameters()) == 108_242
    device, server = (list(part) for part in network.children())  # type: ignore[arg-type]
    assert [type(layer) for layer in device] == [nn.Conv2d, nn.ReLU, nn.BatchNorm2d, nn.MaxPool2d, nn.Dropout] * 4
    assert [layer.eps for layer in device if isinstance(layer, nn.BatchNorm2d)] == [1e-3] * 4
    assert [layer.p for layer in [*device, *server] if isinstance(layer, nn.Dropout)] == [0.2] * 5
    maps, sides = torch.zeros(1, 1, 105, 105), []
    for layer in device:
        maps = layer(maps)
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            sides.append(maps.shape[-1])
    assert sides == [99, 33, 27, 13, 9, 4, 2, 1]
    assert maps.shape[1] == 32


def test_a_factor_and_an_offset_keep_half_precision() -> None:
    """In float32 they would make all that follows float32 too, at half the speed."""
    layer = Affine(2)
    with torch.no_grad():
        layer.weight[:], layer.bias[:] = torch.tensor([2.0, 3.0]), torch.tensor([0.5, -0.5])
    maps = torch.ones(1, 2, 1, 1)
    assert layer(maps).flatten().tolist() == [2.5, 2.5]
    half = layer(maps.bfloat16())
    assert half.dtype == torch.bfloat16
    assert half.flatten().tolist() == [2.5, 2.5]


def test_the_device_part_ends_with_the_layer_and_neither_has_the_other_s_weights() -> None:
    model = build("small_cnn", (8, 8, 1))
    device, server = split(model, "conv2")
    assert set(device.state_dict()) == {
        name for name in model.state_dict() if name.startswith(("conv1", "bn1", "conv2"))
    }
    assert set(server.state_dict()) == set(model.state_dict()) - set(device.state_dict())
    assert model.training
    assert not any(part.training for part in (*device.modules(), *server.modules()))
    with torch.no_grad():
        next(device.parameters()).zero_()
    assert next(model.parameters()).any()  # the parts are copies


def test_what_a_shortcut_passes_around_cannot_be_cut() -> None:
    model = build("resnet20", (16, 16, 3))
    assert "layer1.0.bn1" not in layers(model)
    with pytest.raises(ConfigError, match=r"layer1\.0\.bn1: .*passes around it.*can be cut at conv1, bn1, layer1\.0"):
        split(model, "layer1.0.bn1")
    with pytest.raises(ConfigError, match=r"layer = layer9: is no layer of the network.*conv1"):
        split(model, "layer9")
    with pytest.raises(ConfigError, match="is no layer"):
        split(model, "")


def test_of_a_large_network_the_nearest_and_the_outermost_layers_are_named() -> None:
    blocks = [nn.Sequential(*[nn.Linear(2, 2) for _ in range(4)]) for _ in range(10)]
    model = nn.Sequential()
    model.add_module("blocks", nn.Sequential(*blocks))
    model.add_module("head", nn.Linear(2, 2))
    with pytest.raises(ConfigError) as refused:
        split(model, "blocks.7.11")
    near, listed = refused.value.remedy.removeprefix("Near are ").split(". It can be cut at ")
    *named, more = listed.split(", ")
    assert "blocks.7.1" in near.split(", ")
    assert {"blocks", "head", *(f"blocks.{number}" for number in range(10)), *near.split(", ")} <= set(named)
    assert named == [name for name in layers(model) if name in named]
    assert (len(named), more) == (24, f"and {len(layers(model)) - 24} more")


class Twice(nn.Module):
    """One layer run twice, a batch size read after it, and an empty group of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.nothing, self.linear = nn.Linear(4, 4), nn.Sequential(), nn.Linear(4, 2)
        self.first = nn.Linear(4, 4)

    def forward(self, vectors: Tensor) -> Tensor:
        hidden = self.nothing(self.body(self.body(self.first(vectors))))
        logits: Tensor = self.linear(hidden.reshape(vectors.shape[0], -1)).view(vectors.size(0), 2)
        return logits


def test_a_layer_run_twice_and_one_that_does_nothing_are_no_cuts_and_the_batch_size_is_no_way_around() -> None:
    model = Twice().eval()
    assert layers(model) == ["first", "linear"]
    with pytest.raises(ConfigError, match="is run 2 times for one image"):
        split(model, "body")
    vectors = torch.randn(5, 4)
    device, server = split(model, "first")
    assert torch.equal(server(device(vectors)), model(vectors))


class Counting(nn.Module):
    """Sizes that are no batch sizes: of a parameter, and of maps whose channels come first."""

    def __init__(self, of: str) -> None:
        super().__init__()
        self.of, self.first, self.second = of, nn.Linear(4, 6), nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.full((4,), 2.0))

    def forward(self, vectors: Tensor) -> Tensor:
        first = self.first(vectors)
        second: Tensor = self.second(first)
        if self.of == "parameter":
            return second * self.scale.size(0)
        if self.of == "channels after the cut":
            return second * second.t().shape[0]
        return second * first.t().size(0)


@pytest.mark.parametrize("of", ["parameter", "channels after the cut", "channels before it"])
def test_only_the_size_of_the_input_is_the_batch_size(of: str) -> None:
    model, vectors = Counting(of).eval(), torch.randn(3, 4)
    # The server part cannot know the size of what it does not see.
    assert layers(model) == (["first"] if of == "channels before it" else ["first", "second"])
    for layer in layers(model):
        device, server = split(model, layer)
        assert torch.equal(server(device(vectors)), model(vectors)), layer


class InPlace(nn.Module):
    """Written over by calls whose results nobody keeps, and read before each of them as well."""

    def __init__(self, write: str) -> None:
        super().__init__()
        self.write, self.body, self.relu, self.linear = write, nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)

    def forward(self, vectors: Tensor) -> Tensor:
        hidden = self.body(vectors)
        before = hidden * 2
        if self.write == "layer":
            self.relu(hidden)
        elif self.write == "method":
            hidden.clamp_(min=0)
        elif self.write == "view":
            hidden.view(-1).clamp_(min=0)
        elif self.write == "argument":
            F.relu(hidden, inplace=True)
        else:
            torch.relu_(hidden)
        logits: Tensor = self.linear(hidden - before)
        return logits


@pytest.mark.parametrize("write", ["layer", "method", "argument", "function"])
def test_what_is_written_in_place_is_in_one_of_the_parts(write: str) -> None:
    model, vectors = InPlace(write).eval(), torch.randn(3, 4)
    assert {"body", "linear"} <= set(layers(model))
    for layer in ("body", "linear"):
        device, server = split(model, layer)
        assert torch.equal(server(device(vectors)), model(vectors)), layer
        check_parts(model, layer, vectors)


@pytest.mark.parametrize("write", ["layer", "method", "argument", "function"])
def test_the_server_part_writes_over_nothing_that_is_intercepted(write: str) -> None:
    model = InPlace(write)
    device, server = split(model, "body")
    sent = device(torch.randn(3, 4))
    kept = sent.clone()
    server(sent)
    assert torch.equal(sent, kept)
    assert model.relu.inplace  # the network itself is as it was


def test_nor_does_that_of_a_network_of_torchvision() -> None:
    device, server = split(build("torchvision:resnet18", (32, 32, 3)), "bn1")
    sent = device(torch.randn(2, 3, 32, 32))
    kept = sent.clone()
    server(sent)
    assert torch.equal(sent, kept)


class Folded(nn.Module):
    """Positions of all images are rows for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.fold, self.linear = nn.Flatten(0, 1), nn.Linear(4, 2)

    def forward(self, sequences: Tensor) -> Tensor:
        rows = self.fold(sequences)
        return cast(Tensor, self.linear(rows.view(sequences.shape[0], -1, 4)).sum(1))


def test_parts_that_are_not_the_whole_are_told() -> None:
    with pytest.raises(ConfigError, match=r"layer = body: cuts a network whose two parts.* give something else"):
        check_parts(InPlace("view").eval(), "body", torch.randn(3, 4))
    with pytest.raises(ConfigError, match=r"layer = fold: cuts .*something else"):
        check_parts(Folded().eval(), "fold", torch.randn(3, 5, 4))
    with pytest.raises(ConfigError, match=r"layer = body: cuts .* fail: RuntimeError"):
        check_parts(InPlace("layer").eval(), "body", torch.randn(3, 5))


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.linear(vectors) if vectors.sum() > 0 else self.linear(-vectors)


def test_a_network_that_branches_on_values_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"recipe.model = Branching: cannot be traced by torch.fx"):
        layers(Branching())


@pytest.mark.parametrize(("kind", "deviation"), [("laplace", 2**0.5), ("gaussian", 1.0)])
def test_noise_is_fresh_seeded_and_of_its_scale(kind: str, deviation: float) -> None:
    model, images = build("mlp", (8, 8, 1)), torch.zeros(500, 1, 8, 8)
    noise = ActivationNoise.parse(f"{kind}:0.5")
    assert str(noise) == f"{kind}:0.5"
    noisy, same = (split(model, "hidden1", noise, seed=3)[0] for _ in range(2))
    clean = split(model, "hidden1")[0](images)
    one, two = noisy(images) - clean, noisy(images) - clean
    assert not torch.equal(one, two)
    assert torch.equal(same(images) - clean, one)
    assert one.std().item() == pytest.approx(0.5 * deviation, rel=0.03)
    assert abs(one.mean().item()) < 0.02


@pytest.mark.parametrize(
    "text", ["laplace", "laplace:", "laplace:0", "laplace:nan", "laplace:-1", "salt:0.5", ":1", ""]
)
def test_bad_noise_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="laplace"):
        ActivationNoise.parse(text)
