"""What the command line answers of models that were measured: evaluations, approximations, attacks.

As in `printing.py`: pure functions of results, the JSON that scripts rely on and the same for a person to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ray_sisa.answer import DIGEST_SHOWN, Answer, columns, duration, head_rows, table
from ray_sisa.exclusions import shown

if TYPE_CHECKING:
    from pathlib import Path

    from ray_sisa.audit import Evaluation
    from ray_sisa.evaluation.accuracy import Accuracy
    from ray_sisa.evaluation.inversion import Estimate, Reconstruction
    from ray_sisa.evaluation.membership import Membership
    from ray_sisa.inverting import AttackerConfig, InversionReport
    from ray_sisa.records import Approximation, Excluded


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
        "test_samples_in_training": found.test_samples_in_training,
        "shards": [
            {"shard": s.shard, "slice": s.slice, "top1": s.test.top1, "top5": s.test.top5} for s in found.shards
        ],
        "membership": _memberships(found, with_roc=with_roc),
        "measured_at": found.measured_at,
        "exact": found.approximation is None,
        "approximation": found.approximation.model_dump(mode="json") if found.approximation else None,
        "excluded": listed(found.excluded),
        "silent": [asdict(each) for each in found.silent],
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
    return Answer(fields=made.model_dump(mode="json") | {"was_there": was_there, "exact": False}, text=table(rows))


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


def in_training(number: int | None) -> str:
    """What follows the number of test samples wherever they are counted: how many of them were trained on."""
    if number is None:
        return ", not compared with the training samples"
    return f", {number:,} of them also in the training set" if number else ", none of them in the training set"


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
    if made.targets[0].accuracy is not None:
        rows.append(("test set", f"accuracies are on it{in_training(made.test_samples_in_training)}"))
    rows.append((made.random_weights.target.name, _reconstruction(made.random_weights.black_box)))
    rows.append(("linear code", _reconstruction(made.linear_code)))
    rows.append(("mean image", _reconstruction(made.mean_image)))
    if pictures is not None:
        rows.append(("pictures", f"{pictures}; they show victims"))
    return Answer(fields=asdict(made) | {"pictures": pictures and str(pictures)}, text=table(rows))


def no_attack(found: Evaluation, shard: int | None = None) -> str:
    """Why there is no membership of the ensemble, or of the constituent of a shard, in an evaluation."""
    from ray_sisa.evaluation.membership import MIN_PER_CLASS  # loaded already by whoever has an evaluation

    held = {s.shard: s for s in found.shard_memberships}
    if shard is not None and shard not in held:
        return "no vote to attack"
    num_members = held[shard].num_held if shard is not None else _num_attacked(found)
    matched = held[shard].num_held_matched if shard is not None else found.num_matched
    if num_members < MIN_PER_CLASS:
        return f"too few members to attack: {num_members}, not {MIN_PER_CLASS}"
    if matched is None and found.test.num_samples < 2 * MIN_PER_CLASS:
        return f"too few test samples to attack: {found.test.num_samples}, not {2 * MIN_PER_CLASS}"
    if matched is not None and matched < MIN_PER_CLASS:
        return f"too few members with a test sample of their class each: {matched}, not {MIN_PER_CLASS}"
    return "losses that are not numbers"


def listed(excluded: Sequence[Excluded]) -> list[dict[str, Any]]:
    """Exclusions as JSON has them."""
    return [each.model_dump(mode="json") for each in excluded]


def diverged_rows(excluded: Sequence[Excluded]) -> list[tuple[str, str]]:
    """The row of `table` that tells of exclusions, if there are any."""
    return [("diverged", f"{shown(excluded)}: not in the vote")] if excluded else []


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
        *head_rows(found.head, found.ensemble_digest),
        ("votes", _votes(found)),
        ("test", _accuracy(found.test) + in_training(found.test_samples_in_training)),
    ]
    rows += [("forget", _accuracy(found.forget))] if found.forget else []
    rows += [("retain", _accuracy(found.retain))] if found.retain else []
    rows.append(("membership", _attack(found.ensemble_membership) or no_attack(found)))
    rows += diverged_rows(found.excluded)
    rows += [("no numbers", f"shard {s.shard} for {s.num_records:,} records, without its vote") for s in found.silent]
    attacks = {s.shard: _attack(s.held) or no_attack(found, s.shard) for s in found.shard_memberships}
    shards = [
        (f"{s.shard}", f"{s.slice}", f"{s.test.top1:.2%}", f"{s.test.top5:.2%}", attacks[s.shard]) for s in found.shards
    ]
    return f"{table(rows)}\n\n{columns(('shard', 'slice', 'top1', 'top5', 'membership'), shards)}"


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
    whole = "" if found.unmatched is None else f", against all classes {found.unmatched:.3f}"
    return f"{found.accuracy:.3f} [{found.ci_low:.3f}, {found.ci_high:.3f}], {null}{whole}"


def _attacker(config: AttackerConfig) -> str:
    return "kernel ridge regression" if config.style == "kernel" else f"{config.style} decoder, {config.epochs} epochs"


def _reconstruction(found: Reconstruction) -> str:
    top1 = f"found {found.top1.value:.1%} of times (chance {found.top1_chance:.1%})"
    return f"mse {found.mse.value:.4f}, R2 {_interval(found.r2)}, SSIM {found.ssim.value:.2f}, {top1}"


def _interval(found: Estimate | None) -> str:
    if found is None:
        return "none: all victims are the mean image"
    if found.low is None or found.high is None:
        return f"{found.value:.2f}"
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"
