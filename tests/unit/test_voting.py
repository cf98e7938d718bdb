"""The laws of the three voting rules, on drawn probabilities."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_sisa.errors import ConfigError, DataError
from ray_sisa.voting import Rule, vote

RULES: tuple[Rule, ...] = ("mean", "majority", "weighted")


@st.composite
def ensembles(draw: st.DrawFn) -> np.ndarray:
    """Probabilities float32 [M, N, K] of small integers, so that ties are frequent."""
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 4)), draw(st.integers(2, 7)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = rng.integers(0, draw(st.sampled_from([2, 4, 1000])), shape)
    counts[..., 0] += counts.sum(axis=2) == 0
    return (counts / counts.sum(axis=2, keepdims=True)).astype(np.float32)


def rows(*constituents: list[float]) -> np.ndarray:
    """Probabilities [M, 1, K] of one record."""
    return np.array(constituents, dtype=np.float32)[:, None, :]


@given(ensembles(), st.sampled_from(RULES))
def test_rows_sum_to_one(probabilities: np.ndarray, rule: Rule) -> None:
    combined = vote(probabilities, rule, range(1, len(probabilities) + 1))
    assert combined.dtype == np.float64 and combined.shape == probabilities.shape[1:]
    assert (combined >= 0).all()
    np.testing.assert_allclose(combined.sum(axis=1), 1, atol=1e-6)  # the rounding of float32 inputs


@given(ensembles(), st.sampled_from(RULES), st.randoms(use_true_random=False))
def test_order_of_constituents_changes_nothing(probabilities: np.ndarray, rule: Rule, random) -> None:
    order = list(range(len(probabilities)))
    random.shuffle(order)
    num_samples = np.arange(1, len(order) + 1)
    straight = vote(probabilities, rule, num_samples.tolist())
    shuffled = vote(probabilities[order], rule, num_samples[order].tolist())
    np.testing.assert_allclose(shuffled, straight, rtol=0, atol=1e-15)


@given(ensembles())
def test_majority_winner_has_most_votes_then_highest_mean(probabilities: np.ndarray) -> None:
    winners = vote(probabilities, "majority").argmax(axis=1)
    means = probabilities.astype(np.float64).mean(axis=0)
    for record, winner in enumerate(winners):
        votes = np.bincount(probabilities[:, record].argmax(axis=1), minlength=probabilities.shape[2])
        tied = np.flatnonzero(votes == votes.max())
        assert winner in tied
        assert means[record, winner] >= means[record, tied].max() - 1e-12


@given(ensembles())
def test_majority_ranks_every_class_by_votes_first(probabilities: np.ndarray) -> None:
    combined = vote(probabilities, "majority")
    for record, scores in enumerate(combined):
        votes = np.bincount(probabilities[:, record].argmax(axis=1), minlength=len(scores))
        ranked = votes[np.argsort(-scores, kind="stable")]
        assert (np.diff(ranked) <= 0).all()


@given(ensembles(), st.integers(1, 1000))
def test_equal_weights_give_the_mean(probabilities: np.ndarray, count: int) -> None:
    weighted = vote(probabilities, "weighted", [count] * len(probabilities))
    np.testing.assert_allclose(weighted, vote(probabilities, "mean"), rtol=0, atol=1e-15)


@given(ensembles(), st.sampled_from(RULES))
def test_one_constituent_decides_alone(probabilities: np.ndarray, rule: Rule) -> None:
    alone = probabilities[:1]
    assert (vote(alone, rule, [7]).argmax(axis=1) == alone[0].argmax(axis=1)).all()


def test_tied_vote_goes_to_the_higher_mean() -> None:
    assert vote(rows([0.6, 0.4, 0.0], [0.0, 0.1, 0.9]), "majority").argmax() == 2


def test_tied_vote_and_mean_go_to_the_lowest_label() -> None:
    assert vote(rows([0.1, 0.2, 0.7], [0.2, 0.7, 0.1], [0.7, 0.1, 0.2]), "majority").argmax() == 0


def test_tie_inside_a_constituent_goes_to_the_lowest_label() -> None:
    np.testing.assert_allclose(vote(rows([0.0, 0.5, 0.5]), "majority"), [[0, 0.75, 0.25]])


def test_votes_outrank_means() -> None:
    probabilities = rows([0.51, 0.49], [0.51, 0.49], [0.0, 1.0])
    assert vote(probabilities, "majority").argmax() == 0
    assert vote(probabilities, "mean").argmax() == 1


def test_weights_are_live_samples() -> None:
    np.testing.assert_allclose(vote(rows([1.0, 0.0], [0.0, 1.0]), "weighted", [30, 10]), [[0.75, 0.25]])
    np.testing.assert_allclose(vote(rows([1.0, 0.0], [0.0, 1.0]), "weighted", [0, 10]), [[0.0, 1.0]])


@pytest.mark.parametrize("rule", RULES)
def test_a_constituent_without_numbers_for_a_record_does_not_vote_on_it(rule: Rule) -> None:
    some = np.random.default_rng(0).dirichlet(np.ones(4), (3, 6)).astype(np.float32)
    holes = some.copy()
    holes[1, 2, 3], holes[0, 4], holes[1, 4, 0] = np.nan, np.nan, np.nan
    combined = vote(holes, rule, [5, 2, 9])
    whole = [0, 1, 3, 5]
    assert (combined[whole] == vote(some[:, whole], rule, [5, 2, 9])).all()  # no record changes for another's sake
    assert (combined[2:3] == vote(some[[0, 2], 2:3], rule, [5, 9])).all()
    assert (combined[4:5] == vote(some[[2], 4:5], rule, [9])).all()


@pytest.mark.parametrize("rule", RULES)
def test_a_record_for_which_nobody_has_numbers_is_refused(rule: Rule) -> None:
    silent = np.array([[[0.5, 0.5], [np.nan, 0.5]], [[0.5, 0.5], [0.5, np.nan]]])
    with pytest.raises(DataError, match="no constituent gives numbers for record 1; so it is of 1 of 2"):
        vote(silent, rule, [1, 1])


@pytest.mark.parametrize("rule", RULES)
def test_no_record_gives_no_row(rule: Rule) -> None:
    assert vote(np.zeros((2, 0, 3), np.float32), rule, [1, 1]).shape == (0, 3)


@pytest.mark.parametrize("rule", RULES)
def test_empty_ensemble_is_refused(rule: Rule) -> None:
    with pytest.raises(DataError, match="no constituent is left to vote") as caught:
        vote(np.zeros((0, 5, 3), np.float32), rule, [])
    assert caught.value.field == "ensemble"
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("num_samples", [None, [1], [1, 2, 3], [0, 0], [2, -1]])
def test_unusable_weights_are_refused(num_samples: list[int] | None) -> None:
    with pytest.raises(DataError, match="num_samples"):
        vote(rows([1.0, 0.0], [0.0, 1.0]), "weighted", num_samples)


def test_other_shapes_and_rules_are_refused() -> None:
    with pytest.raises(DataError, match=r"\[constituents, records, classes\]"):
        vote(np.ones((2, 3), np.float32))
    with pytest.raises(ConfigError, match="median"):
        vote(rows([1.0]), "median")  # type: ignore[arg-type]
