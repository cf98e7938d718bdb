"""NoPeek (Vepakomma, Singh, Gupta and Raskar 2020): training so that what leaves a device tells less of the input.

Owns the penalty, distance correlation, and how the output of a layer is taken while a network runs. Changes no network:
what it watches is as it was afterwards.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_sisa.augment import Normalise
from ray_sisa.config import TrainingRecipe
from ray_sisa.defences import NoPeek
from ray_sisa.errors import ConfigError

_FIELD = "recipe.nopeek.layer"
# The root's slope has no bound at 0. So little is far below what independent samples of any batch have.
_LEAST_SQUARE = 1e-8


def distance_correlation(x: Tensor, y: Tensor) -> Tensor:
    """Distance correlation of paired rows: 0 to 1, differentiable (Szekely, Rizzo and Bakirov 2007, definition 3).

    The plain V-statistic, as in NoPeek: the root of the cosine between both matrices of distances, each centred by rows
    and columns. It is 0 where all rows of one side are alike, and biased upwards, the more the fewer rows and the
    more columns there are: of two rows that differ it is 1. Gradients are finite for any rows that are.

    Args:
        x: float32 or float64 [B, ...].
        y: likewise, of as many rows.
    """
    square = F.cosine_similarity(_centred_distances(x), _centred_distances(y), dim=0)
    return torch.where(square > _LEAST_SQUARE, square.clamp(min=_LEAST_SQUARE).sqrt(), 0.0)


def _centred_distances(points: Tensor) -> Tensor:
    """Euclidean distances between rows, with row and column means of 0, [B * B]."""
    rows = points.flatten(1)
    # Not by way of products: of rows that are nearly alike these keep no digits.
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    means = distances.mean(0, keepdim=True)  # symmetric: those of columns are those of rows
    return (distances - means - means.T + distances.mean()).flatten()


def penalty(nopeek: NoPeek, inputs: Tensor, outputs: list[Tensor]) -> Tensor:
    """What is added to the loss of a batch, float32 [].

    Args:
        nopeek: the weight.
        inputs: what the network read, [B, ...].
        outputs: what `watched` took of the layer, one tensor [B, ...].
    """
    (activations,) = outputs
    return nopeek.weight * distance_correlation(inputs.float(), activations.float())


@contextmanager
def watched(model: nn.Module, nopeek: NoPeek | None) -> Iterator[list[Any]]:
    """Takes what the layer gives each time that it runs within; nothing where there is no layer."""
    outputs: list[Any] = []
    if nopeek is None:
        yield outputs
        return

    def take(module: nn.Module, inputs: object, output: Any) -> None:
        # A copy: the next layer may write over it.
        outputs.append(output.clone() if isinstance(output, Tensor) else output)

    handle = model.get_submodule(nopeek.layer).register_forward_hook(take)
    try:
        yield outputs
    finally:
        handle.remove()


def check(nopeek: NoPeek, training: TrainingRecipe, model: nn.Module) -> None:
    """Passes if the layer can be watched; asks the network about two empty samples.

    Raises:
        ConfigError: there is no such layer, it does not run once, gives no rows of numbers, or has no weights below it.
    """
    names = [name for name, _ in model.named_modules() if name]
    if nopeek.layer not in names:
        near = difflib.get_close_matches(nopeek.layer, names) or names[:20]
        rule = f"is no layer of {training.recipe.model}"
        raise ConfigError(_FIELD, nopeek.layer, rule, f"Near are {', '.join(near)}")
    is_image = len(training.image_shape) == 3
    samples = torch.zeros(2, *training.image_shape, dtype=torch.uint8 if is_image else torch.float32)
    with watched(model, nopeek) as outputs:
        model.eval()(Normalise(training, "cpu")(samples))
    if problem := _problem(outputs):
        raise ConfigError(_FIELD, nopeek.layer, problem, "Name the layer whose output leaves the device")


def _problem(outputs: list[Any]) -> str | None:
    """What is wrong with what a layer gave for two samples."""
    if len(outputs) != 1:
        return f"runs {len(outputs)} times, not once, for each batch"
    (output,) = outputs
    if not isinstance(output, Tensor):
        return f"gives {type(output).__name__}, not one tensor"
    if not output.is_floating_point() or output.ndim < 2 or len(output) != 2:
        return f"gives {output.dtype} {list(output.shape)} for two samples, not a row of numbers for each"
    if not output.requires_grad:
        return "has no weights in it or before it, so that no training changes what it gives"
    return None
