"""Verification by re-execution: stages are trained again from the stored samples and compared bit for bit.

Nothing that the store claims is taken on trust: slices are digested again, keys are computed again from them and from
the ledger, and the stored weights are digested again.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

import numpy as np

from ray_sisa import features
from ray_sisa.backbone import Backbone, start, trained_part
from ray_sisa.digests import digest_tensors
from ray_sisa.engine.feed import concatenate
from ray_sisa.engine.runner import OpenRunner, device_of
from ray_sisa.errors import DivergedError, StoreError
from ray_sisa.exclusions import DivergenceRecord
from ray_sisa.heads import in_force, latest_head
from ray_sisa.index import SliceSummary
from ray_sisa.keyed_ids import known_as
from ray_sisa.layout import RUN, UNREACHABLE, divergence_record, slice_object, stage_record
from ray_sisa.ledger import Ledger, read_ledger
from ray_sisa.lineage import Chain, Stage, make_chain, recipe_digest
from ray_sisa.live import LiveSet
from ray_sisa.records import RunRecord, StageRecord
from ray_sisa.samples import Samples
from ray_sisa.slices import digest_of_slice, slice_from_bytes
from ray_sisa.stages import environment_of, load_initial, load_stage
from ray_sisa.store import Store
from ray_sisa.training import LabelledImages, Weights, to_end, train_stage
from ray_sisa.weights import not_finite

SECURE = "noise is secure, so they cannot be; record, key, slices and stored weights are as they must be"


@dataclass(frozen=True, kw_only=True, slots=True)
class StageCheck:
    """One stage, trained again; or, where its noise is secure, its record, key, slices and stored weights checked."""

    shard: int
    slice: int
    key: str
    expected: str
    """Digest of the weights that the commit record names; empty where there is no record."""
    actual: str
    """Digest of the weights trained again; empty where that was impossible, or cannot give the same."""
    ok: bool
    problem: str
    """What is wrong, or empty."""
    note: str = ""
    """Why the stage was not trained again though nothing is wrong, or empty."""
    diverged: bool = False
    """Whether the stage is recorded as one that diverges, or has weights that are not finite: there are no bits to
    compare, and what is checked is that training it again diverges."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What verification found."""

    ok: bool
    problems: tuple[str, ...]
    """What is wrong with the ensemble in force, apart from its stages."""
    stages: tuple[StageCheck, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayJob:
    """Stages of one shard to train again: from scratch, or each from its stored parent."""

    chain: Chain
    slices: frozenset[int]
    from_scratch: bool
    deleted: frozenset[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayer:
    """What all replays share."""

    store: Store
    run: RunRecord
    device: str


def verify(
    store: Store, run: RunRecord, live: LiveSet, shards: Sequence[int], sample: int | None, open_runner: OpenRunner
) -> Verification:
    """Trains the stages of some shards again, or `sample` stages drawn at random from them."""
    ledger = read_ledger(store)
    deleted = ledger.deleted()
    chains = [live.chain(shard, deleted.get(shard, set())) for shard in shards]
    jobs = _jobs(chains, store.diverged_stages(), sample, deleted)
    shared = Replayer(store=store, run=run, device=device_of(run.config.scaling))
    with open_runner() as runner:
        found = runner.map(replay, shared, jobs)
    checks = tuple(sorted((c for checks in found for c in checks), key=lambda c: (c.shard, c.slice)))
    problems = tuple(_head_problems(store, ledger, chains))
    return Verification(ok=not problems and all(check.ok for check in checks), problems=problems, stages=checks)


def _head_problems(store: Store, ledger: Ledger, chains: Sequence[Chain]) -> Iterator[str]:
    """Whether what votes for these shards is a stage of theirs, with the weights of its record, as deep as it says."""
    head = latest_head(store)
    if head is None:
        yield "no head is in force"
        return
    votes = {c.shard: c for c in in_force(store, ledger, head)}
    excluded, diverged = {each.key for each in head.excluded}, store.diverged_stages()
    for chain in chains:
        vote = votes.get(chain.shard)
        keys = chain.before(excluded).keys
        if keys != chain.keys and chain.keys[len(keys)] not in diverged:
            yield f"head {head.number} passes over a stage of shard {chain.shard} that has no record of diverging"
        elif head.complete and head.ledger == ledger.position and (vote and vote.key) != (keys or (None,))[-1]:
            yield f"head {head.number} does not put the last stage of shard {chain.shard} in force"
        elif vote and vote.key not in chain.keys:
            yield f"head {head.number} puts a stage in force that is not one of shard {chain.shard}"
        elif vote:
            record = store.find_record(stage_record(vote.key), StageRecord)
            if record is None or record.weights_digest != vote.weights_digest:
                yield f"head {head.number} names other weights for shard {chain.shard} than the stage's record"


def _jobs(
    chains: Sequence[Chain], diverged: Set[str], sample: int | None, deleted: dict[int, set[str]]
) -> list[ReplayJob]:
    """The stages to train again, none of those behind one that diverged, which have nothing to start from."""
    stages = [(s.shard, s.slice) for c in chains for s in c.stages[: len(c.before(diverged).stages) + 1]]
    picked = set(stages)
    if sample is not None:
        # Not seeded: who prepares a store must not know which stages will be looked at.
        picked = set(random.SystemRandom().sample(stages, min(sample, len(stages))))
    return [
        ReplayJob(
            chain=chain,
            slices=frozenset(r for s, r in picked if s == chain.shard),
            from_scratch=sample is None,
            deleted=frozenset(deleted.get(chain.shard, ())),
        )
        for chain in chains
        if any(s == chain.shard for s, _ in picked)
    ]


def replay(shared: Replayer, job: ReplayJob) -> list[StageCheck]:
    """Trains the stages of a job again, in the process that calls."""
    shared.store.get(RUN, UNREACHABLE)  # a node that sees another folder says so, and not that slices are lost
    parts, problems = _read_slices(shared, job)
    seen, diverged = _Seen(shared), shared.store.diverged_stages()
    recomputed = _recomputed_keys(shared.run, job.chain, parts)
    checks: list[StageCheck] = []
    weights_before: Weights | None = None
    for position, stage in enumerate(job.chain.stages):
        if stage.slice not in job.slices:
            continue
        problem = [problems[i] for i in range(position + 1) if problems[i]]
        if recomputed[position] != stage.key:
            problem.append(f"the stored samples give the key {recomputed[position]}")
        passed_over = stage.key in diverged
        expected, stored_problem = ("", _recorded(shared.store, stage)) if passed_over else _stored(shared.store, stage)
        problem += stored_problem
        known = [part for part in parts[: position + 1] if part is not None]
        actual, weights, diverges = "", None, False
        repeatable = shared.run.training.is_repeatable
        # Wrong samples are not worth training on, and may break it.
        if repeatable and not any(problems[: position + 1]):
            try:
                actual, weights, replay_problem = _again(shared, job, position, known, weights_before, seen)
                problem += replay_problem
            except DivergedError:
                diverges = True
            problem += _unlike(shared, stage, diverges=diverges, passed_over=passed_over)
        weights_before = weights
        if actual and expected and actual != expected:
            problem.append("training it again gives other weights" + _elsewhere(shared, stage))
        checks.append(
            StageCheck(
                shard=stage.shard,
                slice=stage.slice,
                key=stage.key,
                expected=expected,
                actual=actual,
                ok=not problem,
                problem="; ".join(problem),
                note="" if repeatable else SECURE,
                diverged=passed_over or diverges,
            )
        )
    return checks


def _read_slices(shared: Replayer, job: ReplayJob) -> tuple[list[Samples | None], list[str]]:
    """The slices of a chain as they lie in the store, and what is wrong with each (empty: nothing)."""
    parts: list[Samples | None] = []
    problems: list[str] = []
    for stage in job.chain.stages:
        path = slice_object(stage.slice_digest)
        try:
            samples = slice_from_bytes(shared.store.get(path), path)
        except StoreError as error:
            parts.append(None)
            problems.append(str(error))
        else:
            parts.append(samples)
            problems.append(_slice_problem(shared.run, samples, stage, job.deleted))
    return parts, problems


def _slice_problem(run: RunRecord, samples: Samples, stage: Stage, deleted: frozenset[str]) -> str:
    revived = deleted & set(known_as(run, samples.ids).to_pylist())
    if revived:
        return f"slice {stage.slice} holds {len(revived)} deleted samples"
    if digest_of_slice(samples) != stage.slice_digest:
        return f"slice {stage.slice} does not hold the samples that it is named after"
    return ""


def _recomputed_keys(run: RunRecord, chain: Chain, parts: Sequence[Samples | None]) -> list[str]:
    """The keys that the samples in the store give, digested anew."""
    by_slice = {stage.slice: part for stage, part in zip(chain.stages, parts, strict=True)}
    slices = [_summary(by_slice.get(number)) for number in range(1, len(run.training.epochs) + 1)]
    again = make_chain(run.training, recipe_digest(run.training), chain.shard, slices)
    keys = {stage.slice: stage.key for stage in again.stages}
    return [keys.get(stage.slice, "") for stage in chain.stages]


def _summary(samples: Samples | None) -> SliceSummary:
    if samples is None:
        return SliceSummary(digest=None, num_samples=0)
    return SliceSummary(digest=digest_of_slice(samples), num_samples=len(samples))


def _stored(store: Store, stage: Stage) -> tuple[str, list[str]]:
    """The weights digest that a stage's record names, and what is wrong with record and weights."""
    try:
        record = store.read(stage_record(stage.key), StageRecord)
    except StoreError as error:
        return "", [str(error)]
    problems = []
    if (record.key, record.slice_digest, record.parent) != (stage.key, stage.slice_digest, stage.parent):
        problems.append("its record belongs to another stage")
    try:
        if digest_tensors(load_stage(store, stage.key)) != record.weights_digest:
            problems.append("the stored weights are not those that its record names")
    except StoreError as error:
        problems.append(str(error))
    return record.weights_digest, problems


def _recorded(store: Store, stage: Stage) -> list[str]:
    """What is wrong with the record that a stage diverged."""
    try:
        record = store.read(divergence_record(stage.key), DivergenceRecord)
    except StoreError as error:
        return [str(error)]
    same = (record.key, record.slice_digest, record.parent) == (stage.key, stage.slice_digest, stage.parent)
    return [] if same else ["its record belongs to another stage"]


def _unlike(shared: Replayer, stage: Stage, *, diverges: bool, passed_over: bool) -> list[str]:
    """What is wrong where training a stage again diverges and the store says otherwise, or the other way round."""
    if passed_over and not diverges:
        return ["it is passed over, and training it again does not diverge"]
    if not diverges or passed_over:
        return []
    try:
        # Stages were committed with such weights before a divergence ended them.
        return [] if not_finite(load_stage(shared.store, stage.key)) else ["training it again diverges"]
    except StoreError:
        return []  # found already


def _elsewhere(shared: Replayer, stage: Stage) -> str:
    """How this process differs from the one that trained a stage, in what bits may depend on."""
    here = environment_of(shared.device, shared.run.training.recipe.threads)
    there = shared.store.read(stage_record(stage.key), StageRecord).environment
    names = ("device", "device_name", "threads", "torch")
    differing = [
        f"{n} {getattr(there, n)} then, {getattr(here, n)} now" for n in names if getattr(there, n) != getattr(here, n)
    ]
    return f" (bits are only claimed to be equal where the environment is: {', '.join(differing)})" if differing else ""


def _again(
    shared: Replayer, job: ReplayJob, position: int, parts: Iterable[Samples], previous: Weights | None, seen: _Seen
) -> tuple[str, Weights | None, list[str]]:
    """Trains the stage at `position` again: digest, weights, and why that was impossible, or what was wrong."""
    samples = list(parts)
    if len(samples) <= position:
        return "", None, ["a slice that it was trained on is not there"]
    stage = job.chain.stages[position]
    try:
        begin = previous if previous is not None and job.from_scratch else _parent(shared, job, position)
    except StoreError as error:
        return "", None, [f"its parent: {error}"]
    arrays, problems = seen.by_stages(job.chain.stages[: position + 1], samples)
    steps = train_stage(
        start=begin,
        samples=arrays,
        training=trained_part(shared.run.training),
        key=stage.key,
        epochs=stage.epochs,
        device=shared.device,
    )
    weights = to_end(steps)
    return digest_tensors(weights), weights, problems


def _parent(shared: Replayer, job: ReplayJob, position: int) -> Weights:
    if position and not job.from_scratch:
        return load_stage(shared.store, job.chain.stages[position - 1].key)
    if position:
        raise StoreError(f"stage {job.chain.stages[position - 1].key}", "", "could not be trained again")
    public = load_initial(shared.store, shared.run.training.initial_weights)
    return start(shared.run.training, job.chain.initial, public)


class _Seen:
    """What stages are trained on again: samples as they are, or features made anew of them, once a slice."""

    def __init__(self, shared: Replayer) -> None:
        self._shared = shared
        self._backbone: Backbone | None = None
        self._made: dict[str, tuple[LabelledImages, list[str]]] = {}

    def by_stages(self, stages: Sequence[Stage], parts: Sequence[Samples]) -> tuple[LabelledImages, list[str]]:
        """What the last of some stages is trained on, and what is wrong with features that are stored of it."""
        found = [self._slice(stage, samples) for stage, samples in zip(stages, parts, strict=True)]
        return concatenate([arrays for arrays, _ in found]), [p for _, problems in found for p in problems]

    def _slice(self, stage: Stage, samples: Samples) -> tuple[LabelledImages, list[str]]:
        if not self._shared.run.training.is_frozen:
            return LabelledImages.of(samples), []
        if stage.slice_digest not in self._made:
            rows = self._frozen().features(samples.images)
            arrays = LabelledImages(images=rows, labels=samples.labels)
            self._made[stage.slice_digest] = arrays, self._problems(stage, rows)
        return self._made[stage.slice_digest]

    def _problems(self, stage: Stage, rows: np.ndarray) -> list[str]:
        """How features that are stored differ from these; those of another environment may, by a little."""
        store, run, device = self._shared.store, self._shared.run, self._shared.device
        here = features.origin_of(run, environment_of(device, run.training.recipe.threads))
        known = features.stored(store, run, stage.slice_digest, len(rows))
        differ = any(made.origin == here and made.rows.tobytes() != rows.tobytes() for made in known)
        return [f"the stored features of slice {stage.slice} are not those of its samples"] if differ else []

    def _frozen(self) -> Backbone:
        if self._backbone is None:
            public = load_initial(self._shared.store, self._shared.run.training.initial_weights)
            self._backbone = Backbone(self._shared.run.training, public or {}, self._shared.device)
        return self._backbone
