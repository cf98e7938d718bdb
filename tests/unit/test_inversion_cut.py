"""A network cut in two and asked: the same bits as in one piece, noise where it belongs, refusals of bad cuts."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ray_sisa.config import TrainingRecipe
from ray_sisa.errors import ConfigError
from ray_sisa.inversion.cut import CutNetwork
from ray_sisa.inversion_study.querying import Queried
from ray_sisa.splitting import ActivationNoise
from ray_sisa.training import initial_state, load_network, predict_log_probabilities

MakeTraining = Callable[..., TrainingRecipe]
IMAGES = np.random.default_rng(0).integers(256, size=(300, 8, 8, 1), dtype=np.uint8)  # more than one batch
NOISE = ActivationNoise(kind="laplace", scale=0.5)


@pytest.fixture
def training(make_training: MakeTraining) -> TrainingRecipe:
    return make_training()


def cut(training: TrainingRecipe, noise: ActivationNoise | None = None) -> CutNetwork:
    return CutNetwork(load_network(training, initial_state(training, "a", None), "cpu"), training, "hidden1", noise)


def test_what_is_sent_and_answered_is_what_the_whole_network_says(training: TrainingRecipe) -> None:
    network = cut(training)
    sent = network.activations(IMAGES)
    assert (sent.dtype, len(sent)) == (np.float32, len(IMAGES))
    logits = network.answers(sent)
    assert np.array_equal(logits, network.logits(IMAGES, noisy=True))
    whole = predict_log_probabilities(initial_state(training, "a", None), IMAGES, training, "cpu")
    assert np.allclose(torch.from_numpy(logits).log_softmax(1).numpy(), whole, atol=1e-6)


def test_noise_is_on_what_is_sent_and_on_nothing_else(training: TrainingRecipe) -> None:
    plain, noisy = cut(training), cut(training, NOISE)
    clean = plain.activations(IMAGES)
    assert not np.array_equal(noisy.activations(IMAGES), noisy.activations(IMAGES))
    assert np.abs(cut(training, NOISE).activations(IMAGES) - clean).mean() == pytest.approx(0.5, rel=0.05)
    assert np.array_equal(cut(training, NOISE).activations(IMAGES), cut(training, NOISE).activations(IMAGES))
    assert np.array_equal(noisy.logits(IMAGES, noisy=False), plain.logits(IMAGES, noisy=False))
    assert not np.array_equal(noisy.logits(IMAGES, noisy=True), plain.logits(IMAGES, noisy=True))
    pixels = torch.from_numpy(IMAGES[:5].astype(np.float32) / 255).requires_grad_()
    found = noisy.activations_of(pixels)
    assert np.allclose(found.detach().numpy(), clean[:5], atol=1e-5)
    (gradient,) = torch.autograd.grad(found.sum(), [pixels])
    assert gradient.abs().sum() > 0


class Aliasing(nn.Module):
    """Writes through a view, which no trace of it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.linear = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.body(images.flatten(1))
        hidden.view(-1).clamp_(min=0)
        logits: Tensor = self.linear(hidden)
        return logits


@pytest.mark.parametrize("noise", [None, "laplace:0.5"])
def test_two_parts_that_are_not_the_whole_are_refused(training: TrainingRecipe, noise: str | None) -> None:
    with pytest.raises(ConfigError, match=r"layer = body: cuts .* give something else than the whole"):
        Queried(Aliasing(), training, "body", noise, "cpu")
    with pytest.raises(ConfigError, match=r"layer = body: is no layer of the network"):
        Queried(load_network(training, initial_state(training, "a", None), "cpu"), training, "body", noise, "cpu")


def test_a_network_that_diverged_can_be_asked(training: TrainingRecipe) -> None:
    weights = {name: torch.full_like(tensor, math.nan) for name, tensor in initial_state(training, "a", None).items()}
    network = CutNetwork(load_network(training, weights, "cpu"), training, "hidden1")
    assert np.isnan(network.activations(IMAGES)).all()
