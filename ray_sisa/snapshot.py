"""The state inside a stage as a value: taken between two steps, put back in any process, where the stage goes on.

All that a step reads and changes is in it; what follows from the recipe and the key is not. Nothing here opens a store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn

from ray_sisa.config import OptimizerConfig
from ray_sisa.divergence import Watch
from ray_sisa.errors import TrainingError


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """A place between two steps of a stage.

    Attributes:
        epoch: epochs that have ended.
        batch: batches done of the epoch after them.
        num_batches: batches of an epoch.
    """

    epoch: int
    batch: int
    num_batches: int

    @property
    def step(self) -> int:
        """Steps done in the stage."""
        return self.epoch * self.num_batches + self.batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Partial:
    """The state inside a stage: with it, a stage goes on in any process as if it had never stopped.

    Attributes:
        position: where the stage is.
        tensors: on the CPU, by name: `model/` parameters and buffers, `optimizer/` what it keeps of each parameter,
            `totals` of the epoch so far, and `generator/`, the random states of the devices.
    """

    position: Position
    tensors: dict[str, Tensor]


Due = Callable[[Position], Literal["tell", "save"] | None]
"""Whether to tell of a place, or to hand out the state there."""


class Live:
    """What a stage changes from step to step.

    Attributes:
        model: the network.
        optimizer: over its parameters.
        totals: float64 [2], summed losses and hits of the epoch so far; [3] with its rows, where draws decide them.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: OptimizerConfig,
        device: str,
        num_totals: int = 2,
    ) -> None:
        """Takes a network and its optimiser, made from `config`; random numbers are drawn on `device` and the CPU."""
        self.model, self.optimizer = model, optimizer
        self.totals = torch.zeros(num_totals, dtype=torch.float64, device=next(model.parameters()).device)
        self._slots = _slots(config)
        self._device = device

    def pause(self, due: Due, position: Position, watch: Watch) -> Iterator[Position | Partial]:
        """Yields what is due at a place, if anything; who takes it may draw random numbers.

        A state that is not finite is not handed out: where the stage ends, it is found at which step it diverged.

        Raises:
            DivergedError: a loss of the epoch is not finite.
        """
        what = due(position)
        if what is None:
            return
        watch.check_losses(position.epoch, self.totals[0])
        if what == "save" and watch.bad_weight():
            what = "tell"
        generators = _generators(self._device)
        if what == "tell":
            yield position
        else:
            copies = {name: tensor.to("cpu", copy=True) for name, tensor in self._tensors().items()}
            yield Partial(position=position, tensors=copies | generators)
        _set_generators(generators, self._device)

    @torch.no_grad()
    def restore(self, partial: Partial) -> None:
        """Takes over the state of a partial, the random states included.

        Raises:
            TrainingError: its tensors are not those of this stage by name, shape and dtype. This is then a mixture.
        """
        self._make_room(partial)
        tensors, generators = self._tensors(), _generators(self._device)
        expected, found = _layout(tensors | generators), _layout(partial.tensors)
        differing = sorted(n for n in expected.keys() | found.keys() if expected.get(n) != found.get(n))
        if differing:
            raise _misfit(f"{len(differing)} tensors are not as this stage has them, {differing[0]!r} the first")
        for name, tensor in tensors.items():
            tensor.copy_(partial.tensors[name])
        try:
            _set_generators({name: partial.tensors[name] for name in generators}, self._device)
        except RuntimeError as error:
            raise _misfit(f"a generator refuses its state: {str(error).partition(chr(10))[0]}") from None

    def _tensors(self) -> dict[str, Tensor]:
        """All of it as it is, by the names that a `Partial` gives it, but for the generators."""
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.model.named_parameters()}
        # Buffers that no weights file holds may change as well.
        of_model = chain(self.model.named_parameters(), self.model.named_buffers())
        tensors = {f"model/{name}": tensor.detach() for name, tensor in of_model}
        for parameter, kept in self.optimizer.state.items():
            tensors |= {_kept(slot, names[parameter]): tensor for slot, tensor in kept.items()}
        return tensors | {"totals": self.totals}

    def _make_room(self, partial: Partial) -> None:
        """Makes what the optimiser keeps of each parameter that has met a gradient; of a frozen one that is nothing."""
        for name, parameter in self.model.named_parameters():
            if any(_kept(slot, name) in partial.tensors for slot in self._slots):
                self.optimizer.state[parameter] = {slot: _empty(slot, parameter) for slot in self._slots}


def check_position(position: Position, epochs: int, num_batches: int) -> Position:
    """The position, if a stage of so many epochs of so many batches comes to it between two of its steps.

    Raises:
        TrainingError: it does not.
    """
    inside = 0 <= position.epoch < epochs and 0 <= position.batch < num_batches
    if position.num_batches != num_batches or not inside or position.step == 0:
        raise _misfit(f"{position} is no place inside {epochs} epochs of {num_batches} batches")
    return position


def cuda_devices(device: str) -> list[torch.device]:
    """The device, if it is one with a random generator of its own."""
    return [torch.device(device)] if device.startswith("cuda") else []


def _slots(config: OptimizerConfig) -> tuple[str, ...]:
    """What an optimiser keeps of a parameter from step to step."""
    if config.name == "sgd":
        return ("momentum_buffer",) if config.momentum else ()
    return ("step", "exp_avg", "exp_avg_sq")


def _kept(slot: str, parameter: str) -> str:
    return f"optimizer/{slot}/{parameter}"


def _empty(slot: str, parameter: Tensor) -> Tensor:
    if slot == "step":
        return torch.zeros((), dtype=torch.float32, device=parameter.device)
    # In the layout of the parameter, as the optimiser makes it: fused steps go by memory, not by index.
    return torch.empty_like(parameter)


def _layout(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _generators(device: str) -> dict[str, Tensor]:
    states = {"generator/cpu": torch.get_rng_state()}
    for cuda in cuda_devices(device):
        states["generator/cuda"] = torch.cuda.get_rng_state(cuda)
    return states


def _set_generators(states: Mapping[str, Tensor], device: str) -> None:
    torch.set_rng_state(states["generator/cpu"])
    for cuda in cuda_devices(device):
        torch.cuda.set_rng_state(states["generator/cuda"], cuda)


def _misfit(rule: str) -> TrainingError:
    return TrainingError("partial", "", rule, "It is not of this stage: start the stage over")
