"""A made-up record of the model-inversion study, and pictures for it: numbers follow from rules, none was measured."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

import numpy as np

from ray_sisa.evaluation.inversion import Estimate, Reconstruction
from ray_sisa.inversion_study.accounting import accountings
from ray_sisa.inversion_study.pictures import Pictures, names
from ray_sisa.inversion_study.presets import PRESETS, Preset
from ray_sisa.inversion_study.results import (
    Attacked,
    Baseline,
    Facts,
    Faithful,
    Honest,
    HonestSeed,
    InversionRecord,
    NoisyTarget,
    OnSisa,
    Pair,
    Part,
    PrivateSisa,
    Spending,
    StoppedTarget,
    SubjectAttack,
    Target,
    TrainedTarget,
    UnboundedTarget,
)

UNSEEN, SEEN, PUBLIC = 2120, 1000, 2720
SPREAD = 0.01
SHOWN_UNSEEN, SHOWN_SEEN = 16, 8


def make_record(
    gaps: Sequence[float] = (-0.05, -0.05, -0.05),
    *,
    preset: str = "cpu",
    num_seeds: int = 3,
    level: float = 0.3,
    held: float = 0.1,
    held_after: float = 0.0,
    only_first: bool = False,
) -> InversionRecord:
    """A study whose private networks leak so much less (R2) than stopped ones, by noise multiplier.

    Args:
        gaps: R2 of private less stopped, one a noise multiplier.
        preset: its name.
        num_seeds: of the honest arm.
        level: R2 of the network without privacy.
        held: R2 of images that a shard held less that of others, before forgetting.
        held_after: after it.
        only_first: no attacker but the first.
    """
    noises = (0.7, 0.5, 0.3)[: len(gaps)]
    seeds = tuple(_seed(i, noises, gaps, level, only_first) for i in range(num_seeds))
    return InversionRecord(
        facts=Facts(
            preset=preset,
            command="python jobs/study_inversion.py --preset cpu",
            commit="0123abc",
            started_at="2026-11-22T10:00:00+00:00",
            seconds=7000.0,
            step_seconds=12_000.0,
            machine="a processor, Linux",
            device="cpu",
            torch="2.11.0",
            num_train=11_000,
            num_validation=2_180,
            num_public=PUBLIC,
            num_victims=UNSEEN + SEEN,
            num_seen=SEEN,
            shown=SHOWN_UNSEEN,
        ),
        faithful=_faithful(PRESETS[preset], noises),
        honest=Honest(
            side=PRESETS[preset].side,
            num_train=11_000,
            truth="honest truth",
            seeds=seeds,
            pairs=tuple(
                make_pair(noise, one, other, gap, num_seeds=num_seeds, level=level / 2)
                for noise, private in zip(noises, gaps, strict=True)
                for one, other, gap in (
                    ("private", "stopped", private),
                    ("private", "noisy", private + 0.02),
                    ("noisy", "stopped", -0.02),
                )
            ),
            baselines=_baselines("honest"),
        ),
        sisa=OnSisa(
            side=PRESETS[preset].side,
            num_subjects=16,
            num_images=320,
            attacks=tuple(
                _subjects(shard, state, gap + 0.001 * shard)
                for state, gap in (("before", held), ("after", held_after))
                for shard in range(4)
            ),
            private=PrivateSisa(
                shards=2,
                slices=5,
                num_forgotten=20,
                accuracy_before=0.30,
                accuracy_after=0.29,
                before=_spending(1.0, 7.4, 5),
                after=_spending(1.0, 8.5, 5),
            ),
        ),
    )


def make_pair(
    noise: float,
    one: str,
    other: str,
    gap: float,
    *,
    num_seeds: int = 3,
    level: float = 0.15,
    accuracies: tuple[float, float] = (0.4, 0.4),
    half: float = SPREAD,
) -> Pair:
    """What one target leaks less what another does: a difference, with an interval of so much to each side."""
    return Pair(
        noise_multiplier=noise,
        one=one,
        other=other,
        accuracy=accuracies[0],
        other_accuracy=accuracies[1],
        r2=level + gap,
        other_r2=level,
        by_seed=tuple(gap + 0.001 * seed for seed in range(num_seeds)),
        difference=Estimate(value=gap, low=gap - half, high=gap + half),
    )


def quality(r2: float, num_images: int = UNSEEN) -> Reconstruction:
    """Measures that go with an R2."""
    return Reconstruction(
        num_images=num_images,
        num_clusters=max(1, num_images // 20),
        mse=_estimate(0.07 * (1 - r2)),
        r2=_estimate(r2),
        psnr=_estimate(12 + 10 * r2),
        ssim=_estimate(0.2 + r2 / 2),
        ink_iou=_estimate(max(0.0, r2)),
        ink_f1=_estimate(max(0.0, r2)),
        top1=_estimate(max(0.0, r2) / 2 + 1 / num_images, 0.001 * (r2 > 0)),
        top5=_estimate(max(0.0, r2) + 5 / num_images),
        top1_chance=1 / num_images,
        top5_chance=5 / num_images,
    )


def make_pictures(record: InversionRecord) -> Pictures:
    """Noise of the right shapes for all that a record names."""
    sides = {arm.truth: arm.side for arm in record.faithful}
    generator = np.random.default_rng(0)
    found: Pictures = {}
    for name in names(record):
        side = next((s for s in sides.values() if name.startswith(f"faithful {s}")), record.honest.side)
        count = 64 if "white-box" in name else SHOWN_UNSEEN + SHOWN_SEEN
        found[name] = generator.integers(0, 256, (count, side, side), dtype=np.uint8)
    return found


def _estimate(value: float, half: float = SPREAD) -> Estimate:
    return Estimate(value=value, low=value - half, high=value + half)


def _seed(seed: int, noises: Sequence[float], gaps: Sequence[float], level: float, only_first: bool) -> HonestSeed:
    shift = 0.002 * seed
    accuracies = [0.4 + 0.1 * i for i in range(len(noises))]
    plain = _trained("plain", 0.70)
    private = tuple(
        _trained(f"private-{noise:g}", a, spending=_spending(noise, 3.4 + i, 1))
        for i, (noise, a) in enumerate(zip(noises, accuracies, strict=True))
    )
    stopped = tuple(
        StoppedTarget(target=_target(f"stopped-{noise:g}"), wanted=a, accuracy=a + 0.004, steps=100)
        for noise, a in zip(noises, accuracies, strict=True)
    )
    noisy = tuple(
        NoisyTarget(noise=f"gaussian:{1 + i}", wanted=a, accuracy=a - 0.001) for i, a in enumerate(accuracies)
    )
    nopeek = tuple(_trained(f"nopeek-{w:g}", 0.6, nopeek=w) for w in (1.0, 5.0))
    half = level / 2 + shift
    leaks: list[tuple[str, str | None, float]] = [("plain", None, level + shift), ("random", None, 0.01)]
    leaks += [(made.target.name, None, half + gap) for made, gap in zip(private, gaps, strict=True)]
    leaks += [(made.target.name, None, half) for made in stopped]
    leaks += [("plain", made.noise, half - 0.02) for made in noisy]
    leaks += [(made.target.name, None, level - 0.05) for made in nopeek]
    attacks = [_attacked(*leak, "kernel", seed) for leak in leaks]
    if seed == 0 and not only_first:
        attacks += [_attacked(name, noise, r2 - 0.05, "study", seed) for name, noise, r2 in leaks]
        chosen = [leak for leak in leaks if leak[0].startswith(("plain", "private", "stopped")) and leak[1] is None]
        attacks += [_attacked(name, noise, r2 - 1, "white-box", seed) for name, noise, r2 in chosen]
    return HonestSeed(
        seed=seed,
        plain=plain,
        private=private,
        stopped=stopped,
        noisy=noisy,
        nopeek=nopeek,
        attacks=tuple(attacks),
    )


def _faithful(preset: Preset, noises: Sequence[float]) -> tuple[Faithful, ...]:
    sides = preset.faithful_side, preset.faithful_private_side
    return tuple(
        _faithful_at(side, noises if side == sides[1] else (), plain=side == sides[0]) for side in dict.fromkeys(sides)
    )


def _faithful_at(side: int, noises: Sequence[float], *, plain: bool) -> Faithful:
    """Accuracies of training images are 97 % of those given, in the last epoch; the original's are 37, 45 and 56 %."""
    private = tuple(_trained(f"private-{n:g}", 0.4, spending=_spending(n, 3.4, 1)) for n in noises)
    unbounded = tuple(_unbounded(n) for n in noises)
    public = (_trained("plain", 0.72), _trained("plain-batch", 0.74)) if plain else ()
    found = [(made.target.name, 0.2) for made in (*unbounded, *private)]
    found += [*((made.target.name, 0.3) for made in public), ("random", 0.01)]
    return Faithful(
        side=side,
        truth=f"faithful {side} truth",
        plain=public,
        unbounded=unbounded,
        private=private,
        accounting=accountings(noises),
        attacks=tuple(
            _attacked(name, None, r2, attacker, 0, f"faithful {side}")
            for attacker in ("study", "kernel")
            for name, r2 in found
        ),
        baselines=_baselines(f"faithful {side}"),
    )


def _unbounded(noise_multiplier: float) -> UnboundedTarget:
    made = _trained(f"unbounded-{noise_multiplier:g}", 0.5)
    return UnboundedTarget(
        target=made.target,
        noise_multiplier=noise_multiplier,
        train_top1=made.train_top1,
        validation_top1=made.validation_top1,
        seconds=made.seconds,
    )


def _attacked(target: str, noise: str | None, r2: float, attacker: str, seed: int, arm: str = "honest") -> Attacked:
    parts: dict[Part, Reconstruction] = {"unseen": quality(r2)}
    if attacker != "white-box":
        parts |= {
            "public": quality(r2 + 0.1, PUBLIC),
            "victims": quality(r2 + 0.02, UNSEEN + SEEN),
            "seen": quality(r2 + 0.08, SEEN),
        }
    return Attacked(
        target=target,
        attacker=attacker,
        noise=noise,
        training_mse=tuple(0.06 - 0.0002 * epoch for epoch in range(100)) if attacker == "study" else (),
        quality=parts,
        arrays=f"{arm} {target} {noise} {attacker} {seed}",
        seconds=1.0,
    )


def _baselines(arm: str) -> tuple[Baseline, ...]:
    return tuple(
        Baseline(
            name=name,
            asks=name == "pca",
            quality={
                "public": quality(r2, PUBLIC),
                "victims": quality(r2, UNSEEN + SEEN),
                "unseen": quality(r2),
                "seen": quality(r2 + 0.05, SEEN),
            },
            arrays=f"{arm} {name}",
        )
        for name, r2 in (("mean", 0.0), ("white", -0.2), ("pca", 0.36))
    )


def _subjects(shard: int, state: Literal["before", "after"], gap: float) -> SubjectAttack:
    return SubjectAttack(
        shard=shard,
        state=state,
        accuracy=0.5,
        held=quality(0.2 + gap, 80),
        others=quality(0.2, 240),
        unseen=quality(0.15),
        arrays=f"sisa {shard} {state}",
    )


def _trained(
    name: str, accuracy: float, *, spending: Spending | None = None, nopeek: float | None = None
) -> TrainedTarget:
    epochs = 10
    return TrainedTarget(
        target=_target(name, nopeek),
        uri="STORAGE/runs/a",
        train_top1=tuple(min(0.99, accuracy * (0.4 + 0.07 * e)) for e in range(epochs)),
        validation_top1=tuple(accuracy * (e + 1) / epochs for e in range(epochs)),
        spending=spending,
        seconds=10.0,
    )


def _target(name: str, nopeek: float | None = None) -> Target:
    recipe = {"recipe": {"nopeek": None if nopeek is None else {"layer": "device", "weight": nopeek}}}
    return Target(name=name, arrays=f"weights of {name}", recipe=json.dumps(recipe))


def _spending(noise_multiplier: float, epsilon: float, slices: int) -> Spending:
    by_slice = tuple(tuple(epsilon - 1.2 * i for i in range(slices)) for _ in range(2 if slices > 1 else 1))
    return Spending(
        epsilon=epsilon,
        by_slice=by_slice,
        delta=1e-5,
        accountant="prv",
        noise_multiplier=noise_multiplier,
        label=f"epsilon {epsilon:.2f} at delta 1e-05; unit: one sample",
    )
