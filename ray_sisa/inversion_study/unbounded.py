"""Training as the original trained its "private" targets: they are NOT private, and no recipe trains so.

As in DP-SGD the gradient of each loss is clipped, and noise is added to their sum. But batch normalisation makes each
loss depend on every sample of its batch: one sample changes all gradients of it, and their sum by up to the batch size
times what the noise is for. Its running statistics, which are kept with the weights, are neither clipped nor noised,
so that nothing bounds what a network tells. It is here to tell what the original's accuracies are made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ray_sisa.augment import Batches
from ray_sisa.config import TrainingRecipe
from ray_sisa.digests import derive_seed
from ray_sisa.training import (
    LabelledImages,
    Weights,
    initial_state,
    load_network,
    make_optimizer,
    num_hits,
    reproducible,
    state_of,
    to_tensor,
)


def train_unbounded(
    samples: LabelledImages,
    training: TrainingRecipe,
    key: str,
    *,
    noise_multiplier: float,
    max_grad_norm: float,
    device: str = "cpu",
) -> Iterator[tuple[float, Weights]]:
    """Trains a whole model on shuffled batches; gives, after each epoch, the share that it had right, and weights.

    The sum of a batch is always divided by `batch_size`, as the original's optimiser does. Its stream has no last batch
    of an epoch that is smaller; here that one has less gradient under the same noise.

    Args:
        samples: all of them.
        training: a recipe without `dp`; precision, batches, augmentation and optimiser are used. Its network has no
            dropout, whose draws would not follow from the key.
        key: all randomness comes from it; its initial weights are those of other targets of the key.
        noise_multiplier: deviation of the noise over the norm.
        max_grad_norm: what the gradient of each loss is clipped to.
        device: `cpu` or a CUDA device.
    """
    recipe = training.recipe
    with reproducible(training, device):
        model = load_network(training, initial_state(training, key, None), device)
        optimizer = make_optimizer(model, recipe.optimizer)
        parameters = list(model.parameters())
        batches = Batches(to_tensor(samples.images), to_tensor(samples.labels), training, device)
        generator = torch.Generator(device).manual_seed(derive_seed(key, "noise"))
        for epoch in range(training.epochs[0]):
            right = torch.zeros((), dtype=torch.int64, device=device)
            for images, labels in batches.epoch(key, epoch):
                with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                    logits = model(images)
                losses = F.cross_entropy(logits.float(), labels, reduction="none")
                right += num_hits(logits, labels)
                sums = clipped_sum(losses, parameters, max_grad_norm)
                add_noise(sums, noise_multiplier * max_grad_norm, generator)
                for parameter, total in zip(parameters, sums, strict=True):
                    parameter.grad = total / recipe.batch_size
                optimizer.step()
            yield right.item() / batches.num_rows, state_of(model)


def clipped_sum(losses: Tensor, parameters: Sequence[Tensor], max_norm: float) -> list[Tensor]:
    """The sum of the gradients of losses [B], each clipped; every one is a pass of its own through all that it is of.

    Consumes the graph of the losses.
    """
    totals = [torch.zeros_like(parameter) for parameter in parameters]
    for place in range(len(losses)):
        gradients = torch.autograd.grad(losses[place], parameters, retain_graph=place + 1 < len(losses))
        factor = (max_norm / torch.nn.utils.get_total_norm(gradients)).clamp(max=1)
        for total, gradient in zip(totals, gradients, strict=True):
            total += gradient * factor
    return totals


def add_noise(totals: Sequence[Tensor], deviation: float, generator: torch.Generator) -> None:
    """Adds Gaussian noise to each, in place: fused steps go by memory, and sums have the layout of parameters."""
    for total in totals:
        total += deviation * torch.randn(total.shape, generator=generator, device=total.device)
