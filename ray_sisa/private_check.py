"""Whether a network can be trained with DP-SGD: asked of the network itself, before anything is written.

The guarantee needs gradients of single samples, and that no sample changes another's. Both are tried on noise; no
sample of a run is read.
"""

from __future__ import annotations

import copy

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ray_sisa import models
from ray_sisa.augment import Normalise
from ray_sisa.config import TrainingRecipe
from ray_sisa.errors import ConfigError
from ray_sisa.private_training import PerSample, validators
from ray_sisa.training import reproducible

# Relative to the whole gradient. Rounding is far below, and a layer that mixes samples far above.
TOLERANCE = 1e-2
_NUM_NAMED = 5
_ANOTHER = "Choose another network, or leave out recipe.dp"


def check(training: TrainingRecipe) -> None:
    """Passes if the network of a recipe can be trained with DP-SGD.

    Raises:
        ConfigError: layers that mix samples or keep statistics of them, or whose gradients of single samples cannot be
            made, or would be wrong.
    """
    with reproducible(training, "cpu"):
        model = models.build(training).train()
        _refuse(
            training,
            "layers that mix samples or are unknown to Opacus",
            refused_layers(model),
            "GroupNorm, LayerNorm and Opacus' own layers are fine",
        )
        inputs = _noise(training)
        try:
            _check_gradients(training, model, inputs)
        except ConfigError:
            raise
        except Exception as error:  # a network may fail in any way
            rule = f"cannot make gradients of single samples: {type(error).__name__}: {error}"
            raise ConfigError("recipe.dp", training.recipe.model, rule, _ANOTHER) from error


def refused_layers(model: nn.Module) -> list[str]:
    """Names and kinds of layers that DP-SGD cannot have: by Opacus, and all that is left of BatchNorm."""
    return [
        f"{name or 'the network'} ({type(layer).__name__})"
        for name, layer in model.named_modules()
        if isinstance(layer, _BatchNorm) or any(refused(layer) for refused in validators(layer))
    ]


def _check_gradients(training: TrainingRecipe, model: nn.Module, inputs: Tensor) -> None:
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    network = PerSample(copy.deepcopy(model), loss_reduction="sum")
    samples, batch = _gradients(training, network, inputs[[0, 1]])
    others, _ = _gradients(training, network, inputs[[0, 2]])
    alone, _ = _gradients(training, network, inputs[[0]])
    after = dict(network._module.named_buffers())
    changed = [name for name, buffer in buffers.items() if not torch.equal(buffer, after[name])]
    _refuse(training, "buffers that samples change", changed, "Keep no statistics of samples")
    if not _is_same([g[0] for g in samples], [g[0] for g in others]):
        rule = "makes something else of a sample where others are beside it in the batch"
        raise ConfigError("recipe.dp", training.recipe.model, rule, _ANOTHER)
    if not _is_same([g[0] for g in samples], [g[0] for g in alone]):
        rule = "makes something else of a sample where it is alone in the batch"
        raise ConfigError("recipe.dp", training.recipe.model, rule, _ANOTHER)
    if not _is_same([g.sum(0) for g in samples], batch):
        rule = "has gradients of single samples that do not add up to that of the batch"
        raise ConfigError("recipe.dp", training.recipe.model, rule, _ANOTHER)


def _gradients(training: TrainingRecipe, network: PerSample, inputs: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Of each parameter, the gradients of the samples [B, ...] and of the batch [...]."""
    torch.manual_seed(0)  # dropout is then the same for the same place
    logits = network(inputs)
    loss = F.cross_entropy(logits.float(), torch.zeros(len(inputs), dtype=torch.int64), reduction="sum")
    loss.backward()  # type: ignore[no-untyped-call]
    named = [(name, p) for name, p in network._module.named_parameters() if p.requires_grad]
    unused = [name for name, parameter in named if parameter.grad is None or parameter.grad_sample is None]
    _refuse(training, "parameters that no score depends on", unused, "Set requires_grad to False, or remove them")
    found = [p.grad_sample for _, p in named], [p.grad for _, p in named]
    for _, parameter in named:
        parameter.grad = parameter.grad_sample = None
    return found


def _is_same(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    apart = sum(float((a - b).double().square().sum()) for a, b in zip(ours, theirs, strict=True))
    whole = sum(float(a.double().square().sum()) for a in ours)
    return apart <= TOLERANCE**2 * whole


def _noise(training: TrainingRecipe) -> Tensor:
    """Three samples, as the network reads them."""
    random, shape = np.random.default_rng(0), (3, *training.image_shape)
    is_image = len(training.image_shape) == 3
    samples = random.integers(0, 256, shape, np.uint8) if is_image else random.standard_normal(shape, np.float32)
    return Normalise(training, "cpu")(torch.from_numpy(samples))


def _refuse(training: TrainingRecipe, what: str, names: list[str], remedy: str) -> None:
    if names:
        more = f" and {len(names) - _NUM_NAMED} more" if len(names) > _NUM_NAMED else ""
        rule = f"has {what}, and so cannot be trained privately: {', '.join(names[:_NUM_NAMED])}{more}"
        raise ConfigError("recipe.dp", training.recipe.model, rule, f"{remedy}. {_ANOTHER}")
