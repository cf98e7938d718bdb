"""The faithful arm: the original's experiment with its layers, optimisers, epochs and roles, measured as it was not."""

from __future__ import annotations

from typing import Any

from ray_sisa.inversion_study.accounting import accountings
from ray_sisa.inversion_study.arm import Arm
from ray_sisa.inversion_study.presets import Preset, as_original, with_dp_sgd, without_privacy
from ray_sisa.inversion_study.results import Faithful, TrainedTarget, UnboundedTarget
from ray_sisa.inversion_study.tasks import TrainUnbounded
from ray_sisa.study.steps import Task

SEED = 0  # the original has one training of each


def run_faithful(arm: Arm, preset: Preset, *, plain: bool, private: bool) -> Faithful:
    """Trains the original's targets, attacks them, and a network that is not trained.

    Args:
        arm: at one resolution.
        preset: its size.
        plain: whether to train the targets without privacy.
        private: whether to train the private targets, as the original did and with DP-SGD.
    """
    noises = preset.noise_multipliers if private else ()
    models = ("split_convnet_affine", "split_convnet") if plain else ()
    names = ("plain", "plain-batch")[: len(models)]
    tasks: list[Task[UnboundedTarget | TrainedTarget]] = [_unbounded(arm, preset, noise) for noise in noises]
    tasks += [arm.train(f"private-{noise:g}", _private(preset, noise), SEED) for noise in noises]
    tasks += [arm.train(name, _plain(preset, model), SEED) for name, model in zip(names, models, strict=True)]
    made = arm.each(tasks)
    unbounded = tuple(each for each in made if isinstance(each, UnboundedTarget))
    trained = tuple(each for each in made if isinstance(each, TrainedTarget))
    targets = [each.target for each in made]
    targets += arm.each([arm.random(_plain(preset, "split_convnet_affine"), SEED)])
    attacks = arm.each(
        [arm.attack(target, attacker, SEED) for attacker in preset.faithful_attackers for target in targets]
    )
    return Faithful(
        side=arm.roles.public.shape[0],
        truth=arm.keep_truth(),
        plain=trained[len(noises) :],
        unbounded=unbounded,
        private=trained[: len(noises)],
        accounting=accountings(noises),
        attacks=tuple(attacks),
        baselines=arm.baselines(),
    )


def _unbounded(arm: Arm, preset: Preset, noise_multiplier: float) -> TrainUnbounded:
    """With batch normalisation, without dropout, at five times the rate."""
    recipe = as_original(preset.faithful_private_epochs)
    return arm.unbounded(f"unbounded-{noise_multiplier:g}", recipe, SEED, noise_multiplier)


def _plain(preset: Preset, model: str) -> dict[str, Any]:
    return without_privacy(model, preset.faithful_epochs)


def _private(preset: Preset, noise_multiplier: float) -> dict[str, Any]:
    """As the original's, but that batch normalisation gives way to groups, as DP-SGD demands."""
    return with_dp_sgd("split_convnet_no_dropout", preset.faithful_private_epochs, noise_multiplier)
