"""A run as one page that a person reads: what was trained, forgotten and measured, from the store alone.

Owns what the page says; the template owns its layout, `charts` its pictures. It names no sample, trains nothing, and
needs neither torch nor Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml
from jinja2 import Environment as Templates
from jinja2 import PackageLoader, StrictUndefined

from ray_sisa import charts, heads, measurements
from ray_sisa.charts import Measured, Target, above_null
from ray_sisa.clock import now
from ray_sisa.costs import Costs, RequestRow, request_rows, total_costs
from ray_sisa.errors import StoreError
from ray_sisa.foreign_text import redacted
from ray_sisa.layout import HEADS, PAGE, numbered, report
from ray_sisa.ledger import Ledger
from ray_sisa.lineage import Chain, recipe_digest
from ray_sisa.printing_measures import in_training, nature
from ray_sisa.records import Environment, Head, RunRecord, StageRecord

if TYPE_CHECKING:
    # Read only: these modules load torch and scikit-learn, which the page does without.
    from ray_sisa.audit import Evaluation
    from ray_sisa.evaluation.membership import Membership
    from ray_sisa.run import Run
    from ray_sisa.spending import PrivacySpent
    from ray_sisa.status import ShardStatus, Status
    from ray_sisa.study.results import Attack

SECRET = "(secret, in run.json)"

CellState = Literal["kept", "retrained", "emptied", "empty", "diverged", "missing"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One stage (s, r) of the grid."""

    slice: int
    state: CellState
    samples: int
    """Live samples of the slice."""
    samples_at_ingest: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardRow:
    """One shard of the grid."""

    status: ShardStatus
    cells: tuple[Cell, ...]
    top1: tuple[float | None, ...]
    """Of its constituent on the test set, in each of `Page.ends`; None where it had no vote."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pictures:
    """Data URIs; None where there is nothing to draw."""

    curves: str | None
    points: str | None
    rocs: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """All that the template shows."""

    status: Status
    num_stages: int
    created_at: str
    written_at: str
    verdict: tuple[str, ...]
    states: tuple[Measured, ...]
    approximate: tuple[Evaluation, ...]
    """Of approximate models, each the last that was made of it, in order of time."""
    ends: tuple[Measured, ...]
    """The first and the last state: one or none where there are no more."""
    targets: tuple[Target, ...]
    requests: tuple[RequestRow, ...]
    grid: tuple[ShardRow, ...]
    privacy: PrivacySpent | None
    """None where the run is not differentially private."""
    pictures: Pictures
    training_seconds: float
    configuration: str
    environments: tuple[tuple[Environment, int], ...]
    """Each with the number of stages trained in it."""
    digests: tuple[tuple[str, str], ...]


def write_report(run: Run, path: Path | None = None) -> str:
    """Writes the page of a run: into its store, where it replaces the one there, or to a local file.

    Returns:
        The URI of the page.

    Raises:
        StoreError: the store cannot be read, or the page cannot be written.
    """
    ledger = run.ledger()
    content = render(make_page(run)).encode()
    if path is None:
        run.store.delete([report(PAGE)])
        run.store.put(report(PAGE), content)
        # Whoever completes a request that comes later removes the page; one that came before is respected here.
        return write_report(run) if run.ledger().position > ledger.position else f"{run.store.uri}/{report(PAGE)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise StoreError("report", str(path), f"cannot be written: {error}", "Name another file") from None
    return str(path)


def render(page: Page) -> str:
    """The page as HTML, with all that it shows inside."""
    templates = Templates(
        loader=PackageLoader("ray_sisa"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"percent": percent, "band": null_band, "seconds": seconds, "day": _day, "nature": nature}
    templates.filters["in_training"] = in_training
    return templates.get_template("report.html.j2").render(page=page, above_null=above_null)


def make_page(run: Run) -> Page:
    """What the store says of a run."""
    ledger, status = run.ledger(), run.status()
    chains, stages = run.live.chains(ledger), run.stages()
    states = _states(run, ledger)
    ends = states if len(states) < 2 else (states[0], states[-1])
    requests = request_rows(run, ledger)
    original = {key for chain in run.live.chains(ledger, 0) for key in chain.keys}
    retrained = {record.key for record in stages} - original
    diverged = run.store.diverged_stages()
    num_stages = sum(len(chain.before(diverged).stages) for chain in chains)
    targets = tuple(charts.targets(states))
    return Page(
        status=status,
        num_stages=num_stages,
        created_at=run.record.created_at,
        written_at=now(),
        verdict=(
            _progress(status, num_stages),
            *_diverged(status),
            *_cost(total_costs(run, ledger, requests)),
            *_findings(states, targets),
            *_removed(len(measurements.removed(run.store))),
            *_overlap(run.record),
        ),
        states=states,
        approximate=_approximate(run.evaluations()),
        ends=ends,
        targets=targets,
        requests=requests,
        grid=_grid(run, ledger, chains, status, ends),
        privacy=run.privacy(),
        pictures=_pictures(stages, retrained, states, requests),
        training_seconds=sum(record.seconds for record in stages),
        configuration=_configuration(run),
        environments=tuple(Counter(record.environment for record in stages).items()),
        digests=_digests(run, ledger),
    )


def _states(run: Run, ledger: Ledger) -> tuple[Measured, ...]:
    """Each ensemble that was measured, in order of time: of several evaluations the last, on a forget set if any."""
    best: dict[tuple[str, bool], Evaluation] = {}
    for evaluation in run.evaluations():
        if evaluation.approximation is not None:
            continue  # no ensemble of this run
        known = best.get((evaluation.ensemble_digest, evaluation.complete))
        if known is None or known.retain is None or evaluation.retain is not None:
            best[evaluation.ensemble_digest, evaluation.complete] = evaluation
    ordered = sorted(best.values(), key=lambda evaluation: evaluation.measured_at)
    return tuple(_measured(run, ledger, evaluation) for evaluation in ordered)


def _approximate(evaluations: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
    last = {e.approximation.key: e for e in evaluations if e.approximation is not None}
    return tuple(sorted(last.values(), key=lambda evaluation: evaluation.measured_at))


def _measured(run: Run, ledger: Ledger, evaluation: Evaluation) -> Measured:
    head = run.store.read(numbered(HEADS, evaluation.head), Head)
    if not evaluation.complete:
        # Measured before the rolled-back head was written, it carries the number of the head before.
        return Measured(
            label=_label("rolled back", head.ledger + head.complete, ledger), phase=1, evaluation=evaluation
        )
    if head.ledger:
        return Measured(label=_label("after", head.ledger, ledger), phase=2, evaluation=evaluation)
    return Measured(label="before" if ledger.position else "now", phase=0, evaluation=evaluation)


def _label(word: str, request: int, ledger: Ledger) -> str:
    return word if ledger.position == 1 else f"{word}, request {request}"


def _grid(
    run: Run, ledger: Ledger, chains: Sequence[Chain], status: Status, ends: Sequence[Measured]
) -> tuple[ShardRow, ...]:
    present, deleted = run.store.committed_stages(), ledger.deleted()
    diverged = run.store.diverged_stages()
    originals = run.live.chains(ledger, 0)
    rows = []
    for chain, original, shard in zip(chains, originals, status.shards, strict=True):
        live = run.live.slices(chain.shard, deleted.get(chain.shard, set()))
        keys = {stage.slice: stage.key for stage in chain.stages}
        reached = set(chain.before(diverged).keys)
        cells = tuple(
            Cell(
                slice=number,
                state=_cell_state(keys.get(number), set(original.keys), present, reached, at_ingest.num_samples),
                samples=summary.num_samples,
                samples_at_ingest=at_ingest.num_samples,
            )
            for number, (summary, at_ingest) in enumerate(
                zip(live, run.record.slices[chain.shard], strict=True), start=1
            )
        )
        rows.append(ShardRow(status=shard, cells=cells, top1=tuple(_top1(s.evaluation, chain.shard) for s in ends)))
    return tuple(rows)


def _cell_state(
    key: str | None, original: set[str], present: set[str], reached: set[str], samples_at_ingest: int
) -> CellState:
    if key is None:
        return "emptied" if samples_at_ingest else "empty"
    if key not in reached:
        return "diverged"
    if key not in present:
        return "missing"
    return "kept" if key in original else "retrained"


def _top1(evaluation: Evaluation, shard: int) -> float | None:
    return next((s.test.top1 for s in evaluation.shards if s.shard == shard), None)


def _pictures(
    stages: Sequence[StageRecord], retrained: set[str], states: Sequence[Measured], requests: Sequence[RequestRow]
) -> Pictures:
    affected = sorted({shard for request in requests for shard in request.shards})
    shown = _first_and_last(states)
    attacked = any(target.membership(s.evaluation) for s in shown for target in charts.targets(shown))
    return Pictures(
        curves=charts.accuracy_curves(stages, retrained, affected) if stages else None,
        points=charts.attack_points(shown) if attacked else None,
        rocs=charts.attack_rocs(shown) if attacked else None,
    )


def _first_and_last(states: Sequence[Measured]) -> list[Measured]:
    """At most three states: the first, the last one rolled back, the last."""
    if len(states) < 2:
        return list(states)
    return [states[0], *[state for state in states[1:-1] if state.phase == 1][-1:], states[-1]]


# --- sentences


def _progress(status: Status, num_stages: int) -> str:
    done = num_stages - status.stages_missing
    if not status.head:
        return f"Not trained to the end: {done} of {num_stages} stages are there, and nothing votes yet."
    if not status.live_samples:
        pending = "" if status.complete else " What saw them is still to be removed: `ray-sisa unlearn` does."
        return f"Nothing is left: all samples are deleted, and nothing votes. A new run is needed.{pending}"
    if not status.complete:
        pending = f"{len(status.pending_requests)} of {status.requests} requests pending, " if status.requests else ""
        return (
            f"Not complete: {pending}{status.stages_missing} of {num_stages} stages to be trained. "
            "Whoever asks is already answered by models that never saw the deleted samples."
        )
    depth = "some shards lack what diverged" if _shards_diverged(status) else "every shard votes at its full depth"
    if not status.requests:
        return f"Complete: {depth}. Nothing was to be forgotten."
    return f"Complete: every request is done, and {depth}."


def _shards_diverged(status: Status) -> list[ShardStatus]:
    return [shard for shard in status.shards if shard.diverged]


def _diverged(status: Status) -> list[str]:
    found = [f"shard {s.shard} at slice {s.diverged}" for s in _shards_diverged(status)]
    return [f"Training diverged in {', '.join(found)}: what follows there is not in the vote."] if found else []


def _cost(costs: Costs | None) -> list[str]:
    if costs is None:
        return []
    samples, passes, full = costs.num_samples, costs.sample_passes, costs.full_training_sample_passes
    if not costs.num_stages:
        return [f"Forgetting {samples:,} samples needed no training: what held them came last."]
    each = f" ({costs.num_requests} requests)" if costs.num_requests > 1 else ""
    return [
        f"Forgetting {samples:,} samples{each} retrained {costs.num_stages} stages: {passes:,} sample passes instead "
        f"of the {full:,} of training everything{_fewer(passes, full)}."
    ]


def _fewer(passes: int, full: int) -> str:
    return f", which is {full / passes:.1f}x fewer" if passes < full else ""


def _removed(number: int) -> list[str]:
    return [f"Measurements removed, since they were of models that saw deleted samples: {number}."] if number else []


def _findings(states: Sequence[Measured], targets: Sequence[Target]) -> list[str]:
    if not states:
        return ["Nothing was measured yet: `ray-sisa evaluate` does."]
    accuracies = ", ".join(f"{percent(s.evaluation.test.top1)} {s.label}" for s in states)
    found = [f"Right on the test set: {accuracies}."]
    shards = [target for target in targets if target.shard is not None]
    attacks = {s.label: [m for t in shards if (m := t.membership(s.evaluation))] for s in states if s.phase != 1}
    counts = [f"{sum(map(above_null, ms))} of {len(ms)} shards {label}" for label, ms in attacks.items() if ms]
    if counts:
        found.append("The attack tells members from others on " + ", ".join(counts) + ".")
    if without := [label for label, ms in attacks.items() if not ms]:
        found.append(f"No single shard could be attacked {', '.join(without)}: too few members, or no vote.")
    return found


def _overlap(record: RunRecord) -> list[str]:
    if not record.test_samples_in_training:
        return []
    number, of = record.test_samples_in_training, record.num_test_samples
    return [
        f"{number:,} of the {of:,} test samples were trained on: accuracies and attacks on the test set are biased."
    ]


def percent(share: float) -> str:
    """A share in [0, 1] as a percentage with one decimal."""
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def null_band(found: Membership | Attack) -> str:
    """Where an attack that knows nothing ends up, 19 times of 20."""
    low, high = found.null_mean - 2 * found.null_sd, found.null_mean + 2 * found.null_sd
    return f"{100 * low:.1f} to {percent(high)}"


def seconds(duration: float | None) -> str:
    """A duration in the units that a person would use."""
    if duration is None:
        return "\N{EM DASH}"
    if duration < 60:
        return f"{duration:.2f} s" if duration < 1 else f"{duration:.1f} s"
    minutes, rest = divmod(round(duration), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _day(moment: str) -> str:
    return datetime.fromisoformat(moment).strftime("%Y-%m-%d %H:%M UTC")


# --- small print


def _configuration(run: Run) -> str:
    content = run.record.config.model_dump(mode="json")
    content["placement"]["key"] = SECRET  # who knows it can tell where a subject lies
    if run.record.config.recipe.dp:
        content["recipe"]["seed"] = SECRET  # who knows it can take reproducible noise off
    text: str = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=88)
    return redacted(text)


def _digests(run: Run, ledger: Ledger) -> tuple[tuple[str, str], ...]:
    head = heads.latest_head(run.store)
    found = {
        "data at ingest": run.record.fingerprint,
        "test set": run.record.test_digest,
        "recipe": recipe_digest(run.record.training),
        "initial weights": run.record.training.initial_weights,
        "last request": ledger.tip(),
        f"ensemble of head {head.number}" if head else "ensemble": head.ensemble_digest if head else None,
    }
    return tuple((name, digest) for name, digest in found.items() if digest)
