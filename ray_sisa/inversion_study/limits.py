"""What the model-inversion study did not test, and what follows from it for who runs such a network."""

from __future__ import annotations

from ray_sisa.inversion_study import original
from ray_sisa.inversion_study.comparison import private_lines
from ray_sisa.inversion_study.presets import PLAIN, PRESETS, PRIVATE
from ray_sisa.inversion_study.results import InversionRecord
from ray_sisa.inversion_study.summary import NOISY, STOPPED, attackers, verdicts
from ray_sisa.inversion_study.wording import attacker_title
from ray_sisa.report import percent
from ray_sisa.study.wording import counted, enumerated

NEAR = 0.05  # accuracies that differ by less are called reproduced


def limits(record: InversionRecord) -> tuple[str, ...]:
    """What the record leaves open."""
    preset, honest = PRESETS[record.facts.preset], record.honest
    tried = enumerated(attacker_title(name) for name in attackers(honest))
    said = [
        f"Attackers: {tried}. Another may find more, one with a learnt model of what images look like above all; that "
        "an attack fails proves nothing.",
        "One data set: strokes on white paper, many of each kind. Photographs and faces are not like that.",
        *_resolution(record),
        *_missed(record),
        "The faithful arm was trained once, as the original was; the honest arm under "
        f"{counted(len(honest.seeds), 'seed')}. Attackers other than the first were tried on some targets of one seed; "
        "SISA was trained under one.",
        "Controls are as accurate as private networks, not trained alike: DP-SGD has "
        f"{counted(preset.private_epochs, 'epoch')} at a rate of {PRIVATE['optimizer']['lr']:g}, networks without it "
        f"at most {preset.epochs} at {PLAIN['optimizer']['lr']:g}. What is seen at equal accuracy may be the doing of "
        "these.",
        "Stopped networks, and the noise on activations, were chosen by the accuracy on the images that it is reported "
        "of.",
        "Each victim was intercepted once. Who intercepts an image often can average noise on its activations away.",
        "Epsilons are what such training guarantees to who sees models and not the secret that reproducible noise is "
        "drawn from. The seeds of this study are in its record, so of its own networks they guarantee nothing. Labels "
        "in the record say all that they assume.",
    ]
    return tuple(said)


def _resolution(record: InversionRecord) -> list[str]:
    reduced = record.honest.side < original.SIDE
    said = []
    if reduced:
        said.append(
            f"Images of {record.honest.side} pixels a side in the honest arm and on SISA, where the original has "
            f"{original.SIDE}; kernels and pooling are smaller to fit."
        )
    private = {arm.side for arm in record.faithful if arm.private}
    if private and max(private) < original.SIDE:
        said.append(f"The original's private targets were trained at {max(private)} pixels a side only.")
    if record.facts.num_victims < original.NUM_VICTIMS:
        said.append(
            f"A part of the images: {record.facts.num_victims:,} of {original.NUM_VICTIMS:,} victims, "
            f"{record.facts.num_train:,} of {original.NUM_DRAWN_FROM:,} training images."
        )
    return said


def _missed(record: InversionRecord) -> list[str]:
    """Accuracies of targets trained as the original trained its private ones that are not the original's."""
    apart = [
        (line, line.theirs.train)
        for line in private_lines(record)
        if line.theirs and abs(line.unbounded.train_top1[-1] - line.theirs.train) > NEAR
    ]
    if not apart:
        return []
    parts = [
        f"{percent(line.unbounded.train_top1[-1])} at noise multiplier {line.noise_multiplier:g}, where it reports "
        f"{percent(theirs)}"
        for line, theirs in apart
    ]
    side = apart[0][0].side
    reduced = f", at {side} pixels a side" if side < original.SIDE else ""
    return [
        "With the original's batch normalisation, clipping and noise, accuracies on training images are not all its "
        f"own: {enumerated(parts)}. Each network was trained once{reduced}."
    ]


def advice(record: InversionRecord) -> tuple[str, ...]:
    """What follows for a user."""
    noise = [told for _, told in verdicts(record.honest, NOISY, STOPPED)]
    if noise and all(told == "less" for told in noise):
        acting = (
            "Noise on activations leaks less here than a network that is merely less accurate: it is worth its price."
        )
    elif "less" in noise:
        acting = (
            "Noise on activations leaks less here than a network that is merely less accurate, at some of its levels."
        )
    else:
        acting = (
            "Noise on activations is not seen here to leak less than a network that is merely less accurate: what must "
            "not be known had better not be sent."
        )
    return (
        "Do not count on DP-SGD, nor on having been forgotten, to protect images that are sent to a network. Use them "
        "for what they are about: the records that it was trained on.",
        acting,
        "Attack your own network before others do, and hold the result against the mean image and against images that "
        "the attacker has not seen: `ray-sisa attack inversion`.",
        "With DP-SGD on SISA, look at epsilon by slice and after deletions, not at one number: `ray-sisa status`.",
    )
