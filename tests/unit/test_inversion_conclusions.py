"""What is concluded from the model-inversion study: sentences follow numbers, whichever way these fall."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from inversion_records import make_pair, make_record, quality

from ray_sisa.evaluation.inversion import Estimate
from ray_sisa.inversion_study import conclusions, original
from ray_sisa.inversion_study.evidence import evidence
from ray_sisa.inversion_study.limits import advice, limits
from ray_sisa.inversion_study.results import Attacked, InversionRecord, Pair
from ray_sisa.inversion_study.summary import (
    EQUAL,
    attackers,
    judge,
    largest_gap,
    over_shards,
    row,
    rows,
    shard_gaps,
    verdicts,
)
from ray_sisa.report import percent

RECORD = make_record()


def with_pairs(record: InversionRecord, *pairs: Pair) -> InversionRecord:
    return replace(record, honest=replace(record.honest, pairs=pairs))


def with_attacks(record: InversionRecord, change: Callable[[Attacked], Attacked]) -> InversionRecord:
    seeds = tuple(replace(s, attacks=tuple(map(change, s.attacks))) for s in record.honest.seeds)
    return replace(record, honest=replace(record.honest, seeds=seeds))


def with_unseen(r2: float, target: str, attacker: str = "kernel") -> Callable[[Attacked], Attacked]:
    """Another R2 on unseen victims of one target."""

    def change(found: Attacked) -> Attacked:
        if (found.target, found.attacker, found.noise) != (target, attacker, None):
            return found
        return replace(found, quality={**found.quality, "unseen": quality(r2)})

    return change


@pytest.mark.parametrize(
    ("gaps", "said"),
    [
        ((-0.05, -0.05, -0.05), "DP-SGD reduces this leakage beyond the accuracy that it costs, at every noise"),
        ((0.05, 0.05, 0.05), "DP-SGD does not reduce this leakage beyond the accuracy that it costs"),
        ((0.001, 0.0, -0.001), "cannot be told from this record"),
        ((-0.05, 0.0, 0.0), "at some of the noise multipliers that were tried, not at all of them"),
        ((-0.05, 0.0, 0.05), "depends on the noise: it leaks less at some, more at other"),
        ((0.0, 0.0, 0.05), "It is not seen that DP-SGD reduces this leakage"),
        ((-0.05,), "at every noise multiplier"),
    ],
)
def test_the_answer_follows_the_pairs(gaps: Sequence[float], said: str) -> None:
    found = conclusions.answer(make_record(gaps))
    assert said in found.partition(". ")[0] + ". "
    assert found.count("At noise multiplier") == len(gaps)


def test_the_answer_has_its_numbers() -> None:
    said = conclusions.answer(make_record((-0.05,)))
    assert "At noise multiplier 0.7, R² on unseen victims is 0.100 against 0.150" in said
    assert "difference -0.050 (-0.060 to -0.040), negative under 3 of 3 seeds: leaks less." in said


def test_what_is_told_needs_interval_and_every_seed() -> None:
    pair = make_pair(0.5, "private", "stopped", -0.05)
    assert judge(pair) == "less"
    assert judge(replace(pair, by_seed=(-0.1, -0.1, 0.01))) == "untold"
    assert "seeds disagree" in conclusions.told(replace(pair, by_seed=(-0.1, 0.01)), "untold")
    wide = replace(pair, difference=Estimate(value=-0.05, low=-0.2, high=0.1))
    assert judge(wide) == "untold"
    assert "the interval contains zero" in conclusions.told(wide, "untold")
    without = replace(pair, difference=Estimate(value=-0.05, low=None, high=None))
    assert judge(without) == "untold"
    assert "there is no interval" in conclusions.told(without, "untold")
    assert judge(make_pair(0.5, "private", "stopped", 0.05)) == "more"


def test_what_stopping_early_explains_is_said() -> None:
    said = conclusions.shares(make_record((-0.05, 0.0)))
    assert said == (
        "The fully trained network without privacy has R² 0.302. Private networks have less, by noise multiplier: "
        "0.100 at 0.7 and 0.150 at 0.5. Of this fall, networks without privacy stopped at the same accuracy have "
        "75.2\N{NO-BREAK SPACE}% at 0.7 and 100.0\N{NO-BREAK SPACE}% at 0.5."
    )
    said = conclusions.shares(make_record((0.2,)))
    assert said == "At noise multiplier 0.7, private networks leak no less than the fully trained one without."


def test_a_stopped_network_that_leaks_more_than_the_fully_trained_one_explains_nothing() -> None:
    pairs = [make_pair(noise, "private", "stopped", -0.2, level=level) for noise, level in ((0.7, 0.325), (0.3, 0.310))]
    said = conclusions.shares(with_pairs(RECORD, *pairs))
    assert said.endswith(
        "by noise multiplier: 0.125 at 0.7 and 0.110 at 0.3. At 0.7 and 0.3, a network without privacy stopped at the "
        "same accuracy leaks no less than the fully trained one (R² 0.325 and 0.310): there the lower accuracy "
        "explains none of the fall."
    )
    assert "%" not in said
    mixed = with_pairs(RECORD, pairs[0], make_pair(0.3, "private", "stopped", -0.05))
    said = conclusions.shares(mixed)
    assert "Of this fall, networks without privacy stopped at the same accuracy have 75.2" in said
    assert "At 0.7, a network without privacy stopped at the same accuracy leaks no less" in said


def test_networks_of_other_accuracy_are_not_compared() -> None:
    unequal = make_pair(0.7, "private", "stopped", -0.05, accuracies=(0.40, 0.40 + 1.5 * EQUAL))
    assert judge(unequal) == "unequal"
    assert "not as accurate as each other" in conclusions.answer(with_pairs(RECORD, unequal))
    equal = make_pair(0.7, "private", "stopped", -0.05, accuracies=(0.40, 0.40 + EQUAL / 2))
    assert judge(equal) == "less"


def test_where_nothing_leaks_there_is_nothing_to_reduce() -> None:
    below = make_pair(0.7, "private", "stopped", -0.05, level=-0.1)
    assert judge(below) == "nothing"
    assert conclusions.answer(with_pairs(RECORD, below)).startswith("There is no leakage that DP-SGD could reduce")


def test_how_equal_accuracies_are_is_said() -> None:
    pair, _ = verdicts(RECORD.honest, "private", "stopped")[0]
    assert largest_gap(RECORD.honest, pair) == pytest.approx(0.004)
    said = conclusions.equality(RECORD)
    assert "stopped networks 0.4 points and networks with noise on their activations 0.1 points" in said
    assert "more than 2 points are not called equal" in said


def test_rows_are_over_seeds() -> None:
    found = rows(RECORD.honest, "kernel")
    plain, noisy = row(found, "plain"), row(found, "noisy", 0.5)
    assert plain is not None
    assert plain.spread("r2") is not None
    assert plain.attacks[0].noise is None
    assert [a.quality["unseen"].r2.value for a in plain.attacks] == pytest.approx([0.3, 0.302, 0.304])
    assert noisy is not None
    assert {a.noise for a in noisy.attacks} == {"gaussian:2"}
    assert noisy.accuracies == pytest.approx([0.499] * 3)
    random = row(found, "random")
    assert random is not None
    assert random.accuracy is None
    assert [r.dial for r in found if r.kind == "nopeek"] == [1.0, 5.0]
    assert attackers(RECORD.honest) == ("kernel", "study", "white-box")
    assert row(rows(RECORD.honest, "white-box"), "nopeek", 1.0) is None


def test_an_attack_that_tells_nothing_is_said_to() -> None:
    said = conclusions.telling(RECORD)
    assert "tells more of unseen victims than the mean image does: R² 0.302 ± 0.002" in said
    assert "less than 32 principal components of the image itself would give (0.360)" in said
    assert "so training is what makes the encoder tell" in said
    nothing = with_attacks(RECORD, with_unseen(0.0, "plain"))
    said = conclusions.telling(nothing)
    assert "tells no more than the mean image does" in said
    assert "not clearly above the 0.0" in said
    assert "training need not be what makes it tell" in said
    much = conclusions.telling(with_attacks(RECORD, with_unseen(0.9, "plain")))
    assert "more than 32 principal components" in much
    one_seed = with_attacks(RECORD, lambda a: with_unseen(0.9, "plain")(a) if a.arrays.endswith(" 0") else a)
    assert "about as much as 32 principal components" in conclusions.telling(one_seed)


def test_seen_victims_may_flatter_or_not() -> None:
    said = str(conclusions.flattery(RECORD))
    assert "The 1,000 victims that the attacker trained on flatter the attack: R² 0.382 on them and 0.302" in said
    assert "of principal components +0.050" in said
    said = str(conclusions.flattery(with_attacks(RECORD, with_unseen(0.9, "plain"))))
    assert "do not flatter" in said
    without = with_attacks(RECORD, lambda a: replace(a, quality={p: q for p, q in a.quality.items() if p != "seen"}))
    assert conclusions.flattery(without) is None


def test_defences_that_act_are_named_with_their_price() -> None:
    said = str(conclusions.defences(RECORD))
    assert "noise on activations, as accurate as DP-SGD 0.7: 0.132, for -30.1 points of accuracy" in said
    assert "NoPeek, weight 5: 0.250, for -10.0 points of accuracy" in said
    assert "no less" not in said
    worse = str(conclusions.defences(with_attacks(RECORD, with_unseen(0.5, "nopeek-5"))))
    assert "NoPeek, weight 5: 0.500, which is no less" in worse


def test_other_attackers_may_change_the_order() -> None:
    said = str(conclusions.other_attackers(RECORD))
    assert "the original's decoder (R² 0.250 without privacy) orders private and stopped networks as" in said
    assert said.count("at 3 of 3 noise multipliers (-0.050 at 0.7, -0.050 at 0.5 and -0.050 at 0.3)") == 1
    assert "(R² -0.700 without privacy) has no more than the mean image of private and stopped networks" in said
    other = with_attacks(RECORD, with_unseen(0.9, "private-0.5", "study"))
    assert "at 2 of 3 noise multipliers" in str(conclusions.other_attackers(other))
    assert conclusions.other_attackers(make_record(only_first=True)) is None


@pytest.mark.parametrize(
    ("before", "after", "held", "changed"),
    [
        (0.1, 0.0, "do bring images that they held nearer", "forgetting lowers it"),
        (0.1, 0.1, "do bring images that they held nearer", "that forgetting changes it cannot be told"),
        (0.1, 0.2, "do bring images that they held nearer", "forgetting raises it"),
        (-0.1, -0.1, "less near than images that others held", "cannot be told"),
        (-0.0015, -0.0015, "so there may be nothing to forget", "that forgetting changes it cannot be told"),
    ],
)
def test_what_forgetting_changes_follows_the_shards(before: float, after: float, held: str, changed: str) -> None:
    said = conclusions.forgetting(make_record(held=before, held_after=after))
    assert held in said
    assert changed in said
    assert "over 4 shards before 16 subjects are forgotten" in said
    assert "being forgotten is no protection" in said


def test_where_nobody_was_held_nothing_is_compared() -> None:
    attacks = tuple(replace(a, held=None) for a in RECORD.sisa.attacks)
    none = replace(RECORD, sisa=replace(RECORD.sisa, attacks=attacks))
    assert shard_gaps(attacks) == ()
    assert "nothing can be compared" in conclusions.forgetting(none)
    one = replace(RECORD, sisa=replace(RECORD.sisa, attacks=RECORD.sisa.attacks[::4]))
    assert "with no interval" in conclusions.forgetting(one)


def test_the_interval_over_shards_is_students() -> None:
    found = over_shards([1.0, 2.0, 3.0, 4.0])
    assert found.value == pytest.approx(2.5)
    # t of 3 degrees of freedom at 97.5 %, by tables: 3.182; standard error 1.2910 / 2
    assert found.high == pytest.approx(2.5 + 3.182 * 1.29099 / 2, abs=1e-3)


def test_a_deletion_may_spend_or_not() -> None:
    assert "epsilon 7.40 for a record of the first slice and 2.60 for one of the last" in conclusions.spending(RECORD)
    assert "raises the largest from 7.40 to 8.50" in conclusions.spending(RECORD)
    private = RECORD.sisa.private
    same = replace(RECORD, sisa=replace(RECORD.sisa, private=replace(private, after=private.before)))
    assert "leaves the largest as it is" in conclusions.spending(same)


@pytest.mark.parametrize("mistake", original.MISTAKES, ids=lambda mistake: mistake.key)
def test_the_record_says_something_of_each_mistake(mistake: original.Mistake) -> None:
    assert evidence(RECORD, mistake.key)


def test_evidence_is_of_the_record() -> None:
    assert "1,000 of 3,120 victims" in str(evidence(RECORD, "overlap"))
    assert "12.47 becomes 14.24 at noise multiplier 0.5" in str(evidence(RECORD, "count"))
    assert "leaks less at 0.7" in str(evidence(RECORD, "conclusion"))
    assert "leaks more at 0.7" in str(evidence(make_record((0.05,)), "conclusion"))
    without = replace(RECORD, faithful=tuple(replace(arm, accounting=(), private=()) for arm in RECORD.faithful))
    assert [evidence(without, key) for key in ("count", "sampler")] == [None] * 2
    assert "70.0\N{NO-BREAK SPACE}% without privacy, 40.0\N{NO-BREAK SPACE}% at 0.7" in str(evidence(RECORD, "arms"))


def test_what_the_originals_accuracies_are_made_of_is_said() -> None:
    said = str(evidence(RECORD, "normalisation")).replace("\N{NO-BREAK SPACE}", " ")
    assert "networks have 51.5 %, 51.5 % and 51.5 % of training images right at noise" in said
    assert "at noise multiplier 0.7, 0.5 and 0.3, at 35 pixels a side" in said
    assert "the original, at 105, reports 37.0 %, 45.0 % and 56.0 %." in said
    assert said.endswith("so with groups and Poisson batches, they have 41.2 %, 41.2 % and 41.2 %.")


def test_advice_follows_what_noise_on_activations_did() -> None:
    assert any("it is worth its price" in said for said in advice(RECORD))
    pairs = [p for p in RECORD.honest.pairs if (p.one, p.other) != ("noisy", "stopped")]
    worse = with_pairs(RECORD, *pairs, *(make_pair(n, "noisy", "stopped", 0.05) for n in (0.7, 0.5, 0.3)))
    assert any("is not seen here to leak less" in said for said in advice(worse))
    mixed = with_pairs(RECORD, *pairs, *(make_pair(n, "noisy", "stopped", n - 0.5) for n in (0.7, 0.5, 0.3)))
    assert any("at some of its levels" in said for said in advice(mixed))


def test_limits_name_a_reduced_resolution_where_it_is_one() -> None:
    assert any("35 pixels a side" in said for said in limits(RECORD))
    full = make_record(preset="gpu", num_seeds=5)
    assert not any("pixels a side" in said for said in limits(full))
    assert any("under 5 seeds" in said for said in limits(full))


def test_accuracies_that_are_not_the_originals_are_said_to_be() -> None:
    """Of 51.5 % at every noise multiplier, the original reports 37, 45 and 56 %: the last is near."""
    said = next(text for text in limits(RECORD) if "not all its own" in text)
    assert f"at noise multiplier 0.7, where it reports {percent(0.37)}" in said
    assert "noise multiplier 0.3" not in said
    assert "trained once, at 35 pixels a side." in said
    *others, last = RECORD.faithful
    same = tuple(
        replace(made, train_top1=(theirs.train,))
        for made in last.unbounded
        if (theirs := original.private(made.noise_multiplier))
    )
    near = replace(RECORD, faithful=(*others, replace(last, unbounded=same)))
    assert not any("not all its own" in text for text in limits(near))
