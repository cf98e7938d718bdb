"""The starter kit's attack: the same number as a plain rewriting of it, and what surrounds the number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

from ray_sisa.errors import DataError
from ray_sisa.evaluation.membership import (
    Membership,
    attack,
    matched_membership_inference,
    membership_inference,
    num_matched,
)

pytestmark = pytest.mark.filterwarnings("error")


def kit_score(member_losses: np.ndarray, test_losses: np.ndarray) -> float:
    """The kit's attack on sides of equal size, from its description; no code is shared with the package."""
    losses = np.array([[x] for x in [*test_losses, *member_losses]])
    is_member = [0] * len(test_losses) + [1] * len(member_losses)
    splits = StratifiedShuffleSplit(n_splits=10, random_state=0)
    return float(cross_val_score(LogisticRegression(), losses, is_member, cv=splits, scoring="accuracy").mean())


def draw(seed: int, num_members: int, num_test: int, shift: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Log-normal losses, the members' lower by `shift` standard deviations of the logarithm."""
    rng = np.random.default_rng(seed)
    return rng.lognormal(-shift, 1, num_members), rng.lognormal(0, 1, num_test)


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_score_is_the_kits(shift: float) -> None:
    members, test = draw(3, 600, 600, shift)
    expected = kit_score(members, test)
    assert attack(members, test) == expected
    assert membership_inference(members, test, num_null=2).accuracy == expected


def test_larger_side_is_shuffled_and_cut() -> None:
    members, test = draw(4, 300, 120)
    kept = np.random.default_rng(9).permutation(300)[:120]
    assert attack(members, test, seed=9) == kit_score(members[kept], test)
    assert attack(test, members, seed=9) == kit_score(test, members[kept])
    found = membership_inference(members, test, seed=9, num_null=2)
    assert (found.num_members, found.num_test, found.num_per_class, found.num_null_per_class) == (300, 120, 120, 60)


def test_null_takes_as_many_as_the_attack_where_the_test_set_allows() -> None:
    found = membership_inference(*draw(4, 50, 130), num_null=2)
    assert (found.num_per_class, found.num_null_per_class) == (50, 50)


def test_chance_is_found_to_be_chance() -> None:
    null = membership_inference(*draw(1000, 200, 400))
    assert null.null_mean == pytest.approx(0.5, abs=0.03)
    z = np.array([(attack(*draw(seed, 200, 400)) - null.null_mean) / null.null_sd for seed in range(60)])
    assert np.mean(np.abs(z) > 2) <= 0.1
    assert 0.7 < z.std() < 1.4
    assert np.abs(z).max() < 4


# Normal losses one standard deviation apart: the best threshold is right for 69.15 % of records.
@pytest.mark.parametrize(("shift", "truth"), [(0.0, 0.5), (1.0, 0.6915)])
def test_interval_covers_the_true_accuracy(shift: float, truth: float) -> None:
    rng = np.random.default_rng(5)
    found = [membership_inference(rng.normal(0, 1, 200), rng.normal(shift, 1, 200), num_null=2) for _ in range(20)]
    assert np.mean([f.ci_low <= truth <= f.ci_high for f in found]) >= 0.85
    assert np.mean([f.ci_high - f.ci_low for f in found]) < 0.2


def test_planted_shift_is_detected() -> None:
    found = membership_inference(*draw(6, 300, 600, shift=1.0))
    assert found.accuracy > 0.6 and found.ci_low > 0.55
    assert found.z is not None and found.z > 4
    assert found.auc > 0.7


def test_wider_confidence_gives_a_wider_interval() -> None:
    data = draw(7, 100, 100)
    narrow, wide = (membership_inference(*data, num_null=2, confidence=c) for c in (0.8, 0.99))
    assert wide.ci_low < narrow.ci_low < narrow.accuracy < narrow.ci_high < wide.ci_high
    assert replace(wide, ci_low=narrow.ci_low, ci_high=narrow.ci_high, confidence=0.8) == narrow


def test_equal_seeds_give_equal_values_and_inputs_are_left_alone() -> None:
    members, test = draw(8, 150, 90)
    before = members.copy(), test.copy()
    assert membership_inference(members, test, seed=2, num_null=3) == membership_inference(
        members, test, seed=2, num_null=3
    )
    assert membership_inference(members, test, seed=3, num_null=3) != membership_inference(
        members, test, seed=2, num_null=3
    )
    np.testing.assert_array_equal(members, before[0])
    np.testing.assert_array_equal(test, before[1])


@pytest.mark.parametrize("decimals", [0, 9])
def test_roc_rises_from_corner_to_corner_and_its_area_is_exact(decimals: int) -> None:
    members, test = (x.round(decimals) for x in draw(10, 3000, 2000, shift=0.5))
    found = membership_inference(members, test, num_null=2)
    fpr, tpr = found.roc.fpr, found.roc.tpr
    assert len(fpr) == len(tpr) <= 100
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0.0, 0.0, 1.0, 1.0)
    assert min(np.diff(fpr)) >= 0 and min(np.diff(tpr)) >= 0
    is_member = np.repeat([1, 0], [3000, 2000])
    assert found.auc == pytest.approx(roc_auc_score(is_member, -np.concatenate([members, test])), abs=1e-12)
    assert np.trapezoid(tpr, fpr) == pytest.approx(found.auc, abs=0.01)


def check_is_finite(found: Membership) -> None:
    values = [found.accuracy, found.ci_low, found.ci_high, found.null_mean, found.null_sd, found.auc]
    assert np.isfinite([*values, *found.roc.fpr, *found.roc.tpr]).all()
    assert 0 <= found.ci_low <= found.accuracy <= found.ci_high <= 1


def test_equal_losses_are_chance() -> None:
    found = membership_inference(np.full(30, 0.25), np.full(60, 0.25), num_null=3)
    check_is_finite(found)
    assert (found.accuracy, found.null_mean, found.null_sd, found.z, found.auc) == (0.5, 0.5, 0.0, None, 0.5)


def test_perfect_separation_is_no_certainty() -> None:
    found = membership_inference(np.zeros(30), np.full(60, 5.0), num_null=3)
    check_is_finite(found)
    assert found.accuracy == found.auc == 1.0
    assert found.ci_low < 0.97 and found.z is None


def test_infinite_and_enormous_losses_are_cut() -> None:
    members, test = draw(11, 60, 90)
    members[:2], test[:5] = np.inf, np.inf
    cut = membership_inference(np.minimum(members, 1000), np.minimum(test, 1000), num_null=3)
    check_is_finite(cut)
    assert membership_inference(members, test, num_null=3) == cut
    assert membership_inference(members, np.where(np.isinf(test), 1e300, test), num_null=3) == cut
    check_is_finite(membership_inference(np.full(20, np.inf), np.full(40, np.inf), num_null=3))


def test_losses_of_any_scale_neither_warn_nor_fail() -> None:
    rng = np.random.default_rng(12)
    for _ in range(5):
        members, test = rng.lognormal(rng.uniform(-8, 8), 6, 60), rng.lognormal(rng.uniform(-8, 8), 6, 60)
        check_is_finite(membership_inference(members.astype(np.float32), test.astype(np.float32), num_null=2))


def test_too_little_is_refused() -> None:
    members, test = draw(13, 20, 40)
    assert membership_inference(members, test, num_null=2).num_null_per_class == 20
    for too_few in ((members[:19], test), (members, test[:39]), (members[:, None], test)):
        with pytest.raises(DataError, match="needs at least 20 members and 40 test samples"):
            membership_inference(*too_few)
    with pytest.raises(DataError, match="at least 20"):
        attack(members[:19], test)
    with pytest.raises(DataError, match="num_null"):
        membership_inference(members, test, num_null=1)


def test_undefined_losses_are_refused() -> None:
    members, test = draw(14, 20, 40)
    members[3] = np.nan
    with pytest.raises(DataError, match="1 losses NaN"):
        membership_inference(members, test)


def test_the_null_holds_for_one_class_that_a_model_never_saw() -> None:
    """On real digits. The model saw six digits of class 3 and many of the others, so it is worse on that class: the
    attack on fifty others of the class, against all others, calls that members. Against its own class it does not."""
    digits = load_digits()
    images, labels = digits.data / 16, digits.target
    order = np.random.default_rng(0).permutation(len(labels))
    threes, others = order[labels[order] == 3], order[labels[order] != 3]
    seen, unseen = np.concatenate([threes[:6], others[:800]]), np.concatenate([threes[6:], others[800:]])
    model = LogisticRegression(max_iter=1000).fit(images[seen], labels[seen])
    rows = np.searchsorted(model.classes_, labels)
    losses = -model.predict_log_proba(images)[np.arange(len(labels)), rows]

    def attacked(seed: int, num_null: int) -> Membership:
        drawn = np.random.default_rng(seed).permutation(threes[6:])[:80]
        test = np.setdiff1d(unseen, drawn)
        return matched_membership_inference(
            losses[drawn], labels[drawn], losses[test], labels[test], seed=seed, num_null=num_null
        )

    null = attacked(1000, 40)
    found = [attacked(seed, 2) for seed in range(30)]
    assert {(f.num_per_class, f.num_null_per_class) for f in found} == {(80, 80)}
    assert min(f.unmatched for f in found) > 0.6
    z = np.array([(f.accuracy - null.null_mean) / null.null_sd for f in found])
    assert np.mean(np.abs(z) > 2) <= 0.1
    assert abs(z.mean()) < 0.6 and 0.6 < z.std() < 1.4


def by_class(*parts: tuple[int, int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Losses and labels of so many samples of each class, whose losses are all about as high."""
    rng = np.random.default_rng(len(parts))
    losses = np.concatenate([rng.normal(mean, 0.1, number) for _, number, mean in parts])
    return losses, np.repeat([label for label, _, _ in parts], [number for _, number, _ in parts])


def test_of_a_class_with_too_few_test_records_fewer_members_are_taken() -> None:
    members, test = by_class((0, 90, 1.0), (1, 30, 5.0), (7, 11, 9.0)), by_class((0, 40, 1.0), (1, 300, 5.0))
    assert num_matched(members[1], test[1]) == 70
    found = matched_membership_inference(*members, *test, num_null=2)
    assert (found.num_per_class, found.num_null_per_class) == (70, 70)
    assert (found.num_members, found.num_test, found.num_left_out) == (120, 340, 11)
    assert found.accuracy == pytest.approx(0.5, abs=0.15)  # each class alone tells nothing
    assert found.unmatched is not None and found.unmatched > 0.7  # the classes do


def test_the_curve_weighs_the_test_records_of_a_class_as_its_members() -> None:
    members = by_class((0, 100, 1.0), (1, 20, 5.0))
    found = matched_membership_inference(*members, *by_class((0, 30, 1.0), (1, 300, 5.0)), num_null=2)
    assert found.auc == pytest.approx(0.5, abs=0.1)
    assert membership_inference(members[0], by_class((0, 30, 1.0), (1, 300, 5.0))[0], num_null=2).auc > 0.75
    fpr, tpr = found.roc.fpr, found.roc.tpr
    assert (fpr[0], tpr[0]) == (0.0, 0.0) and (fpr[-1], tpr[-1]) == pytest.approx((1.0, 1.0))


def test_members_of_one_class_that_were_trained_on_are_told() -> None:
    test = by_class((0, 40, 1.0), (1, 300, 5.0))
    found = matched_membership_inference(*by_class((1, 50, 4.0)), *test)
    assert found.accuracy > 0.9 and found.z is not None and found.z > 4


def test_too_few_of_the_same_class_are_refused() -> None:
    members, test = by_class((0, 90, 1.0)), by_class((0, 19, 1.0), (1, 300, 5.0))
    with pytest.raises(DataError, match="membership = 19: needs at least 20 members with a test sample of their class"):
        matched_membership_inference(*members, *test)
    with pytest.raises(DataError, match="num_null"):
        matched_membership_inference(*members, *by_class((0, 90, 1.0)), num_null=1)
    few = matched_membership_inference(*by_class((0, 20, 1.0)), *by_class((0, 20, 1.0)), num_null=2)
    assert few.num_per_class == 20 and few.unmatched is not None
