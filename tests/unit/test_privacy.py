"""What DP-SGD spends, against Opacus' accountants, dp-accounting, and figures that were computed and kept.

Bounds agree with a bound of another library up to the error that each states; nothing is trained here.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from dp_accounting import DpEventBuilder, GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.analysis import rdp

from ray_sisa.composition import (
    MOST_MECHANISMS,
    ORDERS,
    PRV_ERROR,
    Accountant,
    _log_moments,
    _renyi,
    compose,
    gaussian_epsilon,
)
from ray_sisa.errors import ConfigError
from ray_sisa.privacy import (
    Claim,
    Mechanism,
    check_statement,
    epsilon,
    epsilon_2020,
    gaussian,
    num_steps,
    solve_noise_multiplier,
    stage_mechanism,
)

DELTA = 1e-5
AS_CLAIMED, AS_RUN = (13180, 8238, 20), (11000, 8240, 24)  # samples, steps, participations
WHOLE_ORDERS = (*map(float, range(2, 12)), *(order for order in ORDERS if order >= 12))
SLICES = [2500 * number for number in range(1, 6)]


def mechanism(rate: float, noise: float, steps: int) -> Mechanism:
    return Mechanism(sampling_rate=rate, noise_multiplier=noise, steps=steps)


def by_dp_accounting(accountant: RdpAccountant | PLDAccountant, mechanisms: list[Mechanism], delta: float) -> float:
    builder = DpEventBuilder()
    for each in mechanisms:
        builder.compose(PoissonSampledDpEvent(each.sampling_rate, GaussianDpEvent(each.noise_multiplier)), each.steps)
    accountant.compose(builder.build())
    return float(accountant.get_epsilon(delta))


def _at_orders(mechanisms: list[Mechanism], orders: tuple[float, ...]) -> float:
    divergences = _renyi(tuple(mechanisms), orders)
    return float(rdp.get_privacy_spent(orders=list(orders), rdp=divergences, delta=DELTA)[0])


histories = st.lists(
    st.builds(
        mechanism,
        st.sampled_from([0.002, 0.01, 0.02, 1.0]),
        st.sampled_from([1.0, 2.0, 4.0]),
        st.sampled_from([1, 40, 500]),
    ),
    min_size=1,
    max_size=3,
)


# The figures of the original study: as claimed and as run, by each method.
ORIGINAL = [
    (AS_CLAIMED, 0.7, 4.02, 5, 3.39, 2.79, 46.9),
    (AS_CLAIMED, 0.5, 12.47, 2.5, 11.22, 9.68, 77.3),
    (AS_CLAIMED, 0.3, 84.66, 1.25, 81.38, 73.12, 173.8),
    (AS_RUN, 0.7, 4.64, 4.5, 3.94, 3.35, 53.6),
    (AS_RUN, 0.5, 14.24, 2.25, 13.00, 11.33, 89.0),
    (AS_RUN, 0.3, 96.24, 1.25, 93.73, 84.67, 202.1),
]


@pytest.mark.parametrize(("claim", "noise", "in_2020", "order", "rdp", "prv", "unamplified"), ORIGINAL)
def test_the_epsilons_of_the_original_study(
    claim: tuple[int, int, int], noise: float, in_2020: float, order: float, rdp: float, prv: float, unamplified: float
) -> None:
    num_samples, steps, participations = claim
    ran = [mechanism(32 / num_samples, noise, steps)]
    old = epsilon_2020(ran, DELTA)
    assert (old.epsilon, old.order) == (pytest.approx(in_2020, abs=0.006), order)
    assert epsilon(ran, DELTA, "rdp").epsilon == pytest.approx(rdp, abs=0.011)
    assert epsilon(ran, DELTA, "prv").epsilon == pytest.approx(prv, abs=0.011)
    assert gaussian([(participations, noise)], DELTA).epsilon == pytest.approx(unamplified, abs=0.06)


def test_orders_near_one_are_needed_at_low_noise() -> None:
    found = epsilon([mechanism(32 / 11000, 0.3, 8240)], DELTA, "rdp")
    assert found.order is not None
    assert min(ORDERS) < 1.05 < found.order < 1.3
    assert found.epsilon < 95.0  # orders from 1.1 in steps of 0.1 give 95.61


@pytest.mark.parametrize(
    ("batch_size", "target", "prv", "rdp"),
    [(32, 1, 1.15, 1.22), (32, 4, 0.65, 0.68), (512, 2, 2.13, 2.28), (2048, 8, 1.41, 1.49)],
)
def test_the_noise_that_honest_targets_take(batch_size: int, target: float, prv: float, rdp: float) -> None:
    # The figures are of 20 passes to the step; epochs here end with a whole batch, which is up to 12 % more steps.
    stages = [[(11000, 20)]]
    whole_batches = math.sqrt(num_steps(11000, batch_size) * batch_size / 11000)
    for accountant, expected in (("prv", prv), ("rdp", rdp)):
        noise = solve_noise_multiplier(target, stages, batch_size, DELTA, accountant)  # type: ignore[arg-type]
        assert expected - 0.006 <= noise <= expected * whole_batches + 0.006


def of_slices(steps_of: dict[int, int], first: int) -> list[Mechanism]:
    return [mechanism(128 / n, 1.0, steps_of[n]) for n in SLICES[first:]]


def test_a_sliced_shard() -> None:
    steps = {n: round(9 * n / 128) for n in SLICES}  # as in the figures: no epoch ends with a whole batch
    rdp = [epsilon(of_slices(steps, first), DELTA, "rdp").epsilon for first in range(5)]
    assert rdp == pytest.approx([7.36, 5.23, 3.97, 2.97, 2.04], abs=0.011)
    groups = [[each] for each in reversed(of_slices(steps, 0))]
    prv = [found.epsilon for found in compose(groups, DELTA, "prv")]
    assert prv == pytest.approx([1.77, 2.68, 3.61, 4.77, 6.71], abs=0.011)
    retrained = [*of_slices(steps, 0), *of_slices(steps, 2)]
    assert epsilon(retrained, DELTA, "rdp").epsilon == pytest.approx(8.52, abs=0.011)
    assert epsilon(retrained, DELTA, "prv").epsilon == pytest.approx(7.81, abs=0.011)
    ten = [*of_slices(steps, 0), *of_slices(steps, 2) * 10]
    assert epsilon(ten, DELTA, "rdp").epsilon == pytest.approx(16.8, abs=0.06)
    assert epsilon(ten, DELTA, "prv").epsilon == pytest.approx(15.7, abs=0.06)


# Of much privacy spent the best order is the least that they are given, of which they warn.
@pytest.mark.filterwarnings("ignore:Optimal order is the")
@settings(max_examples=6, phases=[Phase.explicit, Phase.generate])
@given(histories)
def test_rdp_agrees_with_opacus_and_dp_accounting(mechanisms: list[Mechanism]) -> None:
    found = epsilon(mechanisms, DELTA, "rdp").epsilon
    theirs = RDPAccountant()
    theirs.history = [(each.noise_multiplier, each.sampling_rate, each.steps) for each in mechanisms]
    assert found == pytest.approx(theirs.get_epsilon(DELTA, alphas=list(ORDERS)), rel=1e-6)
    # Its series for orders that are not whole gives up at some of these rates; ours has more orders.
    on_whole_orders = by_dp_accounting(RdpAccountant(list(WHOLE_ORDERS)), mechanisms, DELTA)
    assert on_whole_orders == pytest.approx(_at_orders(mechanisms, WHOLE_ORDERS), rel=1e-6)
    assert found <= on_whole_orders * 1.002


@pytest.mark.parametrize(("rate", "noise"), [(0.3, 0.8), (0.6, 1.0), (0.98, 2.0)])
def test_at_high_rates_orders_that_are_not_whole_lie_between_those_that_are(rate: float, noise: float) -> None:
    # There the series of both libraries fail. Renyi divergences grow with the order, and (order - 1) of them is convex.
    whole = np.arange(2.0, 9.0)
    between = whole[:-1] + 0.5
    at_whole, at_between = (_log_moments(rate, noise, alphas) for alphas in (whole, between))
    theirs = (whole - 1) * rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=1, orders=whole.tolist())
    assert at_whole == pytest.approx(theirs, rel=1e-9)
    assert (at_between < (at_whole[:-1] + at_whole[1:]) / 2).all()
    assert (np.diff(at_between / (between - 1)) > 0).all()


@settings(max_examples=4, phases=[Phase.explicit, Phase.generate])
@given(histories)
def test_prv_agrees_with_opacus_and_privacy_loss_distributions(mechanisms: list[Mechanism]) -> None:
    found = epsilon(mechanisms, DELTA, "prv")
    tight = by_dp_accounting(PLDAccountant(value_discretization_interval=1e-3), mechanisms, DELTA)
    assert found.epsilon == pytest.approx(tight, rel=0.002, abs=2 * (found.error or 0.0) + 0.005)
    assert found.epsilon <= epsilon(mechanisms, DELTA, "rdp").epsilon + (found.error or 0.0)


def test_prv_is_what_opacus_computes() -> None:
    mechanisms = [mechanism(0.01, 1.0, 300), mechanism(0.02, 1.0, 500)]
    theirs = PRVAccountant()
    theirs.history = [(each.noise_multiplier, each.sampling_rate, each.steps) for each in mechanisms]
    found = epsilon(mechanisms, DELTA, "prv")
    assert (found.method, found.error) == ("prv", PRV_ERROR)
    assert found.epsilon == pytest.approx(theirs.get_epsilon(DELTA), abs=1e-4)


def test_in_any_order_and_in_any_pieces_it_is_the_same() -> None:
    whole = [mechanism(0.01, 1.0, 300), mechanism(0.02, 1.0, 500)]
    pieces = [mechanism(0.02, 1.0, 200), mechanism(0.01, 1.0, 300), mechanism(0.02, 1.0, 300)]
    assert epsilon(whole, DELTA) == epsilon(pieces, DELTA)


def test_groups_are_composed_one_after_the_other() -> None:
    one, other = [mechanism(0.01, 1.0, 300)], [mechanism(0.02, 1.0, 500)]
    found = compose([(), one, other], DELTA, "prv")
    assert [spent.epsilon for spent in found] == pytest.approx(
        [0.0, epsilon(one, DELTA).epsilon, epsilon(one + other, DELTA).epsilon], abs=1e-3
    )


def test_many_different_rates_are_rounded_up_a_little() -> None:
    many = [mechanism(128 / (7500 - number), 1.0, 60) for number in range(2 * MOST_MECHANISMS)]
    exact = epsilon([mechanism(128 / 7500, 1.0, 60 * len(many))], DELTA, "rdp").epsilon
    found = epsilon(many, DELTA, "rdp")
    assert exact < found.epsilon < exact * 1.02
    assert "rounded up" in found.detail
    assert "rounded up" not in epsilon(many[:MOST_MECHANISMS], DELTA, "rdp").detail


def test_without_sampling_it_is_the_gaussian_mechanism_exactly() -> None:
    found = epsilon([mechanism(1.0, 2.0, 10), mechanism(1.0, 4.0, 8)], DELTA)
    mu = math.sqrt(10 / 4 + 8 / 16)
    assert (found.method, found.epsilon) == ("gaussian", gaussian_epsilon(mu, DELTA))
    tight = by_dp_accounting(PLDAccountant(), [mechanism(1.0, 1 / mu, 1)], DELTA)
    assert found.epsilon == pytest.approx(tight, abs=1e-3)


def test_nothing_is_spent_where_delta_alone_pays_for_it() -> None:
    assert gaussian_epsilon(1e-6, DELTA) == 0.0
    assert epsilon([], DELTA).epsilon == 0.0
    assert epsilon([mechanism(0.0, 1.0, 100)], DELTA).epsilon == 0.0


def test_beyond_what_can_be_discretised_the_answer_is_by_renyi_and_says_so() -> None:
    found = epsilon([mechanism(0.1, 0.1, 1000)], DELTA, "prv")
    assert found.method == "rdp"
    assert 500 < found.epsilon < math.inf


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5])
def test_delta_is_a_probability(delta: float) -> None:
    with pytest.raises(ConfigError, match="delta"):
        epsilon([mechanism(0.01, 1.0, 1)], delta)


# Noise for a target.


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_the_noise_holds_the_target_for_the_worst_shard_and_hardly_more(accountant: str) -> None:
    stages = [[(250, 2), (500, 2)], [(230, 2), (510, 2)], []]
    noise = solve_noise_multiplier(3.0, stages, 64, 1e-4, accountant)  # type: ignore[arg-type]

    def worst(noise: float) -> float:
        return max(
            epsilon(
                [stage_mechanism(num_samples=n, epochs=e, batch_size=64, noise_multiplier=noise) for n, e in shard],
                1e-4,
                accountant,  # type: ignore[arg-type]
            ).epsilon
            for shard in stages
        )

    assert worst(noise) <= 3.0
    assert worst(noise / 1.003) > 3.0


def test_a_target_that_no_noise_reaches() -> None:
    with pytest.raises(ConfigError, match=r"recipe\.dp\.target_epsilon = 0\.001"):
        solve_noise_multiplier(0.001, [[(1000, 10)]], 100, DELTA)


def test_with_fewer_samples_than_a_batch_each_is_in_every_batch() -> None:
    found = stage_mechanism(num_samples=20, epochs=3, batch_size=32, noise_multiplier=1.0)
    assert (found.sampling_rate, found.steps) == (1.0, 3)


# What may be said.

REPORTED = Claim(num_samples=13180, batch_size=32, steps=8238, noise_multiplier=0.7, delta=DELTA)
RAN = Claim(num_samples=11000, batch_size=32, steps=8238, noise_multiplier=0.7, delta=DELTA, sampler="shuffled")


def test_the_original_statement_is_refused_for_what_is_wrong_with_it() -> None:
    wrong_samples, shuffled = check_statement(REPORTED, RAN)
    assert "told of 13,180 samples, and batches were drawn from 11,000" in wrong_samples
    assert "not drawn by Poisson sampling" in shuffled
    assert check_statement(RAN, RAN) == check_statement(REPORTED, REPORTED) == ()


def test_what_else_is_refused() -> None:
    done = Claim(num_samples=13180, batch_size=32, steps=9000, noise_multiplier=0.5, delta=DELTA)
    assert len(check_statement(REPORTED, done)) == 2
    large = Claim(num_samples=100, batch_size=10, steps=10, noise_multiplier=1.0, delta=0.01)
    assert "publishing one sample whole would satisfy it" in check_statement(large, large)[0]
    with pytest.raises(ConfigError, match=r"delta = 0\.01"):
        large.spent()


def test_shuffled_batches_get_no_credit_for_sampling() -> None:
    assert RAN.spent().epsilon == pytest.approx(53.6, abs=0.06)
    assert RAN.spent().method == "gaussian"
    assert "zero-out adjacency" in RAN.spent().detail
    assert "zero-out" not in REPORTED.spent().detail
    assert REPORTED.spent().epsilon == pytest.approx(2.79, abs=0.011)
    assert REPORTED.spent("rdp").epsilon == pytest.approx(3.39, abs=0.011)


# What the page says.


def epsilons_by_slice(deletions: int, accountant: Accountant) -> list[float]:
    """Of a sample first seen in each slice, after so many deletions in slice 3."""
    stages = [
        stage_mechanism(num_samples=n - deleted, epochs=9, batch_size=128, noise_multiplier=1.0)
        for deleted in range(deletions + 1)
        for n in SLICES[2 if deleted else 0 :]
    ]
    number_of = [number for deleted in range(deletions + 1) for number in range(2 if deleted else 0, 5)]
    return [
        epsilon([m for m, number in zip(stages, number_of, strict=True) if number >= first], DELTA, accountant).epsilon
        for first in range(5)
    ]


@pytest.mark.parametrize(
    ("row", "deletions"),
    [
        ("trained, by RDP", 0),
        ("trained, by PRV", 0),
        ("and one deletion in slice 3, by RDP", 1),
        ("and ten, one after the other, by RDP", 10),
    ],
)
def test_the_table_of_the_page(row: str, deletions: int) -> None:
    page = (Path(__file__).parents[2] / "docs" / "privacy.md").read_text(encoding="utf-8")
    (line,) = [line for line in page.splitlines() if line.startswith(f"| {row} |")]
    assert line.split("|")[2:-1] == [f" {found:.2f} " for found in epsilons_by_slice(deletions, row[-3:].lower())]
