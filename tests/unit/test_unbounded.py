"""Training as the original trained its private targets: what is clipped, what is added, and why it is not private."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_sisa.augment import Batches
from ray_sisa.config import TrainingRecipe
from ray_sisa.config_values import make_config
from ray_sisa.data import Dataset
from ray_sisa.ingest import resolve_recipe
from ray_sisa.inversion_study.presets import as_original
from ray_sisa.inversion_study.unbounded import add_noise, clipped_sum, train_unbounded
from ray_sisa.samples import make_samples
from ray_sisa.training import LabelledImages, Weights, initial_state, load_network, state_of

SIDE, CLASSES, COUNT = 35, 3, 20


def small_network(norm: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), norm, nn.Flatten(), nn.Linear(4 * 6 * 6, 5))


def losses_of(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(network(images), labels, reduction="none")


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(6, 1, 8, 8, generator=generator), torch.randint(0, 5, (6,), generator=generator)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4)], ids=["batch", "group"])
@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_each_loss_is_clipped_by_itself(norm: nn.Module, max_norm: float, batch: tuple[Tensor, Tensor]) -> None:
    network = small_network(norm)
    parameters = list(network.parameters())
    expected = [torch.zeros_like(p) for p in parameters]
    for place in range(6):
        network.zero_grad()
        losses_of(network, *batch)[place].backward()  # type: ignore[no-untyped-call]
        length = torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()
        for each, parameter in zip(expected, parameters, strict=True):
            assert parameter.grad is not None
            each += parameter.grad * min(1.0, max_norm / float(length))
    found = clipped_sum(losses_of(network, *batch), parameters, max_norm)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_sample_changes_more_than_its_own_gradient(batch: tuple[Tensor, Tensor]) -> None:
    """Why it is not private: with batch normalisation, the sum moves by more than twice what is clipped to."""

    def moved(norm: nn.Module) -> float:
        network, (images, labels) = small_network(norm), batch
        other = images.clone()
        other[0] *= 50
        parameters = list(network.parameters())
        sums = [
            torch.cat([total.flatten() for total in clipped_sum(losses_of(network, each, labels), parameters, 1.0)])
            for each in (images, other)
        ]
        return float((sums[0] - sums[1]).norm())

    assert moved(nn.GroupNorm(2, 4)) <= 2
    assert moved(nn.BatchNorm2d(4)) > 2


def test_noise_has_the_deviation_asked_for_in_any_layout() -> None:
    totals = [torch.zeros(64, 32, 7, 7).to(memory_format=torch.channels_last), torch.ones(50_000)]
    strides = [total.stride() for total in totals]
    add_noise(totals, 0.6, torch.Generator().manual_seed(0))
    assert [total.stride() for total in totals] == strides
    for total, mean in zip(totals, (0, 1), strict=True):
        assert float(total.mean()) == pytest.approx(mean, abs=0.02)
        assert float(total.std()) == pytest.approx(0.6, rel=0.02)


def test_without_clipping_and_noise_it_is_plain_training(dataset: Dataset) -> None:
    """The weights are those of a loop of PyTorch's own over the same batches, but for rounding."""
    training = recipe(dataset, 1, precision="float32", optimizer={"name": "sgd", "lr": 1e-4, "momentum": 0.0})
    samples = LabelledImages.of(dataset.train)
    [(_, made)] = train_unbounded(samples, training, "a", noise_multiplier=0.0, max_grad_norm=1e6)
    start = initial_state(training, "a", None)
    network = load_network(training, start, "cpu")
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    batches = Batches(torch.from_numpy(samples.images), torch.from_numpy(samples.labels), training, "cpu")
    for images, labels in batches.epoch("a", 0):
        optimizer.zero_grad()
        (F.cross_entropy(network(images), labels, reduction="sum") / training.recipe.batch_size).backward()
        optimizer.step()
    for name, tensor in state_of(network).items():
        torch.testing.assert_close(made[name], tensor, rtol=1e-4, atol=1e-6)
        assert not torch.equal(start[name], tensor)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    generator = np.random.default_rng(0)
    labels = np.arange(COUNT) % CLASSES
    images = generator.integers(0, 256, (COUNT, SIDE, SIDE, 1), dtype=np.uint8)
    samples = make_samples(ids=[f"{i:02d}" for i in range(COUNT)], images=images, labels=labels)
    return Dataset(train=samples, test=samples, num_classes=CLASSES, mean=(0.0,), std=(1.0,))


def recipe(dataset: Dataset, epochs: int = 2, **changed: object) -> TrainingRecipe:
    content = {
        "name": "x",
        "data": {"source": "parquet", "train": "x.parquet", "num_classes": CLASSES, "mean": (0.0,), "std": (1.0,)},
        "placement": {"shards": 1, "slices": 1},
        "recipe": {**as_original(epochs), "batch_size": 8, **changed},
    }
    return resolve_recipe(None, make_config(content), dataset)


def epochs_of(dataset: Dataset, noise_multiplier: float, key: str = "a") -> Iterator[tuple[float, Weights]]:
    samples = LabelledImages.of(dataset.train)
    return train_unbounded(samples, recipe(dataset), key, noise_multiplier=noise_multiplier, max_grad_norm=1.0)


def test_it_is_the_same_again_and_another_with_another_key(dataset: Dataset) -> None:
    (first, weights), (_, again) = list(epochs_of(dataset, 0.5))[-1], list(epochs_of(dataset, 0.5))[-1]
    assert 0 <= first <= 1
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    for other in (epochs_of(dataset, 0.5, "b"), epochs_of(dataset, 0.6)):
        *_, (_, changed) = other
        assert not torch.equal(weights["server.5.weight"], changed["server.5.weight"])


def test_the_running_statistics_are_trained_too(dataset: Dataset) -> None:
    *_, (_, weights) = epochs_of(dataset, 0.5)
    found = [name for name in weights if name.endswith("running_mean")]
    assert found and all(weights[name].abs().sum() > 0 for name in found)
