"""The one door to the approximate methods: what all of them need is checked and set here, and what comes out too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ray_sisa.approximate.dampening import dampening
from ray_sisa.approximate.fine_tune import fine_tune
from ray_sisa.approximate.methods import AnyMethod, RandomLabels
from ray_sisa.approximate.neg_grad import neg_grad
from ray_sisa.approximate.problem import EpochPassed, Problem, Unlearned, diverged
from ray_sisa.approximate.random_labels import random_labels
from ray_sisa.approximate.scrub import scrub
from ray_sisa.approximate.sparse import sparse
from ray_sisa.config import TrainingRecipe
from ray_sisa.errors import ConfigError, RequestError
from ray_sisa.training import LabelledImages, reproducible

_BY_NAME: dict[str, Callable[[Problem, Any], Unlearned]] = {
    "fine_tune": fine_tune,
    "neg_grad": neg_grad,
    "random_labels": random_labels,
    "scrub": scrub,
    "dampening": dampening,
    "sparse": sparse,
}


def unlearn(
    method: AnyMethod,
    *,
    start: Mapping[str, Tensor],
    retained: LabelledImages,
    forget: LabelledImages,
    training: TrainingRecipe,
    key: str,
    device: str = "cpu",
    tell: Callable[[EpochPassed], None] = lambda passed: None,
) -> Unlearned:
    """Weights of a model that is to have forgotten some of its samples, approximately; the same bits for the same call.

    Args:
        method: which, and its dials.
        start: weights of the model.
        retained: the samples that it was trained on and may know, in a fixed order.
        forget: those that it is to forget, likewise.
        training: the recipe that it was trained by: its network, augmentation, precision and threads hold.
        key: all randomness comes from it.
        device: `cpu` or a CUDA device.
        tell: hears of every epoch.

    Raises:
        RequestError: nothing to forget, or nothing to retain.
        ConfigError: a recipe or data that the method is not for.
        TrainingError: a loss or a weight is not a finite number.
    """
    _check(method, retained, forget, training)
    problem = Problem(
        start=start, retained=retained, forget=forget, training=training, key=key, device=device, tell=tell
    )
    with reproducible(training, device):
        made = _BY_NAME[method.name](problem, method)
    for name, tensor in made.weights.items():
        if not torch.isfinite(tensor).all():
            raise diverged(f"a weight of {name}")
    return made


def _check(method: AnyMethod, retained: LabelledImages, forget: LabelledImages, training: TrainingRecipe) -> None:
    if not len(forget.labels):
        raise RequestError("forget", "", "names no sample", "Name what is to be forgotten")
    if not len(retained.labels):
        raise RequestError("forget", "", "leaves nothing to retain", "Name fewer samples, or delete the run")
    if training.recipe.backbone == "frozen":
        rule = "is not for approximate methods, which change every layer"
        raise ConfigError("recipe.backbone", "frozen", rule, "Make a run with backbone: trained, or use `unlearn`")
    if training.recipe.nopeek:
        rule = "is not for approximate methods, whose losses have no such penalty: they would undo what it did"
        raise ConfigError("recipe.nopeek", training.recipe.nopeek.layer, rule, "Make a run without, or use `unlearn`")
    if isinstance(method, RandomLabels) and training.num_classes < 2:
        raise ConfigError("method", method.name, "needs a class that is wrong", "Choose another method")
