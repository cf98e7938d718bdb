"""Training one stage and running a network: pure functions of weights, arrays, recipe and device.

The hot path. It never opens a store, never imports ray, and nothing outlives a stage but its weights. A stage can be
left and taken up again at any step, by way of a `Partial`.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_sisa import models, nopeek, weights
from ray_sisa.augment import Batches, Normalise, num_batches
from ray_sisa.config import OptimizerConfig, Recipe, TrainingRecipe
from ray_sisa.digests import derive_seed
from ray_sisa.divergence import Watch
from ray_sisa.errors import TrainingError
from ray_sisa.evaluation.accuracy import accuracy, ranks_of
from ray_sisa.records import EpochMetrics
from ray_sisa.samples import Samples
from ray_sisa.snapshot import Due, Live, Partial, Position, check_position, cuda_devices

Weights = dict[str, Tensor]
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelledImages:
    """Arrays to train on or to measure with.

    Attributes:
        images: uint8 [N, H, W, C] or float32 [N, D].
        labels: int64 [N].
    """

    images: np.ndarray
    labels: np.ndarray

    @classmethod
    def of(cls, samples: Samples) -> LabelledImages:
        """Those of samples, without their ids."""
        return cls(images=samples.images, labels=samples.labels)


def initial_state(training: TrainingRecipe, key: str, public: Mapping[str, Tensor] | None) -> Weights:
    """Weights of stage (s, 0), drawn from its key; over them the public ones, where a recipe starts from a file."""
    with reproducible(training, "cpu"), torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(key, "initial"))
        model = models.build(training)
    if public is not None:
        weights.fit(model, public)
    return state_of(model)


def train_stage(
    *,
    start: Mapping[str, Tensor],
    samples: LabelledImages,
    training: TrainingRecipe,
    key: str,
    epochs: int,
    device: str = "cpu",
    test: LabelledImages | None = None,
    test_every_epoch: bool = False,
    resume: Partial | None = None,
    due: Due | None = None,
) -> Generator[EpochMetrics | Position | Partial, None, Weights]:
    """Trains a stage: yields the metrics of each epoch, returns the weights (on the CPU, float32).

    Whatever is yielded besides, and wherever the stage was resumed, the weights and metrics are the same to the bit.

    Args:
        start: weights of the parent stage.
        samples: live samples of slices 1..r, in the order of slice and id.
        training: the recipe.
        key: key of the stage; all its randomness comes from it, with `dp` from the recipe's seed as well.
        epochs: passes over the samples.
        device: `cpu` or a CUDA device.
        test: measured after the last epoch, if given; changes no weights.
        test_every_epoch: measure it after every epoch.
        resume: state to go on from; the epochs that it has behind it are not yielded again.
        due: asked between any two steps; a `Position` or a `Partial` is yielded where it says so.

    Raises:
        TrainingError: `resume` is no state of this stage.
        DivergedError: a loss or a weight is not finite.
    """
    with reproducible(training, device):
        model = load_network(training, start, device)
        batches = _batches(samples, training, device)
        live = _live(model, training, device)
        optimizer = live.optimizer
        rates = [group["lr"] for group in optimizer.param_groups]
        watch = Watch(model, len(batches), by_loss=training.recipe.dp is None)
        take_step = _taking_steps(live, training, key, watch)
        place = functools.partial(Position, num_batches=len(batches))
        at = place(epoch=0, batch=0)
        if resume is not None:
            at = check_position(resume.position, epochs, len(batches))
            live.restore(resume)
            resume = None  # as large as all of the state that is on the device now
        for epoch in range(at.epoch, epochs):
            first = at.batch if epoch == at.epoch else 0
            if first == 0:
                # For dropout and the like; each epoch anew, since whoever takes the metrics may draw in between.
                torch.manual_seed(_seed(training, key, f"network-{epoch}"))
                live.totals.zero_()
            if due is not None and epoch > at.epoch:
                yield from live.pause(due, place(epoch=epoch, batch=0), watch)
            for batch, (images, labels) in enumerate(batches.epoch(key, epoch, first), start=first):
                number = epoch * len(batches) + batch
                factor = rate_factor(training.recipe, number, epochs * len(batches))
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate * factor
                take_step(number, images, labels)
                if due is not None and batch + 1 < len(batches):
                    yield from live.pause(due, place(epoch=epoch, batch=batch + 1), watch)
            watch.check(epoch, live.totals[0])
            measured = test if test_every_epoch or epoch == epochs - 1 else None
            rows = live.totals[2].clamp(min=1) if training.recipe.dp else batches.num_rows
            yield _measure(epoch, live.totals[:2] / rows, model, training, measured, device)
        return state_of(model)


def check_partial(partial: Partial, *, training: TrainingRecipe, num_samples: int, epochs: int, device: str) -> None:
    """Passes if a stage of this recipe, over so many samples and epochs, can go on from `partial`.

    Raises:
        TrainingError: it cannot: a place that it never comes to, other tensors than it has, or none that are finite.
    """
    check_position(partial.position, epochs, num_batches(num_samples, training))
    with torch.random.fork_rng(devices=cuda_devices(device)):
        _live(models.build(training), training, device).restore(partial)
    counts = {n: t for n, t in partial.tensors.items() if n.startswith("model/")}
    if training.recipe.dp is None:
        counts["totals"] = partial.tensors["totals"]
    if name := weights.not_finite(counts):  # saved before a stage was watched; from its start the step is found
        raise TrainingError("partial", "", f"{name} is not finite", "The stage diverged: start it over")


def predict_log_probabilities(
    start: Mapping[str, Tensor], images: np.ndarray, training: TrainingRecipe, device: str = "cpu"
) -> np.ndarray:
    """Log-probabilities float32 [N, K] of weights, the same in every bit wherever the environment is the same."""
    with reproducible(training, device):
        return log_probabilities(load_network(training, start, device), images, training, device)


def to_end(steps: Generator[Item, None, Result]) -> Result:
    """The value that a generator returns, whatever it yields on the way."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """A fresh optimiser over the parameters of a model, the head apart if the backbone has a rate of its own.

    Raises:
        ConfigError: a network whose head is not known, where it is asked for.
    """
    if config.backbone_lr is None:
        groups = [{"params": list(model.parameters()), "lr": config.lr}]
    else:
        named, head = list(model.named_parameters()), f"{models.head(model)}."
        on_top = {n for n, _ in named if f".{n}".startswith(f".{head.lstrip('.')}")}
        groups = [
            {"params": [p for n, p in named if n in on_top], "lr": config.lr},
            {"params": [p for n, p in named if n not in on_top], "lr": config.backbone_lr},
        ]
    groups = [group for group in groups if group["params"]]
    if config.name == "sgd":
        return torch.optim.SGD(
            groups, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=config.nesterov, fused=True
        )
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(groups, betas=config.betas, weight_decay=config.weight_decay, fused=True)


def rate_factor(recipe: Recipe, step: int, total_steps: int) -> float:
    """What the learning rate is multiplied by at a step (from 0) of a stage.

    cosine: from 1 to 0 (Loshchilov and Hutter 2017, no restarts). one_cycle: 1/25 to 1 over the first 30 %, then to
    1e-4 / 25, both along cosines (Smith and Topin 2018, as in PyTorch; momentum is left alone).
    """
    if recipe.schedule == "constant":
        return 1.0
    done = step / total_steps
    if recipe.schedule == "cosine":
        return _cosine(1.0, 0.0, done)
    return _cosine(1 / 25, 1.0, done / 0.3) if done < 0.3 else _cosine(1.0, 1e-4 / 25, (done - 0.3) / 0.7)


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def _live(model: nn.Module, training: TrainingRecipe, device: str) -> Live:
    config = training.recipe.optimizer
    # With DP-SGD the number of rows of an epoch is drawn, and counted beside losses and hits.
    return Live(model, make_optimizer(model, config), config, device, num_totals=3 if training.recipe.dp else 2)


def _batches(samples: LabelledImages, training: TrainingRecipe, device: str) -> Batches:
    arrays = to_tensor(samples.images), to_tensor(samples.labels)
    if training.recipe.dp is None:
        return Batches(*arrays, training, device)
    from ray_sisa.private_training import PoissonBatches  # Opacus takes seconds to import

    return PoissonBatches(*arrays, training, device)


def _seed(training: TrainingRecipe, key: str, purpose: str) -> int:
    if training.recipe.dp is None:
        return derive_seed(key, purpose)
    from ray_sisa.private_training import seed_of

    return seed_of(training, key, purpose)


def _taking_steps(
    live: Live, training: TrainingRecipe, key: str, watch: Watch
) -> Callable[[int, Tensor, Tensor], None]:
    """What takes a step of a stage, given its number and a batch."""
    if training.recipe.dp is None:
        return lambda number, images, labels: watch.note(number, _step(live, images, labels, training.recipe))
    from ray_sisa.private_training import PrivateStep

    return PrivateStep(live, training, key)


def _step(live: Live, images: Tensor, labels: Tensor, recipe: Recipe) -> Tensor:
    """Returns the summed loss of the batch."""
    with (
        torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"),
        nopeek.watched(live.model, recipe.nopeek) as outputs,
    ):
        logits = live.model(images)
    logits = logits.float()
    loss = F.cross_entropy(logits, labels, label_smoothing=recipe.label_smoothing)
    if recipe.nopeek:
        loss = loss + nopeek.penalty(recipe.nopeek, images, outputs)
    live.optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    live.optimizer.step()
    with torch.no_grad():
        total = loss.detach() * len(labels)
        live.totals[0] += total
        # Cheaper than `num_hits`, and the same: a row that is not a number makes the loss none, which ends the stage.
        live.totals[1] += (logits.argmax(1) == labels).sum()
    return total


def _measure(
    epoch: int, means: Tensor, model: nn.Module, training: TrainingRecipe, test: LabelledImages | None, device: str
) -> EpochMetrics:
    loss, correct = means.tolist()
    measured = EpochMetrics(epoch=epoch, loss=loss, train_top1=correct)
    if test is None:
        return measured
    found = accuracy(log_probabilities(model, test.images, training, device), test.labels)
    model.train()
    return measured.model_copy(update={"test_top1": found.top1, "test_top5": found.top5})


def num_hits(logits: Tensor, labels: Tensor) -> Tensor:
    """How many of logits float [B, K] rank the label first, on their device; one that is not a number never does."""
    of_label = logits.gather(1, labels[:, None])[:, 0]
    ranks: Tensor = ranks_of(logits, of_label, torch.arange(logits.shape[1], device=logits.device), labels)
    return (ranks == 0).sum()


@torch.no_grad()
def log_probabilities(model: nn.Module, images: np.ndarray, training: TrainingRecipe, device: str) -> np.ndarray:
    """Log-probabilities float32 [N, K] of a network, put into evaluation mode; in float32 whatever the precision."""
    model.eval()
    normalise = Normalise(training, device)
    size = max(256, training.recipe.batch_size)
    parts = [_forward(model, normalise, images[i : i + size], device) for i in range(0, len(images), size)]
    return np.concatenate(parts) if parts else np.empty((0, training.num_classes), np.float32)


def _forward(model: nn.Module, normalise: Normalise, images: np.ndarray, device: str) -> np.ndarray:
    logits = model(normalise(to_tensor(np.ascontiguousarray(images)).to(device)))
    log_probabilities: np.ndarray = F.log_softmax(logits.float(), 1).cpu().numpy()
    return log_probabilities


def to_tensor(array: np.ndarray) -> Tensor:
    """An array as a tensor on the CPU, in the same memory where it may be written to."""
    # Arrays over stored bytes are read-only, which a tensor cannot promise to respect.
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def load_network(training: TrainingRecipe, start: Mapping[str, Tensor], device: str) -> nn.Module:
    """The network of a recipe with these weights, on a device."""
    with torch.random.fork_rng(devices=[]):  # building draws random weights, which are then overwritten
        model = models.build(training)
    model.load_state_dict(dict(start))
    layout = torch.channels_last if len(training.image_shape) == 3 else torch.contiguous_format
    return model.to(device=device, memory_format=layout).train()  # type: ignore[call-overload,no-any-return]


def state_of(model: nn.Module) -> Weights:
    """A copy of all parameters and buffers that a weights file holds, on the CPU."""
    return {name: t.detach().to("cpu", copy=True).contiguous() for name, t in model.state_dict().items()}


def reproducible(training: TrainingRecipe, device: str) -> AbstractContextManager[None]:
    """Sets all that bits depend on besides the key, as a recipe says, and puts it back."""
    return deterministic(training.recipe.threads, device)


@contextmanager
def deterministic(num_threads: int, device: str) -> Iterator[None]:
    """Sets all that bits depend on besides a seed, and puts it back: threads, algorithms, precision, generator."""
    threads, algorithms = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts; without it cuBLAS may vary
    with torch.random.fork_rng(devices=cuda_devices(device)):
        try:
            torch.set_num_threads(num_threads)
            torch.use_deterministic_algorithms(True)
            # Else every new tensor is filled with NaN, at 6 % of the speed, against reads that no layer does.
            memory.fill_uninitialized_memory = False
            cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = False, False, False
            yield
        finally:
            torch.set_num_threads(threads)
            memory.fill_uninitialized_memory = fill
            torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
            cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before
