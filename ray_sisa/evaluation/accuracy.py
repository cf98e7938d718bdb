"""Accuracy and cross-entropy of scored records: what a model is judged by, from arrays alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ray_sisa.errors import DataError


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Shares of records, in [0, 1], whose label is the best class (`top1`) or among the best five (`top5`)."""

    top1: float
    top5: float
    num_samples: int


def accuracy(scores: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> Accuracy:
    """Top-1 and top-5 accuracy; with fewer than five classes top-5 counts every class.

    Equal scores rank by lowest label; a score that is not a number counts against its record.

    Args:
        scores: float [N, K], higher for a likelier class: probabilities, their logarithms or logits.
        labels: int64 [N], in 0..K-1.

    Raises:
        DataError: no record, arrays whose shapes do not match, or a label outside 0..K-1.
    """
    label_scores = _scores_of_labels(scores, labels)
    if len(labels) == 0:
        raise DataError(
            "samples",
            "0 records",
            "accuracy needs at least one record",
            "Check what was selected",
        )
    ranks = ranks_of(scores, label_scores, np.arange(scores.shape[1]), labels)
    top5 = ranks < min(5, scores.shape[1])
    return Accuracy(
        top1=float((ranks == 0).mean()),
        top5=float(top5.mean()),
        num_samples=len(labels),
    )


def ranks_of(scores: Any, label_scores: Any, classes: Any, labels: Any) -> Any:
    """How many classes rank ahead of each record's label: int64 [N], 0 where the label is best.

    Equal scores rank by lowest label. A score that is not a number is ahead of the label, and all are ahead of a label
    whose own is none: a NaN never ranks first. Operators alone, so that NumPy arrays and tensors of any device share
    this one rule.

    Args:
        scores: float [N, K], higher for a likelier class.
        label_scores: float [N], the score of each record's label.
        classes: int64 [K], the numbers 0..K-1.
        labels: int64 [N].
    """
    of_label, label = label_scores[:, None], labels[:, None]
    # "Not at most" rather than "above": a comparison with NaN is false, and must count against the label.
    ahead = ~(scores <= of_label) | ((scores == of_label) & (classes < label))
    return ahead.sum(1)


def cross_entropy(
    log_probabilities: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]
) -> NDArray[np.float64]:
    """Cross-entropy of each record in nats: float64 [N], infinite where the label has probability 0.

    Args:
        log_probabilities: float32 [N, K], natural logarithms.
        labels: int64 [N], in 0..K-1.

    Raises:
        DataError: arrays whose shapes do not match, or a label outside 0..K-1.
    """
    return -_scores_of_labels(log_probabilities, labels).astype(np.float64)


def _scores_of_labels(scores: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]) -> NDArray[np.floating[Any]]:
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        shapes = f"{list(scores.shape)} and {list(labels.shape)}"
        raise DataError(
            "scores, labels",
            shapes,
            "must be [N, K] and [N]",
            "Score the records that the labels are of",
        )
    outside = labels[(labels < 0) | (labels >= scores.shape[1])]
    if len(outside):
        rule = f"must be in 0..{scores.shape[1] - 1}, the classes scored"
        raise DataError("labels", np.unique(outside)[:5].tolist(), rule, "Check num_classes")
    return np.asarray(scores[np.arange(len(labels)), labels])
