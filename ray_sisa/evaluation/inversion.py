"""How much of images came back: distances, structure, ink, and whether an image can be recognised among others.

Pure functions on arrays. Each measure has a bootstrap interval over clusters, such as characters, since images of one
cluster are alike and so are their errors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from ray_sisa.errors import DataError

TOP = 5
CONFIDENCE = 0.95
_LEAST_MSE = 1e-10  # of an image that came back whole: a PSNR of 100 dB in place of an infinite one
_AT_ONCE = 512  # images compared with the gallery together
_TIE = 1e-5  # correlations are float32
_INK = 0.5  # darker than this is ink

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """A value and the ends of its interval at 95 %.

    The ends are None where there are fewer than two clusters, or where some of them alone have no such value.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Reconstruction:
    """How near reconstructions come to their originals; pixels are in 0..1."""

    num_images: int
    num_clusters: int
    mse: Estimate
    """Mean squared error of a pixel."""
    r2: Estimate | None
    """1 - MSE / MSE of the public mean image: 0 for who learns nothing, below 0 for who does worse.

    None where all originals are that image, since nothing is left to learn.
    """
    psnr: Estimate
    """Mean over images of the peak signal-to-noise ratio, in dB."""
    ssim: Estimate
    """Mean structural similarity (Wang et al. 2004), at most 1."""
    ink_iou: Estimate | None
    """Of binary images: ink in both over ink in either, mean over images."""
    ink_f1: Estimate | None
    top1: Estimate
    """How often, of all originals, the true one is the most alike."""
    top5: Estimate
    """How often it is among the five most alike."""
    top1_chance: float
    """1 / num_images: what `top1` is of reconstructions that tell nothing."""
    top5_chance: float


def measure(
    originals: NDArray[np.uint8],
    reconstructed: Floats,
    *,
    mean_image: Floats,
    clusters: NDArray[Any],
    ink: bool | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Reconstruction:
    """Measures reconstructions of N images.

    Args:
        originals: uint8 [N, H, W, C].
        reconstructed: float [N, H, W, C], in 0..1.
        mean_image: of the public images, float [H, W, C] in 0..1: what R2 is against.
        clusters: [N], what the bootstrap resamples: a label, a character, a person.
        ink: whether to compare ink; by default where images have one channel and no pixel but 0 and 255.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        DataError: no images, or arrays that do not fit each other.
    """
    _check(originals, reconstructed, mean_image, clusters)
    true = originals.astype(np.float32) / np.float32(255)
    made = reconstructed.astype(np.float32)
    errors, base = squared_errors(true, made), squared_errors(true, np.broadcast_to(mean_image, true.shape))
    if ink is None:
        ink = true.shape[3] == 1 and bool(np.isin(originals, (0, 255)).all())
    ranks = ranked(true, made, TOP)
    _, codes = np.unique(clusters, return_inverse=True)
    boot = _Bootstrap(codes.astype(np.int64), num_resamples, seed)
    iou, f1 = ink_overlap(true, made) if ink else (None, None)
    return Reconstruction(
        num_images=len(true),
        num_clusters=boot.num_clusters,
        mse=boot.mean(errors),
        r2=boot.estimate(lambda sums: 1 - _ratio(sums[..., 0], sums[..., 1]), errors, base) if base.any() else None,
        psnr=boot.mean(-10 * np.log10(np.maximum(errors, _LEAST_MSE))),
        ssim=boot.mean(ssim(true, made)),
        ink_iou=None if iou is None else boot.mean(iou),
        ink_f1=None if f1 is None else boot.mean(f1),
        top1=boot.mean(ranks[:, 0]),
        top5=boot.mean(ranks[:, TOP - 1]),
        top1_chance=1 / len(true),
        top5_chance=min(1.0, TOP / len(true)),
    )


def r2_difference(
    one: Floats, other: Floats, base: Floats, clusters: NDArray[Any], *, num_resamples: int = 2000, seed: int = 0
) -> Estimate:
    """R2 of one reconstruction less that of another, of the same images: below 0 where the other comes nearer.

    Args:
        one: squared error of each image, float [N].
        other: likewise.
        base: likewise, of the mean image.
        clusters: [N], what the bootstrap resamples.
        num_resamples: of the bootstrap.
        seed: of the bootstrap.

    Raises:
        DataError: all images are the mean image.
    """
    if not base.any():
        rule = "must not be 0 for every image: R2 is against the mean image, and all images are that"
        raise DataError("base", "0", rule, "Compare images that differ from it")
    _, codes = np.unique(clusters, return_inverse=True)
    sums = (values.astype(np.float64) for values in (other - one, base))
    return _Bootstrap(codes, num_resamples, seed).estimate(lambda totals: _ratio(totals[..., 0], totals[..., 1]), *sums)


def squared_errors(true: Floats, made: Floats) -> NDArray[np.float64]:
    """Mean squared error of each image, float64 [N], of float [N, H, W, C] and the same."""
    found = [np.mean(np.square(a.astype(np.float64) - b)) for a, b in zip(true, made, strict=True)]
    return np.array(found)


def ssim(true: Floats, made: Floats) -> NDArray[np.float64]:
    """Structural similarity of each image, float64 [N]: Wang, Bovik, Sheikh and Simoncelli (2004), equation 13.

    Gaussian window of 11 pixels with a deviation of 1.5, K1 0.01, K2 0.03, range 1; mean over the windows that lie
    within the image, and over channels. On images of fewer pixels the window is the largest odd one that they hold.

    Args:
        true: float [N, H, W, C] in 0..1.
        made: likewise.
    """
    radius = min(5, (min(true.shape[1:3]) - 1) // 2)
    weights = np.exp(-np.square(np.arange(-radius, radius + 1)) / (2 * 1.5**2))
    weights /= weights.sum()
    inner = slice(radius, -radius or None)

    def smooth(images: NDArray[np.float64]) -> NDArray[np.float64]:
        down = correlate1d(images, weights, axis=0)
        found: NDArray[np.float64] = correlate1d(down, weights, axis=1)[inner, inner]
        return found

    return np.array(
        [_ssim(a.astype(np.float64), b.astype(np.float64), smooth) for a, b in zip(true, made, strict=True)]
    )


def _ssim(
    x: NDArray[np.float64], y: NDArray[np.float64], smooth: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> float:
    c1, c2 = 0.01**2, 0.03**2
    mean_x, mean_y = smooth(x), smooth(y)
    var_x, var_y = smooth(x * x) - mean_x**2, smooth(y * y) - mean_y**2
    covariance = smooth(x * y) - mean_x * mean_y
    above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    below = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float(np.mean(above / below))


def ink_overlap(true: Floats, made: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Intersection over union, and F1, of the ink of each image: float64 [N] twice. Ink is what is darker than 0.5.

    Both are 1 where neither image has ink.

    Args:
        true: float [N, H, W, C] in 0..1.
        made: likewise.
    """
    a, b = ((images < _INK).reshape(len(images), -1) for images in (true, made))
    both, either, sizes = (a & b).sum(1), (a | b).sum(1), a.sum(1) + b.sum(1)
    iou = np.where(either, both / np.maximum(either, 1), 1.0)
    return iou, np.where(sizes, 2 * both / np.maximum(sizes, 1), 1.0)


def ranked(true: Floats, made: Floats, most: int) -> NDArray[np.float64]:
    """How likely the true image is among the k most alike, k from 1 to `most`: float64 [N, most], 0 or 1 but for ties.

    The gallery is all true images. Likeness is the correlation of pixels, so that neither brightness nor contrast
    matters, which a decoder gets wrong first. Equal ones are taken in random order: reconstructions that are all the
    same find the true image with a probability of k / N.

    Args:
        true: float [N, H, W, C].
        made: likewise.
        most: largest k.
    """
    gallery, questions = _standardised(true), _standardised(made)
    found = np.empty((len(true), most))
    for start in range(0, len(true), _AT_ONCE):
        likeness = questions[start : start + _AT_ONCE] @ gallery.T
        own = likeness[np.arange(len(likeness)), np.arange(start, start + len(likeness))][:, None]
        better, equal = (likeness > own + _TIE).sum(1), (np.abs(likeness - own) <= _TIE).sum(1)
        places = np.arange(1, most + 1) - better[:, None]
        found[start : start + len(likeness)] = np.clip(places / equal[:, None], 0, 1)
    return found


def _standardised(images: Floats) -> NDArray[np.float32]:
    rows = images.reshape(len(images), -1).astype(np.float32)
    rows = rows - rows.mean(1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    # What is flat but for rounding correlates with nothing.
    flat = lengths <= 1e-5 * np.sqrt(rows.shape[1])
    standardised: NDArray[np.float32] = np.where(flat, 0, rows / np.where(flat, 1, lengths)).astype(np.float32)
    return standardised


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN where it is of 0."""
    return above / np.where(below, below, np.nan)


class _Bootstrap:
    """Percentile intervals from clusters drawn anew, with all images of each: the same draws for every measure."""

    def __init__(self, codes: NDArray[np.int64], num_resamples: int, seed: int) -> None:
        """Takes the cluster 0..K-1 of each image, int [N]."""
        self._codes, self.num_clusters = codes, int(codes.max()) + 1
        even = np.full(self.num_clusters, 1 / self.num_clusters)
        self._draws = np.random.default_rng(seed).multinomial(self.num_clusters, even, num_resamples)

    def mean(self, values: NDArray[np.float64]) -> Estimate:
        """The mean over images of values [N]."""
        return self.estimate(lambda sums: sums[..., 0] / sums[..., 1], values, np.ones(len(values)))

    def estimate(
        self, statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], *values: NDArray[np.float64]
    ) -> Estimate:
        """A function of sums [..., m] of m values of each image, [N] each."""
        sums = np.stack([np.bincount(self._codes, v, self.num_clusters) for v in values], 1)
        value = float(statistic(sums.sum(0)))
        drawn = statistic(self._draws.astype(np.float64) @ sums)
        if self.num_clusters < 2 or np.isnan(drawn).any():
            return Estimate(value=value, low=None, high=None)
        tail = 50 * (1 - CONFIDENCE)
        low, high = np.percentile(drawn, (tail, 100 - tail))
        return Estimate(value=value, low=float(low), high=float(high))


def _check(originals: NDArray[Any], made: NDArray[Any], mean_image: NDArray[Any], clusters: NDArray[Any]) -> None:
    if originals.dtype != np.uint8 or originals.ndim != 4 or 0 in originals.shape:
        value = f"{originals.dtype} {list(originals.shape)}"
        raise DataError("originals", value, "must be uint8 [N, H, W, C], at least one", "Give images")
    shapes = {"reconstructed": made.shape, "mean_image": (len(originals), *mean_image.shape)}
    for name, shape in shapes.items():
        if shape != originals.shape:
            rule = f"must fit the originals, {list(originals.shape)}"
            raise DataError(name, list(shape), rule, "Compare images with their own reconstructions")
    if not np.isfinite(made).all():
        raise DataError("reconstructed", "", "must be finite numbers", "Train the decoder at a lower learning rate")
    if clusters.shape != (len(originals),):
        raise DataError("clusters", list(clusters.shape), f"must be [{len(originals)}]", "Name one of each image")
