"""What the command line answers: the JSON that scripts rely on, and the same for a person to read.

Pure functions of results; nothing here writes anywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ray_sisa import ids
from ray_sisa.errors import SisaError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from ray_sisa.audit import Evaluation
    from ray_sisa.check import Checked
    from ray_sisa.evaluation.accuracy import Accuracy
    from ray_sisa.evaluation.inversion import Estimate, Reconstruction
    from ray_sisa.evaluation.membership import Membership
    from ray_sisa.inverting import AttackerConfig, InversionReport
    from ray_sisa.planning import Plan
    from ray_sisa.reconcile import Reconciliation
    from ray_sisa.records import Approximation
    from ray_sisa.run import Forgotten
    from ray_sisa.spending import PrivacySpent
    from ray_sisa.status import Status
    from ray_sisa.verify import Verification

DIGEST_SHOWN = 12
_NUM_EXAMPLES = 5  # unknown ids that a person is shown


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a command found or did."""

    fields: dict[str, Any]
    """Of the JSON object."""
    text: str
    """For a person."""
    ok: bool = True
    """Whether the command exits with 0."""


def trained(done: Reconciliation, seconds: float) -> Answer:
    """The answer of `train`; `seconds` is the whole command."""
    names = ("stages_trained", "stages_reused", "sample_passes", "full_training_sample_passes", "head")
    rows = [
        ("stages", f"{done.stages_trained} trained, {done.stages_reused} reused"),
        ("cost", _cost(done)),
        *_head(done.head, done.ensemble_digest),
        ("time", duration(seconds)),
    ]
    fields = {name: getattr(done, name) for name in names}
    return Answer(fields=fields | {"ensemble_digest": done.ensemble_digest, "seconds": seconds}, text=_table(rows))


def forgotten(done: Forgotten) -> Answer:
    """The answer of `forget`."""
    rows = [
        ("request", f"{done.request}"),
        ("samples", f"{done.samples:,} live, {done.already_forgotten:,} already forgotten"),
    ]
    if done.unknown:
        some = ", ".join(map(ids.shown, done.unknown_examples[:_NUM_EXAMPLES]))
        rows.append(
            ("unknown", f"{done.unknown:,} passed over: {some}{', ...' if done.unknown > _NUM_EXAMPLES else ''}")
        )
    rows.append(("next", "`ray-sisa unlearn` completes it; from now on no reader is served models of these samples"))
    return Answer(fields=asdict(done), text=_table(rows))


def unlearned(done: Reconciliation) -> Answer:
    """The answer of `unlearn`."""
    fields = asdict(done)
    fields["stages_retrained"] = fields.pop("stages_trained")
    rows = [
        ("requests", f"{_numbers(done.requests)} completed" if done.requests else "none pending"),
        ("shards", f"{_numbers(done.affected_shards)} affected" if done.affected_shards else "none affected"),
        ("stages", f"{done.stages_trained} retrained, {done.stages_purged} purged, {done.stages_reused} kept"),
        ("cost", _cost(done)),
        ("effective", f"after {duration(done.seconds_to_effective)}"),
        ("complete", f"after {duration(done.seconds_to_complete)}"),
        *_head(done.head, done.ensemble_digest),
    ]
    return Answer(fields=fields, text=_table(rows))


def status(found: Status, spent: PrivacySpent | None = None) -> Answer:
    """The answer of `status`; with what was spent of a differentially private run."""
    pending = f", pending {_numbers(found.pending_requests)}" if found.pending_requests else ""
    missing = f"no: {found.stages_missing} stages missing, {len(found.pending_requests)} requests pending"
    rows = [
        ("run", found.name),
        *_head(found.head, found.ensemble_digest or ""),
        ("complete", "yes" if found.complete else missing),
        ("requests", f"{found.requests}{pending}"),
        ("samples", f"{found.live_samples:,} live"),
    ]
    shards = [
        (f"{s.shard}", f"{s.depth}", (s.stage or "-")[:DIGEST_SHOWN], "yes" if s.clean else "no", f"{s.samples:,}")
        for s in found.shards
    ]
    table = _columns(("shard", "depth", "stage", "clean", "samples"), shards)
    if spent is None:
        return Answer(fields=asdict(found), text=f"{_table(rows)}\n\n{table}")
    fields = asdict(found) | {"privacy": asdict(spent) | {"label": spent.label}}
    return Answer(fields=fields, text=f"{_table(rows)}\n\n{table}\n\n{_privacy(spent)}")


def evaluated(found: Evaluation, *, with_roc: bool, is_repeatable: bool) -> Answer:
    """The answer of `evaluate`; the ROC curves, which are long, on request.

    `is_repeatable` says whether the stages of the run can be trained again: not those with secure noise.
    """
    fields = {
        "head": found.head,
        "ensemble_digest": found.ensemble_digest,
        "complete": found.complete,
        "aggregation": found.aggregation,
        "test": asdict(found.test),
        "shards": [
            {"shard": s.shard, "slice": s.slice, "top1": s.test.top1, "top5": s.test.top5} for s in found.shards
        ],
        "membership": _memberships(found, with_roc=with_roc),
        "measured_at": found.measured_at,
        "exact": found.approximation is None,
        "approximation": found.approximation.model_dump(mode="json") if found.approximation else None,
    }
    if found.forget is not None or found.retain is not None or found.forget_request is not None:
        fields["forget_request"] = found.forget_request
        fields["forget"] = asdict(found.forget) if found.forget else None
        fields["retain"] = asdict(found.retain) if found.retain else None
    return Answer(fields=fields, text=_evaluation_text(found, is_repeatable=is_repeatable))


def approximated(made: Approximation, *, was_there: bool) -> Answer:
    """The answer of `approximate`."""
    forwards = f", and {made.forward_passes:,} forward passes" if made.forward_passes else ""
    rows = [
        ("model", nature(made)),
        ("key", f"{made.key[:DIGEST_SHOWN]} (there already)" if was_there else made.key[:DIGEST_SHOWN]),
        ("samples", f"{made.num_forget:,} to forget, {made.num_retained:,} retained"),
        ("cost", f"{made.sample_passes:,} sample passes{forwards}"),
        ("time", duration(made.seconds)),
        ("next", f"`ray-sisa evaluate RUN --approximation {made.key[:DIGEST_SHOWN]} --forget FILE`"),
    ]
    return Answer(fields=made.model_dump(mode="json") | {"was_there": was_there, "exact": False}, text=_table(rows))


def nature(approximation: Approximation | None, *, is_repeatable: bool = True) -> str:
    """What kind of model was measured, as every answer and report says it."""
    if approximation is None and is_repeatable:
        return "exact: the run's own ensemble, which `ray-sisa verify` trains again bit for bit"
    if approximation is None:
        return (
            "exact by name: the run's own ensemble, whose stages never saw what was deleted; noise is secure, so "
            "`ray-sisa verify` checks what they were made from, and cannot train them again"
        )
    title = approximation.method.title
    return f"approximate ({title}): no exactness certificate; the run's own `unlearn` gives one"


def inverted(made: InversionReport, pictures: Path | None) -> Answer:
    """The answer of `attack inversion`."""
    victims = f"{made.num_victims:,}"
    if made.num_left_out:
        victims += f" ({made.num_left_out:,} left out: identical to public images)"
    rows = [
        ("layer", f"{made.layer}, {'x'.join(map(str, made.targets[0].activation_shape))} numbers an image"),
        ("noise", made.noise or "none"),
        ("attacker", _attacker(made.decoder)),
        ("public", f"{made.num_public:,} images"),
        ("victims", victims),
    ]
    measured_on = "public images that were left out" if made.decoder.style == "kernel" else "the public images"
    for one in made.targets:
        rows.append((one.target.name, _reconstruction(one.black_box)))
        rows.append(("  training", f"mse {one.training_mse:.4f} of {measured_on}"))
        if one.white_box is not None:
            rows.append(("  white box", _reconstruction(one.white_box)))
        if one.accuracy is not None and one.accuracy_without_noise is not None:
            without = f", {one.accuracy_without_noise:.1%} without noise" if made.noise else ""
            rows.append(("  accuracy", f"{one.accuracy:.1%}{without}"))
    rows.append((made.random_weights.target.name, _reconstruction(made.random_weights.black_box)))
    rows.append(("linear code", _reconstruction(made.linear_code)))
    rows.append(("mean image", _reconstruction(made.mean_image)))
    if pictures is not None:
        rows.append(("pictures", f"{pictures}; they show victims"))
    return Answer(fields=asdict(made) | {"pictures": pictures and str(pictures)}, text=_table(rows))


def _attacker(config: AttackerConfig) -> str:
    return "kernel ridge regression" if config.style == "kernel" else f"{config.style} decoder, {config.epochs} epochs"


def _reconstruction(found: Reconstruction) -> str:
    top1 = f"found {found.top1.value:.1%} of times (chance {found.top1_chance:.1%})"
    return f"mse {found.mse.value:.4f}, R2 {_interval(found.r2)}, SSIM {found.ssim.value:.2f}, {top1}"


def _interval(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def verified(found: Verification) -> Answer:
    """The answer of `verify`: a line for each stage that fails, and a summary."""
    failing = [stage for stage in found.stages if not stage.ok]
    lines = [f"shard {s.shard} slice {s.slice} ({s.key[:DIGEST_SHOWN]}): {s.problem}" for s in failing]
    lines += found.problems
    again = [stage for stage in found.stages if not stage.note]
    if again or not found.stages:
        num_equal = sum(stage.ok for stage in again)
        lines.append(f"{num_equal} of {len(again)} stages are bit for bit what training them again gives")
    for note, number in Counter(s.note for s in found.stages if s.note and s.ok).items():
        lines.append(f"{number} of {len(found.stages)} stages were not trained again: {note}")
    return Answer(fields=asdict(found), text="\n".join(lines), ok=found.ok)


def checked(found: Checked, repaired: Sequence[str] = (), stopped: SisaError | None = None) -> Answer:
    """The answer of `check`: what is wrong, what it means and what to do; notes; a summary.

    `repaired` are the objects that a repair has mended, `stopped` says why it did not come to its end.
    """
    lines = [f"{f.path}: {f.problem}\n    means: {f.meaning}\n    to do: {f.remedy}" for f in found.findings]
    lines += [f"note: {note}" for note in found.notes]
    lines += [f"repaired: {path}" for path in repaired]
    lines += [f"the repair stopped: {stopped}"] if stopped else []
    verdict = f"{len(found.findings)} wrong or missing" if found.findings else "all are what they must be"
    lines.append(f"{found.objects:,} objects, {found.bytes / 1e6:,.1f} MB: {verdict}")
    ok = found.ok and stopped is None
    fields = asdict(found) | {"repaired": list(repaired), "ok": ok} | (failed(stopped) if stopped else {})
    return Answer(fields=fields, text="\n".join(lines), ok=ok)


def planned(found: Plan) -> Answer:
    """The answer of `plan`."""
    rows = [
        ("cost", f"{found.sample_passes:,} sample passes"),
        ("full training", f"{found.full_training_sample_passes:,} sample passes"),
        (
            "fraction",
            f"{found.fraction:.4f}" + (f" ({1 / found.fraction:.1f}x cheaper)" if 0 < found.fraction < 1 else ""),
        ),
        ("stages", f"{found.stages:g}" if found.stages == int(found.stages) else f"{found.stages:.1f} expected"),
        ("storage", f"{found.storage_bytes / 1e6:,.1f} MB"),
    ]
    fields = asdict(found)
    if found.epsilon is None:
        del fields["epsilon"]
    else:
        assumed = f", {found.epsilon_note}" if found.epsilon_note else ""
        rows.append(("epsilon", f"{found.epsilon:.2f} afterwards, the largest of a live sample{assumed}"))
    if found.epsilon_note is None:
        del fields["epsilon_note"]
    return Answer(fields=fields, text=_table(rows))


def predicted(names: Sequence[str], scores: np.ndarray, head: int) -> Answer:
    """The answer of `predict`: the best class of each input, and its five best."""
    # Stable, so that among equals the lowest label comes first, as in the vote.
    ranked = (-scores).argsort(axis=1, kind="stable")[:, :5]
    predictions = []
    for name, row, labels in zip(names, scores, ranked.tolist(), strict=True):
        top = [{"label": label, "probability": float(row[label])} for label in labels]
        predictions.append({"name": name, **top[0], "top5": top})
    shown = [(p["name"], f"{p['label']}", f"{p['probability']:.4f}") for p in predictions]
    table = _columns(("input", "label", "probability"), shown)
    return Answer(fields={"predictions": predictions, "head": head}, text=table)


def failed(error: SisaError) -> dict[str, Any]:
    """The JSON object of a command that failed on purpose."""
    names = ("field", "value", "rule", "remedy")
    return {"error": {"kind": type(error).__name__} | {name: getattr(error, name) for name in names}}


def no_attack(found: Evaluation, shard: int | None = None) -> str:
    """Why there is no membership of the ensemble, or of the constituent of a shard, in an evaluation."""
    from ray_sisa.evaluation.membership import MIN_PER_CLASS  # loaded already by whoever has an evaluation

    held = {s.shard: s.num_held for s in found.shard_memberships}
    if shard is not None and shard not in held:
        return "no vote to attack"
    num_members = held[shard] if shard is not None else _num_attacked(found)
    if num_members < MIN_PER_CLASS:
        return f"too few members to attack: {num_members}, not {MIN_PER_CLASS}"
    if found.test.num_samples < 2 * MIN_PER_CLASS:
        return f"too few test samples to attack: {found.test.num_samples}, not {2 * MIN_PER_CLASS}"
    return "losses that are not numbers"


def duration(seconds: float) -> str:
    """Seconds as a person reads them: `12 ms`, `0.3 s`, `42 s`, `7 min 5 s`, `3 h 12 min`."""
    if 0 < seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _privacy(spent: PrivacySpent) -> str:
    """Epsilon by slice of each shard, the largest, and all that it assumes."""
    by_place = {(each.shard, each.slice): f"{each.epsilon:.2f}" for each in spent.slices}
    numbers = sorted({each.slice for each in spent.slices})
    rows = [
        (f"{shard}", *(by_place.get((shard, number), "-") for number in numbers))
        for shard in sorted({each.shard for each in spent.slices})
    ]
    later = f", {spent.epsilon_at_end:.2f} once all is trained" if spent.epsilon_at_end > spent.epsilon else ""
    table = _columns(("epsilon, shard", *(f"slice {number}" for number in numbers)), rows)
    return f"{table}\n\nlargest {spent.epsilon:.2f}{later}\n{spent.label}"


def _memberships(found: Evaluation, *, with_roc: bool) -> dict[str, Any]:
    shards = [
        {"shard": s.shard, "samples": s.num_held}
        | _membership_or_nulls(s.held, with_roc=with_roc)
        | {"whole": _membership(s.whole, with_roc=with_roc) if s.whole else None}
        for s in found.shard_memberships
    ]
    return {"ensemble": _membership_or_nulls(found.ensemble_membership, with_roc=with_roc), "shards": shards}


def _membership_or_nulls(found: Membership | None, *, with_roc: bool) -> dict[str, Any]:
    if found is None:  # `no_attack` says why
        return dict.fromkeys(("accuracy", "ci_low", "ci_high", "null_mean", "null_sd"))
    return _membership(found, with_roc=with_roc)


def _membership(found: Membership, *, with_roc: bool) -> dict[str, Any]:
    fields = asdict(found)
    if not with_roc:
        del fields["roc"]
    return fields


def _evaluation_text(found: Evaluation, *, is_repeatable: bool) -> str:
    rows = [
        ("model", nature(found.approximation, is_repeatable=is_repeatable)),
        *_head(found.head, found.ensemble_digest),
        ("votes", _votes(found)),
        ("test", _accuracy(found.test)),
    ]
    rows += [("forget", _accuracy(found.forget))] if found.forget else []
    rows += [("retain", _accuracy(found.retain))] if found.retain else []
    rows.append(("membership", _attack(found.ensemble_membership) or no_attack(found)))
    attacks = {s.shard: _attack(s.held) or no_attack(found, s.shard) for s in found.shard_memberships}
    shards = [
        (f"{s.shard}", f"{s.slice}", f"{s.test.top1:.2%}", f"{s.test.top5:.2%}", attacks[s.shard]) for s in found.shards
    ]
    return f"{_table(rows)}\n\n{_columns(('shard', 'slice', 'top1', 'top5', 'membership'), shards)}"


def _votes(found: Evaluation) -> str:
    if found.approximation:
        return f"the approximate model {found.approximation.key[:DIGEST_SHOWN]} alone"
    return f"{len(found.shards)} shards by {found.aggregation}" + ("" if found.complete else ", not complete")


def _accuracy(found: Accuracy) -> str:
    return f"top1 {found.top1:.2%}, top5 {found.top5:.2%} ({found.num_samples:,} samples)"


def _num_attacked(found: Evaluation) -> int:
    return found.forget.num_samples if found.forget else sum(s.num_held for s in found.shard_memberships)


def _attack(found: Membership | None) -> str:
    if found is None:
        return ""
    null = f"null {found.null_mean:.3f} +- {found.null_sd:.3f}"
    return f"{found.accuracy:.3f} [{found.ci_low:.3f}, {found.ci_high:.3f}], {null}"


def _head(number: int, digest: str) -> list[tuple[str, str]]:
    return [("head", f"{number}" + (f" (ensemble {digest[:DIGEST_SHOWN]})" if digest else ""))]


def _cost(done: Reconciliation) -> str:
    full = done.full_training_sample_passes
    share = f", {done.sample_passes / full:.1%} of full training" if full else ""
    return f"{done.sample_passes:,} sample passes{share}"


def _numbers(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))


def _table(rows: Sequence[tuple[str, str]]) -> str:
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in rows)


def _columns(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heading))]
    padded = ("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)
