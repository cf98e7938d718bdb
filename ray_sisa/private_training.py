"""The step of DP-SGD (Abadi et al. 2016): Poisson batches, gradients clipped a sample, Gaussian noise.

Opacus makes the gradients of single samples; what is drawn, clipped, added and divided by is decided here. Nothing is
derived from the data but which samples there are. It never accounts for what is spent (`privacy.py`).
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_sisa.augment import Batches
from ray_sisa.config import TrainingRecipe
from ray_sisa.privacy import stage_mechanism
from ray_sisa.snapshot import Live
from ray_sisa.training import num_hits

# Opacus sets up the root logger as it is imported, which is for the program to do.
_handlers = list(logging.root.handlers)
from opacus import GradSampleModule  # noqa: E402
from opacus.optimizers import DPOptimizer  # noqa: E402
from opacus.validators import ModuleValidator  # noqa: E402

for _handler in logging.root.handlers[:]:
    if _handler not in _handlers:
        logging.root.removeHandler(_handler)

# Gradients of single samples that are held at a time: as many rows, and as many numbers. Weights depend on both by
# rounding, so they are part of `TrainingRecipe.semantics`.
MOST_ROWS, MOST_NUMBERS = 128, 2**29

Source = Callable[[str, int], bytes]
"""Random bytes for a purpose, as many as asked for."""


def source_of(training: TrainingRecipe, key: str) -> Source:
    """Where the noise and the batches of a stage come from.

    `reproducible`: SHAKE-256 of the recipe's seed, the stage key and the purpose, so that stage keys alone, which are
    published, tell nothing. `secure`: the operating system, and never the same again.
    """
    assert training.recipe.dp is not None  # only private recipes come here
    if training.recipe.dp.noise == "secure":
        return lambda purpose, count: os.urandom(count)
    start = f"{training.recipe.seed}/{key}/"
    return lambda purpose, count: hashlib.shake_256(f"{start}{purpose}".encode()).digest(count)


def seed_of(training: TrainingRecipe, key: str, purpose: str) -> int:
    """A 63-bit seed for draws that go by the place in a batch: dropout and augmentation.

    From where the noise comes from, since one sample more shifts the draws of all behind it: to whoever knew them, sums
    of clipped gradients would differ by more than one gradient.
    """
    return int.from_bytes(source_of(training, key)(purpose, 8), "big") >> 1


def uniforms(data: bytes, device: str = "cpu") -> Tensor:
    """float64 [len(data) / 8], uniform on the odd multiples of 2^-53 inside (0, 1)."""
    numbers = (np.frombuffer(data, np.uint64) >> 12).astype(np.float64)
    return torch.from_numpy((numbers + 0.5) * 2.0**-52).to(device)


def gaussians(source: Source, purpose: str, like: Tensor, *, secure: bool) -> Tensor:
    """Standard normal float64 numbers in the shape of `like`, on its device; they end at 8.2 deviations.

    `secure`: half the sum of four, whose rounding gives the sum away to nobody (Holohan and Braghin 2021, as Opacus).
    """
    parts = 4 if secure else 1
    drawn = torch.special.ndtri(uniforms(source(purpose, 8 * parts * like.numel()), str(like.device)))
    noise: Tensor = (drawn.view(parts, -1).sum(0) / math.sqrt(parts)).view(like.shape)
    return noise


class PoissonBatches(Batches):
    """A stage's samples and its batches, in each of which a sample is by its own draw; some may be empty."""

    def __init__(self, images: Tensor, labels: Tensor, training: TrainingRecipe, device: str) -> None:
        """Moves `images` (uint8 [n, H, W, C] or float32 [n, D]) and `labels` (int64 [n]) to the device."""
        super().__init__(images, labels, training, device)
        mechanism = stage_mechanism(
            num_samples=len(labels),
            epochs=1,
            batch_size=training.recipe.batch_size,
            noise_multiplier=training.noise_multiplier or 0.0,
        )
        self._steps, self._rate, self._training = mechanism.steps, mechanism.sampling_rate, training

    def __len__(self) -> int:
        return self._steps

    def epoch(self, key: str, number: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch of the stage `key`: float32 [B, C, H, W] channels last (or [B, D]), int64 [B]."""
        source = source_of(self._training, key)
        for step in range(first, self._steps):
            data = source(f"batch-{number}-{step}", 8 * len(self._labels))
            rows = (uniforms(data) < self._rate).nonzero()[:, 0]
            seed = seed_of(self._training, key, f"augment-{number}-{step}")
            draws = self._draws(rows, torch.Generator().manual_seed(seed))
            images = self._read(draws.order, draws, slice(None))
            yield self._normalise(images) if len(rows) else images.float(), self._labels[draws.order]


class PrivateStep:
    """One step of DP-SGD of a stage, over and over."""

    def __init__(self, live: Live, training: TrainingRecipe, key: str) -> None:
        """Takes what the stage changes; from now on, gradients of single samples are made as the network trains."""
        self._live, self._recipe = live, training.recipe
        self._network = PerSample(live.model, loss_reduction="sum")
        self._optimizer = _optimizer(live.optimizer, training, source_of(training, key))
        self._most_rows = most_rows(live.model)

    def __call__(self, number: int, images: Tensor, labels: Tensor) -> None:
        """Takes step `number` of the stage over a batch, which may be empty: then noise alone moves the weights."""
        self._optimizer.number = number
        edges = [*range(0, len(labels), self._most_rows), len(labels)]
        if len(edges) == 1:
            self._without_samples()
        for start, end in pairwise(edges):
            self._optimizer.signal_skip_step(do_skip=end < len(labels))
            self._add(images[start:end], labels[start:end])
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)

    def _without_samples(self) -> None:
        for parameter in self._optimizer.params:
            parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def _add(self, images: Tensor, labels: Tensor) -> None:
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._recipe.precision == "bfloat16"):
            logits = self._network(images)
        logits = logits.float()
        loss = F.cross_entropy(logits, labels, label_smoothing=self._recipe.label_smoothing, reduction="sum")
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            self._live.totals[0] += loss.detach()
            self._live.totals[1] += num_hits(logits, labels)
            self._live.totals[2] += len(labels)


class PerSample(GradSampleModule):  # type: ignore[misc]
    """Opacus' gradients of single samples, by hooks on tensors where Opacus has them on layers.

    Those on layers forbid to change what a layer gave, as residual networks do, and warn of each first layer.
    """

    def add_hooks(self, **options: Any) -> None:
        """Puts hooks on the layers that have parameters."""
        super().add_hooks(**options)
        for backward in self.autograd_grad_sample_hooks[1::2]:  # one after each of the forward ones
            backward.remove()

    def capture_activations_hook(self, module: nn.Module, forward_input: list[Tensor], forward_output: Tensor) -> None:
        """Keeps what went into a layer, until the gradient of what came out is there."""
        super().capture_activations_hook(module, forward_input, forward_output)
        if module.training and forward_output.requires_grad:
            forward_output.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: self.capture_backprops_hook(
                    module, None, (gradient,), loss_reduction="sum", batch_first=True
                )
            )

    def rearrange_grad_samples(self, **options: Any) -> tuple[list[Tensor], Tensor]:
        """What went into a layer and the gradient of what came out, in the plain order of memory.

        Opacus 1.6 reads patches of a convolution by strides that only that order has; of channels-last maps they would
        be other numbers, of other samples.
        """
        activations, gradients = super().rearrange_grad_samples(**options)
        return [_in_plain_order(tensor) for tensor in activations], _in_plain_order(gradients)


def _in_plain_order(tensor: Tensor) -> Tensor:
    # Not `contiguous`, which leaves the strides of maps of one pixel, and padding then makes them channels-last.
    return tensor.reshape(-1).view(tensor.shape)


class _NoisyOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimiser with noise of ours; `number` is that of the step."""

    number = 0

    def __init__(self, optimizer: torch.optim.Optimizer, source: Source, *, secure: bool, **options: Any) -> None:
        super().__init__(optimizer, **options)
        self._source, self._secure = source, secure

    def clip_and_accumulate(self) -> None:
        """Clips in float32: norms of bfloat16 gradients would be off by more than the noise allows for.

        What is not finite becomes finite first: one such sample would turn all weights to NaN, which no noise hides.
        """
        for parameter in self.params:
            # Infinities to 0, since the square of the largest float is infinite again.
            parameter.grad_sample = torch.nan_to_num(parameter.grad_sample.float(), nan=0.0, posinf=0.0, neginf=0.0)
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """Sets the gradient of each parameter to the clipped sum and noise."""
        deviation = self.noise_multiplier * self.max_grad_norm
        for place, parameter in enumerate(self.params):
            purpose = f"noise-{self.number}-{place}"
            noise = gaussians(self._source, purpose, parameter, secure=self._secure).mul_(deviation)
            # In the layout of the parameter: fused steps go by memory, not by index.
            parameter.grad = torch.empty_like(parameter).copy_(parameter.summed_grad + noise.float())


def _optimizer(optimizer: torch.optim.Optimizer, training: TrainingRecipe, source: Source) -> _NoisyOptimizer:
    dp = training.recipe.dp
    assert dp is not None and training.noise_multiplier is not None  # set when the recipe was resolved
    return _NoisyOptimizer(
        optimizer,
        source,
        secure=dp.noise == "secure",
        noise_multiplier=training.noise_multiplier,
        max_grad_norm=dp.max_grad_norm,
        # Ours, and never derived from the data, whose size would show in it.
        expected_batch_size=training.recipe.batch_size,
    )


def validators(layer: nn.Module) -> list[Callable[[nn.Module], list[Exception]]]:
    """What Opacus asks of a layer of this kind: functions to what is wrong with it."""
    known = ModuleValidator.VALIDATORS.get(type(layer))
    return [known] if known else []


def most_rows(model: nn.Module) -> int:
    """Rows whose gradients are held at a time."""
    numbers = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return min(MOST_ROWS, max(1, MOST_NUMBERS // max(1, numbers)))
