"""Numbers of the model-inversion study as a person would say them: R2, targets, verdicts. Pure."""

from __future__ import annotations

from ray_sisa.evaluation.inversion import CONFIDENCE, Estimate
from ray_sisa.inversion_study.results import WHITE_BOX, Part
from ray_sisa.inversion_study.summary import NOISY, NOPEEK, PLAIN, PRIVATE, RANDOM, STOPPED, UNBOUNDED, Row, Verdict
from ray_sisa.report import percent
from ray_sisa.study.rendering import NONE
from ray_sisa.study.summary import Spread

R2 = "R²"
BASELINES = {"mean": "the mean image", "white": "white paper", "pca": "principal components"}
PARTS: dict[Part, str] = {
    "public": "the attacker's own images",
    "victims": "all victims",
    "unseen": "unseen victims",
    "seen": "victims that the attacker trained on",
}
ATTACKERS = {
    "kernel": "kernel ridge regression",
    "study": "the original's decoder",
    "wide": "a wider decoder",
    WHITE_BOX: "search by who knows the weights",
}
VERDICTS: dict[Verdict, str] = {
    "less": "leaks less",
    "more": "leaks more",
    "untold": "cannot be told",
    "unequal": "not as accurate as each other",
    "nothing": "neither leaks",
}


def title_of(row: Row) -> str:
    """What a kind of target is."""
    return title(row.kind, row.dial)


def title(kind: str, dial: float | None) -> str:
    """What a kind of target is, by its noise multiplier or weight."""
    said = "" if dial is None else f"{dial:g}"
    return {
        PLAIN: "not private",
        PRIVATE: f"DP-SGD, noise multiplier {said}",
        STOPPED: f"stopped early, as accurate as DP-SGD {said}",
        NOISY: f"noise on activations, as accurate as DP-SGD {said}",
        NOPEEK: f"NoPeek, weight {said}",
        RANDOM: "random weights",
        UNBOUNDED: f"as the original, not private, noise multiplier {said}",
    }[kind]


def attacker_title(name: str) -> str:
    """An attacker in words."""
    return ATTACKERS.get(name, name)


def baseline_title(name: str, width: int) -> str:
    """A baseline in words; principal components have the width of what leaves the device."""
    return f"{width} {BASELINES[name]}" if name == "pca" else BASELINES[name]


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash."""
    return NONE if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def signed(value: float, digits: int = 3) -> str:
    """A difference."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def spread_text(found: Spread | None, digits: int = 3) -> str:
    """Mean, and standard deviation where there are several seeds; or a dash."""
    if found is None:
        return NONE
    return number(found.mean, digits) + (f" ± {found.sd:.{digits}f}" if found.sd is not None else "")


def shares_text(found: Spread | None) -> str:
    """Mean and standard deviation of shares, or a dash."""
    if found is None:
        return NONE
    return percent(found.mean) + (f" ± {100 * found.sd:.1f}" if found.sd is not None else "")


def interval_text(found: Estimate | None, digits: int = 3) -> str:
    """A value with the ends of its interval, where it has some; or a dash."""
    if found is None:
        return NONE
    if found.low is None or found.high is None:
        return number(found.value, digits)
    return f"{number(found.value, digits)} ({number(found.low, digits)} to {number(found.high, digits)})"


def difference_text(found: Estimate, digits: int = 3) -> str:
    """A difference with the ends of its interval, signed."""
    if found.low is None or found.high is None:
        return f"{signed(found.value, digits)}, with no interval"
    ends = f"{signed(found.low, digits)} to {signed(found.high, digits)}"
    return f"{signed(found.value, digits)} ({ends})"


def confidence() -> str:
    """That of all intervals."""
    return f"{100 * CONFIDENCE:.0f}\N{NO-BREAK SPACE}%"
