"""The attack on SISA: constituents that held a subject, before and after it is forgotten, and those that never did."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ray_sisa.config import RunConfig
from ray_sisa.digests import digest_json
from ray_sisa.evaluation.inversion import Reconstruction
from ray_sisa.inversion_study.arm import LAYER, Arm
from ray_sisa.inversion_study.honest import MODEL
from ray_sisa.inversion_study.presets import Preset, with_dp_sgd, without_privacy
from ray_sisa.inversion_study.quality import of_others
from ray_sisa.inversion_study.querying import Queried
from ray_sisa.inversion_study.results import OnSisa, PrivateSisa, Spending, SubjectAttack
from ray_sisa.inversion_study.spending import spending_of
from ray_sisa.inversion_study.tasks import Bench, keep_target, validation_accuracy
from ray_sisa.location import join_run
from ray_sisa.run import Run
from ray_sisa.samples import Samples
from ray_sisa.stages import load_stage
from ray_sisa.study.fork import fork, remove
from ray_sisa.study.steps import Task

SISA_MODEL = "split_convnet_affine"  # the original's, as its loop ran it
SEED = 0
State = Literal["before", "after"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """A run, trained."""

    uri: str
    spending: Spending | None
    accuracies: tuple[float, ...]
    """Of the constituents, on the validation images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRun:
    """Makes a SISA run and trains it."""

    config: RunConfig
    images: str

    result_type = Trained

    def do(self, bench: Bench) -> Trained:
        """Its shards are spread over the workers of the bench's runner."""
        run = Run.create(self.config, bench.roles[self.images].dataset)
        run.train(runner=bench.runner)
        return _trained(run)


@dataclass(frozen=True, kw_only=True, slots=True)
class ForgetSubjects:
    """Copies a run, and has the copy forget subjects."""

    source: str
    target: str
    subjects: tuple[str, ...]
    images: str

    result_type = Trained

    def do(self, bench: Bench) -> Trained:
        """Asks a fresh copy, and completes it; what is left of one that was cut short goes."""
        remove(self.target)
        fork(self.source, self.target)
        run = Run.open(self.target)
        run.forget(subjects=self.subjects, reason="inversion study")
        run.unlearn(runner=bench.runner)
        return _trained(run)


@dataclass(frozen=True, kw_only=True, slots=True)
class AttackSubjects:
    """Attacks one constituent with images of subjects, by which shard held them, and with victims nobody trained on."""

    uri: str
    state: State
    shard: int
    subjects: tuple[str, ...]
    images: str
    attacker: dict[str, Any]

    result_type = SubjectAttack

    def do(self, bench: Bench) -> SubjectAttack:
        """One attacker, asked about all of them."""
        run, roles = Run.open(self.uri), bench.roles[self.images]
        weights = load_stage(run.store, next(c.key for c in run.in_force() if c.shard == self.shard))
        target = keep_target(bench.steps, f"shard-{self.shard}-{self.state}", run.record.training, weights)
        attacker = Queried.open(bench.steps, target, LAYER, device=bench.device).attack(roles.public, self.attacker)
        asked = images_of(roles.dataset.train, self.subjects)
        unseen = roles.victims.take(np.flatnonzero(~roles.seen))
        shard_of = _shards(run, self.subjects)
        is_held = np.array([shard_of[s] == self.shard for s in asked.subjects.to_pylist()], dtype=bool)
        quality: dict[str, Reconstruction | None] = {}
        errors: dict[str, np.ndarray] = {}
        for name, samples in (("held", _rows(asked, is_held)), ("others", _rows(asked, ~is_held)), ("unseen", unseen)):
            if not len(samples):
                quality[name] = None
                continue
            made = attacker.reconstruct(samples.images)
            quality[name] = of_others(roles, samples, made)
            errors[name] = ((made - samples.images.astype(np.float32) / 255) ** 2).mean((1, 2, 3))
        on_unseen = quality["unseen"]
        assert on_unseen is not None  # some alphabets are nobody's but the victims'
        return SubjectAttack(
            shard=self.shard,
            state=self.state,
            accuracy=validation_accuracy(weights, run.record.training, roles, bench.device),
            held=quality["held"],
            others=quality["others"],
            unseen=on_unseen,
            arrays=bench.steps.keep(**errors),
        )


def run_sisa(arm: Arm, preset: Preset) -> OnSisa:
    """Trains, attacks, has subjects forgotten, and attacks again; then a run with DP-SGD, for what it spends."""
    recipe = without_privacy(SISA_MODEL, preset.sisa_epochs, preset.precision)
    config = arm.config(recipe, seed=SEED, shards=preset.shards, slices=preset.slices)
    trained = arm.here(TrainRun(config=config, images=arm.roles.digest))
    subjects = drawn_subjects(arm.roles.dataset.train, preset.num_subjects)
    forgotten = arm.here(_forget(arm, trained.uri, subjects))
    attacks: list[Task[SubjectAttack]] = [
        AttackSubjects(
            uri=uri,
            state=state,
            shard=shard,
            subjects=subjects,
            images=arm.roles.digest,
            attacker={**preset.attackers[0], "seed": SEED},
        )
        for state, uri in _states(trained, forgotten)
        for shard in range(preset.shards)
    ]
    return OnSisa(
        side=preset.side,
        num_subjects=len(subjects),
        num_images=len(images_of(arm.roles.dataset.train, subjects)),
        attacks=tuple(arm.each(attacks)),
        private=_private(arm, preset),
    )


def drawn_subjects(samples: Samples, count: int) -> tuple[str, ...]:
    """So many subjects, drawn at random."""
    subjects = sorted(set(samples.subjects.to_pylist()))
    rows = np.random.default_rng(SEED).permutation(len(subjects))[:count]
    return tuple(subjects[row] for row in sorted(rows))


def images_of(samples: Samples, subjects: Sequence[str]) -> Samples:
    """The images of some subjects."""
    wanted = set(subjects)
    return _rows(samples, np.array([s in wanted for s in samples.subjects.to_pylist()], dtype=bool))


def _private(arm: Arm, preset: Preset) -> PrivateSisa:
    """A subject in the middle of its shard is forgotten: the stages from there on are trained, and paid for, again."""
    recipe = with_dp_sgd(MODEL, preset.sisa_private_epochs, preset.sisa_noise_multiplier, preset.precision)
    shards, slices = preset.private_shards, preset.private_slices
    config = arm.config(recipe, seed=SEED, shards=shards, slices=slices, measure="stage")
    before = arm.here(TrainRun(config=config, images=arm.roles.digest))
    subject = _in_slice(Run.open(before.uri), arm.roles.dataset.train, (slices + 1) // 2)
    after = arm.here(_forget(arm, before.uri, (subject,)))
    assert before.spending is not None and after.spending is not None  # both are private
    return PrivateSisa(
        shards=shards,
        slices=slices,
        num_forgotten=len(images_of(arm.roles.dataset.train, (subject,))),
        accuracy_before=float(np.mean(before.accuracies)),
        accuracy_after=float(np.mean(after.accuracies)),
        before=before.spending,
        after=after.spending,
    )


def _in_slice(run: Run, samples: Samples, number: int) -> str:
    """The first subject, by name, that lies in a slice of that number."""
    subjects: list[str] = sorted(set(samples.subjects.to_pylist()))
    for subject in subjects:
        if {place[1] for place in run.locate(subjects=[subject]).places} == {number}:
            return subject
    raise AssertionError(f"nobody lies in slice {number}")  # slices of a study have many subjects


def _forget(arm: Arm, uri: str, subjects: tuple[str, ...]) -> ForgetSubjects:
    name = f"{uri.rstrip('/').rpartition('/')[2]}-{digest_json(list(subjects))[:8]}"
    target = join_run(join_run(arm.place.storage, "forks"), name)
    return ForgetSubjects(source=uri, target=target, subjects=subjects, images=arm.roles.digest)


def _trained(run: Run) -> Trained:
    by_key = {stage.key: stage for stage in run.stages()}
    last = [by_key[c.key].metrics[-1] for c in run.in_force()]
    return Trained(uri=run.store.uri, spending=spending_of(run), accuracies=tuple(m.test_top1 or 0.0 for m in last))


def _states(trained: Trained, forgotten: Trained) -> tuple[tuple[State, str], ...]:
    return ("before", trained.uri), ("after", forgotten.uri)


def _shards(run: Run, subjects: Sequence[str]) -> Mapping[str, int]:
    """The shard that holds, or held, each subject."""
    found: dict[str, int] = {}
    for subject in subjects:
        (shard, _), *_ = run.locate(subjects=[subject]).places
        found[subject] = shard
    return found


def _rows(samples: Samples, is_wanted: np.ndarray) -> Samples:
    return samples.take(np.flatnonzero(is_wanted))
