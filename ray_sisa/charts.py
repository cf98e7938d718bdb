"""The pictures of a report: records in, SVG as a data URI out, so that a page needs no other file.

Owns how things look in matplotlib, and draws through its object API alone: no window, no global figure. Nothing here
reads a store.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from ray_sisa.printing_measures import no_attack
from ray_sisa.records import StageRecord

if TYPE_CHECKING:
    # Read only: neither torch nor scikit-learn is needed to draw.
    from ray_sisa.audit import Evaluation
    from ray_sisa.evaluation.membership import Membership
    from ray_sisa.study.results import Attack

MAX_SHARDS = 12  # panels or rows of one picture; more could not be read
NULL_DEVIATIONS = 2  # above the mean of its null an attack is said to tell members from others
MAX_NUMBERED = 10  # slices whose numbers fit under a curve

INK, MUTED, FAINT, TINT = "#1e293b", "#64748b", "#e2e8f0", "#fff3d6"
TRAIN, TEST = "#94a3b8", "#1d4ed8"
PHASE_COLOURS = ("#475569", "#d97706", "#1d4ed8")
PHASE_MARKERS = ("o", "s", "D")
PHASE_DASHES = ("--", "-.", "-")
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
STYLE: dict[Any, Any] = {
    # Text stays text: small, searchable, and in the reader's own font.
    "svg.fonttype": "none",
    "svg.hashsalt": "ray_sisa",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#cbd5e1",
    "axes.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """One state of an ensemble, by the name that a reader knows it under."""

    label: str
    phase: Literal[0, 1, 2]
    """Before a request, rolled back, or after: decides colour, marker and dashes."""
    evaluation: Evaluation


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What is attacked: the ensemble (`shard` None), or the constituent of a shard with the members that it held."""

    shard: int | None

    @property
    def label(self) -> str:
        """The target in words."""
        return "ensemble" if self.shard is None else f"shard {self.shard}"

    def membership(self, evaluation: Evaluation) -> Membership | None:
        """What the attack found, or None where it was not possible."""
        if self.shard is None:
            return evaluation.ensemble_membership
        found = (m.held for m in evaluation.shard_memberships if m.shard == self.shard)
        return next(found, None)

    def absence(self, evaluation: Evaluation) -> str:
        """Why there is no membership."""
        return no_attack(evaluation, self.shard)


def targets(states: Sequence[Measured], limit: int = MAX_SHARDS) -> list[Target]:
    """The ensemble, then the shards that were attacked in some state, those that held most first, up to `limit`."""
    held: dict[int, int] = {}
    for state in states:
        for found in state.evaluation.shard_memberships:
            if found.held is not None:
                held[found.shard] = max(found.num_held, held.get(found.shard, 0))
    most = sorted(held, key=lambda shard: (-held[shard], shard))[:limit]
    return [Target(shard=None), *(Target(shard=shard) for shard in sorted(most))]


def above_null(found: Membership | Attack) -> bool:
    """Whether an attack beats its null by more than two standard deviations: members are told from others."""
    return found.accuracy > found.null_mean + NULL_DEVIATIONS * found.null_sd


def accuracy_curves(stages: Sequence[StageRecord], retrained: Set[str], preferred: Sequence[int] = ()) -> str:
    """Accuracy over the epochs of each shard's chain, slice after slice.

    Args:
        stages: by shard and slice.
        retrained: keys of the stages to shade.
        preferred: the shards to draw where there are more than `MAX_SHARDS`.
    """
    chains = {shard: list(records) for shard, records in groupby(stages, key=lambda record: record.shard)}
    shards = sorted(sorted(chains, key=lambda shard: (shard not in preferred, shard))[:MAX_SHARDS])
    columns = min(4, len(shards)) if len(shards) != 4 else 2
    rows = -(-len(shards) // columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 0.7 + 2.15 * rows), layout="constrained")
        axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axis, shard in zip(axes.flat, shards, strict=False):
            _draw_chain(axis, chains[shard], retrained)
        for axis in axes.flat[len(shards) :]:
            axis.set_visible(False)
        axes[0, 0].yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        figure.supxlabel("epochs of the chain", fontsize=10, color=MUTED)
        named = {text: h for axis in axes.flat for h, text in zip(*axis.get_legend_handles_labels(), strict=True)}
        figure.legend(named.values(), named.keys(), loc="outside upper left", ncols=3)
        return data_uri(figure)


def attack_points(states: Sequence[Measured]) -> str:
    """Attack accuracies with their intervals over their null bands: a row for each target and state."""
    rows = targets(states)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.6, 1.1 + 0.28 * len(rows) * (len(states) + 0.6)), layout="constrained")
        axis = figure.subplots()
        step = 1 / (len(states) + 0.6)
        unnamed = set(range(len(states)))  # in the legend, which names each state once, wherever it is first drawn
        for row, target in enumerate(rows):
            for i, state in enumerate(states):
                found = target.membership(state.evaluation)
                y = row + (i - (len(states) - 1) / 2) * step
                if found is None:
                    # Its place says why nothing is drawn there.
                    axis.text(
                        0.5,
                        y,
                        f"{state.label}: {target.absence(state.evaluation)}",
                        va="center",
                        ha="center",
                        color=MUTED,
                    )
                else:
                    _draw_point(axis, found, y, 0.82 * step, state, named=i in unnamed)
                    unnamed.discard(i)
        axis.axvline(0.5, color=MUTED, linewidth=0.8, linestyle=":")
        axis.set_yticks(range(len(rows)), [target.label for target in rows])
        axis.set_ylim(len(rows) - 0.45, -0.55)
        axis.tick_params(axis="y", length=0, labelcolor=INK)
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axis.grid(axis="x", color=FAINT, linewidth=0.8)
        axis.set_xlabel("attack accuracy (50 % is guessing)")
        figure.legend(loc="outside upper left", ncols=len(states))
        return data_uri(figure)


def attack_rocs(states: Sequence[Measured]) -> str:
    """ROC curves of the attack on the ensemble and on the two shards that held most members."""
    panels = targets(states, limit=2)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.2 * len(panels), 3.7), layout="constrained")
        axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)
        for axis, target in zip(axes.flat, panels, strict=True):
            _draw_roc(axis, target, states)
        axes[0, 0].set_ylabel("share of members caught")
        figure.supxlabel("share of test samples taken for members", fontsize=10, color=MUTED)
        return data_uri(figure)


def _draw_chain(axis: Axes, records: Sequence[StageRecord], retrained: Set[str]) -> None:
    train: list[tuple[int, float]] = []
    test: list[tuple[int, float]] = []
    end = 0
    for record in records:
        start, end = end, end + record.epochs
        if record.key in retrained:
            axis.axvspan(start + 0.5, end + 0.5, color=TINT, linewidth=0, label="retrained")
        if start:
            axis.axvline(start + 0.5, color="#cbd5e1", linewidth=0.8)
        if len(records) <= MAX_NUMBERED:
            middle = (start + end + 1) / 2
            axis.text(middle, 0.03, str(record.slice), color=MUTED, ha="center", transform=axis.get_xaxis_transform())
        for epoch, metrics in enumerate(record.metrics, start=start + 1):
            train.append((epoch, metrics.train_top1))
            if metrics.test_top1 is not None:
                test.append((epoch, metrics.test_top1))
    axis.plot(*zip(*train, strict=True), color=TRAIN, linewidth=1.4, linestyle="--", label="training samples")
    if test:
        marker = "o" if len(test) <= len(records) else ""
        axis.plot(*zip(*test, strict=True), color=TEST, linewidth=1.6, marker=marker, markersize=4, label="test")
    axis.set_title(f"shard {records[0].shard}")
    axis.set_ylim(0, 1.03)
    axis.set_xlim(0.5, None)
    axis.grid(axis="y", color=FAINT, linewidth=0.8)


def _draw_point(axis: Axes, found: Membership, y: float, height: float, state: Measured, named: bool) -> None:
    band = 2 * found.null_sd
    axis.barh(y, 2 * band, height, found.null_mean - band, color=FAINT)
    axis.errorbar(
        found.accuracy,
        y,
        xerr=[[found.accuracy - found.ci_low], [found.ci_high - found.accuracy]],
        color=PHASE_COLOURS[state.phase],
        marker=PHASE_MARKERS[state.phase],
        markersize=6,
        linewidth=1.6,
        capsize=3,
        linestyle="none",
        label=state.label if named else None,
    )


def _draw_roc(axis: Axes, target: Target, states: Sequence[Measured]) -> None:
    axis.plot([0, 1], [0, 1], color="#cbd5e1", linewidth=1, linestyle=":")
    attacked = [(state, found) for state in states if (found := target.membership(state.evaluation))]
    for state, found in attacked:
        colour, dashes = PHASE_COLOURS[state.phase], PHASE_DASHES[state.phase]
        label = f"{state.label}, area {found.auc:.2f}"
        axis.plot(found.roc.fpr, found.roc.tpr, color=colour, linestyle=dashes, linewidth=1.6, label=label)
    axis.set_title(target.label)
    axis.set_box_aspect(1)
    axis.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
    axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    if attacked:
        axis.legend(loc="lower right", fontsize=8.5)
    else:
        axis.text(0.5, 0.5, "not attacked", va="center", ha="center", color=MUTED)


def data_uri(figure: Figure) -> str:
    """A figure as SVG inside a URI."""
    buffer = io.BytesIO()
    # No date and no creator: the same run gives the same picture.
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue().decode().replace("'DejaVu Sans'", FONTS)
    return "data:image/svg+xml;base64," + base64.b64encode(svg[svg.index("<svg") :].encode()).decode()
