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

    Undefined (NaN) probabilities of a constituent make the rows they stand in undefined.

    Args:
        probabilities: float32 [M, N, K], of M constituents for N records and K classes; rows sum to 1.
        rule: `mean` of the probabilities; `weighted` mean, by `num_samples`; or `majority` of the labels, the most
            probable of each constituent, where the mean probability breaks a tie and then the lowest label does.
        num_samples: live samples of each constituent, [M]; read by `weighted` only.

    Raises:
        DataError: no constituent, an array of another shape, or live samples that cannot be weights.
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
    weights = np.asarray([] if num_samples is None else num_samples, dtype=np.float64)
    if weights.shape != (len(probabilities),) or (weights < 0).any() or not weights.any():
        rule = f"must be a count for each of the {len(probabilities)} constituents, not all 0"
        raise DataError(
            "num_samples",
            num_samples,
            rule,
            "Give the live samples of each constituent that votes",
        )
    return np.asarray(np.einsum("m,mnk->nk", weights, probabilities) / weights.sum())


def _majority(probabilities: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    num_constituents, num_records, num_classes = probabilities.shape
    votes = np.zeros((num_records, num_classes))
    for labels in probabilities.argmax(axis=2):  # argmax takes the lowest label among equals
        votes[np.arange(num_records), labels] += 1
    # A mean exceeds another by 1 only if all vote for its class; so means decide between equal counts of votes alone.
    votes += _mean(probabilities)
    return np.asarray(votes / (num_constituents + 1))
