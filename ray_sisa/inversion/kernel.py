"""A black-box attack without a network: kernel ridge regression from activations to pixels.

With few public images decoders learn these by heart; this one is regularised as public images that it has not seen
demand. It trains in seconds and draws nothing. Nothing here opens a store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ray_sisa.inversion.attack import Query, ask, check_images

GAMMAS = (0.03, 0.1, 0.3)
"""Of the Gaussian kernel, times the number of activations; these are standardised."""
ALPHAS = (0.1, 1.0, 10.0, 100.0)
"""Of the ridge."""
FOLDS = 3
MOST_IMAGES = 8000  # the kernel has a number for each pair


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


def fit_kernel(query: Query, images: np.ndarray, clusters: np.ndarray, *, seed: int = 0) -> KernelAttacker:
    """Fits an attacker; kernel and ridge are those that reconstruct public images of other clusters best.

    Args:
        query: asked once for the activations of the public images.
        images: public ones, uint8 [N, H, W, C]; of more than `MOST_IMAGES` so many are drawn.
        clusters: [N], such as characters: those of one cluster are left out together.
        seed: of that draw.

    Raises:
        DataError: images that are none, or answers that are not one finite float32 row an image.
    """
    check_images(images)
    if len(images) > MOST_IMAGES:
        rows = np.sort(np.random.default_rng(seed).permutation(len(images))[:MOST_IMAGES])
        images, clusters = images[rows], clusters[rows]
    answers = ask(query, images)
    scale = _Scale.of(answers)
    features, shape = scale(answers), images.shape[1:]
    pixels = images.reshape(len(images), -1).astype(np.float64) / 255
    mean = pixels.mean(0)
    with threadpool_limits(1):  # sums in one order, so that the same images give the same numbers
        search = _search(features, pixels - mean, clusters)

    def predict(activations: np.ndarray) -> np.ndarray:
        with threadpool_limits(1):
            made = search.predict(scale(activations)) + mean
        clipped: np.ndarray = np.clip(made, 0, 1).astype(np.float32).reshape(-1, *shape)
        return clipped

    gamma = float(search.best_params_["gamma"]) * features.shape[1]
    return KernelAttacker(
        mse=-float(search.best_score_), gamma=gamma, alpha=float(search.best_params_["alpha"]), predict=predict
    )


def _search(features: np.ndarray, targets: np.ndarray, clusters: np.ndarray) -> Any:
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.model_selection import GridSearchCV, GroupKFold

    grid = {"gamma": [gamma / features.shape[1] for gamma in GAMMAS], "alpha": list(ALPHAS)}
    folds = min(FOLDS, len(np.unique(clusters)))
    search = GridSearchCV(
        KernelRidge(kernel="rbf"), grid, scoring="neg_mean_squared_error", cv=GroupKFold(max(2, folds))
    )
    return search.fit(features, targets, groups=clusters)


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
