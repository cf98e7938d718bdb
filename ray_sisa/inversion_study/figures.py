"""The charts of the model-inversion study: leakage against accuracy, pairs, training, epsilons, shards.

Owns no numbers: a record's values in, figures out, in the look of `charts`.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter, StrMethodFormatter

from ray_sisa.charts import FAINT, INK, MUTED, STYLE, TEST, TRAIN
from ray_sisa.evaluation.inversion import Estimate
from ray_sisa.inversion_study import original
from ray_sisa.inversion_study.comparison import PLAIN_TITLES, PrivateLine, first_attacker
from ray_sisa.inversion_study.results import Faithful, Honest, LearntTarget, OnSisa, PrivateSisa, SubjectAttack
from ray_sisa.inversion_study.summary import (
    NOISY,
    NOPEEK,
    PLAIN,
    PRIVATE,
    RANDOM,
    STOPPED,
    attack_on,
    attackers,
    baseline,
    row,
    rows,
    value_of,
)
from ray_sisa.inversion_study.wording import R2, baseline_title
from ray_sisa.split_convnet import WIDTH

KINDS = {
    PLAIN: ("not private", "#475569", "o"),
    PRIVATE: ("DP-SGD", "#b91c6b", "s"),
    STOPPED: ("not private, stopped early", "#1d4ed8", "D"),
    NOISY: ("noise on activations", "#15803d", "^"),
    NOPEEK: ("NoPeek", "#d97706", "P"),
}
COMPARED = {
    (PRIVATE, STOPPED): ("DP-SGD less stopped early", "#b91c6b", "s"),
    (PRIVATE, NOISY): ("DP-SGD less noise on activations", "#7c3aed", "o"),
    (NOISY, STOPPED): ("noise on activations less stopped early", "#15803d", "^"),
}
ASKED = {
    "held": ("its shard held them", "#b91c6b", "s"),
    "others": ("other shards held them", "#1d4ed8", "o"),
    "unseen": ("nobody's", "#64748b", "^"),
}
BEFORE, AFTER = "#94a3b8", "#1d4ed8"


def leakage(honest: Honest) -> Figure:
    """R2 on unseen victims against validation accuracy: a point a target and seed, lines for what has no accuracy."""
    found = rows(honest, attackers(honest)[0])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 5.2), layout="constrained")
        axis = figure.subplots()
        for each in found:
            if each.kind in KINDS:
                _, colour, marker = KINDS[each.kind]
                values = [value_of(attack, "r2") for attack in each.attacks]
                points = [(a, value) for a, value in zip(each.accuracies, values, strict=True) if value is not None]
                across, up = ([point[place] for point in points] for place in (0, 1))
                axis.scatter(across, up, color=colour, marker=marker, s=34, alpha=0.85, linewidths=0)
                if each.dial is not None and each.kind == PRIVATE and points:
                    _name_point(axis, f"{each.dial:g}", points[0])
        random = row(found, RANDOM)
        levels = [(baseline_title("pca", WIDTH), value_of(baseline(honest, "pca"), "r2")), ("the mean image", 0.0)]
        drawn = random.spread("r2") if random else None
        levels.append(("random weights", drawn.mean if drawn else None))
        for (name, level), dashes in zip(levels, ("--", ":", "-."), strict=True):
            if level is not None:
                axis.axhline(level, color=MUTED, linewidth=1, linestyle=dashes, label=name)
        axis.set_xlabel("accuracy on validation images")
        axis.set_ylabel(f"{R2} on unseen victims")
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.grid(color=FAINT, linewidth=0.8)
        kinds = [KINDS[kind] for kind in KINDS if any(each.kind == kind for each in found)]
        handles = [*(_dot(*kind) for kind in kinds), *axis.get_legend_handles_labels()[0]]
        figure.legend(handles=handles, loc="outside upper left", ncols=4)
        return figure


def pairs(honest: Honest) -> Figure:
    """Differences of R2 at equal accuracy, with intervals over characters; small points are seeds."""
    noises = list(dict.fromkeys(pair.noise_multiplier for pair in honest.pairs))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 1.4 + 1.0 * len(noises)), layout="constrained")
        axis = figure.subplots()
        for pair in honest.pairs:
            _, colour, marker = COMPARED[pair.one, pair.other]
            y = noises.index(pair.noise_multiplier) + 0.26 * (list(COMPARED).index((pair.one, pair.other)) - 1)
            _draw_interval(axis, pair.difference, y, colour, marker, filled=True)
            axis.scatter(pair.by_seed, [y + 0.09] * len(pair.by_seed), color=colour, s=9, alpha=0.6, linewidths=0)
        axis.axvline(0, color=MUTED, linewidth=1)
        axis.set_yticks(range(len(noises)), [f"noise multiplier {noise:g}" for noise in noises])
        axis.set_ylim(len(noises) - 0.5, -0.5)
        axis.tick_params(axis="y", length=0, labelcolor=INK)
        axis.set_xlabel(f"difference of {R2} on unseen victims: left of zero the first leaks less")
        axis.grid(axis="x", color=FAINT, linewidth=0.8)
        figure.legend(handles=[_dot(*each) for each in COMPARED.values()], loc="outside upper left", ncols=3)
        return figure


def training(arms: Sequence[Faithful]) -> Figure:
    """Accuracy of the targets without privacy, and error of their attackers, by epoch; crosses are the original's."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 0.8 + 2.9 * len(arms)), layout="constrained")
        axes = figure.subplots(len(arms), 2, squeeze=False)
        for (left, right), arm in zip(axes, arms, strict=True):
            _draw_targets(left, arm)
            _draw_attackers(right, arm)
        handles = [
            Line2D([], [], color=TRAIN, label="training images"),
            Line2D([], [], color=TEST, label="validation images"),
            Line2D([], [], color=MUTED, label=PLAIN_TITLES[0]),
            Line2D([], [], color=MUTED, linestyle=":", label=PLAIN_TITLES[1]),
            Line2D([], [], color=INK, marker="x", linestyle="none", label="the original"),
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=3)
        return figure


def private_training(lines: Sequence[PrivateLine]) -> Figure:
    """Accuracy under clipping and noise by epoch, as the original trained and with DP-SGD; crosses are the original's.

    A panel a noise multiplier.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.7), layout="constrained")
        axes = figure.subplots(1, len(lines), sharey=True, squeeze=False)
        for axis, line in zip(axes.flat, lines, strict=True):
            _draw_accuracies(axis, (line.unbounded, line.private))
            if line.theirs is not None:
                epochs = len(line.unbounded.train_top1)
                axis.plot(epochs, line.theirs.train, color=TRAIN, marker="x", linestyle="none")
            axis.set_title(f"noise multiplier {line.noise_multiplier:g}")
        axes[0, 0].set_ylabel("accuracy")
        handles = [
            Line2D([], [], color=TRAIN, label="training images"),
            Line2D([], [], color=TEST, label="validation images"),
            Line2D([], [], color=MUTED, label="as the original, not private"),
            Line2D([], [], color=MUTED, linestyle=":", label="DP-SGD"),
            Line2D([], [], color=INK, marker="x", linestyle="none", label="the original"),
        ]
        figure.legend(handles=handles, loc="outside upper left", ncols=3)
        return figure


def epsilons(private: PrivateSisa) -> Figure:
    """Epsilon of a record by the slice that it came in, before and after a deletion: a panel a shard."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 3.3), layout="constrained")
        axes = figure.subplots(1, private.shards, sharey=True, squeeze=False)
        slices = range(1, private.slices + 1)
        for shard, axis in enumerate(axes.flat):
            axis.bar([s - 0.2 for s in slices], private.before.by_slice[shard], 0.38, color=BEFORE, label="before")
            axis.bar([s + 0.2 for s in slices], private.after.by_slice[shard], 0.38, color=AFTER, label="after")
            axis.set_title(f"shard {shard}")
            axis.set_xticks(list(slices))
            axis.grid(axis="y", color=FAINT, linewidth=0.8)
        axes[0, 0].set_ylabel("epsilon")
        figure.supxlabel("slice that a record came in", fontsize=10, color=MUTED)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2)
        return figure


def shards(sisa: OnSisa) -> Figure:
    """R2 on images that a shard held, on those of other shards, and on nobody's: hollow before, filled after."""
    found = sorted({attack.shard for attack in sisa.attacks})
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 1.4 + 0.8 * len(found)), layout="constrained")
        axis = figure.subplots()
        for attack in sisa.attacks:
            _draw_subjects(axis, attack, found.index(attack.shard))
        axis.set_yticks(range(len(found)), [f"shard {shard}" for shard in found])
        axis.set_ylim(len(found) - 0.5, -0.5)
        axis.tick_params(axis="y", length=0, labelcolor=INK)
        axis.set_xlabel(f"{R2}; hollow before, filled after subjects were forgotten")
        axis.grid(axis="x", color=FAINT, linewidth=0.8)
        figure.legend(handles=[_dot(*each) for each in ASKED.values()], loc="outside upper left", ncols=3)
        return figure


def _draw_subjects(axis: Axes, attack: SubjectAttack, place: int) -> None:
    asked = {"held": attack.held, "others": attack.others, "unseen": attack.unseen}
    for number, (name, measured) in enumerate(asked.items()):
        if measured is not None and measured.r2 is not None:
            _, colour, marker = ASKED[name]
            after = attack.state == "after"
            y = place + 0.27 * (number - 1) + (0.06 if after else -0.06)
            _draw_interval(axis, measured.r2, y, colour, marker, filled=after)


def _draw_targets(axis: Axes, arm: Faithful) -> None:
    _draw_accuracies(axis, arm.plain)
    for theirs in original.TARGET:
        axis.plot(theirs.epoch, theirs.train, color=TRAIN, marker="x", linestyle="none")
        axis.plot(theirs.epoch, theirs.validation, color=TEST, marker="x", linestyle="none")
    axis.set_title(f"target, {arm.side} pixels a side")
    axis.set_ylabel("accuracy")


def _draw_accuracies(axis: Axes, targets: Sequence[LearntTarget]) -> None:
    for made, dashes in zip(targets, ("-", ":"), strict=False):
        epochs = range(1, len(made.train_top1) + 1)
        axis.plot(epochs, made.train_top1, color=TRAIN, linestyle=dashes, linewidth=1.6)
        axis.plot(epochs, made.validation_top1, color=TEST, linestyle=dashes, linewidth=1.6)
    axis.set_ylim(0, 1)
    _by_epoch(axis)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _draw_attackers(axis: Axes, arm: Faithful) -> None:
    for made, dashes in zip(arm.plain, ("-", ":"), strict=False):
        attack = attack_on(arm.attacks, made.target.name, first_attacker(arm))
        if attack is not None:
            epochs = range(1, len(attack.training_mse) + 1)
            axis.plot(epochs, attack.training_mse, color=MUTED, linestyle=dashes, linewidth=1.6)
    for theirs in original.ATTACKER:
        axis.plot(theirs.epoch, theirs.mse, color=INK, marker="x", linestyle="none")
    level = value_of(baseline(arm, "mean"), "mse", "public")
    if level is not None:
        axis.axhline(level, color=FAINT, linewidth=1.4)
        axis.annotate("the mean image", (1, level), xycoords=("axes fraction", "data"), ha="right", color=MUTED)
    axis.set_title(f"attacker, {arm.side} pixels a side")
    axis.set_ylabel("error on its own images")
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    _by_epoch(axis)


def _by_epoch(axis: Axes) -> None:
    axis.grid(axis="y", color=FAINT, linewidth=0.8)
    axis.set_xlabel("epoch")
    axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))


def _draw_interval(axis: Axes, found: Estimate, y: float, colour: str, marker: str, *, filled: bool) -> None:
    low, high = (found.value if end is None else end for end in (found.low, found.high))
    axis.errorbar(
        found.value,
        y,
        xerr=[[max(0.0, found.value - low)], [max(0.0, high - found.value)]],
        color=colour,
        marker=marker,
        markersize=6,
        markerfacecolor=colour if filled else "white",
        linewidth=1.4,
        linestyle="none",
    )


def _name_point(axis: Axes, name: str, point: tuple[float, float]) -> None:
    axis.annotate(name, point, xytext=(5, 5), textcoords="offset points", color=MUTED, fontsize=8.5)


def _dot(label: str, colour: str, marker: str) -> Line2D:
    return Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=6, label=label)
