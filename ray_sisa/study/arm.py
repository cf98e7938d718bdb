"""An arm of a study: one data set, the runs made from it, and the forget sets in it.

Steps that need a worker each are mapped, so that independent runs fill a cluster; a run that is trained or completed
`here` is driven from this process, and its shards are spread over workers as those of any run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from ray_sisa.config import RunConfig
from ray_sisa.config_values import make_config
from ray_sisa.data import Dataset
from ray_sisa.digests import digest_json
from ray_sisa.location import join_run
from ray_sisa.study.place import Place
from ray_sisa.study.results import Completed, Measured, Requested, Trained, Unlearning
from ray_sisa.study.samples import digest_of
from ray_sisa.study.steps import Task, do_each, do_here
from ray_sisa.study.tasks import Bench, Complete, Measure, Request, State, Train, Vote

Result = TypeVar("Result")
KEY = "study"  # of placements: one forget set for all seeds


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A forget set to be forgotten by a run."""

    trained: Trained
    pattern: str
    seed: int


class Arm:
    """Runs on one data set."""

    def __init__(
        self,
        name: str,
        place: Place,
        dataset: Dataset,
        *,
        num_retained: int,
        data: Mapping[str, Any],
        features: np.ndarray | None = None,
        constants: bool = False,
    ) -> None:
        """Takes a data set, and the section `data` that configurations describe it by.

        Args:
            name: of the arm.
            place: where it works.
            dataset: its samples.
            num_retained: how many retained samples are measured.
            data: the section, without constants.
            features: of a frozen backbone, float [N + T, D], training samples first.
            constants: whether runs are told mean and std of the data set; else public weights bring their own.
        """
        self.name, self.dataset, self.place = name, replace(dataset, configured=constants), place
        self.forget: dict[str, tuple[str, ...]] = {}
        """Forget sets by name."""
        self.data = data
        """Section `data` of its configurations, without constants."""
        told = {"mean": dataset.mean, "std": dataset.std} if constants else {}
        self._data = {**data, "num_classes": dataset.num_classes, **told}
        self._digest = digest_of(self.dataset.train)
        assert dataset.test is not None  # a study has a test set
        self.subjects = digest_json([self._digest, digest_of(dataset.test), num_retained])
        """Digest of what models are measured on."""
        self.steps = place.steps
        self._bench = Bench(
            steps=self.steps, dataset=self.dataset, forget=self.forget, num_retained=num_retained, features=features
        )

    def config(
        self,
        recipe: Mapping[str, Any],
        shards: int,
        slices: int,
        seed: int,
        placement: Mapping[str, Any] | None = None,
        measure: str = "epoch",
    ) -> RunConfig:
        """A run of this arm; its name follows from what it is made of."""
        content = {
            "storage_path": join_run(self.place.storage, "runs"),
            "data": self._data,
            "placement": {
                "strategy": "permutation",
                "key": KEY,
                **(placement or {}),
                "shards": shards,
                "slices": slices,
            },
            "recipe": {**recipe, "seed": seed, **self._weights(recipe)},
            "scaling": self.place.scaling,
            "evaluation": {"test_during_training": measure},
        }
        digest = digest_json([self._digest, content["placement"], content["recipe"], content["data"]])
        return make_config({**content, "name": f"{self.name}-{shards}x{slices}-{seed}-{digest[:8]}"})

    def training(self, config: RunConfig, num_test: int | None = None) -> Train:
        """The step that makes and trains a run; its curves are of so many test samples, by default of all."""
        return Train(config=config, data=self._digest, num_test=num_test)

    def each(self, tasks: Sequence[Task[Result]]) -> list[Result]:
        """The results of steps that do not depend on each other; those missing are done by workers, one a step."""
        return do_each(self.name, tasks, self.steps, self._bench, self.place.runner)

    def here(self, task: Task[Result]) -> Result:
        """The result of a step driven from this process, its chains trained by workers."""
        return do_here(self.name, task, self.steps, self._bench, self.place.runner)

    def measure(self, trained: Trained, pattern: str, approximation: str | None = None) -> Measure:
        """The step that measures a run that nobody asked to forget anything, or an approximation in it."""
        return self._measure(trained.uri, "before", trained.ensemble_digest, pattern, approximation)

    def vote(self, trained: Trained) -> Vote:
        """The step that lets a trained run vote on the test set."""
        return Vote(uri=trained.uri, ensemble_digest=trained.ensemble_digest, subjects=self.subjects)

    def request(self, case: Case) -> Request:
        """The step that asks a copy of a run to forget."""
        forget = self.digest(case.pattern)
        name = f"{case.trained.uri.rstrip('/').rpartition('/')[2]}-{case.pattern}-{forget[:8]}"
        return Request(
            source=case.trained.uri,
            ensemble_digest=case.trained.ensemble_digest,
            target=join_run(join_run(self.place.storage, "forks"), name),
            pattern=case.pattern,
            forget=forget,
        )

    def after(self, requested: Requested, completed: Completed, pattern: str) -> Measure:
        """The step that measures a run that has forgotten."""
        return self._measure(requested.uri, "after", completed.ensemble_digest, pattern)

    def unlearn(self, cases: Sequence[Case]) -> list[Unlearning]:
        """Each case: measured before, rolled back and after; the shards of each are spread over workers."""
        requested = self.each([self.request(case) for case in cases])
        before = self.each([self.measure(case.trained, case.pattern) for case in cases])
        rolled = self._rolled_back(cases, requested)
        completed = [
            self.here(Complete(uri=r.uri, forget=self.digest(c.pattern))) for c, r in zip(cases, requested, strict=True)
        ]
        after = self.each(
            [self.after(r, done, c.pattern) for c, r, done in zip(cases, requested, completed, strict=True)]
        )
        return [
            Unlearning(
                arm=self.name,
                pattern=case.pattern,
                seed=case.seed,
                shards=case.trained.shards,
                slices=case.trained.slices,
                requested=requested[i],
                completed=completed[i],
                before=before[i],
                rolled_back=rolled[i],
                after=after[i],
            )
            for i, case in enumerate(cases)
        ]

    def digest(self, pattern: str) -> str:
        """Digest of a forget set."""
        return digest_json(list(self.forget[pattern]))

    def _rolled_back(self, cases: Sequence[Case], requested: Sequence[Requested]) -> list[Measured | None]:
        """Measured before anything is completed: what readers are served from the instant of the request."""
        tasks = {
            i: self._measure(r.uri, "rolled back", c.trained.ensemble_digest, c.pattern)
            for i, (c, r) in enumerate(zip(cases, requested, strict=True))
            if r.voters
        }
        made = dict(zip(tasks, self.each(list(tasks.values())), strict=True))
        return [made.get(i) for i in range(len(cases))]

    def _measure(
        self, uri: str, state: State, ensemble_digest: str, pattern: str, approximation: str | None = None
    ) -> Measure:
        return Measure(
            uri=uri,
            state=state,
            ensemble_digest=ensemble_digest,
            pattern=pattern,
            forget=self.digest(pattern),
            subjects=self.subjects,
            approximation=approximation,
        )

    def _weights(self, recipe: Mapping[str, Any]) -> dict[str, str]:
        name = recipe.get("weights")
        return {"weights": str(self.place.weights / name)} if name and ":" not in name and "/" not in name else {}
