"""How the constituents of an ensemble become one prediction: three rules, from arrays to an array.

Which constituents still vote is decided elsewhere: one that left is simply not passed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ray_sisa.errors import ConfigError, DataError

Rule = Literal["mean", "majority", "weighted"]


def vote(
    probabilities: NDArray[np.floating[Any]],
    rule: Rule = "mean",
    num_samples: Sequence[int] | None = None,
) -> NDArray[np.float64]:
    """The ensemble's probabilities: float64 [N, K], rows that sum to 1 and rank the classes.

    A constituent does not vote on a record for which one of its probabilities is undefined (NaN), see `undefined`.

    Args:
        probabilities: float32 [M, N, K], of M constituents for N records and K classes; rows sum to 1.
        rule: `mean` of the probabilities; `weighted` mean, by `num_samples`; or `majority` of the labels, the most
            probable of each constituent, where the mean probability breaks a tie and then the lowest label does.
        num_samples: live samples of each constituent, [M]; read by `weighted` only.

    Raises:
        DataError: no constituent, or none for a record; an array of another shape, or live samples that cannot be
            weights.
        ConfigError: an unknown rule.
    """
    if len(probabilities) == 0:
        raise DataError(
            "ensemble",
            "0 constituents",
            "no constituent is left to vote",
            "Give the probabilities of at least one",
        )
    if probabilities.ndim != 3:
        shape = list(probabilities.shape)
        raise DataError(
            "probabilities",
            shape,
            "must be [constituents, records, classes]",
            "Stack one array each",
        )
    if rule == "weighted":
        _check_weights(num_samples, len(probabilities))
    lacking = undefined(probabilities)
    if not lacking.any():
        return _by_rule(probabilities, rule, num_samples)
    _check_heard(lacking)
    votes = np.empty(probabilities.shape[1:])
    patterns, of_record = np.unique(lacking, axis=1, return_inverse=True)
    for number, silent in enumerate(patterns.T):
        rows, voting = np.flatnonzero(of_record.reshape(-1) == number), np.flatnonzero(~silent)
        weights = None if num_samples is None else np.asarray(num_samples)[voting].tolist()
        votes[rows] = _by_rule(probabilities[np.ix_(voting, rows)], rule, weights)
    return votes


def undefined(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
    """Where a constituent gives no numbers: bool [M, N] of probabilities, or their logarithms, [M, N, K]."""
    return np.asarray(np.isnan(probabilities).any(axis=2))


def _check_heard(lacking: NDArray[np.bool_]) -> None:
    unheard = np.flatnonzero(lacking.all(axis=0))
    if len(unheard):
        rule = f"no constituent gives numbers for record {unheard[0]}; so it is of {len(unheard)} of {lacking.shape[1]}"
        remedy = "Their weights are no numbers, or too large for this record: lower recipe.optimizer.lr in a new run"
        raise DataError("ensemble", f"{len(lacking)} constituents", rule, remedy)


def _by_rule(
    probabilities: NDArray[np.floating[Any]], rule: Rule, num_samples: Sequence[int] | None
) -> NDArray[np.float64]:
    if rule == "mean":
        return _mean(probabilities)
    if rule == "weighted":
        return _weighted(probabilities, num_samples)
    if rule == "majority":
        return _majority(probabilities)
    raise ConfigError("vote", rule, "is not a rule", "Choose mean, majority or weighted")


def _mean(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    # Sums of float32 are all but exact in float64, so the order of the constituents does not decide a tie.
    return np.asarray(probabilities.mean(axis=0, dtype=np.float64))


def _weighted(probabilities: NDArray[np.floating[Any]], num_samples: Sequence[int] | None) -> NDArray[np.float64]:
    weights = _check_weights(num_samples, len(probabilities))
    return np.asarray(np.einsum("m,mnk->nk", weights, probabilities) / weights.sum())


def _check_weights(num_samples: Sequence[int] | None, num_constituents: int) -> NDArray[np.float64]:
    weights = np.asarray([] if num_samples is None else num_samples, dtype=np.float64)
    if weights.shape != (num_constituents,) or (weights < 0).any() or not weights.any():
        rule = f"must be a count for each of the {num_constituents} constituents, not all 0"
        remedy = "Give the live samples of each constituent that votes"
        raise DataError("num_samples", num_samples, rule, remedy)
    return weights


def _majority(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    num_constituents, num_records, num_classes = probabilities.shape
    votes = np.zeros((num_records, num_classes))
    for labels in probabilities.argmax(axis=2):  # argmax takes the lowest label among equals
        votes[np.arange(num_records), labels] += 1
    # A mean exceeds another by 1 only if all vote for its class; so means decide between equal counts of votes alone.
    votes += _mean(probabilities)
    return np.asarray(votes / (num_constituents + 1))
