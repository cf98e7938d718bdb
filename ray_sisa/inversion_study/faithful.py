"""The faithful arm: the original's experiment with its layers, optimisers, epochs and roles, measured as it was not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ray_sisa.inversion_study.accounting import accountings
from ray_sisa.inversion_study.arm import Arm
from ray_sisa.inversion_study.presets import Preset, as_original, with_dp_sgd, without_privacy
from ray_sisa.inversion_study.results import Attacked, Faithful, Target, TrainedTarget, UnboundedTarget
from ray_sisa.inversion_study.roles import Roles, at_side
from ray_sisa.inversion_study.tasks import TrainUnbounded
from ray_sisa.study.place import Place
from ray_sisa.study.steps import Task

SEED = 0  # the original has one training of each
MODELS = {"plain": "split_convnet_affine", "plain-batch": "split_convnet"}
"""Of the targets without privacy: normalisation inert, as the original's loop runs it; then in training mode."""


def run_faithful(place: Place, whole: Roles, preset: Preset) -> tuple[Faithful, ...]:
    """Trains the original's targets, attacks them, and a network that is not trained.

    Returns:
        A part for each resolution, that of the targets without privacy first.
    """
    side, private_side = preset.faithful_side, preset.faithful_private_side
    images = {each: at_side(whole, each) for each in (side, private_side)}
    arms = {each: Arm("faithful", place, roles, list(images.values())) for each, roles in images.items()}
    both = arms[side]  # has the steps of all done together, so that no worker waits for those of one
    parts = _trained(both, arms, preset)
    random = both.each([arm.random(_plain(preset, MODELS["plain"]), SEED) for arm in arms.values()])
    attacks = both.rows(
        [_attacks(arm, preset, part, own) for arm, part, own in zip(arms.values(), parts, random, strict=True)]
    )
    baselines = both.rows([arm.baselines() for arm in arms.values()])
    return tuple(
        replace(part, attacks=attacked, baselines=found)
        for part, attacked, found in zip(parts, attacks, baselines, strict=True)
    )


def _trained(both: Arm, arms: Mapping[int, Arm], preset: Preset) -> list[Faithful]:
    """The parts before any attack; what takes longest is trained first."""
    noises, plain, private = preset.noise_multipliers, preset.faithful_side, preset.faithful_private_side
    tasks: list[Task[UnboundedTarget | TrainedTarget]] = [_unbounded(arms[private], preset, noise) for noise in noises]
    tasks += [arms[plain].train(name, _plain(preset, model), SEED) for name, model in MODELS.items()]
    tasks += [arms[private].train(f"private-{noise:g}", _private(preset, noise), SEED) for noise in noises]
    made = both.each(tasks)
    unbounded = tuple(each for each in made if isinstance(each, UnboundedTarget))
    trained = tuple(each for each in made if isinstance(each, TrainedTarget))
    return [
        Faithful(
            side=side,
            truth=arm.keep_truth(),
            plain=trained[: len(MODELS)] if side == plain else (),
            unbounded=unbounded if side == private else (),
            private=trained[len(MODELS) :] if side == private else (),
            accounting=accountings(noises) if side == private else (),
            attacks=(),
            baselines=(),
        )
        for side, arm in arms.items()
    ]


def _attacks(arm: Arm, preset: Preset, part: Faithful, random: Target) -> list[Task[Attacked]]:
    targets = [*(made.target for made in (*part.unbounded, *part.private, *part.plain)), random]
    return [arm.attack(target, attacker, SEED) for attacker in preset.faithful_attackers for target in targets]


def _unbounded(arm: Arm, preset: Preset, noise_multiplier: float) -> TrainUnbounded:
    """With batch normalisation, without dropout, at five times the rate."""
    recipe = as_original(preset.faithful_private_epochs)
    return arm.unbounded(f"unbounded-{noise_multiplier:g}", recipe, SEED, noise_multiplier)


def _plain(preset: Preset, model: str) -> dict[str, Any]:
    return without_privacy(model, preset.faithful_epochs)


def _private(preset: Preset, noise_multiplier: float) -> dict[str, Any]:
    """As the original's, but that batch normalisation gives way to groups, as DP-SGD demands."""
    return with_dp_sgd("split_convnet_no_dropout", preset.faithful_private_epochs, noise_multiplier)
