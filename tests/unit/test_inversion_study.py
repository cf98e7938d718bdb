"""Parts of the model-inversion study: who plays what, the original's epsilons, valid recipes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ray_sisa.config import Scaling
from ray_sisa.config_values import make_config
from ray_sisa.engine.runner import open_runner
from ray_sisa.inversion_study.accounting import accountings
from ray_sisa.inversion_study.faithful import _plain, _private, run_faithful
from ray_sisa.inversion_study.honest import nopeek_recipe, plain_recipe, private_recipe
from ray_sisa.inversion_study.presets import CPU, KERNEL, PRESETS, SMOKE, as_original
from ray_sisa.inversion_study.roles import Roles, at_side, characters, read_roles, section_of
from ray_sisa.inversion_study.sisa import drawn_subjects, images_of
from ray_sisa.store import Store
from ray_sisa.study.place import Place
from ray_sisa.study.steps import Steps


@pytest.fixture(scope="module")
def roles(real_data: Path) -> Roles:
    return read_roles(section_of(str(real_data)), CPU.num_train, None)


def test_the_originals_epsilons_are_found_again() -> None:
    """The three that the original reports, by the method of its time; and what the same claims come to today."""
    by_noise = {found.noise_multiplier: found for found in accountings((0.7, 0.5, 0.3))}
    told = {noise: [found.claimed[m] for m in ("2020", "rdp", "prv")] for noise, found in by_noise.items()}
    assert told[0.7] == pytest.approx([4.02, 3.39, 2.79], abs=0.015)
    assert told[0.5] == pytest.approx([12.47, 11.22, 9.68], abs=0.02)
    assert told[0.3] == pytest.approx([84.66, 81.37, 73.12], abs=0.1)
    ran = {noise: [found.as_run[m] for m in ("2020", "rdp", "prv")] for noise, found in by_noise.items()}
    assert ran[0.7] == pytest.approx([4.64, 3.94, 3.35], abs=0.015)
    assert ran[0.5] == pytest.approx([14.24, 13.00, 11.33], abs=0.03)
    assert ran[0.3] == pytest.approx([96.24, 93.69, 84.67], abs=0.2)
    unamplified = [(found.claimed["unamplified"], found.as_run["unamplified"]) for found in by_noise.values()]
    assert unamplified == [pytest.approx(pair, abs=0.1) for pair in ((46.9, 53.6), (77.3, 89.0), (173.8, 202.1))]
    for found in by_noise.values():
        assert found.reported == pytest.approx(found.claimed["2020"], abs=0.05)
        assert found.as_run["unamplified"] > found.as_run["2020"]
        assert any("13,180" in refused for refused in found.refusals)
        assert any("Poisson" in refused for refused in found.refusals)
        assert any("batch normalisation" in refused for refused in found.refusals)


def test_a_noise_that_the_original_does_not_have_is_not_told() -> None:
    assert accountings((1.0,)) == ()


def test_who_plays_what(roles: Roles) -> None:
    assert roles.dataset.test is not None
    assert (len(roles.dataset.train), len(roles.dataset.test)) == (11_000, 2_180)
    assert (len(roles.public), len(roles.victims), int(roles.seen.sum())) == (2_720, 3_120, 1_000)
    alphabets = {name.partition("/")[0] for name in characters(roles.victims.take(np.flatnonzero(roles.seen)))}
    assert alphabets == {"Greek", "Latin"}
    assert len(set(characters(roles.victims))) == 156
    # The split is drawn from a fixed seed, so that each alphabet is in both parts.
    assert set(roles.dataset.train.labels.tolist()) == set(roles.dataset.test.labels.tolist())
    assert not set(roles.dataset.train.ids.to_pylist()) & set(roles.dataset.test.ids.to_pylist())
    assert not roles.seen[roles.shown[:16]].any()
    assert roles.seen[roles.shown[16:]].all()


def test_a_smaller_side_changes_pixels_alone(roles: Roles) -> None:
    smaller = at_side(roles, 35)
    assert smaller.dataset.train.shape == smaller.victims.shape == (35, 35, 1)
    assert smaller.dataset.train.ids.equals(roles.dataset.train.ids)
    assert (smaller.seen == roles.seen).all()
    assert smaller.digest != roles.digest
    means = [part.images.mean() for part in (smaller.victims, roles.victims)]
    assert means[0] == pytest.approx(means[1], abs=0.5)


def test_subjects_are_drawn_the_same(roles: Roles) -> None:
    subjects = drawn_subjects(roles.dataset.train, 16)
    assert subjects == drawn_subjects(roles.dataset.train, 16)
    assert len(set(subjects)) == 16
    asked = images_of(roles.dataset.train, subjects)
    assert set(asked.subjects.to_pylist()) == set(subjects)
    others = replace(roles.dataset.train).select(set(roles.dataset.train.ids.to_pylist()) - set(asked.ids.to_pylist()))
    assert not set(others.subjects.to_pylist()) & set(subjects)


@pytest.mark.parametrize("name", PRESETS)
def test_the_recipes_of_every_preset_are_valid(name: str) -> None:
    preset = PRESETS[name]
    recipes = [_plain(preset, "split_convnet"), as_original(preset.faithful_private_epochs), plain_recipe(preset)]
    recipes += [nopeek_recipe(preset, weight) for weight in preset.nopeek]
    for noise in (*preset.noise_multipliers, *preset.honest_noise_multipliers):
        recipes += [_private(preset, noise), private_recipe(preset, noise)]
    for recipe in recipes:
        content = {
            "name": "x",
            "data": {"source": "parquet", "train": "train.parquet", "num_classes": 50},
            "placement": {"shards": 1, "slices": 1},
            "recipe": recipe,
        }
        assert make_config(content).recipe.model == recipe["model"]


def test_at_one_resolution_the_faithful_arm_is_one_part(real_data: Path, tmp_path: Path) -> None:
    """As in the preset `gpu`; the smoke test has two."""
    few = at_side(read_roles(section_of(str(real_data)), None, 60), 35)
    preset = replace(SMOKE, faithful_side=35, faithful_attackers=({"style": KERNEL},))
    scaling = {"resources_per_worker": {"CPU": 1}}
    with open_runner("local", Scaling.model_validate(scaling)) as runner:
        steps = Steps(Store(str(tmp_path / "study")))
        place = Place(storage=str(tmp_path), steps=steps, runner=runner, scaling=scaling)
        [part] = run_faithful(place, few, preset)
    assert [made.target.name for made in part.plain] == ["plain", "plain-batch"]
    assert [made.target.name for made in (*part.unbounded, *part.private)] == ["unbounded-0.5", "private-0.5"]
    names = ["unbounded-0.5", "private-0.5", "plain", "plain-batch", "random"]
    assert [attack.target for attack in part.attacks] == names
    assert [found.noise_multiplier for found in part.accounting] == [0.5]
