"""The attack by kernel ridge regression: what it finds, what it cannot, and that it is regularised by unseen images."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import GridSearchCV, GroupKFold

from ray_sisa.errors import DataError
from ray_sisa.inversion.baselines import mean_image
from ray_sisa.inversion.kernel import ALPHAS, FOLDS, GAMMAS, fit_kernel


def drawings(count: int, seed: int = 0) -> np.ndarray:
    """Grey images uint8 [N, 8, 8, 1] of four numbers each: where two bars lie, and how dark they are."""
    random = np.random.default_rng(seed)
    images = np.full((count, 8, 8, 1), 255, np.uint8)
    for image, (row, column) in zip(images, random.integers(0, 8, (count, 2)), strict=True):
        image[row], image[:, column] = random.integers(0, 200, 2)[:, None, None]
    return images


def codes(images: np.ndarray) -> np.ndarray:
    """Activations float32 [N, 16] that tell of an image: means of its rows and of its columns."""
    pixels = images[..., 0].astype(np.float32)
    return np.concatenate([pixels.mean(1), pixels.mean(2)], 1)


def error(attacked: np.ndarray, images: np.ndarray) -> float:
    return float(np.square(attacked - images.astype(np.float32) / 255).mean())


def test_it_reconstructs_from_activations_that_tell() -> None:
    public, victims = drawings(300), drawings(100, seed=1)
    attacker = fit_kernel(codes, public, np.arange(300) % 20)
    made = attacker.predict(codes(victims))
    assert made.shape == victims.shape
    assert made.dtype == np.float32
    assert made.min() >= 0
    assert made.max() <= 1
    guess = error(np.broadcast_to(mean_image(public), victims.shape), victims)
    assert error(made, victims) < 0.5 * guess
    assert attacker.mse == pytest.approx(error(made, victims), rel=0.5)


def test_it_is_no_worse_than_the_mean_image_where_nothing_is_told() -> None:
    """Activations of noise alone: without regularisation it would learn the public images by heart."""
    public, victims = drawings(300), drawings(100, seed=1)
    random = np.random.default_rng(2)
    attacker = fit_kernel(
        lambda images: random.standard_normal((len(images), 4)).astype(np.float32), public, np.arange(300)
    )
    made = attacker.predict(random.standard_normal((100, 4)).astype(np.float32))
    guess = error(np.broadcast_to(mean_image(public), victims.shape), victims)
    assert error(made, victims) < 1.05 * guess
    assert attacker.alpha == 100.0  # the strongest


def test_the_setting_is_that_of_a_search_by_cross_validation() -> None:
    public, clusters = drawings(200), np.arange(200) % 20
    features = codes(public).astype(np.float64)
    features = (features - features.mean(0)) / features.std(0)
    pixels = public.reshape(200, -1) / 255
    grid = {"gamma": [gamma / features.shape[1] for gamma in GAMMAS], "alpha": list(ALPHAS)}
    search = GridSearchCV(KernelRidge(kernel="rbf"), grid, scoring="neg_mean_squared_error", cv=GroupKFold(FOLDS))
    search.fit(features, pixels - pixels.mean(0), groups=clusters)
    attacker = fit_kernel(codes, public, clusters)
    assert attacker.alpha == search.best_params_["alpha"]
    assert attacker.gamma == pytest.approx(search.best_params_["gamma"] * features.shape[1])
    assert attacker.mse == pytest.approx(-search.best_score_)


def test_noisy_answers_are_asked_for_again() -> None:
    public, asked = drawings(60), []

    def query(images: np.ndarray) -> np.ndarray:
        asked.append(len(images))
        return codes(images)

    fit_kernel(query, public, np.arange(60) % 6, fresh=True)
    assert asked == [60, 60]
    fit_kernel(query, public, np.arange(60) % 6)
    assert asked == [60, 60, 60]


def test_the_same_images_give_the_same_attacker() -> None:
    public, victims = drawings(200), drawings(50, seed=1)
    one, other = (fit_kernel(codes, public, np.arange(200) % 10).predict(codes(victims)) for _ in range(2))
    assert one.tobytes() == other.tobytes()


def test_activations_that_never_change_are_no_harm() -> None:
    public = drawings(100)
    attacker = fit_kernel(lambda images: np.ones((len(images), 3), np.float32), public, np.arange(100))
    made = attacker.predict(np.ones((2, 3), np.float32))
    assert np.allclose(made, mean_image(public), atol=0.01)


@pytest.mark.parametrize("answers", [np.zeros((3, 4), np.float32), np.full((100, 4), np.nan, np.float32)])
def test_answers_that_are_none_are_refused(answers: np.ndarray) -> None:
    with pytest.raises(DataError, match="activations"):
        fit_kernel(lambda images: answers, drawings(100), np.arange(100))


def test_images_that_are_none_are_refused() -> None:
    with pytest.raises(DataError, match="public images"):
        fit_kernel(codes, drawings(10).astype(np.float32), np.arange(10))
