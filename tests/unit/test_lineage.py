"""Names follow from causes, and from nothing else; costs against the closed form and against simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_sisa.config import Recipe, TrainingRecipe, epochs_by_slice
from ray_sisa.index import SliceSummary
from ray_sisa.lineage import (
    Chain,
    expected_cost,
    full_cost,
    initial_key,
    make_chain,
    plan,
    recipe_digest,
    stage_key,
)

Make = Callable[..., TrainingRecipe]
slice_lists = st.lists(
    st.one_of(
        st.just(SliceSummary(digest=None, num_samples=0)),
        st.builds(SliceSummary, digest=st.text("0123456789abcdef", min_size=4, max_size=4), num_samples=st.just(3)),
    ),
    min_size=1,
    max_size=6,
)


def chain_of(training: TrainingRecipe, slices: list[SliceSummary], shard: int = 0) -> Chain:
    return make_chain(training, recipe_digest(training), shard, slices)


def full_slices(*names: str) -> list[SliceSummary]:
    return [SliceSummary(digest=name, num_samples=10) for name in names]


def key_of(training: TrainingRecipe) -> str:
    return chain_of(training, full_slices("aa", "bb", "cc")).keys[-1]


# What is in a name.

CAUSES: list[dict[str, Any]] = [
    {"model": "small_cnn"},
    {"schedule": "constant"},
    {"batch_size": 9},
    {"label_smoothing": 0.1},
    {"augment": ["flip"]},
    {"augment": ["crop", "flip"]},
    {"input_size": 16},
    {"input_size": 16, "upsampling": "bilinear"},
    {"precision": "bfloat16"},
    {"threads": 2},
    {"seed": 1},
    {"backbone": "frozen", "weights": "a.th"},
    {"nopeek": {"layer": "conv2", "weight": 0.1}},
    {"nopeek": {"layer": "conv1", "weight": 0.1}},
    {"nopeek": {"layer": "conv2", "weight": 0.2}},
    {"dp": {"noise_multiplier": 1.0}},
    {"dp": {"noise_multiplier": 1.0, "max_grad_norm": 0.5}},
    {"dp": {"noise_multiplier": 1.0, "noise": "secure"}},
    {"dp": {"noise_multiplier": 1.0}, "noise_multiplier": 1.0},
    {"dp": {"noise_multiplier": 1.0}, "noise_multiplier": 2.0},
    {"optimizer": {"name": "adam"}},
    {"optimizer": {"lr": 0.2}},
    {"optimizer": {"backbone_lr": 0.1}},
    {"optimizer": {"momentum": 0.5}},
    {"optimizer": {"nesterov": True}},
    {"optimizer": {"betas": [0.8, 0.999]}},
    {"optimizer": {"weight_decay": 5e-4}},
    {"epochs": (1, 1, 2)},
    {"epochs": (2, 1, 1)},
    {"model_code": "c0de"},
    {"initial_weights": "d1gest"},
    {"num_classes": 4},
    {"image_shape": (8, 9, 1)},
    {"mean": (0.4,)},
    {"std": (0.3,)},
]


@pytest.mark.parametrize("cause", CAUSES, ids=str)
def test_a_cause_changes_every_name(make_training: Make, cause: dict[str, Any]) -> None:
    slices = full_slices("aa", "bb", "cc")
    before, after = (chain_of(make_training(**settings), slices) for settings in ({}, cause))
    assert not {before.initial, *before.keys} & {after.initial, *after.keys}


def test_no_two_causes_share_a_name(make_training: Make) -> None:
    assert len({key_of(make_training(**cause)) for cause in [{}, *CAUSES]}) == len(CAUSES) + 1


def test_every_field_of_the_recipe_is_tried() -> None:
    """A field added to the recipe is in no name until somebody decides so here."""
    tried = {name for cause in CAUSES for name in cause}
    paths = {"weights", "epochs_per_slice", "total_epochs", "on_divergence"}
    assert set(Recipe.model_fields) - paths <= tried
    assert set(TrainingRecipe.model_fields) - {"recipe", "semantics"} <= tried


@pytest.mark.parametrize(
    "settings",
    [{"weights": "a.th"}, {"epochs_per_slice": None, "total_epochs": 2.0}, {"on_divergence": "exclude"}],
    ids=str,
)
def test_how_it_was_written_changes_no_name(make_training: Make, settings: dict[str, Any]) -> None:
    training = make_training(**settings)
    assert epochs_by_slice(training.recipe, 3) == training.epochs
    assert key_of(training) == key_of(make_training())


@pytest.mark.parametrize(
    "told", [{"delta": 1e-6}, {"accountant": "rdp"}, {"noise_multiplier": None, "target_epsilon": 3.0}], ids=str
)
def test_what_is_told_of_a_guarantee_changes_no_name(make_training: Make, told: dict[str, Any]) -> None:
    private = {"noise_multiplier": 1.0}
    before, after = (make_training(dp=dp, noise_multiplier=1.0) for dp in (private, {**private, **told}))
    assert key_of(before) == key_of(after)


def test_names_are_fixed_for_life(make_training: Make) -> None:
    # Stored runs hang on this: where it must change, so must `semantics`.
    assert key_of(make_training()) == "2a91e66eabb9a6f2a5123d572b66d04d381daab95486e25e8fe2947b43f87d57"


# Chains.


@given(slices=slice_lists, data=st.data())
def test_a_slice_changes_the_names_from_itself_on(make_training: Make, slices: list[SliceSummary], data) -> None:
    training = make_training(epochs=(1,) * len(slices))
    changed = data.draw(st.integers(0, len(slices) - 1))
    new = data.draw(st.sampled_from([None, "fresh"]).filter(lambda d: d != slices[changed].digest))
    after = [*slices]
    after[changed] = SliceSummary(digest=new, num_samples=1 if new else 0)
    old_keys = {s.slice: s.key for s in chain_of(training, slices).stages}
    new_keys = {s.slice: s.key for s in chain_of(training, after).stages}
    assert {r: k for r, k in old_keys.items() if r <= changed} == {r: k for r, k in new_keys.items() if r <= changed}
    assert not {k for r, k in old_keys.items() if r > changed} & {k for r, k in new_keys.items() if r > changed}


@given(slices=slice_lists)
def test_a_chain_is_what_its_laws_say(make_training: Make, slices: list[SliceSummary]) -> None:
    epochs = tuple(range(1, len(slices) + 1))
    training = make_training(epochs=epochs)
    recipe = recipe_digest(training)
    chain = chain_of(training, slices, shard=2)
    parent = chain.initial
    assert parent == initial_key(training, recipe, 2)
    assert [s.slice for s in chain.stages] == [r for r, s in enumerate(slices, 1) if s.digest is not None]
    for stage in chain.stages:
        live = slices[stage.slice - 1]
        assert (stage.shard, stage.parent, stage.slice_digest) == (2, parent, live.digest)
        assert live.digest is not None
        assert stage.key == stage_key(parent, live.digest, recipe, stage.slice)
        assert stage.num_samples == sum(s.num_samples for s in slices[: stage.slice])
        assert stage.epochs == epochs[stage.slice - 1]
        parent = stage.key
    assert chain.sample_passes == sum(s.epochs * s.num_samples for s in chain.stages)


def test_an_empty_slice_is_not_a_shift(make_training: Make) -> None:
    training, empty = make_training(), SliceSummary(digest=None, num_samples=0)
    a, b = full_slices("aa", "bb")
    keys = {chain_of(training, slices).keys for slices in ([a, b, empty], [a, empty, b], [empty, a, b])}
    assert len({key for chain in keys for key in chain}) == 5  # the first stage of [a, b, -] and [a, -, b] is one
    assert chain_of(training, [empty] * 3).stages == ()


def test_shards_do_not_know_each_other(make_training: Make) -> None:
    training, slices = make_training(), full_slices("aa", "bb")
    chains = [chain_of(training, slices, shard) for shard in range(3)]
    assert len({key for c in chains for key in (c.initial, *c.keys)}) == 9


def test_the_same_samples_in_two_slices_make_two_stages(make_training: Make) -> None:
    assert len(set(chain_of(make_training(), full_slices("aa", "aa", "aa")).keys)) == 3


# Plans.


@given(data=st.data(), grid=st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_plan_is_what_is_missing(make_training: Make, data, grid: tuple[int, int]) -> None:
    training = make_training(epochs=(1,) * grid[1])
    wanted = [chain_of(training, full_slices("aa", "bb", "cc", "dd")[: grid[1]], s) for s in range(grid[0])]
    every = [key for chain in wanted for key in chain.keys]
    present = data.draw(st.sets(st.sampled_from([*every, "stranger"])))
    planned = plan(wanted, present)
    assert [s.key for c in planned for s in c.stages if s.key in present] == []
    assert {s.key for c in planned for s in c.stages} == set(every) - present
    assert all(c.stages and [s.slice for s in c.stages] == sorted(s.slice for s in c.stages) for c in planned)
    costs = [chain.sample_passes for chain in planned]
    assert costs == sorted(costs, reverse=True)
    assert {c.shard: c.initial for c in planned}.items() <= {c.shard: c.initial for c in wanted}.items()
    assert planned == plan(reversed(wanted), present)


@given(present=st.sets(st.integers(0, 2)))
def test_missing_is_all_that_is_not_present(make_training: Make, present: set[int]) -> None:
    chain = chain_of(make_training(), full_slices("aa", "bb", "cc"))
    assert [s.slice - 1 for s in chain.missing({chain.keys[i] for i in present} | {"stranger"})] == sorted(
        {0, 1, 2} - present
    )


# Costs.


@pytest.mark.parametrize(("num_requests", "saving"), [(1, 5.45), (4, 1.85), (16, 1.09)])
def test_the_savings_of_the_design(num_requests: int, saving: float) -> None:
    epochs = (3,) * 5
    cost = expected_cost(50_000, 4, epochs, num_requests)
    assert full_cost(50_000, epochs) / cost == pytest.approx(saving, abs=0.005)


@given(
    grid=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    num_requests=st.integers(0, 50),
    num_samples=st.integers(1, 10**6),
    epochs=st.integers(1, 40),
)
def test_costs_of_equal_epochs_have_the_closed_form(
    grid: tuple[int, int], num_requests: int, num_samples: int, epochs: int
) -> None:
    num_shards, num_slices = grid
    full = full_cost(num_samples, (epochs,) * num_slices)
    assert full == pytest.approx(epochs * num_samples * (num_slices + 1) / 2)
    hit = sum(i * (1 - (1 - i / (num_slices * num_shards)) ** num_requests) for i in range(1, num_slices + 1))
    expected = full * 2 / (num_slices * (num_slices + 1)) * hit
    assert expected_cost(num_samples, num_shards, (epochs,) * num_slices, num_requests) == pytest.approx(expected)


@pytest.mark.parametrize("num_requests", [1, 4, 16])
@pytest.mark.parametrize("epochs", [(2, 2, 2, 2, 2), (9, 4, 3, 1, 5)], ids=str)
def test_expected_cost_against_simulation(epochs: tuple[int, ...], num_requests: int) -> None:
    num_shards, num_slices, num_samples, trials = 4, len(epochs), 2000, 40_000
    random = np.random.default_rng(7)
    shard = random.integers(0, num_shards, (trials, num_requests))
    number = random.integers(1, num_slices + 1, (trials, num_requests))
    # A stage is made again where a request hit its slice or one before it.
    first = np.stack(
        [np.where(shard == s, number, num_slices + 1).min(axis=1) for s in range(num_shards)], axis=1
    )  # [trials, S]
    passes = np.array(epochs) * np.arange(1, num_slices + 1) * num_samples / (num_shards * num_slices)
    behind = np.append(np.cumsum(passes[::-1])[::-1], 0.0)
    simulated = behind[first - 1].sum(axis=1)
    expected = expected_cost(num_samples, num_shards, epochs, num_requests)
    assert simulated.mean() == pytest.approx(expected, abs=4 * simulated.std() / trials**0.5)


def test_expected_cost_against_plans(make_training: Make) -> None:
    """The mean over all single deletions of what `plan` finds missing."""
    grid, size, training = (3, 4), 10, make_training(epochs=(1, 3, 2, 5))
    slices = [[SliceSummary(digest=f"{s}-{r}", num_samples=size) for r in range(4)] for s in range(3)]
    present = {key for s in range(3) for key in chain_of(training, slices[s], s).keys}
    costs = []
    for shard in range(grid[0]):
        for hit in range(grid[1]):
            after = [*slices[shard]]
            after[hit] = SliceSummary(digest="smaller", num_samples=size)
            costs.append(sum(c.sample_passes for c in plan([chain_of(training, after, shard)], present)))
    assert np.mean(costs) == pytest.approx(expected_cost(120, 3, training.epochs, 1))
    assert sum(chain_of(training, slices[s], s).sample_passes for s in range(3)) == full_cost(120, training.epochs)
