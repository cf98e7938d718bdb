"""Measures of reconstructions, against other implementations, by hand, and on what tells nothing."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
from pydantic import TypeAdapter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from ray_sisa.errors import DataError
from ray_sisa.evaluation.inversion import (
    Estimate,
    Reconstruction,
    ink_overlap,
    measure,
    r2_difference,
    ranked,
    squared_errors,
    ssim,
)


def noise(count: int, shape: tuple[int, ...] = (16, 14, 1), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(16, 14, 1), (32, 32, 3), (11, 11, 1)])
def test_ssim_and_psnr_are_those_of_scikit_image(shape: tuple[int, ...]) -> None:
    true = noise(5, shape) / 255
    made = np.clip(true + np.random.default_rng(1).normal(0, 0.2, true.shape), 0, 1)
    expected = [
        structural_similarity(
            a, b, data_range=1.0, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for a, b in zip(true, made, strict=True)
    ]
    assert ssim(true, made) == pytest.approx(expected, abs=1e-9)
    found = [peak_signal_noise_ratio(a, b, data_range=1.0) for a, b in zip(true, made, strict=True)]
    assert -10 * np.log10(squared_errors(true, made)) == pytest.approx(found)


def test_ssim_of_images_smaller_than_the_window() -> None:
    for shape in [(8, 8, 1), (2, 9, 1), (1, 1, 3)]:
        true = noise(3, shape) / 255
        assert ssim(true, true) == pytest.approx(1.0)
        assert (ssim(true, 1 - true) < 1).all()


def test_ink_is_dark() -> None:
    true = np.ones((3, 4, 4, 1))
    true[0, :2], true[1, 0, 0] = 0, 0
    made = np.ones((3, 4, 4, 1))
    made[0, 1:3] = 0.49
    iou, f1 = ink_overlap(true, made)
    assert iou == pytest.approx([1 / 3, 0, 1])  # 4 of 12; missed; neither has ink
    assert f1 == pytest.approx([1 / 2, 0, 1])


def test_who_is_the_most_alike() -> None:
    true = noise(700) / 255
    assert ranked(true, 0.3 * true + 0.5, 5) == pytest.approx(1.0)  # brightness and contrast do not matter
    flat = ranked(true, np.full_like(true, 0.4), 5)
    assert flat == pytest.approx(np.tile(np.arange(1, 6) / 700, (700, 1)))
    same = ranked(true, np.broadcast_to(true[:1], true.shape), 5)
    assert same[:, 0].mean() == pytest.approx(1 / 700)
    twins = np.concatenate([true[:10], true[:10]])
    assert ranked(twins, twins, 2) == pytest.approx(np.tile([0.5, 1.0], (20, 1)))


def test_a_perfect_reconstruction_and_the_mean_image() -> None:
    originals, clusters = noise(60), np.arange(60) // 6
    mean = np.full((16, 14, 1), 0.5)
    perfect = measure(originals, originals / 255, mean_image=mean, clusters=clusters)
    assert (perfect.num_images, perfect.num_clusters) == (60, 10)
    assert (perfect.mse.value, perfect.r2.value, perfect.top1.value) == pytest.approx((0, 1, 1), abs=1e-9)
    assert perfect.psnr.value == pytest.approx(100)
    assert perfect.ssim.value == pytest.approx(1)
    assert perfect.ink_iou is None
    nothing = measure(originals, np.broadcast_to(mean, originals.shape), mean_image=mean, clusters=clusters)
    assert (nothing.r2.value, nothing.r2.low, nothing.r2.high) == pytest.approx((0, 0, 0))
    assert (nothing.top1.value, nothing.top1_chance) == pytest.approx((1 / 60, 1 / 60))
    assert (nothing.top5.value, nothing.top5_chance) == pytest.approx((5 / 60, 5 / 60))


def test_ink_is_compared_where_images_are_binary_or_it_is_asked_for() -> None:
    originals = np.where(noise(10) > 127, 255, 0).astype(np.uint8)
    mean, clusters = np.full((16, 14, 1), 0.5), np.arange(10)
    found = measure(originals, originals / 255, mean_image=mean, clusters=clusters)
    assert found.ink_iou is not None
    assert found.ink_f1 is not None
    assert found.ink_iou.value == found.ink_f1.value == 1
    assert measure(originals, originals / 255, mean_image=mean, clusters=clusters, ink=False).ink_iou is None
    grey = noise(10)
    assert measure(grey, grey / 255, mean_image=mean, clusters=clusters, ink=True).ink_iou is not None


def test_the_interval_is_over_clusters_and_covers() -> None:
    """Errors that are equal within a cluster: an interval over images would be twice too narrow."""
    random = np.random.default_rng(0)
    covered, widths = 0, []
    for _ in range(50):
        level = random.normal(0.3, 0.05, 40).clip(0.05, 0.6)
        made = np.repeat(level, 5)[:, None, None, None] * np.ones((1, 2, 2, 1))
        found = measure(
            np.zeros((200, 2, 2, 1), np.uint8),
            made,
            mean_image=np.ones((2, 2, 1)),
            clusters=np.repeat(np.arange(40), 5),
            num_resamples=300,
        ).mse
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0.3**2 + 0.05**2 <= found.high
        widths.append(found.high - found.low)
    assert 41 <= covered <= 50
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 0.0306 / 40**0.5, rel=0.15)


def test_one_cluster_has_no_interval() -> None:
    found = measure(noise(5), noise(5) / 255, mean_image=np.zeros((16, 14, 1)), clusters=np.zeros(5))
    assert (found.mse.low, found.mse.high) == (None, None)


def read_back(found: Reconstruction) -> Reconstruction:
    reader = TypeAdapter(Reconstruction)
    return reader.validate_json(reader.dump_json(found))


def test_where_all_images_are_the_mean_image_there_is_no_r2() -> None:
    flat, clusters = np.full((6, 4, 4, 1), 51, np.uint8), np.arange(6)
    mean = np.full((4, 4, 1), np.float32(51) / np.float32(255))
    for made in (flat / 255, noise(6, (4, 4, 1)) / 255):
        found = measure(flat, made, mean_image=mean, clusters=clusters)
        assert found.r2 is None
        assert read_back(found) == found
    errors = squared_errors(flat / 255, noise(6, (4, 4, 1)) / 255)
    with pytest.raises(DataError, match="base"):
        r2_difference(errors, errors, np.zeros(6), clusters)


def test_where_some_clusters_are_the_mean_image_r2_may_have_no_interval() -> None:
    originals = np.full((3, 4, 4, 1), 51, np.uint8)
    originals[2] = 102
    mean = np.full((4, 4, 1), np.float32(51) / np.float32(255))
    found = measure(originals, originals / 255, mean_image=mean, clusters=np.arange(3))
    assert found.r2 == Estimate(value=pytest.approx(1.0), low=None, high=None)
    assert found.mse.low is not None
    assert read_back(found) == found
    errors = squared_errors(originals / 255, originals / 255)
    base = squared_errors(originals / 255, np.broadcast_to(mean, originals.shape)).round(6)
    assert r2_difference(errors, errors + base, base, np.arange(3)) == Estimate(value=1.0, low=None, high=None)


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 1, 3), (2, 1, 1)])
@pytest.mark.parametrize("count", [1, 3])
def test_the_smallest_images_have_measures_that_are_numbers(shape: tuple[int, ...], count: int) -> None:
    found = measure(
        noise(count, shape), noise(count, shape, 1) / 255, mean_image=np.zeros(shape), clusters=np.arange(count)
    )
    numbers = [n for each in asdict(found).values() for n in (each.values() if isinstance(each, dict) else [each])]
    assert all(math.isfinite(number) for number in numbers if number is not None)
    assert read_back(found) == found


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"originals": noise(3) / 255}, "originals"),
        ({"originals": noise(0)}, "originals"),
        ({"reconstructed": np.zeros((2, 16, 14, 1))}, "reconstructed"),
        ({"reconstructed": np.full((3, 16, 14, 1), np.nan)}, "reconstructed"),
        ({"mean_image": np.zeros((16, 16, 1))}, "mean_image"),
        ({"clusters": np.zeros(4)}, "clusters"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change: dict[str, np.ndarray], field: str) -> None:
    given = {"originals": noise(3), "reconstructed": noise(3) / 255, "mean_image": np.zeros((16, 14, 1))}
    with pytest.raises(DataError) as refused:
        measure(**({**given, "clusters": np.zeros(3)} | change))
    assert refused.value.field == field
