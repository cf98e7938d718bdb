"""The faithful arm: the original's experiment with its layers, optimisers, epochs and roles, measured as it was not."""

from __future__ import annotations

from typing import Any

from ray_sisa.inversion_study.accounting import accountings
from ray_sisa.inversion_study.arm import Arm
from ray_sisa.inversion_study.baselines import NAMES, BaselineTask
from ray_sisa.inversion_study.presets import PLAIN, PRIVATE, Preset
from ray_sisa.inversion_study.results import Baseline, Faithful
from ray_sisa.study.steps import Task

SEED = 0  # the original has one training of each


def run_faithful(arm: Arm, preset: Preset, side: int) -> Faithful:
    """Trains the original's targets, and at the last resolution those with DP-SGD; its attacker against each."""
    noises = preset.noise_multipliers if side == preset.faithful_sides[-1] else ()
    private = [_private(preset, noise) for noise in noises]
    plain = [_plain(preset, model) for model in ("split_convnet_affine", "split_convnet")]
    names = [*(f"private-{noise:g}" for noise in noises), "plain", "plain-batch"]
    tasks = [arm.train(name, recipe, SEED) for name, recipe in zip(names, [*private, *plain], strict=True)]
    trained = arm.each(tasks)
    targets = [made.target for made in trained]
    attackers = preset.faithful_attackers[:1]
    if side == preset.faithful_sides[-1]:  # what costs little there
        targets += arm.each([arm.random(plain[0], SEED)])
        attackers = preset.faithful_attackers
    attacks = arm.each([arm.attack(target, attacker, SEED) for attacker in attackers for target in targets])
    baselines: list[Task[Baseline]] = [BaselineTask(name=n, images=arm.roles.digest) for n in NAMES]
    return Faithful(
        side=side,
        truth=arm.steps.keep(shown=arm.roles.victims.images[arm.roles.shown][..., 0]),
        plain=tuple(trained[len(private) :]),
        private=tuple(trained[: len(private)]),
        accounting=accountings(noises),
        attacks=tuple(attacks),
        baselines=tuple(arm.each(baselines)),
    )


def _plain(preset: Preset, model: str) -> dict[str, Any]:
    return {**PLAIN, "model": model, "epochs_per_slice": preset.faithful_epochs}


def _private(preset: Preset, noise_multiplier: float) -> dict[str, Any]:
    """Without dropout, at five times the rate; batch normalisation gives way to groups, as DP-SGD demands."""
    return {
        **PRIVATE,
        "model": "split_convnet_no_dropout",
        "epochs_per_slice": preset.faithful_private_epochs,
        "dp": {"noise_multiplier": noise_multiplier, "max_grad_norm": 1.0, "delta": 1e-5},
    }
