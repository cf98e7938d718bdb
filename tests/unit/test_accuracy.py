"""Accuracy under ties, few classes and undefined scores; cross-entropy against its definition."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss

from ray_sisa.errors import DataError
from ray_sisa.evaluation.accuracy import Accuracy, accuracy, cross_entropy
from ray_sisa.training import num_hits


@given(st.integers(1, 30), st.integers(1, 9), st.integers(1, 1000), st.integers(0, 2**32 - 1))
def test_agrees_with_a_stable_sort(num_samples: int, num_classes: int, num_levels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, num_levels, (num_samples, num_classes)).astype(np.float32)  # few levels: many ties
    labels = rng.integers(0, num_classes, num_samples)
    best_first = np.argsort(-scores, axis=1, kind="stable")
    expected = Accuracy(
        top1=float(np.mean(best_first[:, 0] == labels)),
        top5=float(np.mean((best_first[:, :5] == labels[:, None]).any(axis=1))),
        num_samples=num_samples,
    )
    assert accuracy(scores, labels) == expected


def test_equal_scores_rank_by_lowest_label() -> None:
    scores = np.zeros((7, 7), np.float32)
    assert accuracy(scores, np.arange(7)) == Accuracy(top1=1 / 7, top5=5 / 7, num_samples=7)


def test_with_fewer_than_five_classes_every_class_is_in_the_top_five() -> None:
    scores = np.array([[0.1, 0.2, 0.7], [0.7, 0.2, 0.1]])
    assert accuracy(scores, np.array([0, 0])) == Accuracy(top1=0.5, top5=1.0, num_samples=2)


def test_undefined_scores_are_wrong_and_zero_probabilities_are_ranked() -> None:
    labels = np.array([0, 0])
    assert accuracy(np.full((2, 3), np.nan), labels) == Accuracy(top1=0.0, top5=0.0, num_samples=2)
    assert accuracy(np.array([[0.9, np.nan, 0.1]] * 2), labels).top1 == 0.0
    assert accuracy(np.array([[0.0, -np.inf, -np.inf]] * 2), labels).top1 == 1.0


@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_tensors_are_ranked_by_the_same_rule(num_samples: int, num_classes: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = np.array([0.0, 1.0, np.nan, np.inf, -np.inf], np.float32)
    scores, labels = rng.choice(values, (num_samples, num_classes)), rng.integers(0, num_classes, num_samples)
    hits = num_hits(torch.from_numpy(scores), torch.from_numpy(labels)).item()
    assert hits / num_samples == accuracy(scores, labels).top1
    assert not (np.isnan(scores).all() and hits)


def test_cross_entropy_is_minus_the_log_probability_of_the_label() -> None:
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.ones(4), 50)
    labels = rng.integers(0, 4, 50)
    losses = cross_entropy(np.log(probabilities).astype(np.float32), labels)
    assert losses.dtype == np.float64 and losses.shape == (50,)
    np.testing.assert_allclose(losses, -np.log(probabilities[np.arange(50), labels]), rtol=1e-6)
    np.testing.assert_allclose(losses.mean(), log_loss(labels, probabilities, labels=range(4)), rtol=1e-6)


def test_cross_entropy_of_an_impossible_label_is_infinite() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = cross_entropy(np.array([[0.0, -np.inf]], np.float32), np.array([1]))
    assert losses.tolist() == [np.inf]


def test_no_record_has_no_accuracy_and_no_losses() -> None:
    nothing, no_labels = np.zeros((0, 3), np.float32), np.zeros(0, np.int64)
    assert cross_entropy(nothing, no_labels).shape == (0,)
    with pytest.raises(DataError, match="at least one record"):
        accuracy(nothing, no_labels)


@pytest.mark.parametrize("measure", [accuracy, cross_entropy])
def test_shapes_and_labels_are_checked(measure) -> None:
    scores = np.zeros((2, 3), np.float32)
    for labels in ([0, 1, 2], [[0, 1]]):
        with pytest.raises(DataError, match=r"must be \[N, K\] and \[N\]"):
            measure(scores, np.array(labels))
    for labels in ([0, 3], [-1, 0]):
        with pytest.raises(DataError, match=r"0\.\.2"):
            measure(scores, np.array(labels))
