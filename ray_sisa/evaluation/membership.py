"""Membership inference from losses: can an attacker tell members from records never trained on?

The attack of the NeurIPS 2023 machine unlearning challenge's starter kit, with what its score needs to be read: an
interval, a null and a ROC curve. It is taken against all test records, or against test records of the same labels, so
that it tells members and not classes. Pure functions on per-record losses; no model is run here.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import auc, roc_curve
from sklearn.model_selection import StratifiedShuffleSplit
from threadpoolctl import threadpool_limits

from ray_sisa.errors import DataError

NUM_SPLITS = 10
MIN_PER_CLASS = 20
MAX_LOSS = 1000.0
"""Losses are cut here: above -log of the least positive float64 (744.4), so what is cut is infinite or all but."""

Losses = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]
Sides = tuple[NDArray[np.float64], NDArray[np.float64]]  # losses of members, and of records never trained on
Split = tuple[NDArray[np.int64], NDArray[np.int64]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Roc:
    """Rates of an attack that takes the records of lowest loss for members, over rising thresholds.

    Both run from 0 to 1, never fall, and have at most 100 points.
    """

    fpr: tuple[float, ...]
    """Share of test records taken for members."""
    tpr: tuple[float, ...]
    """Share of members taken for members."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Membership:
    """How well membership is told from losses; accuracy 0.5 is chance.

    The reference is the null, or better the same attack on a model retrained without the members, rather than 0.5.
    """

    accuracy: float
    """Mean attack accuracy over the splits."""
    ci_low: float
    ci_high: float
    """Ends of the interval of `accuracy` at `confidence`, in [0, 1]."""
    confidence: float
    null_mean: float
    null_sd: float
    """Mean and standard deviation of the attack's accuracy where there is nothing to tell: between random halves of
    the test records; where labels are matched, between random parts of members and test records together, label by
    label."""
    z: float | None
    """(accuracy - null_mean) / null_sd; None where the null has no spread, as when all test losses are equal."""
    auc: float
    """Area under the ROC curve of all records, before thinning."""
    roc: Roc
    num_members: int
    num_test: int
    num_per_class: int
    """Records on each side of the attack, after the larger was cut."""
    num_null_per_class: int
    """Records on each side of the null. Below `num_per_class`, null_sd is too wide for the attack, by about the square
    root of their ratio, and z errs towards finding nothing."""
    unmatched: float | None = None
    """Accuracy of the same attack against all test records, whatever their labels; None where `accuracy` is that, or
    where these are fewer than 20."""
    num_left_out: int = 0
    """Members whose label no test record has: they are in no other number."""


def attack(member_losses: Losses, nonmember_losses: Losses, *, seed: int = 0) -> float:
    """Mean accuracy, in [0, 1], of the starter kit's attack.

    The larger side is shuffled and cut so that the classes balance. A logistic regression on the loss alone, with the
    defaults of scikit-learn, is fitted to 90 % of the records and scored on 10 %, ten times (stratified, state 0).

    Args:
        member_losses: cross-entropy of each member in evaluation mode, in nats, float [n].
        nonmember_losses: the same of held-out records, float [m].
        seed: of the shuffle; without effect where n = m.

    Raises:
        DataError: fewer than 20 records on a side, or losses that are not numbers.
    """
    members, nonmembers = _checked(member_losses, MIN_PER_CLASS), _checked(nonmember_losses, MIN_PER_CLASS)
    members, nonmembers = _balance(members, nonmembers, seed)
    with _one_thread():
        return float(_score_splits(members, nonmembers, _splits(len(members))).mean())


def membership_inference(
    member_losses: Losses,
    test_losses: Losses,
    *,
    seed: int = 0,
    num_null: int = 40,
    confidence: float = 0.95,
) -> Membership:
    """The attack with its interval, null and ROC curve.

    With 10,000 records a class and the default null this takes 3 to 6 seconds on one core.

    The interval is the corrected resampled t interval (Nadeau and Bengio 2003): the splits share records, so the
    variance of their mean is taken as (1/J + n_test/n_train) s^2, with J - 1 degrees of freedom. It is never narrower
    than the Wilson interval over the distinct records. In simulations with 20 to 1,000 records a class nominal 95 %
    covers 90 to 93 % of the time at chance and 91 to 97 % at accuracies of 0.6 to 0.84; the Wilson interval alone
    covers 79 to 87 %, as it omits that the splits draw some records more often than others.

    The null is the same attack between disjoint random halves of the test records, `num_null` times, with as many
    records a class as the attack has or half of the test records, whichever is less.

    Args:
        member_losses: cross-entropy of each member in evaluation mode, in nats, float [n].
        test_losses: the same of records never trained on, float [m].
        seed: of the shuffle and of the null.
        num_null: repetitions of the null, at least 2.
        confidence: of the interval, in (0, 1).

    Raises:
        DataError: fewer than 20 members or 40 test records, losses that are not numbers, or `num_null` below 2.
    """
    _check_num_null(num_null)
    members, test = _checked(member_losses, MIN_PER_CLASS), _checked(test_losses, 2 * MIN_PER_CLASS)
    halves = _null_sides([test], [min(len(members), len(test) // 2)], num_null, seed)
    return _measured(_balance(members, test, seed), halves, (members, test), np.ones(len(test)), confidence)


def num_matched(member_labels: Labels, test_labels: Labels) -> int:
    """How many members have a test record of their own label each, which none of the others has."""
    return sum(min(len(members), len(test)) for members, test in _by_label(member_labels, test_labels))


def matched_membership_inference(
    member_losses: Losses,
    member_labels: Labels,
    test_losses: Losses,
    test_labels: Labels,
    *,
    seed: int = 0,
    num_null: int = 40,
    confidence: float = 0.95,
) -> Membership:
    """The attack against test records of the members' labels, so that it cannot live on which labels members have.

    A model that never saw the members may be worse on their labels than on others. Against all test records that alone
    tells them apart; here both sides have equally many records of each label. Of a label with more members than test
    records as many members are drawn as there are test records, and with fewer members likewise; members whose label no
    test record has are left out. The ROC curve draws nothing: it has all records, and weighs the test records of a
    label so that together they count as its members do.

    The null is the same attack, as large, between two random parts of members and test records together, each with the
    labels of the attack. On a model that never saw the members they are alike, so the attack is one more such draw. It
    needs no second set of test records, of which a single label has few.

    Args:
        member_losses: cross-entropy of each member in evaluation mode, in nats, float [n].
        member_labels: their labels, int [n].
        test_losses: cross-entropy of records never trained on, float [m].
        test_labels: their labels, int [m].
        seed: of what is drawn, and of the null.
        num_null: repetitions of the null, at least 2.
        confidence: of the interval, in (0, 1).

    Raises:
        DataError: fewer than 20 members have a test record of their label, losses that are not numbers, or `num_null`
            below 2.
    """
    _check_num_null(num_null)
    members, test = _checked(member_losses, 1), _checked(test_losses, 1)
    labels = _by_label(member_labels, test_labels)
    if (matched := num_matched(member_labels, test_labels)) < MIN_PER_CLASS:
        rule = f"needs at least {MIN_PER_CLASS} members with a test sample of their class each"
        raise DataError("membership", matched, rule, "Give more records, or skip this measure")
    sizes = [min(len(m), len(t)) for m, t in labels]
    rng = np.random.default_rng(seed)
    drawn = [(rng.permutation(m)[:size], rng.permutation(t)[:size]) for (m, t), size in zip(labels, sizes, strict=True)]
    sides = np.concatenate([members[m] for m, _ in drawn]), np.concatenate([test[t] for _, t in drawn])
    pools = [np.concatenate([members[m], test[t]]) for m, t in labels]
    found = _measured(
        sides,
        _null_sides(pools, sizes, num_null, seed),
        (np.concatenate([members[m] for m, _ in labels]), np.concatenate([test[t] for _, t in labels])),
        np.concatenate([np.full(len(t), len(m) / len(t)) for m, t in labels]),
        confidence,
    )
    is_large = min(len(members), len(test)) >= MIN_PER_CLASS
    return replace(
        found,
        unmatched=attack(members, test, seed=seed) if is_large else None,
        num_left_out=len(members) - found.num_members,
    )


def _measured(
    sides: Sides, null_sides: Sequence[Sides], everything: Sides, test_weights: NDArray[np.float64], confidence: float
) -> Membership:
    """The attack between sides of equal size, its null, and the curve of all records under weights of the test's."""
    splits = _splits(len(sides[0]))
    with _one_thread():
        scores = _score_splits(*sides, splits)
        null_splits = _splits(len(null_sides[0][0]))
        null = np.array([_score_splits(*null_side, null_splits).mean() for null_side in null_sides])
    ci_low, ci_high = _interval(scores, splits, confidence)
    # The deviation of equal numbers can be a rounding error above 0.
    null_sd = float(null.std(ddof=1)) if np.ptp(null) else 0.0
    roc, area = _roc(*everything, test_weights)
    members, test = everything
    return Membership(
        accuracy=float(scores.mean()),
        ci_low=ci_low,
        ci_high=ci_high,
        confidence=confidence,
        null_mean=float(null.mean()),
        null_sd=null_sd,
        z=float(scores.mean() - null.mean()) / null_sd if null_sd else None,
        auc=area,
        roc=roc,
        num_members=len(members),
        num_test=len(test),
        num_per_class=len(sides[0]),
        num_null_per_class=len(null_sides[0][0]),
    )


def _check_num_null(num_null: int) -> None:
    if num_null < 2:
        raise DataError("num_null", num_null, "must be at least 2", "A standard deviation is taken of the null")


def _by_label(member_labels: Labels, test_labels: Labels) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows of the members and of the test records of each label that both have."""
    shared = np.intersect1d(member_labels, test_labels)
    return [(np.flatnonzero(member_labels == label), np.flatnonzero(test_labels == label)) for label in shared]


def _checked(losses: Losses, minimum: int) -> NDArray[np.float64]:
    if losses.ndim != 1 or len(losses) < minimum:
        rule = (
            f"needs at least {MIN_PER_CLASS} members and {2 * MIN_PER_CLASS} test samples, as arrays of one loss each"
        )
        raise DataError("membership", f"losses {list(losses.shape)}", rule, "Give more records, or skip this measure")
    if np.isnan(losses).any():
        count = int(np.isnan(losses).sum())
        raise DataError("membership", f"{count} losses NaN", "must be numbers", "Train at a lower learning rate")
    return np.clip(losses.astype(np.float64), -MAX_LOSS, MAX_LOSS)


def _balance(
    members: NDArray[np.float64], nonmembers: NDArray[np.float64], seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    num_kept = min(len(members), len(nonmembers))
    rng = np.random.default_rng(seed)
    cut = [x if len(x) == num_kept else x[rng.permutation(len(x))[:num_kept]] for x in (members, nonmembers)]
    return cut[0], cut[1]


def _one_thread() -> Any:
    # A fit of one coefficient is too small to share: the threads of BLAS spend twenty times its cost on waiting.
    return threadpool_limits(limits=1, user_api="blas")


def _labels(num_per_class: int) -> NDArray[np.int64]:
    return np.repeat(np.array([0, 1], dtype=np.int64), num_per_class)  # 1 = member


def _splits(num_per_class: int) -> list[Split]:
    labels = _labels(num_per_class)
    return list(StratifiedShuffleSplit(n_splits=NUM_SPLITS, random_state=0).split(labels, labels))


def _score_splits(
    members: NDArray[np.float64], nonmembers: NDArray[np.float64], splits: Sequence[Split]
) -> NDArray[np.float64]:
    """Accuracy on each split, float64 [J]; the sides are of equal size."""
    features, labels = np.concatenate([nonmembers, members])[:, None], _labels(len(members))
    model = LogisticRegression()
    with warnings.catch_warnings():
        # A fit stopped early is still the protocol's fit; it happens where losses span many orders of magnitude.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # Each fit starts afresh. This is `cross_val_score`, at half its cost where records are few.
        predictions = [model.fit(features[train], labels[train]).predict(features[test]) for train, test in splits]
    return np.array([(p == labels[test]).mean() for p, (_, test) in zip(predictions, splits, strict=True)])


def _interval(scores: NDArray[np.float64], splits: Sequence[Split], confidence: float) -> tuple[float, float]:
    train, test = splits[0]
    mean, num_records = float(scores.mean()), len(train) + len(test)
    sd = float(scores.std(ddof=1)) * (1 / len(scores) + len(test) / len(train)) ** 0.5
    half = float(stats.t.ppf((1 + confidence) / 2, len(scores) - 1)) * sd
    # Splits can agree by luck, or be all perfect: no width must not read as certainty.
    wilson = stats.binomtest(round(mean * num_records), num_records).proportion_ci(confidence, method="wilson")
    return max(0.0, min(mean - half, float(wilson.low))), min(1.0, max(mean + half, float(wilson.high)))


def _null_sides(pools: Sequence[NDArray[np.float64]], sizes: Sequence[int], num_null: int, seed: int) -> list[Sides]:
    """Disjoint random parts of pools of records, `size` records of each pool in either."""
    # The second word keeps this stream apart from the shuffle's.
    rng = np.random.default_rng([seed, 1])
    sides = []
    for _ in range(num_null):
        drawn = [pool[rng.permutation(len(pool))] for pool in pools]
        first = np.concatenate([d[:size] for d, size in zip(drawn, sizes, strict=True)])
        second = np.concatenate([d[size : 2 * size] for d, size in zip(drawn, sizes, strict=True)])
        sides.append((first, second))
    return sides


def _roc(
    members: NDArray[np.float64], test: NDArray[np.float64], test_weights: NDArray[np.float64]
) -> tuple[Roc, float]:
    labels = np.repeat([1, 0], [len(members), len(test)])
    weights = np.concatenate([np.ones(len(members)), test_weights])
    fpr, tpr, _ = roc_curve(labels, -np.concatenate([members, test]), sample_weight=weights)
    last = len(fpr) - 1
    # Half of the points crowd at the low end: confident hits, which accuracy hides, show there (Carlini et al. 2022).
    kept = np.unique(np.concatenate([np.linspace(0, last, 50), np.geomspace(1, last, 50)]).round().astype(np.int64))
    return Roc(fpr=tuple(fpr[kept].tolist()), tpr=tuple(tpr[kept].tolist())), float(auc(fpr, tpr))
