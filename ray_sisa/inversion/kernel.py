"""A black-box attack without a network: kernel ridge regression from activations to pixels.

With few public images decoders learn these by heart; this one is regularised as public images that it has not seen
demand. It trains in seconds and draws nothing. Nothing here opens a store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import linalg
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.model_selection import GroupKFold
from threadpoolctl import threadpool_limits

from ray_sisa.errors import DataError
from ray_sisa.inversion.attack import Query, ask, check_images

GAMMAS = (0.03, 0.1, 0.3)
"""Of the Gaussian kernel, times the number of activations; these are standardised."""
ALPHAS = (0.1, 1.0, 10.0, 100.0)
"""Of the ridge."""
FOLDS = 3
MOST_IMAGES = 8000  # the kernel has a number for each pair
MOST_TIMES = 2  # that each public image is asked about where answers differ


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelConfig:
    """This attacker, where a decoder could stand; kernel and ridge are found, so there is little to set."""

    style: Literal["kernel"] = "kernel"
    seed: int = 0
    """Of the draw of public images where there are more than `MOST_IMAGES`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelAttacker:
    """A fitted attacker.

    Attributes:
        mse: of public images that a fold left out, at the best setting.
        gamma: of the kernel, times the number of activations.
        alpha: of the ridge.
        predict: activations float32 [N, ...] to images float32 [N, H, W, C] in 0..1.
    """

    mse: float
    gamma: float
    alpha: float
    predict: Callable[[np.ndarray], np.ndarray]


def fit_kernel(
    query: Query, images: np.ndarray, clusters: np.ndarray, *, seed: int = 0, fresh: bool = False
) -> KernelAttacker:
    """Fits an attacker; kernel and ridge are those that reconstruct public images of other clusters best.

    Args:
        query: asked for the activations of the public images.
        images: public ones, uint8 [N, H, W, C]; of more than `MOST_IMAGES` so many are drawn.
        clusters: [N], such as characters: those of one cluster are left out together.
        seed: of that draw.
        fresh: whether the same image gives other activations each time, so that it pays to ask again.

    Raises:
        DataError: images that are none, too few clusters, or answers that are not one finite float32 row an image.
    """
    check_images(images)
    check_clusters(clusters, len(images))
    if len(images) > MOST_IMAGES:
        rows = np.sort(np.random.default_rng(seed).permutation(len(images))[:MOST_IMAGES])
        images, clusters = images[rows], clusters[rows]
    times = min(MOST_TIMES, MOST_IMAGES // len(images)) if fresh else 1
    answers = np.concatenate([ask(query, images) for _ in range(times)])
    images, clusters = np.concatenate([images] * times), np.concatenate([clusters] * times)
    scale = _Scale.of(answers)
    features, shape = scale(answers), images.shape[1:]
    pixels = images.reshape(len(images), -1).astype(np.float64) / 255
    mean = pixels.mean(0)
    with threadpool_limits(1):  # sums in one order, so that the same images give the same numbers
        mse, gamma, alpha = _search(features, pixels - mean, clusters)
        fitted = KernelRidge(kernel="rbf", gamma=gamma, alpha=alpha).fit(features, pixels - mean)

    def predict(activations: np.ndarray) -> np.ndarray:
        with threadpool_limits(1):
            made = fitted.predict(scale(activations)) + mean
        clipped: np.ndarray = np.clip(made, 0, 1).astype(np.float32).reshape(-1, *shape)
        return clipped

    return KernelAttacker(mse=mse, gamma=gamma * features.shape[1], alpha=alpha, predict=predict)


def check_clusters(clusters: np.ndarray, num_images: int) -> None:
    """Passes if public images can be left out by cluster.

    Raises:
        DataError: not one cluster for each image, or all in one.
    """
    if clusters.shape != (num_images,):
        rule = f"must be [{num_images}], one for each public image"
        raise DataError("public clusters", list(clusters.shape), rule, "Name one of each public image")
    if len(np.unique(clusters)) < 2:
        rule = "must be at least 2: the kernel attacker leaves out the public images of some to be judged by"
        remedy = "Give public images of several labels or of several values of --cluster, or use --decoder wide"
        raise DataError("public clusters", 1, rule, remedy)


def _search(features: np.ndarray, targets: np.ndarray, clusters: np.ndarray) -> tuple[float, float, float]:
    """The least mean squared error of left-out clusters, and the gamma and the alpha that give it.

    A prediction is a weighted sum of targets, so its error follows from their products with each other, [N, N]: the
    pixels, of which there are more than images, are needed once and not at each setting.
    """
    folds = list(GroupKFold(min(FOLDS, len(np.unique(clusters)))).split(features, groups=clusters))
    products, errors = targets @ targets.T, {}
    for gamma in (gamma / features.shape[1] for gamma in GAMMAS):
        kernel = rbf_kernel(features, gamma=gamma)
        for alpha in ALPHAS:
            squares = [_squares(kernel, products, alpha, *fold) / len(fold[1]) for fold in folds]
            errors[gamma, alpha] = float(np.mean(squares)) / targets.shape[1]
    gamma, alpha = min(errors, key=lambda setting: errors[setting])
    return errors[gamma, alpha], gamma, alpha


def _squares(kernel: np.ndarray, products: np.ndarray, alpha: float, known: np.ndarray, left_out: np.ndarray) -> float:
    """The sum of squared errors of the left-out rows as the ridge predicts them from the known ones."""
    ridge = kernel[np.ix_(known, known)]
    ridge.flat[:: len(ridge) + 1] += alpha
    weights = linalg.solve(ridge, kernel[np.ix_(known, left_out)], assume_a="pos", overwrite_a=True)
    crossed = 2 * products[np.ix_(known, left_out)] - products[np.ix_(known, known)] @ weights
    return float(products[left_out, left_out].sum() - (weights * crossed).sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scale:
    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def of(cls, activations: np.ndarray) -> _Scale:
        rows = activations.reshape(len(activations), -1).astype(np.float64)
        deviation = rows.std(0)
        return cls(mean=rows.mean(0), deviation=np.where(deviation > 1e-12, deviation, 1.0))

    def __call__(self, activations: np.ndarray) -> np.ndarray:
        rows = activations.reshape(len(activations), -1).astype(np.float64)
        scaled: np.ndarray = (rows - self.mean) / self.deviation
        return scaled
