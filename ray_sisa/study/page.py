"""The report of a study as one page that a person reads: verdict, the original's tables beside ours, pictures, numbers.

Owns what the page says and in which order; the template owns its layout. It refers to no other file, and says nothing
that does not follow from the record.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from jinja2 import Environment as Templates

from ray_sisa.charts import above_null
from ray_sisa.report import null_band
from ray_sisa.study import attack_figures, cost_figures, figures, original
from ray_sisa.study.comparison import Compared, Target, compared, reasons, targets
from ray_sisa.study.conclusions import AGREEMENT, INSIDE, verdict
from ray_sisa.study.evidence import evidence
from ray_sisa.study.features import BY_SAMPLE, BY_SUBJECT, CLASS, MEMORISED, SUBJECTS
from ray_sisa.study.pixels import BLOCK, RANDOM
from ray_sisa.study.presets import PRESETS, Preset
from ray_sisa.study.rendering import NONE, make_templates
from ray_sisa.study.results import GridPoint, StudyRecord, Unlearning
from ray_sisa.study.summary import (
    ARM_TITLES,
    FROZEN,
    SCRATCH,
    TRANSFER,
    Case,
    MethodRow,
    Spread,
    all_unlearnings,
    between_retrained,
    blocks,
    cases,
    grid,
    held_attacks,
    method_rows,
    mispredicted,
    spread,
    unlearnings,
)
from ray_sisa.study.wording import counted, duration, judged_text, saving, share, shown


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """A picture with the words around it."""

    name: str
    title: str
    text: str
    uri: str


@dataclass(frozen=True, kw_only=True, slots=True)
class GridRow:
    """One layout of one arm, over its seeds."""

    arm: str
    points: tuple[GridPoint, ...]
    mean: Spread
    majority: Spread
    constituents: Spread


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """All that the template shows."""

    record: StudyRecord
    preset: Preset
    verdict: tuple[str, ...]
    compared: dict[str, tuple[Compared, ...]]
    """Lines of the original's tables, by method."""
    reasons: dict[str, tuple[str, ...]]
    targets: tuple[Target, ...]
    pictures: tuple[Picture, ...]
    methods: tuple[MethodRow, ...]
    cases: tuple[Case, ...]
    grid: tuple[GridRow, ...]

    def picture(self, name: str) -> Picture | None:
        """One of them; None where there was nothing to draw."""
        return next((picture for picture in self.pictures if picture.name == name), None)


def write_page(record: StudyRecord, path: Path) -> None:
    """Writes the page."""
    path.write_text(render(make_page(record)), encoding="utf-8")


def render(page: Page) -> str:
    """The page as HTML, with all that it shows inside."""
    return templates(autoescape=True).get_template("study.html.j2").render(page=page)


def make_page(record: StudyRecord, *, draw: bool = True) -> Page:
    """What a record says; without its pictures unless they are to be drawn."""
    lines = compared(record)
    return Page(
        record=record,
        preset=PRESETS[record.facts.preset],
        verdict=verdict(record),
        compared={method: tuple(c for c in lines if c.theirs.method == method) for method in reasons(record)},
        reasons=reasons(record),
        targets=targets(record),
        pictures=tuple(_pictures(record)) if draw else (),
        methods=method_rows(record),
        cases=cases(record),
        grid=_grid_rows(record),
    )


def templates(autoescape: bool) -> Templates:
    """Templates with all that the page and the paper are written with."""
    made = make_templates(autoescape)
    made.filters |= {
        "band": null_band,
        "shown": shown_or_none,
        "top1": lambda found: shown_or_none(spread(m.top1 for m in found)),
        "top5": lambda found: shown_or_none(spread(m.top5 for m in found)),
        "attack": lambda found: shown_or_none(spread(m.attack.accuracy if m.attack else None for m in found)),
        "mean_count": lambda values: _mean(values, lambda mean: f"{mean:,.0f}"),
        "mean_duration": lambda values: _mean(values, duration),
        "judged": judged_text,
        "held": held_attacks,
        "share": share,
        "saving": saving,
    }
    names: dict[str, Any] = {
        "AGREEMENT": AGREEMENT,
        "INSIDE": INSIDE,
        "above_null": above_null,
        "all_unlearnings": all_unlearnings,
        "evidence": evidence,
        "mispredicted": mispredicted,
        "original": original,
        "arm_titles": ARM_TITLES,
        "between_retrained": between_retrained,
    }
    made.globals |= names
    made.tests["mispredicted"] = mispredicted
    return made


def shown_or_none(found: Spread | None) -> str:
    """A spread of shares, or a dash."""
    return NONE if found is None else shown(found)


def _mean(values: Any, say: Any) -> str:
    found = spread(values)
    return NONE if not found or not found.mean else str(say(found.mean))


def _grid_rows(record: StudyRecord) -> tuple[GridRow, ...]:
    rows = []
    for arm in dict.fromkeys(point.arm for point in record.grid):
        points = grid(record, arm)
        for layout in dict.fromkeys((p.trained.shards, p.trained.slices) for p in points):
            found = tuple(p for p in points if (p.trained.shards, p.trained.slices) == layout)
            rows.append(
                GridRow(
                    arm=arm,
                    points=found,
                    mean=Spread(values=tuple(p.votes.mean.top1 for p in found)),
                    majority=Spread(values=tuple(p.votes.majority.top1 for p in found)),
                    constituents=Spread(values=tuple(chain.from_iterable(p.votes.constituents for p in found))),
                )
            )
    return tuple(rows)


def _pictures(record: StudyRecord) -> list[Picture]:
    made = (
        _curves(record),
        _transfer(record),
        _by_shards(record),
        _costs(record),
        _times(record),
        _methods(record),
        _agreements(record),
        _shard_attacks(record),
        _placements(record),
    )
    return [picture for picture in made if picture is not None]


def _curves(record: StudyRecord) -> Picture | None:
    points = grid(record, SCRATCH)
    if not points:
        return None
    first = [p for p in points if p.seed == points[0].seed]
    return Picture(
        name="curves",
        title="Figures 2 and 3 of the study: accuracy over epochs",
        text="Shard 0 of SISA from scratch, on the training samples that it had seen so far and on the test set, by "
        "number of shards S; vertical lines are edges of slices. All layouts cost about the same.",
        uri=figures.training_curves(first),
    )


def _transfer(record: StudyRecord) -> Picture | None:
    transferred = grid(record, TRANSFER)
    if not transferred:
        return None
    layout = (transferred[0].trained.shards, transferred[0].trained.slices)
    runs = [(ARM_TITLES[TRANSFER], transferred[0].trained)]
    scratch = [p.trained for p in grid(record, SCRATCH) if (p.trained.shards, p.trained.slices) == layout]
    runs += [(ARM_TITLES[SCRATCH], trained) for trained in scratch[:1]]
    if not any(v is not None for _, t in runs for c in t.curves for v in c.test_top1):
        return None
    return Picture(
        name="transfer",
        title="Figure 4 of the study: transfer beside training from scratch",
        text=f"Shard 0 of {layout[0]}, test accuracy as its {layout[1]} slices are trained.",
        uri=figures.transfer_curves(runs),
    )


def _by_shards(record: StudyRecord) -> Picture | None:
    arms = []
    for arm, name in ((SCRATCH, "from scratch"), (FROZEN, "frozen backbone")):
        for slices in sorted({p.trained.slices for p in grid(record, arm)}):
            arms.append((f"{name}, {counted(slices, 'slice')}", grid(record, arm, slices)))
    if not arms:
        return None
    return Picture(
        name="shards",
        title="Accuracy against the number of shards",
        text="The ensemble by mean probability and by majority, and the mean of its constituents. Bars are standard "
        "deviations over seeds, where there are several.",
        uri=figures.accuracy_against_shards(arms),
    )


def _costs(record: StudyRecord) -> Picture | None:
    found = [u for u in record.unlearnings if u.arm == FROZEN]
    at_random = [u for u in found if u.pattern.endswith(RANDOM)]
    if not at_random:
        return None
    structured: list[tuple[str, Unlearning]] = []
    for arm, pattern, name in (
        (FROZEN, BLOCK, "the study's block"),
        (FROZEN, CLASS, "one class"),
        (FROZEN, MEMORISED, "the most memorised"),
        (BY_SAMPLE, SUBJECTS, "subjects, placed by sample"),
        (BY_SUBJECT, SUBJECTS, "subjects, placed by subject"),
    ):
        structured += [(name, u) for u in unlearnings(record, arm, pattern)[:1]]
    return Picture(
        name="costs",
        title="What forgetting K samples in one batch costs",
        text="Sample passes as a share of those of training everything, on the frozen backbone. The closed form counts "
        "the stages that are hit; the dotted line leaves out the deleted samples, which need no pass any more. Lines "
        "are means, a point is one draw.",
        uri=cost_figures.cost_against_requests(at_random, structured, record.facts.frozen_num_train),
    )


def _times(record: StudyRecord) -> Picture | None:
    found = cases(record)
    if not found:
        return None
    return Picture(
        name="times",
        title="Time to effective and to complete",
        text="A request is effective when it returns: from then on no reader is served a model that saw the samples. "
        "It is complete when everything is trained again and nothing in the store saw them. Seconds are of the machine "
        "named below, and of whatever else it did; the scale is logarithmic.",
        uri=cost_figures.times(found),
    )


def _methods(record: StudyRecord) -> Picture | None:
    rows = method_rows(record)
    if not rows:
        return None
    return Picture(
        name="methods",
        title="Methods on the whole model beside the retrained model",
        text="A point is a seed, with its 95 % interval. What counts is the distance to the retrained models, both "
        "ways: of the attack and of the gap between forget set and test set, left of the green range means too much "
        "forgotten, right of it too little. The grey band is chance for the attack.",
        uri=attack_figures.methods(rows),
    )


def _agreements(record: StudyRecord) -> Picture | None:
    rows = method_rows(record)
    if not any(result.agreement for row in rows for result in row.results):
        return None
    return Picture(
        name="agreements",
        title="Agreement with the retrained model",
        text="On test set and forget set, with the model retrained under the same seed. The green range is what two "
        "models agree in that were both retrained, under different seeds; where there is none, there was one seed. "
        f"{AGREEMENT}",
        uri=attack_figures.agreements(rows),
    )


def _shard_attacks(record: StudyRecord) -> Picture | None:
    arms = [(ARM_TITLES[arm], blocks(record, arm)) for arm in (SCRATCH, TRANSFER, FROZEN)]
    shown_arms = [(title, found) for title, found in arms if any(_was_attacked(u) for u in found)]
    if not shown_arms:
        return None
    return Picture(
        name="shard_attacks",
        title="The attack on SISA, shard by shard",
        text="The block, in each shard with the samples that it held. The first seed has its interval and its null, "
        "other seeds are small points.",
        uri=attack_figures.shard_attacks(shown_arms),
    )


def _was_attacked(found: Unlearning) -> bool:
    states = (found.before, found.rolled_back, found.after)
    return any(m is not None and (m.attack is not None or held_attacks(m)) for m in states)


def _placements(record: StudyRecord) -> Picture | None:
    if not record.placements:
        return None
    return Picture(
        name="placements",
        title="Placements that know deletion probabilities",
        text="Expected sample passes for requests drawn by these probabilities, and the sizes of the shards. Bars are "
        "two standard errors over the draws.",
        uri=cost_figures.placement_costs(record.placements),
    )
