"""What the command line answers: the JSON that scripts rely on, and the same for a person to read.

Pure functions of results; nothing here writes anywhere. What is measured of models is in `printing_measures.py`.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ray_sisa import ids
from ray_sisa.answer import DIGEST_SHOWN, Answer, columns, duration, head_rows, table
from ray_sisa.errors import SisaError
from ray_sisa.foreign_text import escaped
from ray_sisa.printing_measures import diverged_rows, in_training, listed
from ray_sisa.progress import speed

if TYPE_CHECKING:
    import numpy as np

    from ray_sisa.activity import ShardActivity
    from ray_sisa.check import Checked
    from ray_sisa.forgetting import Forgotten
    from ray_sisa.planning import Plan
    from ray_sisa.reconcile import Reconciliation
    from ray_sisa.spending import PrivacySpent
    from ray_sisa.status import Status, Work
    from ray_sisa.verify import Verification

_NUM_EXAMPLES = 5  # unknown ids that a person is shown


def trained(done: Reconciliation, uri: str, seconds: float) -> Answer:
    """The answer of `train`; `uri` is RUN for other commands, `seconds` is the whole command."""
    names = ("stages_trained", "stages_reused", "sample_passes", "full_training_sample_passes", "head")
    rows = [
        ("run", shlex.quote(uri)),
        ("stages", f"{done.stages_trained} trained, {done.stages_reused} reused"),
        ("cost", _cost(done)),
        *head_rows(done.head, done.ensemble_digest),
        ("time", duration(seconds)),
        *diverged_rows(done.excluded),
    ]
    fields = {name: getattr(done, name) for name in names}
    fields |= {"ensemble_digest": done.ensemble_digest, "run": uri, "seconds": seconds}
    fields["excluded"] = listed(done.excluded)
    return Answer(fields=fields, text=table(rows))


def forgotten(done: Forgotten) -> Answer:
    """The answer of `forget`."""
    rows = [
        ("request", f"{done.request}"),
        ("samples", f"{done.samples:,} live, {done.already_forgotten:,} already forgotten"),
    ]
    rows += _copies(done)
    if done.unknown:
        some = ", ".join(map(ids.shown, done.unknown_examples[:_NUM_EXAMPLES]))
        rows.append(
            ("unknown", f"{done.unknown:,} passed over: {some}{', ...' if done.unknown > _NUM_EXAMPLES else ''}")
        )
    rows.append(("next", "`ray-sisa unlearn` completes it; from now on no reader is served models of these samples"))
    return Answer(fields=asdict(done), text=table(rows))


def _copies(done: Forgotten) -> list[tuple[str, str]]:
    """What became of samples with the content of those that were named."""
    if done.copies is None:
        return [] if done.copies_deleted else [("copies", "not looked for, as that takes long; --with-duplicates does")]
    if done.copies_deleted:
        return [("copies", f"{done.copies:,} live samples with the same content are deleted too")]
    if not done.copies:
        return []
    return [("copies", f"{done.copies:,} live samples have the same content and STAY; --with-duplicates deletes them")]


def unlearned(done: Reconciliation) -> Answer:
    """The answer of `unlearn`."""
    fields = asdict(done) | {"excluded": listed(done.excluded)}
    fields["stages_retrained"] = fields.pop("stages_trained")
    rows = [
        ("requests", f"{_numbers(done.requests)} completed" if done.requests else "none pending"),
        ("shards", f"{_numbers(done.affected_shards)} affected" if done.affected_shards else "none affected"),
        ("stages", f"{done.stages_trained} retrained, {done.stages_purged} purged, {done.stages_reused} kept"),
        ("cost", _cost(done)),
        ("effective", f"after {duration(done.seconds_to_effective)}"),
        ("complete", f"after {duration(done.seconds_to_complete)}"),
        *head_rows(done.head, done.ensemble_digest),
        *diverged_rows(done.excluded),
    ]
    return Answer(fields=fields, text=table(rows))


def status(found: Status, spent: PrivacySpent | None = None) -> Answer:
    """The answer of `status`; with what was spent of a differentially private run."""
    pending = f", pending {_numbers(found.pending_requests)}" if found.pending_requests else ""
    missing = f"no: {found.stages_missing} stages missing, {len(found.pending_requests)} requests pending"
    rows = [
        ("run", found.name),
        *head_rows(found.head, found.ensemble_digest or ""),
        ("complete", "yes" if found.complete else missing),
        ("requests", f"{found.requests}{pending}"),
        ("samples", f"{found.live_samples:,} live"),
        *(_work(found.work) if found.work else []),
    ]
    if found.test_samples:
        rows.append(("test set", f"{found.test_samples:,} samples{in_training(found.test_samples_in_training)}"))
    if diverged := [f"shard {s.shard} at slice {s.diverged}" for s in found.shards if s.diverged]:
        rows.append(("diverged", f"{', '.join(diverged)}: it votes with the slice before, or not at all"))
    if found.retention.sentence:
        rows.append(("deleted", found.retention.sentence))
    activity = found.work.activity if found.work else None
    now = {s.shard: _shard_activity(s) for s in activity.shards} if activity else {}
    names = ("shard", "depth", "stage", "committed", "clean", "samples", *(["now"] if now else []))
    shards = [
        (
            *(f"{s.shard}", f"{s.depth}", (s.stage or "-")[:DIGEST_SHOWN], f"{s.committed}"),
            *("yes" if s.clean else "no", f"{s.samples:,}"),
            *([now.get(s.shard, "-")] if now else []),
        )
        for s in found.shards
    ]
    fields = asdict(found)
    if found.work:
        fields["work"]["activity"] = activity.model_dump(mode="json", exclude={"holder"}) if activity else None
    text = f"{table(rows)}\n\n{columns(names, shards)}"
    if spent is None:
        return Answer(fields=fields, text=text)
    fields |= {"privacy": asdict(spent) | {"label": spent.label}}
    return Answer(fields=fields, text=f"{text}\n\n{_privacy(spent)}")


def _work(work: Work) -> list[tuple[str, str]]:
    rows = [("works on it", f"{work.holder}; its lease ends in {work.lease_ends_in_s:.0f} s unless it is renewed")]
    if done := work.activity:
        share = done.passes_done / done.passes if done.passes else 1.0
        stages = f"{done.stages_done}/{done.stages} stages, {share:.0%} of passes"
        rows.append(("training", f"{stages}{speed(done.samples_per_second, done.seconds_left)}"))
        rows.append(("told", done.written_at))
    return rows


def _shard_activity(shard: ShardActivity) -> str:
    where = f", process {shard.pid} on node {shard.node}" if shard.node else ""
    if shard.state == "waiting":
        return "waits for a worker"
    if shard.state == "starting":
        return f"reads its slices{where}"
    if shard.state == "features":
        what = f"slice {shard.slice}" if shard.slice else "the test set"
        return f"features of {what}{where}"
    return f"slice {shard.slice}, {shard.epochs_done}/{shard.epochs} epochs{where}"


def verified(found: Verification) -> Answer:
    """The answer of `verify`: a line for each stage that fails, and a summary."""
    failing = [stage for stage in found.stages if not stage.ok]
    lines = [f"shard {s.shard} slice {s.slice} ({s.key[:DIGEST_SHOWN]}): {s.problem}" for s in failing]
    lines += found.problems
    again = [stage for stage in found.stages if not stage.note and not stage.diverged]
    if again or not found.stages:
        num_equal = sum(stage.ok for stage in again)
        lines.append(f"{num_equal} of {len(again)} stages are bit for bit what training them again gives")
    if number := sum(stage.diverged and stage.ok and not stage.note for stage in found.stages):
        lines.append(f"{number} of {len(found.stages)} stages diverge when they are trained again, as they did")
    for note, number in Counter(s.note for s in found.stages if s.note and s.ok).items():
        lines.append(f"{number} of {len(found.stages)} stages were not trained again: {note}")
    return Answer(fields=asdict(found), text="\n".join(lines), ok=found.ok)


def checked(found: Checked, repaired: Sequence[str] = (), stopped: SisaError | None = None) -> Answer:
    """The answer of `check`: what is wrong, what it means and what to do; notes; a summary.

    `repaired` are the objects that a repair has mended, `stopped` says why it did not come to its end.
    """
    lines = [
        line
        for f in found.findings
        for line in (f"{f.path}: {f.problem}", f"    means: {f.meaning}", f"    to do: {f.remedy}")
    ]
    lines += [f"note: {note}" for note in found.notes]
    lines += [f"repaired: {path}" for path in repaired]
    lines = [escaped(line) for line in lines]  # each is one: names of objects are anybody's
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
    return Answer(fields=fields, text=table(rows))


def predicted(names: Sequence[str], scores: np.ndarray, head: int, silent: Mapping[int, int]) -> Answer:
    """The answer of `predict`: the best class of each input, its five best, and who had no vote on how many inputs."""
    # Stable, so that among equals the lowest label comes first, as in the vote.
    ranked = (-scores).argsort(axis=1, kind="stable")[:, :5]
    predictions = []
    for name, row, labels in zip(names, scores, ranked.tolist(), strict=True):
        top = [{"label": label, "probability": float(row[label])} for label in labels]
        predictions.append({"name": name, **top[0], "top5": top})
    shown = [(p["name"], f"{p['label']}", f"{p['probability']:.4f}") for p in predictions]
    text = columns(("input", "label", "probability"), shown)
    without = [{"shard": shard, "inputs": number} for shard, number in silent.items()]
    return Answer(fields={"predictions": predictions, "head": head, "silent": without}, text=text)


def failed(error: SisaError) -> dict[str, Any]:
    """The JSON object of a command that failed on purpose."""
    names = ("field", "value", "rule", "remedy")
    return {"error": {"kind": type(error).__name__} | {name: getattr(error, name) for name in names}}


def _privacy(spent: PrivacySpent) -> str:
    """Epsilon by slice of each shard, the largest, and all that it assumes."""
    by_place = {(each.shard, each.slice): f"{each.epsilon:.2f}" for each in spent.slices}
    numbers = sorted({each.slice for each in spent.slices})
    rows = [
        (f"{shard}", *(by_place.get((shard, number), "-") for number in numbers))
        for shard in sorted({each.shard for each in spent.slices})
    ]
    later = f", {spent.epsilon_at_end:.2f} once all is trained" if spent.epsilon_at_end > spent.epsilon else ""
    shards = columns(("epsilon, shard", *(f"slice {number}" for number in numbers)), rows)
    return f"{shards}\n\nlargest {spent.epsilon:.2f}{later}\n{spent.label}"


def _cost(done: Reconciliation) -> str:
    full = done.full_training_sample_passes
    share = f", {done.sample_passes / full:.1%} of full training" if full else ""
    return f"{done.sample_passes:,} sample passes{share}"


def _numbers(numbers: Iterable[int]) -> str:
    return ", ".join(map(str, numbers))
