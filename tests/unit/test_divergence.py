"""A stage that diverges ends at the step whose loss is the first that is none, wherever it was looked at or resumed."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch

from ray_sisa.config import TrainingRecipe
from ray_sisa.digests import digest_tensors
from ray_sisa.errors import DivergedError, TrainingError
from ray_sisa.records import EpochMetrics
from ray_sisa.samples import Samples
from ray_sisa.snapshot import Partial, Position
from ray_sisa.training import LabelledImages, check_partial, initial_state, to_end, train_stage

Make = Callable[..., TrainingRecipe]
MakeSamples = Callable[..., Samples]
PRIVATE = {"dp": {"noise_multiplier": 1.0}, "noise_multiplier": 1.0}


@pytest.fixture(scope="module")
def features(random_samples: MakeSamples) -> LabelledImages:
    """Forty feature vectors, one of them with a number that is finite and that no network survives."""
    samples = random_samples(40, (6,))
    images = samples.images.copy()
    images[3, 2] = 1e30
    return LabelledImages(images=images, labels=samples.labels)


def options(training: TrainingRecipe, data: LabelledImages, **more: Any) -> dict[str, Any]:
    start = initial_state(training, "chain", None)
    return {"start": start, "samples": data, "training": training, "key": "key", "epochs": 2, **more}


def ended(**given: Any) -> tuple[DivergedError, list[EpochMetrics | Position | Partial]]:
    told = []
    with pytest.raises(DivergedError) as caught:
        for each in train_stage(**given):
            told.append(each)
    return caught.value, told


def losses_by_hand(training: TrainingRecipe, data: LabelledImages, steps: int) -> list[float]:
    """The loss of each of the first steps, from stages that are cut short after each: nothing of the watch is used."""
    from ray_sisa.training import _batches, _live, _seed, _step, load_network, rate_factor, reproducible

    found = []
    with reproducible(training, "cpu"):
        model = load_network(training, initial_state(training, "chain", None), "cpu")
        batches, live = _batches(data, training, "cpu"), _live(model, training, "cpu")
        for epoch in range(2):
            torch.manual_seed(_seed(training, "key", f"network-{epoch}"))
            for images, labels in batches.epoch("key", epoch):
                factor = rate_factor(training.recipe, len(found), 2 * len(batches))
                live.optimizer.param_groups[0]["lr"] = training.recipe.optimizer.lr * factor
                found.append(_step(live, images, labels, training.recipe).item())
    return found[:steps]


def test_the_first_step_without_a_loss_is_named(make_training: Make, features: LabelledImages) -> None:
    training = make_training(image_shape=(6,), mean=(0.0,), std=(1.0,))
    error, told = ended(**options(training, features))
    losses = losses_by_hand(training, features, 10)
    assert error.step == next(i for i, loss in enumerate(losses) if not np.isfinite(loss))
    assert (error.epoch, error.what) == (error.step // 5, "the loss")
    assert f"at step {error.step + 1} of the stage, in epoch {error.epoch + 1}" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.step, again.epoch, again.what) == (str(error), error.step, error.epoch, error.what)
    assert [each.epoch for each in told] == list(range(error.epoch))


@pytest.mark.parametrize("what", ["tell", "save"])
def test_where_it_is_looked_at_decides_nothing(
    make_training: Make, features: LabelledImages, what: Literal["tell", "save"]
) -> None:
    training = make_training(image_shape=(6,), mean=(0.0,), std=(1.0,))
    expected, _ = ended(**options(training, features))
    error, told = ended(**options(training, features, due=lambda at: what))
    assert (error.step, error.epoch, error.what) == (expected.step, expected.epoch, expected.what)
    places = [
        each if isinstance(each, Position) else each.position for each in told if not isinstance(each, EpochMetrics)
    ]
    assert [place.step for place in places] == list(range(1, error.step + 1))
    partials = [each for each in told if isinstance(each, Partial)]
    assert bool(partials) == (what == "save")
    for partial in partials:  # none that is not finite, and from each the same end
        check_partial(partial, training=training, num_samples=40, epochs=2, device="cpu")
        resumed, _ = ended(**options(training, features, resume=partial))
        assert (resumed.step, resumed.what) == (expected.step, expected.what)


@pytest.mark.parametrize("name", ["model/hidden1.weight", "totals"])
def test_a_state_that_is_not_finite_is_not_gone_on_from(
    make_training: Make, random_samples: MakeSamples, name: str
) -> None:
    training, samples = make_training(), random_samples(40)
    data = LabelledImages(images=samples.images, labels=samples.labels)
    saved = next(t for t in train_stage(**options(training, data, due=lambda at: "save")) if isinstance(t, Partial))
    check_partial(saved, training=training, num_samples=40, epochs=2, device="cpu")
    (known,) = [key for key in saved.tensors if key == name]
    spoilt = Partial(position=saved.position, tensors=saved.tensors | {known: saved.tensors[known] * torch.nan})
    with pytest.raises(TrainingError, match=f"{name} is not finite"):
        check_partial(spoilt, training=training, num_samples=40, epochs=2, device="cpu")


def test_weights_count_at_the_end_of_an_epoch(make_training: Make, random_samples: MakeSamples) -> None:
    """One step of an epoch, whose own loss is finite: the weights after it are not."""
    training, samples = make_training(optimizer={"lr": 1e45}, batch_size=40), random_samples(40)
    data = LabelledImages(images=samples.images, labels=samples.labels)
    error, told = ended(**options(training, data, epochs=1))
    assert (error.step, error.epoch) == (0, 0) and error.what.startswith("a weight of ") and not told


def test_with_differential_privacy_the_weights_alone_count(make_training: Make, features: LabelledImages) -> None:
    """A gradient that is not finite is taken as 0: what ends the stage must not follow from one sample's loss."""
    training = make_training(image_shape=(6,), mean=(0.0,), std=(1.0,), **PRIVATE)
    images = features.images.copy()
    images[3] = 3e38
    steps = train_stage(
        **options(training, LabelledImages(images=images, labels=features.labels), due=lambda at: "tell")
    )
    told: list[Any] = []
    while True:
        try:
            told.append(next(steps))
        except StopIteration as end:
            assert all(t.isfinite().all() for t in end.value.values())
            break
    metrics = [each for each in told if isinstance(each, EpochMetrics)]
    assert len(metrics) == 2 and None in [each.loss for each in metrics]
    hopeless = make_training(image_shape=(6,), mean=(0.0,), std=(1.0,), optimizer={"lr": 3e38}, **PRIVATE)
    error, _ = ended(**options(hopeless, features))
    assert error.what.startswith("a weight of ")


@pytest.mark.parametrize("changed", [{}, {"nopeek": {"layer": "hidden1", "weight": 0.5}}, {"precision": "bfloat16"}])
def test_whatever_the_loss_is(make_training: Make, random_samples: MakeSamples, changed: dict[str, Any]) -> None:
    training, samples = make_training(optimizer={"lr": 1e30}, **changed), random_samples(40)
    data = LabelledImages(images=samples.images, labels=samples.labels)
    error, _ = ended(**options(training, data))
    assert error.epoch == 0


def test_watching_changes_no_bit(make_training: Make, random_samples: MakeSamples) -> None:
    training, samples = make_training(), random_samples(40)
    data = LabelledImages(images=samples.images, labels=samples.labels)
    plain = to_end(train_stage(**options(training, data)))
    assert digest_tensors(plain) == digest_tensors(
        to_end(train_stage(**options(training, data, due=lambda at: "tell")))
    )
