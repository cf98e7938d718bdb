"""Whether a stage diverged: a loss or a weight is not a finite number.

Nothing here waits for the device between two steps. Where a stage is looked at decides when a divergence is found, and
never whether, or at which step.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ray_sisa.errors import DivergedError
from ray_sisa.weights import not_finite

REMEDY = (
    "Lower recipe.optimizer.lr, or correct the samples, in a new run; or forget the samples that do it, and "
    "`ray-sisa unlearn RUN`; or let the shard vote without this slice: --set recipe.on_divergence=exclude"
)


class Watch:
    """Watches a stage: losses are noted as they come and looked at where the stage is, or may be, waited for anyway."""

    def __init__(self, model: nn.Module, num_batches: int, *, by_loss: bool) -> None:
        """Takes the network of a stage; without `by_loss` its weights alone count.

        So it is with DP-SGD, which takes gradients that are not finite as 0: whether a stage ends must not tell of a
        loss, which a single sample decides and no noise covers.
        """
        self._model, self._num_batches, self._by_loss = model, num_batches, by_loss
        self._losses = torch.zeros(num_batches, device=next(model.parameters()).device)

    def note(self, step: int, loss: Tensor) -> None:
        """Takes note of the loss of a step of the stage (from 0), on its device."""
        self._losses[step % self._num_batches] = loss

    def check_losses(self, epoch: int, total: Tensor) -> None:
        """Passes if the losses of an epoch (from 0) so far add up to a finite number.

        Raises:
            DivergedError: they do not; it names the first step whose loss is none.
        """
        if self._by_loss and not math.isfinite(total.item()):
            first = int((~self._losses.isfinite()).nonzero()[0])
            raise diverged(epoch, epoch * self._num_batches + first, "the loss")

    def check(self, epoch: int, total: Tensor) -> None:
        """Passes if losses and weights are finite at the end of an epoch.

        Raises:
            DivergedError: they are not. Of weights it names the last step of the epoch: some before it made them so.
        """
        self.check_losses(epoch, total)
        if name := self.bad_weight():
            raise diverged(epoch, (epoch + 1) * self._num_batches - 1, f"a weight of {name}")

    def bad_weight(self) -> str | None:
        """Name of the first parameter or buffer that is not finite."""
        return not_finite(self._model.state_dict())


def diverged(epoch: int, step: int, what: str, name: str = "stage") -> DivergedError:
    """The error of the stage `name` that diverged in an epoch, at a step of the stage, both from 0."""
    rule = f"diverged: {what} is not a finite number at step {step + 1} of the stage, in epoch {epoch + 1}"
    error = DivergedError(name, "", rule, REMEDY)
    error.epoch, error.step, error.what = epoch, step, what
    return error
