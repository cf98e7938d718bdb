"""DP-SGD does what it says: clipped gradients are of single samples, noise and batches as drawn, n shows nowhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ray_sisa import models, private_training, weights
from ray_sisa.config import TrainingRecipe
from ray_sisa.digests import digest_tensors
from ray_sisa.private_network import num_groups, replaced
from ray_sisa.private_training import PoissonBatches, PrivateStep, gaussians, source_of
from ray_sisa.records import EpochMetrics
from ray_sisa.samples import Samples
from ray_sisa.snapshot import Live
from ray_sisa.training import (
    LabelledImages,
    Weights,
    initial_state,
    load_network,
    make_optimizer,
    reproducible,
    state_of,
    to_end,
    train_stage,
)

Make = Callable[..., TrainingRecipe]
MakeSamples = Callable[..., Samples]
QUIET = 1e-9  # so little noise that rounding is more
CLIP = 0.5


@pytest.fixture(scope="session")
def make_private(make_training: Make) -> Make:
    """A recipe with DP-SGD: `noise` and what else its `dp` takes under `dp`, the rest as of `make_training`."""

    def make(noise: float = 1.0, dp: dict[str, Any] | None = None, **settings: Any) -> TrainingRecipe:
        own = {"noise_multiplier": noise, "max_grad_norm": CLIP} | (dp or {})
        return make_training(dp=own, noise_multiplier=noise, **settings)

    return make


@pytest.fixture(scope="module")
def data(random_samples: MakeSamples) -> LabelledImages:
    samples = random_samples(40, (16, 16, 3))
    return LabelledImages(images=samples.images, labels=samples.labels)


def first(data: LabelledImages, count: int) -> LabelledImages:
    return LabelledImages(images=data.images[:count], labels=data.labels[:count])


def batches_of(training: TrainingRecipe, data: LabelledImages, key: str = "key") -> PoissonBatches:
    return PoissonBatches(torch.from_numpy(data.images), torch.from_numpy(data.labels), training, "cpu")


def trained(training: TrainingRecipe, data: LabelledImages, epochs: int = 1) -> Weights:
    start = initial_state(training, "chain", None)
    return to_end(train_stage(start=start, samples=data, training=training, key="key", epochs=epochs))


def clipped(network: nn.Module, image: torch.Tensor, label: torch.Tensor, smoothing: float) -> list[torch.Tensor]:
    """The clipped gradient of one sample, the plain way."""
    network.zero_grad()
    F.cross_entropy(network(image[None]), label[None], label_smoothing=smoothing).backward()
    gradients = [parameter.grad.clone() for parameter in network.parameters()]
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    return [gradient * min(1.0, CLIP / norm) for gradient in gradients]


def by_hand(training: TrainingRecipe, data: LabelledImages) -> Weights:
    """An epoch in which each sample is run alone."""
    with reproducible(training, "cpu"):
        return _by_hand(training, data)


def _by_hand(training: TrainingRecipe, data: LabelledImages) -> Weights:
    recipe = training.recipe
    network = load_network(training, initial_state(training, "chain", None), "cpu")
    optimizer = make_optimizer(network, recipe.optimizer)
    for images, labels in batches_of(training, data).epoch("key", 0):
        sums = [torch.zeros_like(parameter) for parameter in network.parameters()]
        for image, label in zip(images, labels, strict=True):
            for total, gradient in zip(sums, clipped(network, image, label, recipe.label_smoothing), strict=True):
                total += gradient
        for parameter, total in zip(network.parameters(), sums, strict=True):
            parameter.grad = total / recipe.batch_size
        optimizer.step()
    return state_of(network)


def assert_moved_alike(start: Weights, found: Weights, expected: Weights) -> None:
    """Two ways to train came to the same, but for rounding."""
    apart = sum(float((found[name] - expected[name]).square().sum()) for name in found)
    moved = sum(float((start[name] - expected[name]).square().sum()) for name in found)
    assert apart < 1e-6 * moved


@pytest.mark.parametrize("model", ["mlp", "small_cnn", f"{__name__}:pooled_network"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradients_are_clipped_sample_by_sample(
    make_private: Make, data: LabelledImages, model: str, momentum: float
) -> None:
    training = make_private(
        QUIET,
        model=model,
        optimizer={"lr": 0.5, "momentum": momentum},
        schedule="constant",
        label_smoothing=0.1,
        augment=["crop", "flip"],
        image_shape=(16, 16, 3),
    )
    assert_moved_alike(initial_state(training, "chain", None), trained(training, data), by_hand(training, data))


def pooled_network(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """Convolutions of maps that are one pixel by the end, which memory cannot tell from channels-last ones."""
    layers = [nn.Conv2d(image_shape[2], 8, 3, padding=1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8, num_classes))


def test_adam_steps_by_the_clipped_gradients(make_private: Make, data: LabelledImages) -> None:
    optimizer = {"name": "adam", "lr": 0.01}
    training = make_private(QUIET, model="small_cnn", optimizer=optimizer, schedule="constant", image_shape=(16, 16, 3))
    found, expected = trained(training, data), by_hand(training, data)
    # The first steps go by the signs of gradients, the smallest of which rounding and noise may turn.
    for name, tensor in expected.items():
        assert ((found[name] - tensor).abs() > 1e-3).float().mean() < 0.02, name


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_no_sample_moves_the_weights_by_more_than_its_share(
    make_private: Make, data: LabelledImages, precision: str
) -> None:
    """One sample more, one step in which all are: the difference is that sample's clipped gradient over the batch."""
    training = make_private(
        QUIET,
        dp={"max_grad_norm": 0.01},  # all gradients are longer
        model="small_cnn",
        precision=precision,
        optimizer={"lr": 1.0, "momentum": 0.0},
        schedule="constant",
        image_shape=(16, 16, 3),
    )
    for count in (0, 1, 5, 6):  # n shows in nothing, and fewer samples than a batch train
        one, other = (
            trained(training, first(data, n)) if n else initial_state(training, "chain", None)
            for n in (count, count + 1)
        )
        moved = torch.cat([(other[name] - one[name]).flatten() for name in one]).norm().item()
        assert moved == pytest.approx(0.01 / training.recipe.batch_size, rel=1e-3)


def step_of(training: TrainingRecipe, key: str = "key") -> tuple[Live, PrivateStep]:
    network = load_network(training, initial_state(training, "chain", None), "cpu")
    config = training.recipe.optimizer
    live = Live(network, make_optimizer(network, config), config, "cpu", num_totals=3)
    return live, PrivateStep(live, training, key)


def test_an_empty_batch_is_a_step_of_noise(make_private: Make, data: LabelledImages) -> None:
    training = make_private(2.0, optimizer={"lr": 1.0, "momentum": 0.0}, image_shape=(16, 16, 3))
    live, step = step_of(training)
    before = nn.utils.parameters_to_vector(live.model.parameters()).detach()
    moved = []
    for number in range(2):
        step(number, torch.empty(0, 3, 16, 16), torch.empty(0, dtype=torch.int64))
        after = nn.utils.parameters_to_vector(live.model.parameters()).detach()
        moved.append(after - before)
        before = after
    deviation = 2.0 * CLIP / training.recipe.batch_size
    for noise in moved:
        assert noise.std().item() == pytest.approx(deviation, rel=0.02)
        assert abs(noise.mean().item()) < 5 * deviation / len(noise) ** 0.5
    assert abs(torch.corrcoef(torch.stack(moved))[0, 1].item()) < 5 / len(before) ** 0.5
    assert live.totals.tolist() == [0, 0, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_sample_whose_gradient_is_not_finite_moves_no_weight_beyond_its_share(
    make_private: Make, value: float
) -> None:
    training = make_private(QUIET, optimizer={"lr": 1.0, "momentum": 0.0}, image_shape=(4,))
    live, step = step_of(training)
    before = nn.utils.parameters_to_vector(live.model.parameters()).detach()
    step(0, torch.tensor([[value] * 4, [1.0] * 4]), torch.tensor([0, 1]))
    moved = nn.utils.parameters_to_vector(live.model.parameters()).detach() - before
    assert moved.isfinite().all()
    assert 0 < moved.norm().item() < 2.001 * CLIP / training.recipe.batch_size


def test_an_epoch_may_have_empty_batches(make_private: Make, data: LabelledImages) -> None:
    training = make_private(batch_size=1, image_shape=(16, 16, 3), input_size=8, augment=["crop"])
    sizes = [len(labels) for _, labels in batches_of(training, data).epoch("key", 0)]
    assert 0 in sizes and len(sizes) == 40
    steps = train_stage(
        start=initial_state(training, "chain", None), samples=data, training=training, key="key", epochs=1
    )
    metrics = next(steps)
    assert isinstance(metrics, EpochMetrics)
    assert np.isfinite(metrics.loss) and 0 <= (metrics.train_top1 or 0) <= 1
    assert (metrics.train_top1 or 0) * sum(sizes) == pytest.approx(round((metrics.train_top1 or 0) * sum(sizes)))


def test_noise_is_standard_normal(make_private: Make) -> None:
    like = torch.empty(300, 100)
    for noise in ("reproducible", "secure"):
        source = source_of(make_private(dp={"noise": noise}), "key")
        drawn = gaussians(source, "noise", like, secure=noise == "secure")
        assert (drawn.dtype, drawn.shape) == (torch.float64, like.shape)
        assert drawn.mean().item() == pytest.approx(0, abs=5 / like.numel() ** 0.5)
        assert drawn.std().item() == pytest.approx(1, rel=0.03)
        inside = [(drawn.abs() < bound).double().mean().item() for bound in (1, 2, 3)]
        assert inside == pytest.approx([0.6827, 0.9545, 0.9973], abs=0.02)


def test_noise_at_the_ends_of_what_may_be_drawn_is_finite() -> None:
    for data in (bytes(8), b"\xff" * 8):
        (drawn,) = torch.special.ndtri(private_training.uniforms(data)).tolist()
        assert 8 < abs(drawn) < 8.5


def test_stage_keys_alone_do_not_tell_the_noise(make_private: Make) -> None:
    drawn = {
        source_of(make_private(seed=seed), key)(purpose, 32)
        for seed in (0, 1)
        for key in ("one", "other")
        for purpose in ("noise-0-0", "noise-0-1", "batch-0-0")
    }
    assert len(drawn) == 12
    assert source_of(make_private(), "one")("noise-0-0", 32) in drawn


def dropping_network(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """Half of what it reads is dropped."""
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16 * 16 * 3, num_classes))


@pytest.mark.parametrize("settings", [{"model": f"{__name__}:dropping_network"}, {"augment": ["crop", "flip"]}])
def test_stage_keys_alone_tell_neither_masks_nor_crops(
    make_private: Make, data: LabelledImages, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Noise and batches are held fixed: what is left to differ is what was dropped or cropped."""
    fixed = source_of(make_private(), "key")
    step = private_training.PrivateStep.__init__

    def with_fixed_noise(self: PrivateStep, live: Live, training: TrainingRecipe, key: str) -> None:
        step(self, live, training, key)
        self._optimizer._source = fixed

    def all_rows(drawn: bytes, device: str = "cpu") -> torch.Tensor:
        return torch.zeros(len(drawn) // 8, dtype=torch.float64)

    monkeypatch.setattr(private_training.PrivateStep, "__init__", with_fixed_noise)
    monkeypatch.setattr(private_training, "uniforms", all_rows)
    monkeypatch.setattr(private_training, "gaussians", lambda source, purpose, like, secure: torch.zeros_like(like))
    recipe = {"model": "small_cnn", "image_shape": (16, 16, 3)} | settings
    start = initial_state(make_private(**recipe), "chain", None)

    def digest(**own: Any) -> str:
        training = make_private(**recipe, **own)
        return digest_tensors(to_end(train_stage(start=start, samples=data, training=training, key="key", epochs=1)))

    assert digest(seed=1) == digest(seed=1)
    assert len({digest(seed=1), digest(seed=2), digest(dp={"noise": "secure"}), digest(dp={"noise": "secure"})}) == 4


def test_each_sample_is_in_a_batch_by_its_own_draw(make_private: Make, random_samples: MakeSamples) -> None:
    count, size, epochs = 100, 20, 80
    samples = random_samples(count, (2,))
    numbered = LabelledImages(images=samples.images, labels=np.arange(count))
    training = make_private(batch_size=size, image_shape=(2,))
    batches = batches_of(training, numbered)
    assert len(batches) == 5
    drawn = [labels for epoch in range(epochs) for _, labels in batches.epoch("key", epoch)]
    inside = torch.stack([F.one_hot(labels, count).sum(0) for labels in drawn]).double()
    assert set(inside.unique().tolist()) == {0, 1}
    rate, steps = size / count, len(drawn)
    assert inside.mean().item() == pytest.approx(rate, abs=5 * (rate * (1 - rate) / inside.numel()) ** 0.5)
    sizes = inside.sum(1)
    assert sizes.var().item() == pytest.approx(count * rate * (1 - rate), rel=5 * (2 / steps) ** 0.5)
    correlations = torch.corrcoef(inside.T).fill_diagonal_(0)
    assert correlations.abs().max().item() < 6 / steps**0.5


def test_a_batch_in_parts_is_the_batch(
    make_private: Make, data: LabelledImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = make_private(model="small_cnn", batch_size=32, image_shape=(16, 16, 3))
    whole = trained(training, data)
    for limit, value in (("MOST_ROWS", 5), ("MOST_NUMBERS", 200_000)):
        monkeypatch.setattr(private_training, limit, value)
        live, _ = step_of(training)
        assert 1 <= private_training.most_rows(live.model) < 6
        parts = trained(training, data)
        monkeypatch.undo()
        for name, tensor in whole.items():
            torch.testing.assert_close(parts[name], tensor, rtol=1e-4, atol=1e-6, msg=name)


def test_secure_noise_is_never_the_same_again(make_private: Make, data: LabelledImages) -> None:
    secure = make_private(dp={"noise": "secure"}, image_shape=(16, 16, 3))
    assert len({digest_tensors(trained(secure, data)) for _ in range(3)}) == 3
    assert not secure.is_repeatable
    again = make_private(image_shape=(16, 16, 3))
    assert len({digest_tensors(trained(again, data)) for _ in range(2)}) == 1


# Networks.


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (3, 1), (8, 2), (12, 3), (16, 4), (24, 6), (30, 6), (32, 8), (64, 8), (67, 1)]
)
def test_groups_divide_the_channels_and_have_four_or_more(channels: int, groups: int) -> None:
    assert num_groups(channels) == groups


def test_public_weights_of_a_network_with_batch_norm_fit(make_training: Make, make_private: Make) -> None:
    public = initial_state(make_training(model="resnet20", image_shape=(16, 16, 3)), "public", None)
    private = models.build(make_private(model="resnet20", image_shape=(16, 16, 3)))
    names = replaced(private)
    assert len(names) == 19 and all(isinstance(private.get_submodule(name), nn.GroupNorm) for name in names)
    assert weights.fit(private, public | {"bn1.weight": torch.full((16,), 2.0)}) == []
    state = private.state_dict()
    assert state["bn1.weight"].tolist() == [2.0] * 16
    assert not [name for name in state if "running" in name]
    torch.testing.assert_close(state["layer3.2.conv2.weight"], public["layer3.2.conv2.weight"])


def test_a_residual_network_of_torchvision_trains(make_private: Make, data: LabelledImages) -> None:
    """It adds in place to what a layer gave, and its ReLUs work in place."""
    training = make_private(
        QUIET,
        model="torchvision:resnet18",
        image_shape=(16, 16, 3),
        batch_size=3,
        optimizer={"lr": 0.1, "momentum": 0.0},
        schedule="constant",
    )
    few = first(data, 3)
    assert_moved_alike(initial_state(training, "chain", None), trained(training, few), by_hand(training, few))
