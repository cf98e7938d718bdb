"""The faithful arm: the original's experiment with its layers, optimisers, epochs and roles, measured as it was not."""

from __future__ import annotations

from typing import Any

from ray_sisa.inversion_study.accounting import accountings
from ray_sisa.inversion_study.arm import Arm
from ray_sisa.inversion_study.presets import Preset, with_dp_sgd, without_privacy
from ray_sisa.inversion_study.results import Faithful

SEED = 0  # the original has one training of each


def run_faithful(arm: Arm, preset: Preset) -> Faithful:
    """Trains the original's targets, without privacy and with DP-SGD; attacks these, and one that is not trained."""
    noises = preset.noise_multipliers
    private = [_private(preset, noise) for noise in noises]
    plain = [_plain(preset, model) for model in ("split_convnet_affine", "split_convnet")]
    names = [*(f"private-{noise:g}" for noise in noises), "plain", "plain-batch"]
    tasks = [arm.train(name, recipe, SEED) for name, recipe in zip(names, [*private, *plain], strict=True)]
    trained = arm.each(tasks)
    targets = [*(made.target for made in trained), *arm.each([arm.random(plain[0], SEED)])]
    attacks = arm.each(
        [arm.attack(target, attacker, SEED) for attacker in preset.faithful_attackers for target in targets]
    )
    return Faithful(
        side=preset.faithful_side,
        truth=arm.keep_truth(),
        plain=tuple(trained[len(private) :]),
        private=tuple(trained[: len(private)]),
        accounting=accountings(noises),
        attacks=tuple(attacks),
        baselines=arm.baselines(),
    )


def _plain(preset: Preset, model: str) -> dict[str, Any]:
    return without_privacy(model, preset.faithful_epochs)


def _private(preset: Preset, noise_multiplier: float) -> dict[str, Any]:
    """Without dropout, at five times the rate; batch normalisation gives way to groups, as DP-SGD demands."""
    return with_dp_sgd("split_convnet_no_dropout", preset.faithful_private_epochs, noise_multiplier)
