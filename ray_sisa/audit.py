"""Evaluating the ensemble in force: accuracies, and what a membership-inference attacker can still tell.

Outputs come from the runner, one job a constituent; all that is made of them is pure functions on arrays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from pydantic import TypeAdapter

from ray_sisa import approximations, heads, measurements, preprocessing
from ray_sisa.approximating import approximate_outputs
from ray_sisa.clock import now
from ray_sisa.config import DataConfig
from ray_sisa.digests import unseal
from ray_sisa.engine.runner import Runner, RunnerName, device_of, open_runner
from ray_sisa.ensemble import Inputs, aggregate, constituent_outputs, silent
from ray_sisa.errors import RequestError, StoreError
from ray_sisa.evaluation.accuracy import Accuracy, accuracy, cross_entropy
from ray_sisa.evaluation.membership import MIN_PER_CLASS, Membership, matched_membership_inference, num_matched
from ray_sisa.features import features_of
from ray_sisa.layout import REPORTS, damaged, measurement
from ray_sisa.ledger import Ledger
from ray_sisa.members import Members, select, shards_to_forget
from ray_sisa.records import Approximation, Constituent, Excluded, Head, RunRecord
from ray_sisa.samples import Samples, concatenate
from ray_sisa.slices import read_test
from ray_sisa.store import Store
from ray_sisa.voting import Rule

if TYPE_CHECKING:
    from ray_sisa.run import Run

TINY = np.finfo(np.float32).tiny  # in place of a probability of 0, whose logarithm is infinite
_NAME = re.compile(r"/evaluation-[^/]+\.json$")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardEvaluation:
    """One constituent on the test set."""

    shard: int
    slice: int
    test: Accuracy


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardMembership:
    """The attack on one constituent.

    `held` is against the members that its shard held, `whole` against all; None where these are too few to attack, or
    losses are not numbers.
    """

    shard: int
    num_held: int
    held: Membership | None
    whole: Membership | None
    num_held_matched: int | None = None
    """Members that its shard held and that have a test sample of their class each; None in reports that match none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Silent:
    """A constituent whose outputs for some records are not numbers."""

    shard: int
    num_records: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What was measured of one head."""

    head: int
    ensemble_digest: str
    """Of who voted: where requests were pending, not the head's own."""
    complete: bool
    """Whether every shard voted at its full depth; False of an approximate model, which is no ensemble of the run."""
    aggregation: Rule
    test: Accuracy
    shards: tuple[ShardEvaluation, ...]
    ensemble_membership: Membership | None
    shard_memberships: tuple[ShardMembership, ...]
    forget_request: int | None
    """Number of the request that names the forget set, where it is one."""
    forget: Accuracy | None
    retain: Accuracy | None
    measured_at: str
    approximation: Approximation | None = None
    """The approximate model that answered in place of the ensemble, if one did: nothing certifies what it forgot."""
    num_matched: int | None = None
    """Members that have a test sample of their class each: so many the ensemble is attacked with. None in reports whose
    attacks are against all test samples, whatever their class."""
    test_samples_in_training: int | None = None
    """Of the test samples, those that are training samples too; None where they were not counted."""
    excluded: tuple[Excluded, ...] = ()
    """Shards whose training diverged, and that vote with an earlier stage or not at all."""
    silent: tuple[Silent, ...] = ()
    """Shards that gave no numbers for some records, and had no vote on these."""
    ledger: int | None = None
    """Number of the last request that it respects; None in reports that respect what their head does."""


def read_evaluation(store: Store, path: str) -> Evaluation:
    """The evaluation in an object.

    Raises:
        StoreError: it is absent, or not what was written.
    """
    data = store.get(path)
    try:
        evaluation = TypeAdapter(Evaluation).validate_json(unseal(data))
        if path != measurement("evaluation", evaluation.head, data):
            raise ValueError("it belongs elsewhere, since its name follows from its content")
    except ValueError as error:
        rule = f"is not a valid evaluation: {str(error).partition(chr(10))[0]}"
        raise StoreError(store.where(path), "", rule, damaged(path)) from None
    return evaluation


def read_evaluations(store: Store, ledger: Ledger) -> list[Evaluation]:
    """All evaluations that a store keeps and a ledger does not taint, the oldest first.

    Raises:
        StoreError: one is not what was written.
    """
    doomed = measurements.tainted(store, ledger)
    paths = [path for path in store.sizes(REPORTS) if _NAME.search(path) and path not in doomed]
    found = [read_evaluation(store, path) for path in paths]
    return sorted(found, key=lambda evaluation: evaluation.measured_at)


def evaluate(
    run: Run,
    *,
    forget: int | Iterable[str] | None,
    source: DataConfig | None,
    aggregation: Rule,
    runner: RunnerName | Runner,
    approximation: str | None,
) -> Evaluation:
    """Evaluates the ensemble in force, or an approximate model in its place, and keeps it in the run: see `Run`."""
    names = tuple(forget) if forget is not None and not isinstance(forget, int) else forget
    measure = partial(_evaluate, run, names, source, aggregation, runner, approximation)
    to_json = TypeAdapter(Evaluation).dump_json
    return measurements.keep(run, "evaluation", measure, lambda made: to_json(made, indent=1))


def _evaluate(
    run: Run,
    forget: int | Iterable[str] | None,
    source: DataConfig | None,
    aggregation: Rule,
    runner: RunnerName | Runner,
    approximation: str | None,
    head: Head,
    ledger: Ledger,
    check: Callable[[], None],
) -> Evaluation:
    """Evaluates who votes under a head and a ledger; `check` raises once that is behind."""
    if source is not None:
        preprocessing.check_source(source, run.record.training)
    if run.record.test_digest is None:
        raise RequestError("data.test", "none", "an evaluation needs a test set", "Make a run with data.test")
    constituents = run.in_force(ledger, head)
    shard_of = None if forget is None else shards_to_forget(run, ledger, forget)
    model = _chosen(run, approximation, shard_of, ledger) if approximation else None
    heads.check_voters(constituents, run.live.num_samples(ledger))
    members, retain = select(run, ledger, constituents, shard_of, source)
    present = run.store.slice_digests()  # where a request is being completed, a smaller slice follows its features
    with open_runner(runner, run.record.config.scaling) as opened:
        check()  # opening the data and a runner takes its time
        made = _measure(
            store=run.store,
            run=run.record,
            head=head,
            constituents=constituents,
            test=read_test(run.store, run.record.test_digest),
            members=members,
            retain=retain,
            runner=opened,
            rule=aggregation,
            forget_request=forget if isinstance(forget, int) else None,
            slices=sorted(present & {s.slice_digest for c in run.live.chains(ledger) for s in c.stages}),
            approximation=model,
        )
    return replace(made, ledger=ledger.position)


def _chosen(run: Run, wanted: str, shard_of: dict[str, int] | None, ledger: Ledger) -> Approximation:
    """The approximation that is meant, made for a forget set if one is given."""
    approximations.the_one_stage(run.store, run.record, run.live, ledger)
    digest = None if shard_of is None else approximations.digest_of_ids(shard_of)
    return approximations.choose(run.approximations(), wanted, digest)


def _measure(
    *,
    store: Store,
    run: RunRecord,
    head: Head,
    constituents: Sequence[Constituent],
    test: Samples,
    members: Members,
    retain: Samples | None,
    runner: Runner,
    rule: Rule,
    forget_request: int | None,
    slices: Sequence[str],
    approximation: Approximation | None,
) -> Evaluation:
    """Measures who votes, or `approximation` in their place; there are `retain` exactly if members are a forget set.

    Features of `slices`, by digest, and of the test set are read where they are stored.
    """
    parts = [test, members.samples, *([retain] if retain is not None else [])]
    everything, device = concatenate(parts), device_of(run.config.scaling)
    images = _features(store, run, parts, slices, runner) if run.training.is_frozen else everything.images
    inputs = Inputs(store=store, run=run, images=images, device=device)
    if approximation is None:
        outputs = runner.map(constituent_outputs, inputs, [c.key for c in constituents])
    else:
        outputs = runner.map(approximate_outputs, inputs, [approximation])
        constituents = [_answering(c, approximation) for c in constituents]
    scores = aggregate(outputs, constituents, rule)
    edges = np.cumsum([0, *map(len, parts)])
    on_test, on_members = slice(0, edges[1]), slice(edges[1], edges[2])
    labels = everything.labels
    losses = [cross_entropy(output, labels) for output in [*outputs, np.log(np.maximum(scores, TINY))]]
    attacked = [
        _Attacked(
            members=loss[on_members], member_labels=labels[on_members], test=loss[on_test], test_labels=labels[on_test]
        )
        for loss in losses
    ]
    memberships = [
        _memberships(c.shard, one, members.shards, retain is not None)
        for c, one in zip(constituents, attacked[:-1], strict=True)
    ]

    def measured(rows: slice) -> Accuracy:
        return accuracy(scores[rows], labels[rows])

    return Evaluation(
        head=head.number,
        ensemble_digest=heads.ensemble_digest(constituents),
        complete=head.complete and tuple(constituents) == head.constituents,
        aggregation=rule,
        test=measured(on_test),
        shards=tuple(
            ShardEvaluation(shard=c.shard, slice=c.slice, test=accuracy(output[on_test], labels[on_test]))
            for c, output in zip(constituents, outputs, strict=True)
        ),
        ensemble_membership=attacked[-1].attack(),
        shard_memberships=tuple(memberships),
        forget=measured(on_members) if retain is not None and len(members.samples) else None,
        retain=measured(slice(edges[2], edges[3])) if retain is not None and len(retain) else None,
        forget_request=forget_request,
        measured_at=now(),
        approximation=approximation,
        num_matched=attacked[-1].num_matched,
        test_samples_in_training=run.test_samples_in_training,
        excluded=head.excluded,
        silent=tuple(Silent(shard=s, num_records=n) for s, n in silent(outputs, constituents).items()),
    )


def _answering(constituent: Constituent, approximation: Approximation) -> Constituent:
    """An approximation as the constituent that it was made from, so that its digest is no ensemble's of the run."""
    return constituent.model_copy(
        update={
            "key": approximation.key,
            "num_samples": approximation.num_retained,
            "weights_digest": approximation.weights_digest,
        }
    )


def _features(
    store: Store, run: RunRecord, parts: Sequence[Samples], slices: Sequence[str], runner: Runner
) -> np.ndarray:
    """Features float16 [N, D] of the test set and what follows it, made once for all constituents."""
    device = device_of(run.config.scaling)
    # Apart, since a test set may name its samples as the training set does.
    of = [[run.test_digest] if run.test_digest else [], *[slices for _ in parts[1:]]]
    found = [features_of(store, run, part, d, runner, device) for part, d in zip(parts, of, strict=True) if len(part)]
    return np.concatenate(found)


def _memberships(shard: int, attacked: _Attacked, shards: np.ndarray, is_forget_set: bool) -> ShardMembership:
    """The attack on one constituent, whose members are held by `shards`."""
    held = attacked.of(shards == shard)
    return ShardMembership(
        shard=shard,
        num_held=len(held.members),
        held=held.attack(),
        whole=attacked.attack() if is_forget_set else None,
        num_held_matched=held.num_matched,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Attacked:
    """Losses of one model on members and on test samples, and the classes of both."""

    members: np.ndarray
    member_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray

    def of(self, chosen: np.ndarray) -> _Attacked:
        """The same of some of the members."""
        return replace(self, members=self.members[chosen], member_labels=self.member_labels[chosen])

    @property
    def num_matched(self) -> int:
        return num_matched(self.member_labels, self.test_labels)

    def attack(self) -> Membership | None:
        if self.num_matched < MIN_PER_CLASS:
            return None  # too few to attack: reported as such, not as a number
        if np.isnan(self.members).any() or np.isnan(self.test).any():
            return None  # of a network that diverged: likewise
        return matched_membership_inference(self.members, self.member_labels, self.test, self.test_labels)
