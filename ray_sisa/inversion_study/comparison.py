"""The original's numbers beside the same measures of a record, and what its targets leak by other measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ray_sisa.inversion_study import original
from ray_sisa.inversion_study.results import Attacked, Faithful, InversionRecord, TrainedTarget, UnboundedTarget
from ray_sisa.inversion_study.summary import PRIVATE, RANDOM, UNBOUNDED, attack_on, noise_of
from ray_sisa.inversion_study.wording import number, title
from ray_sisa.report import percent
from ray_sisa.study.rendering import NONE

PLAIN_TITLES = ("not private, normalisation inert", "not private, batch normalisation")
"""Of a faithful arm's networks without privacy, in their order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One number of the original, and ours by column."""

    what: str
    theirs: str
    ours: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivateLine:
    """A private target of the original; ours of the same noise, trained as it was and with DP-SGD."""

    noise_multiplier: float
    theirs: original.PrivateTarget | None
    side: int
    unbounded: UnboundedTarget
    private: TrainedTarget


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetLine:
    """One attack of a faithful arm."""

    side: int
    title: str
    attack: Attacked


def columns(record: InversionRecord) -> tuple[str, ...]:
    """What `lines` has ours of."""
    return tuple(
        f"{arm.side} pixels, {name}"
        for arm in record.faithful
        for name, _ in zip(PLAIN_TITLES, arm.plain, strict=False)
    )


def lines(record: InversionRecord) -> tuple[Line, ...]:
    """Accuracy of the target without privacy, and error of its attacker, at the epochs that the original reports."""
    made = [(arm, target) for arm in record.faithful for target in arm.plain]
    errors = [_errors(arm, target) for arm, target in made]
    found = []
    for told in original.TARGET:
        for what, theirs, ours in (
            ("training images", told.train, [target.train_top1 for _, target in made]),
            ("validation images", told.validation, [target.validation_top1 for _, target in made]),
        ):
            shares = tuple(_share(_at(values, told.epoch)) for values in ours)
            found.append(Line(what=f"right on {what}, epoch {told.epoch}", theirs=percent(theirs), ours=shares))
    for epoch in original.ATTACKER:
        values = tuple(number(_at(each, epoch.epoch), 4) for each in errors)
        found.append(Line(what=f"error of the attacker, epoch {epoch.epoch}", theirs=number(epoch.mse, 4), ours=values))
    return tuple(found)


def private_lines(record: InversionRecord) -> tuple[PrivateLine, ...]:
    """Private targets, by noise."""
    return tuple(
        PrivateLine(
            noise_multiplier=unbounded.noise_multiplier,
            theirs=original.private(unbounded.noise_multiplier),
            side=arm.side,
            unbounded=unbounded,
            private=private,
        )
        for arm in record.faithful
        for unbounded, private in zip(arm.unbounded, arm.private, strict=True)
    )


def target_lines(record: InversionRecord) -> tuple[TargetLine, ...]:
    """Attacks of the original's attacker and of others on the faithful targets."""
    found = []
    for arm in record.faithful:
        names = titles(arm)
        found += [TargetLine(side=arm.side, title=names[a.target], attack=a) for a in arm.attacks]
    return tuple(found)


def titles(arm: Faithful) -> dict[str, str]:
    """The targets of a faithful arm in words, by name; in the order of pictures."""
    found = {RANDOM: title(RANDOM, None)}
    found |= {made.target.name: name for made, name in zip(arm.plain, PLAIN_TITLES, strict=False)}
    found |= {made.target.name: title(UNBOUNDED, made.noise_multiplier) for made in arm.unbounded}
    return found | {made.target.name: title(PRIVATE, noise_of(made)) for made in arm.private}


def first_attacker(arm: Faithful) -> str:
    """The original's."""
    return arm.attacks[0].attacker


def _errors(arm: Faithful, target: TrainedTarget) -> Sequence[float]:
    attack = attack_on(arm.attacks, target.target.name, first_attacker(arm))
    return attack.training_mse if attack else ()


def _at(values: Sequence[float], epoch: int) -> float | None:
    return values[epoch - 1] if epoch <= len(values) else None


def _share(value: float | None) -> str:
    return NONE if value is None else percent(value)
