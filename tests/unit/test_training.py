"""Training is a function of its arguments: the same bits each time, whatever the process around it does."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from ray_sisa import models, weights
from ray_sisa.augment import Batches
from ray_sisa.config import OptimizerConfig, Recipe, TrainingRecipe
from ray_sisa.digests import digest_tensors
from ray_sisa.errors import TrainingError
from ray_sisa.records import EpochMetrics
from ray_sisa.samples import Samples
from ray_sisa.snapshot import Partial, Position
from ray_sisa.training import (
    LabelledImages,
    Weights,
    check_partial,
    initial_state,
    make_optimizer,
    predict_log_probabilities,
    rate_factor,
    to_end,
    train_stage,
)

Make = Callable[..., TrainingRecipe]
MakeSamples = Callable[..., Samples]
AUGMENTED = {"model": "small_cnn", "augment": ["crop", "flip", "cutout"]}
PRIVATE = {"dp": {"noise_multiplier": 1.0}, "noise_multiplier": 1.0}


@pytest.fixture(scope="module")
def data(random_samples: MakeSamples) -> LabelledImages:
    samples = random_samples(21)
    return LabelledImages(images=samples.images, labels=samples.labels)


@pytest.fixture(scope="module")
def test_data(random_samples: MakeSamples) -> LabelledImages:
    samples = random_samples(7, seed=1)
    return LabelledImages(images=samples.images, labels=samples.labels)


@pytest.fixture(params=[{}, AUGMENTED], ids=["mlp", "small_cnn with augmentation"])
def training(request: pytest.FixtureRequest, make_training: Make) -> TrainingRecipe:
    return make_training(**request.param)


def train(training: TrainingRecipe, data: LabelledImages, key: str = "key", **options: Any) -> Weights:
    options = {"epochs": 2, "start": initial_state(training, "chain", None), **options}
    return to_end(train_stage(samples=data, training=training, key=key, **options))


def digest_of(training: TrainingRecipe, data: LabelledImages, **options: Any) -> str:
    return digest_tensors(train(training, data, **options))


# Reproducibility.

IN_A_FRESH_PROCESS = """
import sys
import numpy as np, torch
from ray_sisa.config import TrainingRecipe
from ray_sisa.digests import digest_tensors
from ray_sisa.training import LabelledImages, initial_state, to_end, train_stage

torch.manual_seed(1234)  # as any process may have
torch.set_num_threads(2)
data = LabelledImages(images=np.load(sys.argv[1]), labels=np.load(sys.argv[2]))
for line in sys.stdin:
    training = TrainingRecipe.model_validate_json(line)
    start = initial_state(training, "chain", None)
    print(digest_tensors(to_end(train_stage(start=start, samples=data, training=training, key="key", epochs=2))))
"""


def test_the_same_bits_twice_and_in_a_fresh_process(make_training: Make, data: LabelledImages, tmp_path: Path) -> None:
    recipes = [make_training(**settings) for settings in ({}, AUGMENTED, {"precision": "bfloat16", "threads": 2})]
    np.save(tmp_path / "images.npy", data.images)
    np.save(tmp_path / "labels.npy", data.labels)
    digests = [digest_of(training, data) for training in recipes]
    assert [digest_of(training, data) for training in recipes] == digests
    done = subprocess.run(
        [sys.executable, "-c", IN_A_FRESH_PROCESS, tmp_path / "images.npy", tmp_path / "labels.npy"],
        input="\n".join(training.model_dump_json() for training in recipes),
        capture_output=True,
        text=True,
    )
    assert (done.stdout.split(), done.returncode) == (digests, 0), done.stderr


def test_the_key_decides(training: TrainingRecipe, data: LabelledImages) -> None:
    start = initial_state(training, "chain", None)
    assert len({digest_of(training, data, start=start, key=key) for key in ("a", "b")}) == 2
    initial = [digest_tensors(initial_state(training, key, None)) for key in ("a", "b", "a")]
    assert initial[0] == initial[2] != initial[1]


def test_dropout_is_of_the_key(make_training: Make, data: LabelledImages) -> None:
    training = make_training(model=f"{__name__}:dropping_network")
    start = initial_state(training, "chain", None)
    assert digest_of(training, data, start=start) == digest_of(training, data, start=start)
    # One batch, so that the order of samples says little: what differs are the dropped units.
    whole = make_training(model=f"{__name__}:dropping_network", batch_size=21)
    a, b = (train(whole, data, start=start, key=key, epochs=1)["2.weight"] for key in ("a", "b"))
    assert not torch.allclose(a, b, atol=1e-5)


def dropping_network(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """For `package.module:function`."""
    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(int(np.prod(image_shape)), num_classes))


def test_what_the_caller_draws_in_between_changes_nothing(training: TrainingRecipe, data: LabelledImages) -> None:
    start = initial_state(training, "chain", None)
    steps = train_stage(start=start, samples=data, training=training, key="key", epochs=3)

    def drawing() -> Iterator[EpochMetrics]:
        while True:
            torch.rand(17)
            torch.manual_seed(5)
            np.random.rand(3)
            try:
                metrics = next(steps)
            except StopIteration as end:
                return end.value
            yield metrics

    assert digest_tensors(to_end(drawing())) == digest_of(training, data, start=start, epochs=3)


@pytest.mark.parametrize("every_epoch", [False, True])
def test_measuring_changes_no_weights(
    training: TrainingRecipe, data: LabelledImages, test_data: LabelledImages, every_epoch: bool
) -> None:
    assert digest_of(training, data, test=test_data, test_every_epoch=every_epoch) == digest_of(training, data)


def test_arguments_are_left_alone(training: TrainingRecipe, data: LabelledImages, test_data: LabelledImages) -> None:
    start = initial_state(training, "chain", None)
    before = digest_tensors(start), data.images.copy(), data.labels.copy(), test_data.images.copy()
    train(training, data, start=start, test=test_data)
    assert digest_tensors(start) == before[0]
    assert (data.images == before[1]).all()
    assert (data.labels == before[2]).all()
    assert (test_data.images == before[3]).all()


def test_read_only_arrays_serve_as_well(training: TrainingRecipe, data: LabelledImages) -> None:
    frozen = LabelledImages(images=data.images.copy(), labels=data.labels.copy())
    frozen.images.setflags(write=False)
    frozen.labels.setflags(write=False)
    assert digest_of(training, frozen, test=frozen) == digest_of(training, data)


def test_float32_inputs_are_left_alone(make_training: Make, random_samples: MakeSamples) -> None:
    training = make_training(image_shape=(6,))
    features = random_samples(20, (6,)).images
    weights, before = initial_state(training, "chain", None), features.copy()
    first = predict_log_probabilities(weights, features, training)
    assert (features == before).all()
    assert (predict_log_probabilities(weights, features, training) == first).all()


def test_weights_are_on_the_cpu_and_own_their_memory(training: TrainingRecipe, data: LabelledImages) -> None:
    weights = train(training, data)
    assert weights.keys() == models.build(training).state_dict().keys()
    assert all(t.device.type == "cpu" and t.is_contiguous() and not t.requires_grad for t in weights.values())
    assert {t.dtype for t in weights.values()} <= {torch.float32, torch.int64}


# The process around it.


def settings_of_torch() -> tuple[object, ...]:
    return (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
        torch.is_grad_enabled(),
        digest_tensors({"state": torch.get_rng_state()}),
    )


@pytest.fixture(params=[(1, False, False), (2, True, False), (2, True, True)], ids=str)
def set_by_the_caller(request: pytest.FixtureRequest) -> Iterator[None]:
    threads, deterministic, warn_only = request.param
    before = settings_of_torch()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
    torch.manual_seed(99)
    yield
    torch.set_num_threads(before[0])
    torch.use_deterministic_algorithms(before[1], warn_only=before[2])


@pytest.mark.usefixtures("set_by_the_caller")
def test_settings_of_torch_are_put_back(make_training: Make, data: LabelledImages) -> None:
    training = make_training()
    before = settings_of_torch()
    start = initial_state(training, "chain", None)
    assert settings_of_torch() == before
    train(training, data, start=start, test=data)
    assert settings_of_torch() == before
    predict_log_probabilities(start, data.images, training)
    assert settings_of_torch() == before


def test_settings_are_put_back_after_an_error_and_a_stop(make_training: Make, data: LabelledImages) -> None:
    training = make_training()
    start, before = initial_state(training, "chain", None), settings_of_torch()
    stopped = train_stage(start=start, samples=data, training=training, key="key", epochs=3)
    next(stopped)
    stopped.close()
    assert settings_of_torch() == before
    with pytest.raises(RuntimeError, match="state_dict"):
        train(training, data, start={})
    assert settings_of_torch() == before


# Going on inside a stage. Three epochs of three batches: states after steps 1 to 8.

EPOCHS, STEPS = 3, range(1, 9)
RESUMED: list[dict[str, Any]] = [
    {},
    {"optimizer": {"momentum": 0.0, "weight_decay": 1e-3}, "schedule": "constant"},
    {"optimizer": {"nesterov": True, "weight_decay": 1e-3}, "schedule": "one_cycle", "label_smoothing": 0.1},
    {"optimizer": {"name": "adam", "lr": 1e-3}},
    {"optimizer": {"name": "adamw", "lr": 1e-3, "backbone_lr": 1e-4, "weight_decay": 0.1}, "schedule": "one_cycle"},
    {"precision": "bfloat16", "threads": 2},
    {**AUGMENTED, "optimizer": {"nesterov": True}, "schedule": "one_cycle"},
    {**AUGMENTED, "optimizer": {"lr": 0.1, "backbone_lr": 0.01}, "precision": "bfloat16"},
    {**AUGMENTED, "optimizer": {"name": "adam", "lr": 1e-3}, "threads": 2},
    {"model": f"{__name__}:dropping_network"},
    {"model": f"{__name__}:unusual_network", "optimizer": {"name": "adamw", "lr": 1e-2}},
    {"model": f"{__name__}:unusual_network"},
    {"model": f"{__name__}:dropping_network", **PRIVATE},
    {**AUGMENTED, **PRIVATE, "optimizer": {"name": "adam", "lr": 1e-3}, "precision": "bfloat16"},
]


class UnusualNetwork(nn.Module):
    """Frozen, unused and tied parameters, and a buffer that no weights file holds and that changes what is computed."""

    def __init__(self, num_inputs: int, num_classes: int) -> None:
        super().__init__()
        self.frozen = nn.Linear(num_inputs, 16).requires_grad_(False)
        self.unused = nn.Linear(2, 2)
        self.norm, self.tied = nn.BatchNorm1d(16), nn.Linear(16, 16)
        self.also_tied = self.tied
        self.dropout, self.linear = nn.Dropout(0.3), nn.Linear(16, num_classes)
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        hidden = self.norm(self.frozen(inputs.flatten(1)))
        return self.linear(self.dropout(self.also_tied(self.tied(hidden)))) / self.calls


def unusual_network(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    """For `package.module:function`."""
    return UnusualNetwork(int(np.prod(image_shape)), num_classes)


def save_at(*steps: int) -> Callable[[Position], str | None]:
    return lambda position: "save" if position.step in steps else None


Yields = tuple[list[EpochMetrics], dict[int, Partial], Weights]


def follow(steps: Iterator[Any]) -> Yields:
    """Metrics, states by step, and weights of a stage, drawing random numbers between any two."""
    metrics: list[EpochMetrics] = []
    partials: dict[int, Partial] = {}
    while True:
        torch.rand(7)
        try:
            made = next(steps)
        except StopIteration as end:
            return metrics, partials, end.value
        if isinstance(made, EpochMetrics):
            metrics.append(made)
        elif isinstance(made, Partial):
            partials[made.position.step] = made


def train_on(training: TrainingRecipe, data: LabelledImages, **options: Any) -> Yields:
    options = {"start": initial_state(training, "chain", None), "epochs": EPOCHS, **options}
    return follow(train_stage(samples=data, training=training, key="key", **options))


def from_bytes(partial: Partial) -> Partial:
    """As another process reads it."""
    return dataclasses.replace(partial, tensors=weights.from_bytes(weights.to_bytes(partial.tensors)))


@pytest.mark.parametrize("recipe", RESUMED, ids=str)
def test_a_stage_resumed_anywhere_is_one_that_never_stopped(
    make_training: Make, data: LabelledImages, test_data: LabelledImages, recipe: dict[str, Any]
) -> None:
    """Weights, metrics and all states on the way, to the bit; so a stage may be resumed any number of times."""
    training = make_training(**recipe)
    measured = {"test": test_data, "test_every_epoch": True}
    metrics, _, whole = train_on(training, data, **measured)
    saving, partials, also_whole = train_on(training, data, **measured, due=save_at(*STEPS))
    assert list(partials) == list(STEPS)
    assert (saving, digest_tensors(also_whole)) == (metrics, digest_tensors(whole))
    for step, partial in partials.items():
        check_partial(partial, training=training, num_samples=21, epochs=EPOCHS, device="cpu")
        rest, later, end = train_on(training, data, **measured, resume=from_bytes(partial), due=save_at(*STEPS))
        assert rest == metrics[step // 3 :], step
        assert digest_tensors(end) == digest_tensors(whole), step
        assert list(later) == list(STEPS[step:])
        assert all(digest_tensors(later[n].tensors) == digest_tensors(partials[n].tensors) for n in later), step


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", [RESUMED[3], RESUMED[6], RESUMED[7], RESUMED[9]], ids=str)
def test_a_stage_resumed_on_cuda_is_one_that_never_stopped(
    make_training: Make, data: LabelledImages, recipe: dict[str, Any]
) -> None:
    training = make_training(**recipe)
    metrics, partials, whole = train_on(training, data, device="cuda", due=save_at(*STEPS))
    for step, partial in partials.items():
        check_partial(partial, training=training, num_samples=21, epochs=EPOCHS, device="cuda")
        rest, _, end = train_on(training, data, resume=from_bytes(partial), device="cuda")
        assert (rest, digest_tensors(end)) == (metrics[step // 3 :], digest_tensors(whole)), step


@settings(max_examples=30)
@given(
    count=st.integers(1, 30),
    batch_size=st.integers(1, 12),
    epochs=st.integers(1, 4),
    breaks=st.lists(st.integers(1, 40), unique=True, max_size=4).map(sorted),
)
def test_breaks_at_any_steps_of_any_stage_change_nothing(
    make_training: Make, random_samples: MakeSamples, count: int, batch_size: int, epochs: int, breaks: list[int]
) -> None:
    samples = random_samples(count, (5,))
    data = LabelledImages(images=samples.images, labels=samples.labels)
    training = make_training(image_shape=(5,), batch_size=batch_size, optimizer={"lr": 1e-3, "nesterov": True})
    metrics, _, whole = train_on(training, data, epochs=epochs)
    seen: list[EpochMetrics] = []
    resume = None
    for step in breaks:
        steps = train_stage(
            start=initial_state(training, "chain", None),
            samples=data,
            training=training,
            key="key",
            epochs=epochs,
            resume=resume,
            due=save_at(step),
        )
        made = []
        for item in steps:
            made.append(item)
            if isinstance(item, Partial):
                break
        steps.close()
        if not isinstance(made[-1], Partial):
            break  # the stage has no such step, and ended
        seen += made[:-1]
        resume = from_bytes(made[-1])
    rest, _, end = train_on(training, data, epochs=epochs, resume=resume)
    assert seen + rest == metrics
    assert digest_tensors(end) == digest_tensors(whole)


@pytest.mark.parametrize("what", ["tell", "save"])
def test_nothing_is_due_before_the_first_step_or_after_the_last(
    make_training: Make, data: LabelledImages, what: str
) -> None:
    asked: list[int] = []

    def due(position: Position) -> str:
        asked.append(position.step)
        return what

    assert len(train_on(make_training(), data, due=due)[0]) == EPOCHS
    assert asked == list(STEPS)


def test_the_metrics_of_an_epoch_come_before_the_state_at_its_end(make_training: Make, data: LabelledImages) -> None:
    training = make_training()
    start = initial_state(training, "chain", None)
    steps = train_stage(start=start, samples=data, training=training, key="key", epochs=2, due=lambda at: "save")
    made = [type(item).__name__ if isinstance(item, EpochMetrics) else item.position.step for item in steps]
    assert made == [1, 2, "EpochMetrics", 3, 4, 5, "EpochMetrics"]


def test_a_place_is_told_without_its_state(make_training: Make, data: LabelledImages) -> None:
    training = make_training(model=f"{__name__}:dropping_network")
    start = initial_state(training, "chain", None)
    steps = train_stage(start=start, samples=data, training=training, key="key", epochs=2, due=lambda at: "tell")
    places = [item for item in steps if isinstance(item, Position)]
    assert [(p.epoch, p.batch, p.num_batches) for p in places] == [
        (0, 1, 3),
        (0, 2, 3),
        (1, 0, 3),
        (1, 1, 3),
        (1, 2, 3),
    ]
    _, _, whole = train_on(training, data)
    assert digest_tensors(train_on(training, data, due=lambda at: "tell")[2]) == digest_tensors(whole)


def misfits(partial: Partial) -> Iterator[tuple[str, Partial]]:
    """States that no stage of the recipe has, and why."""

    def other(**changed: torch.Tensor | None) -> Partial:
        tensors = {**partial.tensors, **changed}
        return dataclasses.replace(partial, tensors={name: t for name, t in tensors.items() if t is not None})

    def at(**changed: int) -> Partial:
        return dataclasses.replace(partial, position=dataclasses.replace(partial.position, **changed))

    weight, generator = "model/linear.weight", partial.tensors["generator/cpu"]
    yield "absent", other(**{weight: None})
    yield "half of what the optimiser keeps", other(**{"optimizer/exp_avg/linear.weight": None})
    yield "unknown", other(**{"model/other": torch.zeros(3)})
    yield "of another optimiser", other(**{"optimizer/momentum_buffer/linear.weight": torch.zeros(3, 64)})
    yield "one that would be broadcast", other(**{weight: torch.zeros(1)})
    yield "of another shape", other(**{weight: torch.zeros(64, 3)})
    yield "of another type", other(**{weight: partial.tensors[weight].double()})
    yield "no generator", other(**{"generator/cpu": torch.zeros_like(generator)})
    yield "short generator", other(**{"generator/cpu": generator[:-1].clone()})
    yield "no tensors", dataclasses.replace(partial, tensors={})
    yield "beyond the last epoch", at(epoch=EPOCHS)
    yield "beyond the last batch", at(batch=3)
    yield "before the first", at(epoch=-1)
    yield "negative batch", at(batch=-1)
    yield "the start", at(epoch=0, batch=0)
    yield "of a stage of other samples", at(num_batches=4)


def test_a_state_of_another_stage_is_refused(make_training: Make, data: LabelledImages) -> None:
    training = make_training(optimizer={"name": "adam", "lr": 1e-3})
    partial = train_on(training, data, due=save_at(4))[1][4]
    before = settings_of_torch()
    for why, wrong in misfits(partial):
        with pytest.raises(TrainingError, match=r"^partial: "):
            check_partial(wrong, training=training, num_samples=21, epochs=EPOCHS, device="cpu")
            pytest.fail(why)
        with pytest.raises(TrainingError, match=r"^partial: "):
            train_on(training, data, resume=wrong)
            pytest.fail(why)
    check_partial(partial, training=training, num_samples=21, epochs=EPOCHS, device="cpu")
    assert settings_of_torch()[:-1] == before[:-1]


def test_a_state_is_a_copy(make_training: Make, data: LabelledImages) -> None:
    training = make_training()
    start = initial_state(training, "chain", None)
    steps = train_stage(start=start, samples=data, training=training, key="key", epochs=2, due=save_at(1))
    partial = next(steps)
    assert isinstance(partial, Partial)
    before = digest_tensors(partial.tensors)
    to_end(steps)
    assert digest_tensors(partial.tensors) == before
    train_on(training, data, resume=partial, epochs=2)
    assert digest_tensors(partial.tensors) == before


# What is computed.


def test_sgd_against_a_plain_loop(make_training: Make, data: LabelledImages) -> None:
    """The whole of a stage, written out with autograd and the textbook update, in doubles."""
    recipe = {"schedule": "cosine", "label_smoothing": 0.1, "optimizer": {"lr": 0.05, "weight_decay": 1e-3}}
    training = make_training(**recipe)
    start = initial_state(training, "chain", None)
    model = models.build(training).double()
    model.load_state_dict(start)
    momenta = [torch.zeros_like(p) for p in model.parameters()]
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    step, total, losses, hits = 0, 2 * 3, 0.0, 0
    for epoch in range(2):
        losses, hits = 0.0, 0
        for batch, target in Batches(images, labels, training, "cpu").epoch("key", epoch):
            logits = model(batch.double())
            loss = F.cross_entropy(logits, target, label_smoothing=0.1)
            losses, hits = losses + loss.item() * len(target), hits + int((logits.argmax(1) == target).sum())
            grads = torch.autograd.grad(loss, list(model.parameters()))
            rate = 0.05 * (1 + np.cos(np.pi * step / total)) / 2
            with torch.no_grad():
                for p, m, g in zip(model.parameters(), momenta, grads, strict=True):
                    m.mul_(0.9).add_(g + 1e-3 * p)
                    p.sub_(rate * m)
            step += 1
    metrics: list[EpochMetrics] = []
    steps = train_stage(start=start, samples=data, training=training, key="key", epochs=2)
    while True:
        try:
            metrics.append(next(steps))
        except StopIteration as end:
            weights = end.value
            break
    for name, expected in model.state_dict().items():
        torch.testing.assert_close(weights[name], expected.float(), rtol=1e-4, atol=1e-6)
    assert [m.epoch for m in metrics] == [0, 1]
    assert metrics[1].loss == pytest.approx(losses / 21, rel=1e-5)
    assert metrics[1].train_top1 == pytest.approx(hits / 21)


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": {"name": "adam", "lr": 1e-3}},
        {"optimizer": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.1}},
        {"optimizer": {"nesterov": True}},
        {"schedule": "constant"},
        {"schedule": "one_cycle"},
        {"precision": "bfloat16"},
        {"label_smoothing": 0.2},
        {"batch_size": 100},
        {"input_size": 16, "model": "small_cnn"},
    ],
    ids=str,
)
def test_every_setting_trains_and_matters(make_training: Make, data: LabelledImages, settings: dict[str, Any]) -> None:
    training, plain = make_training(**settings), make_training(model=settings.get("model", "mlp"))
    start = initial_state(plain, "chain", None)
    weights = train(training, data, start=start)
    assert all(torch.isfinite(t.float()).all() for t in weights.values())
    assert digest_tensors(weights) == digest_of(training, data, start=start)
    assert digest_tensors(weights) != digest_of(plain, data, start=start)


def test_it_learns(make_training: Make) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 90)
    images = (labels[:, None, None, None] * 80 + random.integers(0, 60, (90, 8, 8, 1))).astype(np.uint8)
    data = LabelledImages(images=images, labels=labels)
    training = make_training(optimizer={"lr": 0.05})
    start = initial_state(training, "chain", None)
    metrics = list(
        train_stage(start=start, samples=data, training=training, key="k", epochs=15, test=data, test_every_epoch=True)
    )
    assert metrics[-1].test_top1 == 1.0
    assert metrics[-1].test_top5 == 1.0
    assert metrics[-1].loss < metrics[0].loss / 5
    assert all(m.test_top1 is not None for m in metrics)


def test_test_accuracy_is_of_the_last_epoch_unless_asked(
    make_training: Make, data: LabelledImages, test_data: LabelledImages
) -> None:
    training = make_training(num_classes=9)
    start = initial_state(training, "chain", None)
    run = {"start": start, "samples": data, "training": training, "key": "key", "epochs": 3}
    assert [m.test_top1 for m in train_stage(**run)] == [None] * 3
    last = list(train_stage(**run, test=test_data))
    every = list(train_stage(**run, test=test_data, test_every_epoch=True))
    assert [m.test_top1 is None for m in last] == [True, True, False]
    assert [m.test_top1 is None for m in every] == [False] * 3
    assert every[-1] == last[-1]
    scores = predict_log_probabilities(train(training, data, start=start, epochs=3), test_data.images, training)
    ranked = np.argsort(-scores, axis=1)
    assert last[-1].test_top1 == pytest.approx((ranked[:, 0] == test_data.labels).mean())
    assert last[-1].test_top5 == pytest.approx((ranked[:, :5] == test_data.labels[:, None]).any(axis=1).mean())


# Optimiser and schedule.


def test_head_and_backbone_have_their_rates(make_training: Make, data: LabelledImages) -> None:
    config = OptimizerConfig(lr=1e-3, backbone_lr=1e-4)
    model = models.build(make_training(model="small_cnn"))
    head, backbone = make_optimizer(model, config).param_groups
    assert (head["lr"], backbone["lr"]) == (1e-3, 1e-4)
    assert {id(p) for p in head["params"]} == {id(p) for p in model.linear.parameters()}
    assert len(head["params"]) + len(backbone["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("count", [1, 33])
def test_batchnorm_over_one_pixel_never_meets_one_row(
    make_training: Make, random_samples: MakeSamples, count: int
) -> None:
    """A deletion may leave any number of samples: here 32 k + 1, with maps of one pixel."""
    samples = random_samples(count, (1, 1, 1))
    training = make_training(model="resnet20", batch_size=32, image_shape=(1, 1, 1), epochs=(1,))
    arrays = LabelledImages(images=samples.images, labels=samples.labels)
    start = initial_state(training, "chain", None)
    steps = train_stage(start=start, samples=arrays, training=training, key="key", epochs=1)
    (measured,) = list(steps)
    assert 0 <= measured.train_top1 <= 1


def test_rates_scale_their_own_parameters(make_training: Make, data: LabelledImages) -> None:
    def moved(backbone_lr: float) -> dict[str, torch.Tensor]:
        optimizer = {"lr": 0.1, "backbone_lr": backbone_lr}
        training = make_training(batch_size=21, schedule="constant", optimizer=optimizer)
        start = initial_state(training, "chain", None)
        after = train(training, data, start=start, epochs=1)
        return {name: after[name] - start[name] for name in start}

    slow, fast = moved(0.01), moved(0.05)
    torch.testing.assert_close(slow["hidden1.weight"] * 5, fast["hidden1.weight"], rtol=1e-2, atol=1e-6)
    torch.testing.assert_close(slow["linear.weight"], fast["linear.weight"])


def test_a_network_that_is_its_head_has_one_group() -> None:
    groups = make_optimizer(nn.Linear(3, 2), OptimizerConfig(lr=0.3, backbone_lr=0.1)).param_groups
    assert [(len(g["params"]), g["lr"]) for g in groups] == [(2, 0.3)]


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_optimisers_by_name(name: str, kind: type[torch.optim.Optimizer]) -> None:
    optimizer = make_optimizer(nn.Linear(3, 2), OptimizerConfig(name=name, weight_decay=0.1))
    assert type(optimizer) is kind
    assert optimizer.defaults["weight_decay"] == 0.1


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        ("constant", {0: 1, 500: 1, 1000: 1}),
        ("cosine", {0: 1, 250: (1 + 0.5**0.5) / 2, 500: 0.5, 1000: 0}),
        ("one_cycle", {0: 1 / 25, 150: 0.52, 300: 1, 650: (1 + 4e-6) / 2, 1000: 4e-6}),
    ],
)
def test_rate_factor(schedule: Any, at: dict[int, float]) -> None:
    recipe = Recipe(model="mlp", epochs_per_slice=1, schedule=schedule)
    assert {step: rate_factor(recipe, step, 1000) for step in at} == pytest.approx(at, abs=1e-12)
    factors = [rate_factor(recipe, step, 1000) for step in range(1001)]
    assert all(0 <= f <= 1 for f in factors)
    assert max(abs(a - b) for a, b in itertools.pairwise(factors)) < 0.01  # no jumps


# Prediction.


def test_predictions_are_log_probabilities_of_each_image_alone(training: TrainingRecipe, random_samples) -> None:
    images = random_samples(300).images  # more than one batch of prediction
    weights = initial_state(training, "chain", None)
    scores = predict_log_probabilities(weights, images, training)
    assert (scores.shape, scores.dtype) == ((300, 3), np.float32)
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1, rtol=1e-5)
    split = [predict_log_probabilities(weights, images[i : i + 7], training) for i in range(0, 300, 7)]
    np.testing.assert_allclose(scores, np.concatenate(split), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(predict_log_probabilities(weights, images[::-1], training), scores[::-1], rtol=1e-4)


def test_no_images_give_no_rows(training: TrainingRecipe, random_samples: MakeSamples) -> None:
    weights = initial_state(training, "chain", None)
    assert predict_log_probabilities(weights, random_samples(0).images, training).shape == (0, 3)


def test_prediction_is_in_float32_whatever_the_recipe(make_training: Make, data: LabelledImages) -> None:
    plain, half = make_training(), make_training(precision="bfloat16")
    weights = initial_state(plain, "chain", None)
    scores = [predict_log_probabilities(weights, data.images, t) for t in (plain, half)]
    assert (scores[0] == scores[1]).all()


def test_public_weights_are_laid_over_the_random_ones(make_training: Make) -> None:
    training = make_training()
    public = initial_state(training, "elsewhere", None)
    assert digest_tensors(initial_state(training, "chain", public)) == digest_tensors(public)
    wider = initial_state(make_training(num_classes=7), "elsewhere", None)
    fitted, random = initial_state(training, "chain", wider), initial_state(training, "chain", None)
    assert torch.equal(fitted["hidden1.weight"], wider["hidden1.weight"])
    assert torch.equal(fitted["linear.weight"], random["linear.weight"])
