"""The attacks of `ray_sisa.inversion`: decoders built by rule, what they learn, and what they cannot."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_runs import digits
from torch import nn

from ray_sisa.augment import Normalise
from ray_sisa.config import TrainingRecipe
from ray_sisa.errors import ConfigError, DataError
from ray_sisa.evaluation.inversion import Reconstruction, measure
from ray_sisa.inversion.attack import AttackEpoch, DecoderConfig, Query, changed, reconstruct, train_decoder
from ray_sisa.inversion.baselines import linear_code, mean_image
from ray_sisa.inversion.decoder import build_decoder
from ray_sisa.inversion.white_box import SearchConfig, search
from ray_sisa.splitting import ActivationNoise, split
from ray_sisa.training import LabelledImages, initial_state, load_network, to_end, train_stage

PUBLIC, VICTIMS = digits(0, 400).images, digits(400, 100)


def test_the_decoder_of_the_study() -> None:
    decoder = build_decoder((32, 1, 1), (105, 105, 1), "study")
    made = [module for module in decoder.modules() if not list(module.children())]
    assert [type(module) for module in made] == [nn.ConvTranspose2d, nn.ReLU] * 4
    convolutions = [module for module in made if isinstance(module, nn.ConvTranspose2d)]
    assert [(c.out_channels, c.kernel_size, c.stride, c.padding) for c in convolutions] == [
        (32, (9, 9), (1, 1), (0, 0)),
        (32, (7, 7), (2, 2), (0, 0)),
        (1, (7, 7), (2, 2), (0, 0)),
        (1, (5, 5), (2, 2), (0, 0)),
    ]
    sides, maps = [1], torch.rand(1, 32, 1, 1)
    for convolution in convolutions:
        maps = convolution(maps)
        sides.append(maps.shape[2])
    assert sides == [1, 9, 23, 51, 105]
    assert sum(parameter.numel() for parameter in decoder.parameters()) == 134_779
    limit = (6 / (32 * 81 + 32 * 81)) ** 0.5  # Keras' glorot uniform
    assert 0.99 * limit < convolutions[0].weight.abs().max().item() <= limit
    assert not any(convolution.bias.any() for convolution in convolutions if convolution.bias is not None)


@pytest.mark.parametrize("style", ["study", "wide"])
@pytest.mark.parametrize("image_shape", [(35, 35, 1), (8, 8, 1), (32, 32, 3), (28, 36, 1), (1, 1, 1), (105, 105, 1)])
@pytest.mark.parametrize("activations", [(32, 1, 1), (64,), (16, 8, 8), (8, 40, 5), (4, 130, 130)])
def test_a_decoder_leads_from_any_vector_or_map_to_the_image(
    style: str, image_shape: tuple[int, int, int], activations: tuple[int, ...]
) -> None:
    decoder = build_decoder(activations, image_shape, style)  # type: ignore[arg-type]
    height, width, channels = image_shape
    made = decoder(torch.rand(1, *activations))
    assert made.shape == (1, channels, height, width)
    made.sum().backward()


def test_activations_of_another_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"activations = \[196, 768\]: must be vectors \[D\] or maps \[C, H, W\]"):
        build_decoder((196, 768), (8, 8, 1), "wide")


@pytest.mark.parametrize("change", [{"epochs": 0}, {"lr": 0.0}, {"lr": float("nan")}, {"style": "deep"}])
def test_a_decoder_that_cannot_be_trained_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="decoder"):
        DecoderConfig(**change)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def training(make_training: Callable[..., TrainingRecipe]) -> TrainingRecipe:
    optimizer = {"name": "adam", "lr": 0.01}
    return make_training(model="small_cnn", num_classes=10, optimizer=optimizer, mean=(0.3,), std=(0.38,))


@pytest.fixture(scope="module")
def network(training: TrainingRecipe) -> nn.Module:
    """Trained on other digits than the attacker's and the victims."""
    own = digits(600, 400)
    samples = LabelledImages(images=own.images, labels=own.labels)
    start = initial_state(training, "target", None)
    weights = to_end(train_stage(start=start, samples=samples, training=training, key="target", epochs=4))
    return load_network(training, weights, "cpu").eval()


def asked(network: nn.Module, training: TrainingRecipe, layer: str, noise: ActivationNoise | None = None) -> Query:
    device, normalise = split(network, layer, noise)[0], Normalise(training, "cpu")

    @torch.no_grad()
    def query(images: np.ndarray) -> np.ndarray:
        answers: np.ndarray = device(normalise(torch.from_numpy(images))).numpy()
        return answers

    return query


def attacked(query: Query, config: DecoderConfig, *, fresh: bool = False) -> Reconstruction:
    decoder = train_decoder(query, PUBLIC, config, fresh=fresh)
    made = reconstruct(decoder, query(VICTIMS.images))
    assert made.dtype == np.float32
    assert 0 <= made.min() <= made.max() <= 1
    return measure(VICTIMS.images, made, mean_image=mean_image(PUBLIC), clusters=VICTIMS.labels)


@pytest.mark.parametrize("style", ["study", "wide"])
def test_digits_come_back_from_an_early_layer(network: nn.Module, training: TrainingRecipe, style: str) -> None:
    config = DecoderConfig(style=style, epochs=20, lr=3e-3)  # type: ignore[arg-type]
    found = attacked(asked(network, training, "conv1"), config)
    assert found.r2.low is not None
    assert found.r2.low > 0.3
    assert found.top1.value > 0.5
    assert found.top1_chance == 0.01


def test_noise_that_drowns_the_activations_leaves_the_mean_image(network: nn.Module, training: TrainingRecipe) -> None:
    query = asked(network, training, "conv1", ActivationNoise(kind="gaussian", scale=1e4))
    found = attacked(query, DecoderConfig(epochs=5), fresh=True)
    assert found.r2.value < 0.05
    assert found.top1.low is not None
    assert found.top1.low < 0.05


def test_the_same_arguments_give_the_same_bits_and_another_seed_others(
    network: nn.Module, training: TrainingRecipe
) -> None:
    query = asked(network, training, "bn2")
    victims = query(VICTIMS.images)
    torch.manual_seed(1)
    one = reconstruct(train_decoder(query, PUBLIC, DecoderConfig(epochs=2)), victims)
    torch.manual_seed(2)
    same = reconstruct(train_decoder(query, PUBLIC, DecoderConfig(epochs=2)), victims)
    other = reconstruct(train_decoder(query, PUBLIC, DecoderConfig(epochs=2, seed=1)), victims)
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_the_attacker_asks_once_or_in_each_epoch_and_tells_each() -> None:
    told: list[AttackEpoch] = []
    numbers = []

    def query(images: np.ndarray) -> np.ndarray:
        numbers.append(len(images))
        return np.random.default_rng(len(numbers)).random((len(images), 3), np.float32)

    decoder = train_decoder(query, PUBLIC[:33], DecoderConfig(style="study", epochs=3), tell=told.append)
    assert numbers == [33]
    assert [(epoch.epoch, epoch.epochs) for epoch in told] == [(1, 3), (2, 3), (3, 3)]
    assert decoder.mse == told[-1].mse
    train_decoder(query, PUBLIC[:33], DecoderConfig(style="study", epochs=3), fresh=True)
    assert numbers == [33] * 4
    train_decoder(query, PUBLIC[:33], DecoderConfig(style="wide", epochs=3))
    assert numbers == [33] * 8  # once for the scale, then about other images in each epoch


def test_changed_images_are_turned_mirrored_and_shifted() -> None:
    images = np.zeros((200, 8, 10, 1), np.uint8)
    images[:, 2, 3] = 255
    found = changed(images, np.random.default_rng(0))
    assert np.array_equal(found, changed(images, np.random.default_rng(0)))
    down, right = np.nonzero(found[..., 0])[1:]
    # Row 2 of 8 or upside down, column 3 of 10 or mirrored, each a pixel up or down, left or right.
    assert {*zip(down.tolist(), right.tolist(), strict=True)} == {
        (row, column) for row in (1, 2, 3, 4, 5, 6) for column in (2, 3, 4, 5, 6, 7)
    }
    square = changed(images[:, :, :8], np.random.default_rng(0))
    assert {*np.nonzero(square)[1].tolist()} == {*np.nonzero(square)[2].tolist()} == {1, 2, 3, 4, 5, 6}


def test_a_wide_decoder_reads_any_scale(network: nn.Module, training: TrainingRecipe) -> None:
    query = asked(network, training, "conv1")
    config = DecoderConfig(epochs=5, lr=3e-3)
    plain, scaled = attacked(query, config), attacked(lambda images: 1e5 * query(images) + 1e6, config)
    assert scaled.mse.value == pytest.approx(plain.mse.value, rel=0.2)


def test_what_is_no_answer_is_refused() -> None:
    config = DecoderConfig(epochs=1)
    with pytest.raises(DataError, match=r"activations = float64 \[4, 3\]: must be float32 \[4, ...\]"):
        train_decoder(lambda images: np.zeros((len(images), 3)), PUBLIC[:4], config)
    with pytest.raises(DataError, match="must be finite numbers"):
        train_decoder(lambda images: np.full((len(images), 3), np.nan, np.float32), PUBLIC[:4], config)
    with pytest.raises(DataError, match=r"public images = float64 \[4, 8, 8, 1\]"):
        train_decoder(lambda images: np.zeros((4, 3), np.float32), PUBLIC[:4] / 255, config)
    decoder = train_decoder(lambda images: np.zeros((len(images), 3), np.float32), PUBLIC[:4], config)
    with pytest.raises(DataError, match=r"must be of shape \[3\]"):
        reconstruct(decoder, np.zeros((2, 5), np.float32))


def test_who_has_the_weights_finds_the_image(network: nn.Module, training: TrainingRecipe) -> None:
    device, normalise = split(network, "conv2")[0], Normalise(training, "cpu")
    wanted = asked(network, training, "conv2")(VICTIMS.images[:20])
    config, start = SearchConfig(steps=150, lr=0.02, total_variation=0.001), mean_image(PUBLIC)
    found = search(lambda pixels: device(normalise(pixels * 255)), wanted, start, config)
    again = search(lambda pixels: device(normalise(pixels * 255)), wanted[:1], start, config)
    true = VICTIMS.images[:20] / 255
    mse = np.square(found - true).mean()
    assert mse < 0.2 * np.square(start - true).mean()
    # Another batch is summed in another order: the same image, if not the same bits.
    assert np.abs(again[0] - found[0]).max() < 0.1
    much = SearchConfig(steps=150, lr=0.02, total_variation=10)
    smooth = search(lambda pixels: device(normalise(pixels * 255)), wanted, start, much)
    assert np.abs(np.diff(smooth, axis=1)).mean() < 0.5 * np.abs(np.diff(found, axis=1)).mean()
    with pytest.raises(ConfigError, match="white_box"):
        SearchConfig(steps=0)


def test_a_linear_code_is_between_the_mean_and_the_image() -> None:
    mse = [np.square(linear_code(PUBLIC, VICTIMS.images, width) - VICTIMS.images / 255).mean() for width in (1, 8, 64)]
    mean = np.square(mean_image(PUBLIC) - VICTIMS.images / 255).mean()
    assert mean > mse[0] > mse[1] > mse[2]
    assert mse[2] < 1e-3
    assert linear_code(PUBLIC, VICTIMS.images, 10_000).shape == VICTIMS.images.shape
