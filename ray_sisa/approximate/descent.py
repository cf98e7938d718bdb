"""The loop that the methods which train share: a network, its optimiser and schedule, and what it has cost.

Step by step it does what a stage does, so that a method without its own term is fine-tuning to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ray_sisa.approximate.methods import Descending
from ray_sisa.approximate.problem import EpochPassed, Problem, Unlearned, diverged
from ray_sisa.augment import Batches
from ray_sisa.digests import derive_seed
from ray_sisa.errors import DivergedError
from ray_sisa.records import EpochMetrics
from ray_sisa.training import LabelledImages, Weights, load_network, make_optimizer, rate_factor, state_of, train_stage


class Descent:
    """A network on its way down.

    Attributes:
        model: the network, in training mode.
        sample_passes: samples that went forward to come back.
        forward_passes: samples that went forward alone; whoever sends them counts them here.
    """

    def __init__(self, problem: Problem, method: Descending, num_steps: int) -> None:
        """Takes a problem, whose weights it starts from, and the number of steps that the schedule is for."""
        self._problem, self._method, self._num_steps = problem, method, num_steps
        self._recipe = method.applied_to(problem.training).recipe
        self.model = load_network(problem.training, problem.start, problem.device)
        self._optimizer = make_optimizer(self.model, self._recipe.optimizer)
        self._rates = [group["lr"] for group in self._optimizer.param_groups]
        self._steps = self._steps_before = 0
        self._loss = torch.zeros((), dtype=torch.float64, device=problem.device)
        self.sample_passes = self.forward_passes = 0

    @property
    def progress(self) -> float:
        """The share of steps that are done."""
        return self._steps / self._num_steps

    def epochs(self) -> Iterator[int]:
        """Numbers of the epochs, from 0; between two of them what the last one minimised is told.

        Raises:
            TrainingError: it is not a finite number.
        """
        for epoch in range(self._method.epochs):
            torch.manual_seed(derive_seed(self._problem.key, f"network-{epoch}"))  # for dropout, as in a stage
            yield epoch
            loss = self._loss.item() / (self._steps - self._steps_before)
            self._loss.zero_()
            self._steps_before = self._steps
            tell_epoch(self._problem, epoch, self._method.epochs, loss)

    def scores(self, images: Tensor) -> Tensor:
        """Logits float32 [B, K] that can be gone back from; counted."""
        self.sample_passes += len(images)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self._recipe.precision == "bfloat16"):
            logits: Tensor = self.model(images)
        return logits.float()

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of the recipe: the mean cross-entropy of a batch, with its label smoothing."""
        return self.cross_entropy(self.scores(images), labels)

    def cross_entropy(self, scores: Tensor, labels: Tensor) -> Tensor:
        """The same, of logits."""
        return F.cross_entropy(scores, labels, label_smoothing=self._recipe.label_smoothing)

    def step(self, loss: Tensor) -> None:
        """One step down, at the rate of the schedule."""
        factor = rate_factor(self._recipe, self._steps, self._num_steps)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        self._steps += 1
        with torch.no_grad():
            self._loss += loss.detach()

    def result(self) -> Unlearned:
        """Where it is now."""
        return Unlearned(
            weights=state_of(self.model), sample_passes=self.sample_passes, forward_passes=self.forward_passes
        )


def train_on(problem: Problem, method: Descending, samples: LabelledImages) -> Unlearned:
    """Trains the model on samples as a stage is trained.

    Raises:
        TrainingError: the loss is not a finite number.
    """
    stage = train_stage(
        start=problem.start,
        samples=samples,
        training=method.applied_to(problem.training),
        key=problem.key,
        epochs=method.epochs,
        device=problem.device,
    )
    while True:
        try:
            told = next(stage)
        except DivergedError as error:
            raise diverged(f"the loss of epoch {error.epoch + 1}") from None
        except StopIteration as end:
            weights: Weights = end.value
            return Unlearned(weights=weights, sample_passes=method.epochs * len(samples.labels))
        if isinstance(told, EpochMetrics):
            tell_epoch(problem, told.epoch, method.epochs, told.loss)


def tell_epoch(problem: Problem, epoch: int, epochs: int, loss: float | None) -> None:
    """Tells that epoch `epoch` (from 0) is over.

    Raises:
        TrainingError: its loss is not a finite number.
    """
    if loss is None or not math.isfinite(loss):
        raise diverged(f"the loss of epoch {epoch + 1}")
    problem.tell(EpochPassed(epoch=epoch + 1, epochs=epochs, loss=loss))


def endless(batches: Batches, key: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of one epoch after another, without end."""
    epoch = 0
    while True:
        yield from batches.epoch(key, epoch)
        epoch += 1


def join(one: LabelledImages, other: LabelledImages) -> LabelledImages:
    """The samples of both, in this order."""
    return LabelledImages(
        images=np.concatenate([one.images, other.images]), labels=np.concatenate([one.labels, other.labels])
    )
