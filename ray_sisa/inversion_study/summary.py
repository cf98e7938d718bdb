"""A record's numbers as its tables and sentences need them: rows over seeds, verdicts on pairs, gaps over shards. Pure.

Owns the rules by which a difference is told; words are elsewhere.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import stats

from ray_sisa.evaluation.inversion import CONFIDENCE, Estimate
from ray_sisa.inversion_study.results import (
    Attacked,
    Baseline,
    Faithful,
    Honest,
    HonestSeed,
    Pair,
    Part,
    SubjectAttack,
    TrainedTarget,
)
from ray_sisa.study.summary import Spread

EQUAL = 0.02
"""Accuracies whose means over seeds differ by no more are called equal."""
PLAIN, PRIVATE, STOPPED, NOISY, NOPEEK, RANDOM = "plain", "private", "stopped", "noisy", "nopeek", "random"
UNBOUNDED = "unbounded"
"""Trained as the original trained its private targets."""
Verdict = Literal["less", "more", "untold", "unequal", "nothing"]
Measure = Literal["mse", "r2", "psnr", "ssim", "ink_iou", "ink_f1", "top1", "top5"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One kind of target under one attacker, over the seeds that it was attacked under."""

    kind: str
    dial: float | None
    """Noise multiplier of the private target that it is or is held against; weight of NoPeek."""
    accuracies: tuple[float, ...]
    """On the validation images; none of a network that was not trained."""
    attacks: tuple[Attacked, ...]

    @property
    def accuracy(self) -> Spread | None:
        """Over seeds."""
        return Spread(values=self.accuracies) if self.accuracies else None

    def spread(self, measure: Measure, part: Part = "unseen") -> Spread | None:
        """Of a measure of some images, over seeds."""
        found = tuple(value for a in self.attacks if (value := value_of(a, measure, part)) is not None)
        return Spread(values=found) if found else None


def value_of(found: Attacked | Baseline, measure: Measure, part: Part = "unseen") -> float | None:
    """A measure of some images; None where it was not taken of them."""
    estimate: Estimate | None = getattr(found.quality[part], measure) if part in found.quality else None
    return None if estimate is None else estimate.value


def rows(honest: Honest, attacker: str) -> tuple[Row, ...]:
    """Every kind of target that an attacker was tried on, the network without privacy first."""
    first = honest.seeds[0]
    sigmas = [noise_of(made) for made in first.private]
    wanted: list[tuple[str, int, float | None]] = [(PLAIN, 0, None)]
    wanted += [(kind, i, sigma) for kind in (PRIVATE, STOPPED, NOISY) for i, sigma in enumerate(sigmas)]
    wanted += [(NOPEEK, i, weight_of(made)) for i, made in enumerate(first.nopeek)]
    wanted.append((RANDOM, 0, None))
    made = (_row(honest, attacker, *each) for each in wanted)
    return tuple(row for row in made if row.attacks)


def row(found: Sequence[Row], kind: str, dial: float | None = None) -> Row | None:
    """One of them; None where it was not attacked."""
    return next((r for r in found if (r.kind, r.dial) == (kind, dial)), None)


def attackers(honest: Honest) -> tuple[str, ...]:
    """Those that were tried, the one that all targets were attacked by first."""
    return tuple(dict.fromkeys(a.attacker for seed in honest.seeds for a in seed.attacks))


def noise_of(made: TrainedTarget) -> float:
    """The noise multiplier of a private target."""
    assert made.spending is not None  # it is private
    return made.spending.noise_multiplier


def weight_of(made: TrainedTarget) -> float:
    """The weight of NoPeek that a target was trained with."""
    return float(json.loads(made.target.recipe)["recipe"]["nopeek"]["weight"])


def attack_on(attacks: Iterable[Attacked], target: str, attacker: str, noise: str | None = None) -> Attacked | None:
    """One attack; None where there was none."""
    wanted = (target, attacker, noise)
    return next((a for a in attacks if (a.target, a.attacker, a.noise) == wanted), None)


def attack_at(seed: HonestSeed, attacker: str, kind: str, place: int) -> Attacked | None:
    """The attack on the target of a kind, of those the one at a place; None where there was none."""
    if kind == NOISY:
        return attack_on(seed.attacks, seed.plain.target.name, attacker, seed.noisy[place].noise)
    if kind == RANDOM:
        return attack_on(seed.attacks, RANDOM, attacker)
    targets = {
        PLAIN: [seed.plain.target],
        PRIVATE: [made.target for made in seed.private],
        STOPPED: [made.target for made in seed.stopped],
        NOPEEK: [made.target for made in seed.nopeek],
    }
    return attack_on(seed.attacks, targets[kind][place].name, attacker)


def baseline(arm: Honest | Faithful, name: str) -> Baseline:
    """`mean`, `white` or `pca`."""
    return next(each for each in arm.baselines if each.name == name)


def judge(pair: Pair) -> Verdict:
    """Whether the first of a pair leaks less, more, or that cannot be told.

    Told is what the interval over characters and the sign under every seed say alike, of targets that are as accurate
    as each other and of which at least one leaks more than the mean image.
    """
    low, high = pair.difference.low, pair.difference.high
    if max(pair.r2, pair.other_r2) <= 0:
        return "nothing"
    if abs(pair.accuracy - pair.other_accuracy) > EQUAL:
        return "unequal"
    if high is not None and high < 0 and all(value < 0 for value in pair.by_seed):
        return "less"
    if low is not None and low > 0 and all(value > 0 for value in pair.by_seed):
        return "more"
    return "untold"


def verdicts(honest: Honest, one: str, other: str) -> tuple[tuple[Pair, Verdict], ...]:
    """What is told of each noise multiplier by a comparison."""
    found = [pair for pair in honest.pairs if (pair.one, pair.other) == (one, other)]
    return tuple((pair, judge(pair)) for pair in found)


def largest_gap(honest: Honest, pair: Pair) -> float:
    """The largest difference of accuracy under a seed, of the two of a pair."""
    places = [noise_of(made) for made in honest.seeds[0].private]
    place = places.index(pair.noise_multiplier)
    return max(abs(accuracy_at(s, pair.one, place) - accuracy_at(s, pair.other, place)) for s in honest.seeds)


def accuracy_at(seed: HonestSeed, kind: str, place: int) -> float:
    """Of the private target of a place, or of a control of it, on the validation images."""
    accuracies = {
        PRIVATE: seed.private[place].accuracy,
        STOPPED: seed.stopped[place].accuracy,
        NOISY: seed.noisy[place].accuracy,
    }
    return accuracies[kind]


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardGap:
    """How much nearer one constituent brings images that its shard held than images of others: R2 less R2."""

    shard: int
    before: float
    after: float


def shard_gaps(attacks: Sequence[SubjectAttack]) -> tuple[ShardGap, ...]:
    """Of each shard that held some of the subjects, and not all."""
    found: dict[int, dict[str, float]] = {}
    for attack in attacks:
        held, others = (asked.r2 if asked else None for asked in (attack.held, attack.others))
        if held is not None and others is not None:
            found.setdefault(attack.shard, {})[attack.state] = held.value - others.value
    whole = {shard: gaps for shard, gaps in found.items() if len(gaps) == 2}
    return tuple(ShardGap(shard=s, before=g["before"], after=g["after"]) for s, g in sorted(whole.items()))


def over_shards(values: Sequence[float]) -> Estimate:
    """Their mean, and Student's interval; without ends where there are fewer than two."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return Estimate(value=mean, low=None, high=None)
    error = statistics.stdev(values) / len(values) ** 0.5
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
    return Estimate(value=mean, low=mean - reach, high=mean + reach)


def sign(estimate: Estimate) -> Literal["above", "below", "untold"]:
    """On which side of zero an interval lies."""
    if estimate.low is not None and estimate.low > 0:
        return "above"
    return "below" if estimate.high is not None and estimate.high < 0 else "untold"


def _row(honest: Honest, attacker: str, kind: str, place: int, dial: float | None) -> Row:
    found = [(seed, attack_at(seed, attacker, kind, place)) for seed in honest.seeds]
    attacked = [(seed, attack) for seed, attack in found if attack is not None]
    return Row(
        kind=kind,
        dial=dial,
        accuracies=tuple(a for seed, _ in attacked if (a := _accuracy_of(seed, kind, place)) is not None),
        attacks=tuple(attack for _, attack in attacked),
    )


def _accuracy_of(seed: HonestSeed, kind: str, place: int) -> float | None:
    if kind == RANDOM:
        return None
    if kind in (PLAIN, NOPEEK):
        return (seed.plain if kind == PLAIN else seed.nopeek[place]).accuracy
    return accuracy_at(seed, kind, place)
