"""NoPeek: distance correlation as its definition has it, gradients that are always numbers, what the penalty does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_runs import dataset, digits, small_config
from torch import Tensor, nn

from ray_sisa import nopeek
from ray_sisa.approximate.methods import FineTune
from ray_sisa.approximate.unlearning import unlearn
from ray_sisa.augment import Normalise
from ray_sisa.config import NoPeek, TrainingRecipe
from ray_sisa.errors import ConfigError
from ray_sisa.ingest import resolve_recipe
from ray_sisa.nopeek import distance_correlation
from ray_sisa.training import (
    LabelledImages,
    initial_state,
    load_network,
    predict_log_probabilities,
    to_end,
    train_stage,
)


def by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """Szekely, Rizzo and Bakirov 2007, definition 3, in loops."""
    n = len(x)
    a, b = (np.array([[np.linalg.norm(p[i] - p[j]) for j in range(n)] for i in range(n)]) for p in (x, y))
    for m in (a, b):
        m += m.mean() - m.mean(0)[None, :] - m.mean(1)[:, None]
    covariance, variances = (a * b).sum() / n**2, (a * a).sum() / n**2 * (b * b).sum() / n**2
    return float(np.sqrt(covariance / np.sqrt(variances)))


def rows(count: int, *shape: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [3, 8, 40])
def test_it_is_what_the_definition_says(count: int) -> None:
    x = rows(count, 1, 5, 4)
    y = torch.tanh(x.flatten(1)[:, :3]) + rows(count, 3, seed=1)
    expected = by_definition(x.flatten(1).double().numpy(), y.double().numpy())
    assert distance_correlation(x, y).item() == pytest.approx(expected, rel=1e-5)
    assert distance_correlation(y, x).item() == pytest.approx(expected, rel=1e-5)


def test_what_is_known_of_it() -> None:
    x, turn = rows(400, 2), torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    assert distance_correlation(x, x).item() == pytest.approx(1, abs=1e-6)
    assert distance_correlation(x, 7 - 3 * x @ turn).item() == pytest.approx(1, abs=1e-5)
    assert distance_correlation(rows(2000, 1), rows(2000, 1, seed=1)).item() < 0.06
    line = torch.linspace(-1, 1, 201)[:, None]
    # Dependent, though their correlation is 0.
    assert distance_correlation(line, line.abs()).item() == pytest.approx(
        by_definition(line.numpy(), line.abs().numpy())
    )
    assert distance_correlation(line, line.abs()).item() > 0.4


def test_gradients_are_those_of_the_definition() -> None:
    x, y = rows(6, 4).double(), rows(6, 3, seed=1).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: distance_correlation(x, z), (y,))


@pytest.mark.parametrize(
    "activations",
    [
        torch.zeros(8, 5),
        torch.full((8, 5), 0.1),
        rows(1, 5).repeat(8, 1),
        rows(4, 5).repeat(2, 1),
        rows(8, 5) * 1e-12,
        rows(8, 5) * 1e6,
        rows(2, 5),
        rows(1, 5),
        rows(1, 5).repeat(2, 1),
    ],
    ids=["zeros", "alike", "alike, not exact", "pairs", "tiny", "large", "two rows", "one row", "one row twice"],
)
def test_gradients_are_numbers_whatever_the_batch(activations: Tensor) -> None:
    activations = activations.clone().requires_grad_()
    value = distance_correlation(rows(len(activations), 3, 2, 2, seed=1), activations)
    value.backward()
    assert 0 <= value.item() <= 1 + 1e-6
    assert activations.grad is not None and activations.grad.isfinite().all()


def test_rows_that_are_alike_tell_nothing() -> None:
    assert distance_correlation(rows(8, 3), torch.full((8, 5), 0.1)).item() == 0


# In training.


def train(training: TrainingRecipe, count: int = 300, epochs: int = 6) -> tuple[nn.Module, LabelledImages]:
    samples = digits(0, count)
    images = LabelledImages(images=samples.images, labels=samples.labels)
    start = initial_state(training, "key", None)
    stage = train_stage(start=start, samples=images, training=training, key="key", epochs=epochs)
    return load_network(training, to_end(stage), "cpu").eval(), images


def told(model: nn.Module, training: TrainingRecipe, layer: str) -> float:
    """Distance correlation between 200 new images and what a layer makes of them."""
    inputs = Normalise(training, "cpu")(torch.from_numpy(digits(600, 200).images))
    with torch.no_grad(), nopeek.watched(model, NoPeek(layer=layer, weight=1)) as outputs:
        model(inputs)
    return distance_correlation(inputs, outputs[0]).item()


def accuracy(model: nn.Module, training: TrainingRecipe, samples: LabelledImages) -> float:
    scores = predict_log_probabilities(model.state_dict(), samples.images, training)
    return float((scores.argmax(1) == samples.labels).mean())


def test_activations_tell_less_and_the_network_still_learns(make_training: Callable[..., TrainingRecipe]) -> None:
    common: dict[str, Any] = {"num_classes": 10, "batch_size": 32, "optimizer": {"name": "adam", "lr": 0.003}}
    plain = make_training(**common)
    shy = make_training(**common, nopeek={"layer": "hidden2", "weight": 5.0})
    (one, samples), (other, _) = train(plain, epochs=15), train(shy, epochs=15)
    assert told(other, shy, "hidden2") < told(one, plain, "hidden2") - 0.15
    assert accuracy(one, plain, samples) > 0.95
    assert 0.3 < accuracy(other, shy, samples) <= accuracy(one, plain, samples)


@pytest.mark.parametrize("count", [1, 2, 9, 10])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_small_batches_give_numbers(count: int, precision: str, make_training: Callable[..., TrainingRecipe]) -> None:
    training = make_training(
        model="small_cnn", num_classes=10, precision=precision, nopeek={"layer": "conv2", "weight": 2.0}
    )
    model, _ = train(training, count, epochs=2)
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_nothing_is_left_on_the_network() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(inplace=True))
    with nopeek.watched(model, NoPeek(layer="0", weight=1)) as outputs:
        result = model(rows(4, 3))
    model(rows(4, 3))
    assert len(outputs) == 1
    assert (outputs[0] < 0).any() and (result >= 0).all()  # as the layer gave it, not as the next one left it


# What is refused, before anything is trained.


class Odd(nn.Module):
    """A network with layers that cannot be watched."""

    def __init__(self, size: int, num_classes: int) -> None:
        super().__init__()
        self.flat, self.twice, self.unused = nn.Flatten(), nn.Linear(size, size), nn.Linear(1, 1)
        self.pair, self.mean, self.linear = Pair(), Mean(), nn.Linear(size, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] to logits."""
        hidden = self.twice(self.twice(self.flat(images)))
        self.mean(hidden)
        logits: Tensor = self.linear(self.pair(hidden)[0])
        return logits


class Pair(nn.Module):
    """Gives two tensors."""

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs, twice."""
        return inputs, inputs


class Mean(nn.Module):
    """Gives no rows."""

    def forward(self, inputs: Tensor) -> Tensor:
        """The mean of all."""
        return inputs.mean()


def odd_network(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    return Odd(torch.Size(image_shape).numel(), num_classes)


@pytest.mark.parametrize(
    ("layer", "rule"),
    [
        ("twise", r"recipe.nopeek.layer = twise: is no layer of test_nopeek:odd_network. Near are twice"),
        ("zzz", r"is no layer of .* Near are flat, twice, unused"),
        ("", r"is no layer of"),
        ("twice", r"runs 2 times, not once"),
        ("unused", r"runs 0 times, not once"),
        ("pair", r"gives tuple, not one tensor"),
        ("mean", r"gives torch.float32 \[\] for two samples"),
        ("flat", r"has no weights in it or before it"),
    ],
)
def test_layers_that_cannot_be_watched(layer: str, rule: str, tmp_path: Any) -> None:
    recipe = {
        "model": "test_nopeek:odd_network",
        "epochs_per_slice": 1,
        "nopeek": {"layer": layer, "weight": 1.0},
    }
    with pytest.raises(ConfigError, match=rule):
        resolve_recipe(None, small_config(tmp_path, recipe=recipe), dataset(digits(0, 30)))


def test_layers_by_dotted_name_are_found(tmp_path: Any) -> None:
    recipe = {
        "model": "split_convnet",
        "input_size": 35,
        "epochs_per_slice": 1,
        "nopeek": {"layer": "device", "weight": 0.5},
    }
    for layer in ("device", "device.0"):
        given = recipe | {"nopeek": {"layer": layer, "weight": 0.5}}
        training = resolve_recipe(None, small_config(tmp_path, recipe=given), dataset(digits(0, 30)))
        assert training.recipe.nopeek == NoPeek(layer=layer, weight=0.5)


def test_approximate_methods_refuse_it(make_training: Callable[..., TrainingRecipe]) -> None:
    training = make_training(num_classes=10, nopeek={"layer": "hidden1", "weight": 1.0})
    samples = digits(0, 20)
    some = LabelledImages(images=samples.images, labels=samples.labels)
    with pytest.raises(ConfigError, match=r"recipe.nopeek = hidden1: is not for approximate methods"):
        unlearn(
            FineTune(epochs=1),
            start=initial_state(training, "key", None),
            retained=some,
            forget=some,
            training=training,
            key="key",
        )
