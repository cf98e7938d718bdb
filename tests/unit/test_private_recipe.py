"""What a private run is refused for, before anything is written, and what it is told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from ray_sisa import printing, private_check, private_recipe
from ray_sisa.config import RunConfig, TrainingRecipe
from ray_sisa.config_values import make_config
from ray_sisa.data import Dataset
from ray_sisa.errors import ConfigError
from ray_sisa.run import Run
from ray_sisa.samples import make_samples
from ray_sisa.verify import SECURE, StageCheck, Verification

HERE = __name__
SECRET = 1 << 127


def config(folder: Path, dp: dict[str, Any] | None = None, **settings: Any) -> RunConfig:
    places = {"shards": settings.pop("shards", 2), "slices": settings.pop("slices", 2), "key": "a"}
    own = {"noise_multiplier": 1.0, **(dp or {})}
    recipe = {"model": "mlp", "epochs_per_slice": 1, "batch_size": 16, "seed": SECRET, **settings, "dp": own}
    return make_config(
        {
            "name": "private",
            "storage_path": str(folder),
            "data": {"source": "digits"},
            "placement": places,
            "recipe": recipe,
            "evaluation": {"test_during_training": "never"},
        }
    )


def tiny(count: int, side: int = 8) -> Dataset:
    random = np.random.default_rng(0)
    samples = make_samples(
        ids=[str(i) for i in range(count)],
        images=random.integers(0, 256, (count, side, side, 1), np.uint8),
        labels=random.integers(0, 3, count),
    )
    return Dataset(train=samples, test=None, num_classes=3, mean=(0.5,), std=(0.25,))


def test_what_is_given_is_what_is_used(tmp_path: Path) -> None:
    run = Run.create(config(tmp_path, {"noise_multiplier": 0.7}), dataset=tiny(100))
    assert run.record.training.noise_multiplier == 0.7


@pytest.mark.parametrize("fits", [True, False])
def test_batches_are_smaller_than_every_first_stage(fits: bool, tmp_path: Path) -> None:
    data = tiny(100)
    sizes = [shard[0].num_samples for shard in Run.create(config(tmp_path / "any"), dataset=data).record.slices]
    smallest = min(sizes)
    chosen = config(tmp_path, batch_size=smallest if fits else smallest + 1)
    if fits:
        Run.create(chosen, dataset=data)
        return
    with pytest.raises(
        ConfigError, match=rf"the {smallest} samples of shard {sizes.index(smallest)} slice 1"
    ) as caught:
        Run.create(chosen, dataset=data)
    assert (caught.value.field, f"at most {smallest}" in caught.value.remedy) == ("recipe.batch_size", True)
    assert not (tmp_path / "private").exists()


def test_an_empty_slice_is_no_first_stage(tmp_path: Path) -> None:
    sizes, chosen = [[0, 30], [40, 5]], config(tmp_path, batch_size=30)
    assert private_recipe.noise_multiplier(chosen, sizes, (1, 1)) == 1.0
    with pytest.raises(ConfigError, match="shard 0 slice 2"):
        private_recipe.noise_multiplier(config(tmp_path, batch_size=31), sizes, (1, 1))
    assert private_recipe.noise_multiplier(chosen, [[0, 0], [0, 0]], (1, 1)) == 1.0  # as if all had been deleted


def test_delta_is_below_one_over_all_samples(tmp_path: Path) -> None:
    sizes = [[20, 30], [40, 110]]
    assert private_recipe.noise_multiplier(config(tmp_path, {"delta": 0.00499}), sizes, (1, 1)) == 1.0
    with pytest.raises(ConfigError, match=r"is not below 1/200, and the run has 200 samples") as caught:
        private_recipe.noise_multiplier(config(tmp_path, {"delta": 0.005}), sizes, (1, 1))
    assert caught.value.field == "recipe.dp.delta"


def test_a_target_is_solved_for_with_the_stages_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray_sisa import privacy

    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(privacy, "solve_noise_multiplier", lambda *given: asked.append(given) or 1.25, raising=False)
    dp = {"noise_multiplier": None, "target_epsilon": 3.0, "delta": 1e-4, "accountant": "rdp"}
    found = private_recipe.noise_multiplier(config(tmp_path, dp), [[20, 0], [30, 5], [0, 0]], (2, 3))
    assert (found, asked) == (1.25, [(3.0, [[(20, 2)], [(30, 2), (35, 3)]], 16, 1e-4, "rdp")])


def test_a_plan_needs_no_sizes(tmp_path: Path) -> None:
    from ray_sisa.planning import plan_config

    dp = {"noise_multiplier": None, "target_epsilon": 3.0}
    assert plan_config(config(tmp_path, dp)).sample_passes > 0
    assert private_recipe.noise_multiplier(config(tmp_path, dp), None, (1, 1)) is None
    assert private_recipe.noise_multiplier(config(tmp_path), None, (1, 1)) == 1.0


def test_a_seed_that_can_be_guessed_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sizes = [[50, 50]]
    for settings in ({}, {"dp": {"noise": "secure"}, "seed": 1}):
        private_recipe.noise_multiplier(config(tmp_path, **settings), sizes, (1, 1))
    assert not caplog.records
    private_recipe.noise_multiplier(config(tmp_path, seed=1), sizes, (1, 1))
    assert "can take the noise off" in caplog.text


def test_replaced_layers_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Run.create(config(tmp_path, model="small_cnn"), dataset=tiny(100))
    told = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.getMessage().partition(":")[2] for record in told] == [
        " GroupNorm stands in for 3 BatchNorm layers, bn1 the first: BatchNorm mixes the samples of a batch, which "
        "DP-SGD has to tell apart"
    ]


# Networks that are refused.


def with_layer(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), *layers, nn.Flatten(), nn.Linear(288, 3))


def sync_batch_norm(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    return with_layer(nn.SyncBatchNorm(8))


class _OwnBatchNorm(nn.BatchNorm2d):
    pass


def own_batch_norm(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    return with_layer(_OwnBatchNorm(8, affine=False))


def instance_norm(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    return with_layer(nn.InstanceNorm2d(8, track_running_stats=True))


class _Centred(nn.Module):
    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps - maps.mean(0)


def centred(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    return with_layer(_Centred())


class _ByRows(nn.Module):
    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps * len(maps)


def by_rows(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    return with_layer(_ByRows())


class _Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        self.largest.copy_(torch.maximum(self.largest, maps.detach().max()))
        return maps


def counting(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    return with_layer(_Counting())


class _Unused(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(64, 3))
        self.other = nn.Linear(2, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self[1](self[0](images))


def unused(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    return _Unused()


class _Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps * self.factor + torch.randn_like(maps)


def noisy(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    return with_layer(_Noisy())


@pytest.mark.parametrize(
    ("network", "rule"),
    [
        (sync_batch_norm, r"1 \(SyncBatchNorm\)"),
        (own_batch_norm, r"1 \(_OwnBatchNorm\)"),
        (instance_norm, r"1 \(InstanceNorm2d\)"),
        (centred, "where others are beside it in the batch"),
        (by_rows, "where it is alone in the batch"),
        (counting, "buffers that samples change.*: 1.largest"),
        (unused, "parameters that no score depends on.*: other.weight, other.bias"),
        (noisy, "cannot make gradients of single samples: RuntimeError"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_network_that_mixes_samples_is_refused(network: Callable[..., nn.Module], rule: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rule) as caught:
        Run.create(config(tmp_path, model=f"{HERE}:{network.__name__}"), dataset=tiny(100))
    assert caught.value.field == "recipe.dp"
    assert not (tmp_path / "private").exists()


def test_gradients_that_are_made_wrong_are_noticed(
    make_training: Callable[..., TrainingRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Opacus 1.6 makes them of maps that are channels-last, were they not put in plain order."""
    training = make_training(model="small_cnn", dp={"noise_multiplier": 1.0}, noise_multiplier=1.0)
    private_check.check(training)
    monkeypatch.setattr("ray_sisa.private_training._in_plain_order", lambda tensor: tensor)
    with pytest.raises(ConfigError, match="do not add up to that of the batch"):
        private_check.check(training)


def test_approximate_methods_are_refused(tmp_path: Path) -> None:
    from ray_sisa.approximate.methods import make_method

    run = Run.create(config(tmp_path, shards=1, slices=1), dataset=tiny(40))
    run.train(runner="local")
    with pytest.raises(ConfigError, match="no approximation that would be private"):
        run.approximate(make_method("fine_tune", {}), forget=["1"], runner="local")


# What verification says of stages that cannot be trained again.


def checks(secure: int, failing: int = 0, replayed: int = 0) -> Verification:
    made = [(SECURE, "")] * secure + [(SECURE, "lost")] * failing + [("", "")] * replayed
    stages = tuple(
        StageCheck(shard=0, slice=i, key="k", expected="d", actual="", ok=not wrong, problem=wrong, note=note)
        for i, (note, wrong) in enumerate(made)
    )
    return Verification(ok=not failing, problems=(), stages=stages)


def test_verification_says_what_was_not_trained_again() -> None:
    answer = printing.verified(checks(4))
    assert answer.text == f"4 of 4 stages were not trained again: {SECURE}"
    assert answer.ok
    answer = printing.verified(checks(3, failing=1))
    assert answer.text.splitlines() == ["shard 0 slice 3 (k): lost", f"3 of 4 stages were not trained again: {SECURE}"]
    assert printing.verified(checks(0, replayed=2)).text.startswith("2 of 2 stages are bit for bit")
