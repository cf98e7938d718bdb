"""What the record of the model-inversion study says of each of the original's mistakes, in sentences of its numbers.

Owns no data of the original (`original`) and no verdict on the study as a whole (`conclusions`).
"""

from __future__ import annotations

from collections.abc import Callable

from ray_sisa.inversion_study import original
from ray_sisa.inversion_study.comparison import PLAIN_TITLES, first_attacker, private_lines
from ray_sisa.inversion_study.results import Attacked, Faithful, InversionRecord, Part
from ray_sisa.inversion_study.summary import (
    PRIVATE,
    STOPPED,
    attack_on,
    baseline,
    noise_of,
    value_of,
    verdicts,
)
from ray_sisa.inversion_study.wording import R2, VERDICTS, number
from ray_sisa.report import percent
from ray_sisa.split_convnet import WIDTH
from ray_sisa.study.rendering import NONE
from ray_sisa.study.wording import counted, enumerated

SMALL_SETS: tuple[Part, Part] = ("seen", "unseen")


def evidence(record: InversionRecord, key: str) -> str | None:
    """What the record says of one of the original's mistakes; None where it says nothing."""
    return _EVIDENCE[key](record)


def _overlap(record: InversionRecord) -> str | None:
    facts = record.facts
    said = f"{facts.num_seen:,} of {facts.num_victims:,} victims are among the attacker's images, by their pixels."
    arm = record.faithful[0]
    attack = _first(arm)
    seen, unseen = (value_of(attack, "r2", part) if attack else None for part in SMALL_SETS)
    if seen is None or unseen is None:
        return said
    return (
        f"{said} At {arm.side} pixels a side, {R2} of the original's attacker is {number(seen)} on these, "
        f"{number(unseen)} on the others."
    )


def _count(record: InversionRecord) -> str | None:
    found = [told for arm in record.faithful for told in arm.accounting]
    parts = [
        f"{told.claimed['2020']:.2f} becomes {told.as_run['2020']:.2f} at noise multiplier {told.noise_multiplier:g}"
        for told in found
    ]
    return f"With the right count, by the original's method, epsilon {enumerated(parts)}." if parts else None


def _sampler(record: InversionRecord) -> str | None:
    found = [told for arm in record.faithful for told in arm.accounting]
    parts = [f"{told.as_run['unamplified']:.1f} at {told.noise_multiplier:g}" for told in found]
    return f"Without credit for sampling, epsilon is {enumerated(parts)}." if parts else None


def _normalisation(record: InversionRecord) -> str | None:
    arm, theirs = record.faithful[0], original.TARGET[-1]
    parts = [
        f"{percent(made.train_top1[-1])} and {percent(made.accuracy)} ({name.rpartition(', ')[2]})"
        for made, name in zip(arm.plain, PLAIN_TITLES, strict=False)
    ]
    said = (
        f"The original's {percent(theirs.train)} of training images and {percent(theirs.validation)} of validation "
        f"images are here, at {arm.side} pixels a side, {enumerated(parts)}."
    )
    return f"{said} {_as_original(record)}"


def _as_original(record: InversionRecord) -> str:
    found = private_lines(record)
    noises = enumerated(f"{line.noise_multiplier:g}" for line in found)
    ours = enumerated(percent(line.unbounded.train_top1[-1]) for line in found)
    private = enumerated(percent(line.private.train_top1[-1]) for line in found)
    theirs = enumerated(percent(line.theirs.train) if line.theirs else NONE for line in found)
    return (
        f"With the original's batch normalisation, clipping and noise, networks have {ours} of training images right "
        f"at noise multiplier {noises}, at {found[0].side} pixels a side; the original, at {original.SIDE}, reports "
        f"{theirs}. With DP-SGD, so with groups and Poisson batches, they have {private}."
    )


def _baselines(record: InversionRecord) -> str | None:
    arm = record.faithful[0]
    attack = _first(arm)
    mean, linear = (value_of(baseline(arm, name), "mse", "public") for name in ("mean", "pca"))
    if attack is None or mean is None or linear is None:
        return None
    error = value_of(attack, "mse", "public")
    return (
        f"On the attacker's own images, at {arm.side} pixels a side, its error is {number(error, 4)}; that of the mean "
        f"image {number(mean, 4)}, and that of {WIDTH} principal components {number(linear, 4)}."
    )


def _metric(record: InversionRecord) -> str | None:
    arm = record.faithful[0]
    attack = _first(arm)
    if attack is None:
        return None
    parts: tuple[tuple[Part, str], ...] = (("public", "its own images"), ("unseen", "unseen victims"))
    said = [f"{number(value_of(attack, 'r2', part))} on {name}" for part, name in parts]
    unseen = attack.quality["unseen"]
    return (
        f"{R2} of the original's attacker is {enumerated(said)}; of {counted(unseen.num_images, 'unseen victim')} it "
        f"has {percent(unseen.top1.value)} recognised, where chance is {percent(unseen.top1_chance)}."
    )


def _arms(record: InversionRecord) -> str | None:
    seed, side = record.honest.seeds[0], record.honest.side
    parts = [f"{percent(made.accuracy)} at {noise_of(made):g}" for made in seed.private]
    return (
        f"Right on validation images, at {side} pixels a side under one seed: {percent(seed.plain.accuracy)} without "
        f"privacy, {enumerated(parts)} with DP-SGD."
    )


def _conclusion(record: InversionRecord) -> str | None:
    found = verdicts(record.honest, PRIVATE, STOPPED)
    parts = [f"{VERDICTS[told]} at {pair.noise_multiplier:g}" for pair, told in found]
    return f"DP-SGD beside networks stopped at its accuracy, by noise multiplier: {enumerated(parts)}."


def _first(arm: Faithful) -> Attacked | None:
    return attack_on(arm.attacks, arm.plain[0].target.name, first_attacker(arm))


_EVIDENCE: dict[str, Callable[[InversionRecord], str | None]] = {
    "overlap": _overlap,
    "count": _count,
    "sampler": _sampler,
    "normalisation": _normalisation,
    "baselines": _baselines,
    "metric": _metric,
    "arms": _arms,
    "conclusion": _conclusion,
}
