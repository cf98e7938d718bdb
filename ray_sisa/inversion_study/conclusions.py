"""What the record of the model-inversion study says, in sentences whose wording follows the numbers, whichever way.

Sentences are plain text; none says more than was measured. Each is left out where the record lacks what it is about.
"""

from __future__ import annotations

from collections.abc import Sequence

from ray_sisa.evaluation.inversion import Estimate
from ray_sisa.inversion_study.results import InversionRecord, Pair
from ray_sisa.inversion_study.summary import (
    EQUAL,
    NOISY,
    NOPEEK,
    PLAIN,
    PRIVATE,
    RANDOM,
    STOPPED,
    Row,
    Verdict,
    attackers,
    baseline,
    largest_gap,
    over_shards,
    row,
    rows,
    shard_gaps,
    sign,
    value_of,
    verdicts,
)
from ray_sisa.inversion_study.wording import (
    R2,
    VERDICTS,
    attacker_title,
    confidence,
    difference_text,
    number,
    shares_text,
    signed,
    spread_text,
    title_of,
)
from ray_sisa.report import percent
from ray_sisa.split_convnet import WIDTH
from ray_sisa.study.wording import counted, enumerated, points

LAW = (
    "DP-SGD protects the records that a network was trained on. The attack is on inputs: images that somebody else "
    "sends to the trained network, of which it promises nothing. What can protect these is what acts on the "
    "activations: noise on them, training that makes them tell less, or not sending them."
)
BEYOND = "DP-SGD reduces this leakage beyond the accuracy that it costs"
ANSWERS: dict[Verdict, str] = {
    "less": f"{BEYOND}, at every noise multiplier that was tried",
    "more": "DP-SGD does not reduce this leakage beyond the accuracy that it costs: at every noise multiplier that was "
    "tried, a network without privacy that is as accurate leaks less",
    "nothing": "There is no leakage that DP-SGD could reduce: neither its networks nor those without privacy at their "
    "accuracy leak more than the mean image tells",
    "unequal": f"Whether {BEYOND} cannot be told: the networks compared are not as accurate as each other",
    "untold": f"Whether {BEYOND} cannot be told from this record",
}
"""By what is told at every noise multiplier alike."""


def verdict(record: InversionRecord) -> tuple[str, ...]:
    """The whole study in a few sentences, what matters most first."""
    said = (answer, shares, controls, equality, telling, flattery, defences, other_attackers, forgetting, spending)
    return tuple(sentence for say in said if (sentence := say(record)))


def answer(record: InversionRecord) -> str:
    """Does DP-SGD reduce this leakage beyond the accuracy that it costs?"""
    found = verdicts(record.honest, PRIVATE, STOPPED)
    kinds = {verdict for _, verdict in found}
    said = ANSWERS[found[0][1]] if len(kinds) == 1 else _mixed(kinds)
    return f"{said}. {' '.join(map(_said_of, found))}"


def _mixed(kinds: set[Verdict]) -> str:
    if {"less", "more"} <= kinds:
        return f"Whether {BEYOND} depends on the noise: it leaks less at some, more at other noise multipliers"
    if "less" in kinds:
        return f"{BEYOND} at some of the noise multipliers that were tried, not at all of them"
    if "more" in kinds:
        return f"It is not seen that {BEYOND}; at some noise multipliers it leaks more"
    return ANSWERS["untold"]


def _said_of(found: tuple[Pair, Verdict]) -> str:
    pair, verdict = found
    return (
        f"At noise multiplier {pair.noise_multiplier:g}, {R2} on unseen victims is {number(pair.r2)} against "
        f"{number(pair.other_r2)} of the network stopped at its accuracy; difference "
        f"{difference_text(pair.difference)}, negative under {signs(pair)} seeds: {told(pair, verdict)}."
    )


def told(pair: Pair, verdict: Verdict) -> str:
    """A verdict, and why it is none where it is none."""
    if verdict != "untold":
        return VERDICTS[verdict]
    why = "seeds disagree" if sign(pair.difference) != "untold" else "the interval contains zero"
    return f"{VERDICTS[verdict]}, {'there is no interval' if pair.difference.low is None else why}"


def signs(pair: Pair) -> str:
    """Under how many seeds the first of a pair leaks less."""
    return f"{sum(value < 0 for value in pair.by_seed)} of {len(pair.by_seed)}"


def shares(record: InversionRecord) -> str:
    """How much of what private networks leak less than a fully trained one, stopped networks leak less as well."""
    plain = row(rows(record.honest, attackers(record.honest)[0]), PLAIN)
    found = plain.spread("r2") if plain else None
    assert found is not None  # the network without privacy is always attacked
    pairs = [pair for pair, _ in verdicts(record.honest, PRIVATE, STOPPED)]
    lower = [pair for pair in pairs if pair.r2 < found.mean]
    others = [f"{pair.noise_multiplier:g}" for pair in pairs if pair not in lower]
    said = []
    if lower:
        values = enumerated(f"{number(pair.r2)} at {pair.noise_multiplier:g}" for pair in lower)
        said.append(
            f"The fully trained network without privacy has {R2} {number(found.mean)}. Private networks have less, by "
            f"noise multiplier: {values}. {_explained(lower, found.mean)}"
        )
    if others:
        said.append(
            f"At noise multiplier {enumerated(others)}, private networks leak no less than the fully trained one "
            "without."
        )
    return " ".join(said)


def _explained(lower: Sequence[Pair], full: float) -> str:
    """What stopping early alone does of the falls of R2, from that of the fully trained network to private ones."""
    parts = [
        f"{percent((full - pair.other_r2) / (full - pair.r2))} at {pair.noise_multiplier:g}"
        for pair in lower
        if pair.other_r2 < full
    ]
    none = [pair for pair in lower if pair.other_r2 >= full]
    said = []
    if parts:
        said.append(f"Of this fall, networks without privacy stopped at the same accuracy have {enumerated(parts)}.")
    if none:
        noises, values = zip(*((f"{pair.noise_multiplier:g}", number(pair.other_r2)) for pair in none), strict=True)
        said.append(
            f"At {enumerated(noises)}, a network without privacy stopped at the same accuracy leaks no less than the "
            f"fully trained one ({R2} {enumerated(values)}): there the lower accuracy explains none of the fall."
        )
    return " ".join(said)


def controls(record: InversionRecord) -> str:
    """Noise on the activations beside DP-SGD, and beside stopping early."""
    said = []
    for one, other, names in (
        (PRIVATE, NOISY, "DP-SGD, beside noise on the activations of a network without privacy"),
        (NOISY, STOPPED, "Noise on the activations, beside stopping early"),
    ):
        found = verdicts(record.honest, one, other)
        parts = [f"{VERDICTS[v]} at {p.noise_multiplier:g} ({signed(p.difference.value)})" for p, v in found]
        said.append(f"{names} and at the same accuracy: {enumerated(parts)}.")
    return " ".join(said)


def equality(record: InversionRecord) -> str:
    """How equal the accuracies are that are called equal."""
    honest = record.honest
    gaps = {
        name: max(largest_gap(honest, p) for p, _ in verdicts(honest, PRIVATE, kind))
        for kind, name in ((STOPPED, "stopped networks"), (NOISY, "networks with noise on their activations"))
    }
    parts = [f"{name} {100 * gap:.1f} points" for name, gap in gaps.items()]
    seeds = counted(len(honest.seeds), "seed")
    return (
        f"Farthest from the validation accuracy that was wanted of them, under any of {seeds}: {enumerated(parts)}. "
        f"Means that differ by more than {100 * EQUAL:g} points are not called equal."
    )


def telling(record: InversionRecord) -> str:
    """Whether the attack tells anything at all, beside what needs no attack."""
    found = rows(record.honest, attackers(record.honest)[0])
    plain = row(found, PLAIN)
    assert plain is not None  # the network without privacy is always attacked
    r2, top1, chance = plain.spread("r2"), plain.spread("top1"), plain.attacks[0].quality["unseen"].top1_chance
    tells = all(_is_above(a.quality["unseen"].r2, 0) for a in plain.attacks)
    recognises = all(_is_above(a.quality["unseen"].top1, chance) for a in plain.attacks)
    said = (
        "tells more of unseen victims than the mean image does" if tells else "tells no more than the mean image does"
    )
    recognised = (
        f"the true image is the most alike of {counted(plain.attacks[0].quality['unseen'].num_images, 'image')} for "
        f"{shares_text(top1)}, {'above' if recognises else 'not clearly above'} the {percent(chance)} of chance"
    )
    return (
        f"Against the network without privacy the attack {said}: {R2} {spread_text(r2)}; {recognised}. "
        f"{_beside(record, found)}"
    )


def _beside(record: InversionRecord, found: Sequence[Row]) -> str:
    plain, random = row(found, PLAIN), row(found, RANDOM)
    linear = value_of(baseline(record.honest, "pca"), "r2")
    assert plain is not None and linear is not None  # both are of unseen victims
    values = [value for a in plain.attacks if (value := value_of(a, "r2")) is not None]
    where = "less than" if max(values) < linear else "more than" if min(values) > linear else "about as much as"
    said = f"It has {where} {WIDTH} principal components of the image itself would give ({number(linear)})"
    if random is None:
        return f"{said}."
    own = [value for a in random.attacks if (value := value_of(a, "r2")) is not None]
    all_above = all(a > b for a, b in zip(values, own, strict=True))
    verb = "so training is what makes the encoder tell" if all_above else "so training need not be what makes it tell"
    return (
        f"{said}; of an encoder with random weights the same attacker has {spread_text(random.spread('r2'))}, {verb}."
    )


def flattery(record: InversionRecord) -> str | None:
    """How much the overlap of its two sets flattered the original."""
    plain = row(rows(record.honest, attackers(record.honest)[0]), PLAIN)
    assert plain is not None  # the network without privacy is always attacked
    seen, unseen, everything = (plain.spread("r2", part) for part in ("seen", "unseen", "victims"))
    if seen is None or unseen is None or everything is None:
        return None
    gap, most = seen.mean - unseen.mean, everything.mean - unseen.mean
    verb = "flatter" if gap > 0 else "do not flatter"
    linear = baseline(record.honest, "pca")
    one, other = value_of(linear, "r2", "seen"), value_of(linear, "r2")
    beside = f"; of principal components {signed(one - other)}" if one is not None and other is not None else ""
    return (
        f"The {counted(record.facts.num_seen, 'victim')} that the attacker trained on {verb} the attack: {R2} "
        f"{number(seen.mean)} on them and {number(unseen.mean)} on unseen ones, a difference of {signed(gap)}{beside}. "
        f"Over all victims, as the original has them, that makes {signed(most)}. Greek and Latin letters are simpler "
        "too, which this does not tell apart."
    )


def defences(record: InversionRecord) -> str | None:
    """What the defences that act on activations did, at what accuracy."""
    found = rows(record.honest, attackers(record.honest)[0])
    plain = row(found, PLAIN)
    acting = [r for r in found if r.kind in (NOISY, NOPEEK)]
    if plain is None or not acting:
        return None
    base, accuracy = plain.spread("r2"), plain.accuracy
    parts = []
    for each in acting:
        r2, reached = each.spread("r2"), each.accuracy
        if r2 and reached and base and accuracy:
            less = "" if r2.mean < base.mean else ", which is no less"
            parts.append(
                f"{title_of(each)}: {number(r2.mean)}{less}, for {points(reached.mean - accuracy.mean)} of accuracy"
            )
    return (
        f"Of what acts on the activations, {R2} against {spread_text(base)} of the network without: {'; '.join(parts)}."
    )


def other_attackers(record: InversionRecord) -> str | None:
    """Whether a stronger attacker changes which of private and stopped leaks more; under the first seed."""
    first, *others = attackers(record.honest)
    said = []
    for attacker in others:
        pairs = [_order(record, name) for name in (first, attacker)]
        common = pairs[0].keys() & pairs[1].keys()
        who = f"{attacker_title(attacker)} ({R2} {number(_best(record, attacker))} without privacy)"
        if common:
            kept = sum((pairs[0][sigma] < 0) == (pairs[1][sigma] < 0) for sigma in common)
            differences = enumerated(f"{signed(pairs[1][s])} at {s:g}" for s in sorted(common, reverse=True))
            said.append(
                f"{who} orders private and stopped networks as the first attacker does at {kept} of "
                f"{counted(len(common), 'noise multiplier')} ({differences})"
            )
        else:
            said.append(f"{who} has no more than the mean image of private and stopped networks, so no order of them")
    if not said:
        return None
    return f"Other attackers, under one seed, private less stopped: {'; '.join(said)}."


def _order(record: InversionRecord, attacker: str) -> dict[float, float]:
    """R2 of private less stopped under the first seed, where one of them is above 0."""
    found = rows(record.honest, attacker)
    differences = {}
    for private in found:
        stopped = row(found, STOPPED, private.dial)
        if private.kind == PRIVATE and stopped is not None and private.dial is not None:
            one, other = value_of(private.attacks[0], "r2"), value_of(stopped.attacks[0], "r2")
            if one is not None and other is not None and max(one, other) > 0:
                differences[private.dial] = one - other
    return differences


def _best(record: InversionRecord, attacker: str) -> float | None:
    plain = row(rows(record.honest, attacker), PLAIN)
    return value_of(plain.attacks[0], "r2") if plain else None


def forgetting(record: InversionRecord) -> str:
    """Does forgetting a subject change what can be reconstructed of its images, and was there anything to forget?"""
    gaps = shard_gaps(record.sisa.attacks)
    if not gaps:
        return "No constituent of SISA held some of the subjects and not all, so that nothing can be compared."
    before, after = over_shards([g.before for g in gaps]), over_shards([g.after for g in gaps])
    change = over_shards([g.after - g.before for g in gaps])
    held = {
        "above": "Constituents of SISA do bring images that they held nearer than images that others held",
        "below": "Constituents of SISA bring images that they held less near than images that others held",
        "untold": "It cannot be told that constituents of SISA bring images that they held nearer than others, so "
        "there may be nothing to forget",
    }[sign(before)]
    changed = {
        "above": "forgetting raises it",
        "below": "forgetting lowers it",
        "untold": "that forgetting changes it cannot be told",
    }[sign(change)]
    return (
        f"{held}: {R2} of held less others {difference_text(before)} over {counted(len(gaps), 'shard')} "
        f"before {counted(record.sisa.num_subjects, 'subject')} {'is' if record.sisa.num_subjects == 1 else 'are'} "
        f"forgotten, {difference_text(after)} after; {changed} ({difference_text(change)}). {_exact(record)}"
    )


def _exact(record: InversionRecord) -> str:
    """What is there all the same, of images that nobody held."""
    unseen = [a.unseen.r2 for a in record.sisa.attacks if a.state == "after"]
    if not unseen or not all(_is_above(found, 0) for found in unseen):
        return ""
    low, high = (number(end(found.value for found in unseen if found)) for end in (min, max))
    return (
        f"After forgetting, too, a constituent tells of victims that no one trained on ({R2} {low} "
        f"to {high}): being forgotten is no protection for who sends an image."
    )


def spending(record: InversionRecord) -> str:
    """What DP-SGD on SISA has spent, by slice, before and after a deletion."""
    private = record.sisa.private
    first, last = (max(shard[place] for shard in private.before.by_slice) for place in (0, -1))
    one, other = private.before.epsilon, private.after.epsilon
    beside = f"raises the largest from {one:.2f} to {other:.2f}" if other > one else "leaves the largest as it is"
    return (
        f"DP-SGD on SISA spends by slice: epsilon {first:.2f} for a record of the first slice and {last:.2f} for one "
        f"of the last, at delta {private.before.delta:g}. Forgetting {counted(private.num_forgotten, 'sample')} trains "
        f"stages again, which spends again and {beside}."
    )


def intervals() -> str:
    """What intervals are over, and what they leave out."""
    return (
        f"Intervals are at {confidence()} and over characters, with errors averaged over seeds first: they cover which "
        "characters were drawn, not the chance of training, for which the sign under each seed stands. A difference is "
        "told where both say the same. Pairs are several, and none of these intervals allows for that."
    )


def _is_above(found: Estimate | None, bound: float) -> bool:
    return found is not None and found.low is not None and found.low > bound
