"""What a study has done already, by the content of what was asked: a study that is run again goes on from there.

A step's record is written by whoever did it, a worker too, when it is done; it holds the task as well as its result.
"""

from __future__ import annotations

import inspect
import io
import json
import logging
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from pydantic import TypeAdapter

from ray_sisa.clock import now
from ray_sisa.digests import digest_bytes, digest_json, seal, unseal
from ray_sisa.engine.local_runner import LocalRunner
from ray_sisa.engine.runner import Runner, Tell
from ray_sisa.errors import StoreError
from ray_sisa.store import Store
from ray_sisa.strict_json import to_json

logger = logging.getLogger(__name__)
REMOVE = "Remove it, and the study does the step again"

Result_co = TypeVar("Result_co", covariant=True)
Result = TypeVar("Result")


class Task(Protocol[Result_co]):
    """One step: a frozen dataclass whose fields say all that its result follows from."""

    @property
    def result_type(self) -> Any:
        """What `do` returns: a dataclass."""

    def do(self, bench: Any) -> Result_co | Generator[str, None, Result_co]:
        """Does the step; a long one may yield how far it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """When a step was done, by what, and how long it took."""

    commit: str
    started_at: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Done:
    """What is told of a step at its end."""

    title: str
    seconds: float


_ORIGIN = TypeAdapter(Origin)


class Steps:
    """The records of the steps of a study, and the arrays that they made."""

    def __init__(self, store: Store, commit: str = "") -> None:
        """Keeps them in a store, as done by a commit of this package."""
        self._store, self._commit = store, commit
        self.found: dict[str, Origin] = {}
        """Of each step that this object has found or done."""

    def find(self, task: Task[Result]) -> Result | None:
        """The result of a task that was done, or None.

        Raises:
            StoreError: its record is damaged.
        """
        path = _path(task)
        data = self._store.find(path)
        if data is None:
            return None
        try:
            content = json.loads(unseal(data))
            found: Result = TypeAdapter(task.result_type).validate_python(content["result"])
            self.found[path] = _ORIGIN.validate_python(content["origin"])
        except (ValueError, LookupError) as error:
            rule = f"is no record of a step: {str(error).partition(chr(10))[0]}"
            raise StoreError(self._store.where(path), "", rule, REMOVE) from None
        return found

    def do(self, task: Task[Result], bench: Any) -> Generator[str | Done, None, Result]:
        """The result of a task, done now if it was not before; tells how far it is."""
        found = self.find(task)
        if found is not None:
            return found
        began, started_at = time.perf_counter(), now()
        made: Any = task.do(bench)
        result: Result = (yield from made) if inspect.isgenerator(made) else made
        origin = Origin(commit=self._commit, started_at=started_at, seconds=time.perf_counter() - began)
        self.found[_path(task)] = origin
        dumped = TypeAdapter(task.result_type).dump_python(result, mode="json")
        content = {"task": _content(task), "result": dumped, "origin": _ORIGIN.dump_python(origin)}
        self._store.put(_path(task), seal(to_json(content, indent=1).encode()))
        yield Done(_title(task), origin.seconds)
        return result

    def keep(self, **arrays: np.ndarray) -> str:
        """Keeps arrays; returns the name under which `arrays` has them, whatever order they came in."""
        buffer = io.BytesIO()
        np.savez(buffer, **dict(sorted(arrays.items())))  # type: ignore[arg-type]
        name = digest_bytes(buffer.getvalue())
        self._store.put(f"arrays/{name}.npz", buffer.getvalue())
        return name

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays kept under a name.

        Raises:
            StoreError: they are absent or damaged.
        """
        path = f"arrays/{name}.npz"
        data = self._store.get(path)
        if digest_bytes(data) != name:
            raise StoreError(self._store.where(path), "", "is not what was kept", REMOVE)
        with np.load(io.BytesIO(data), allow_pickle=False) as content:
            return dict(content)


def do_each(name: str, tasks: Sequence[Task[Result]], steps: Steps, bench: Any, runner: Runner) -> list[Result]:
    """The results of steps that do not depend on each other; those missing are done by workers, one a step.

    Args:
        name: of what they are part of, for the log.
        tasks: in the order in which results are given; the longest are best first.
        steps: where their records are.
        bench: what `Task.do` is given; it is sent to workers once, and has `steps`.
        runner: where workers are.
    """
    found = [steps.find(task) for task in tasks]
    missing = [task for task, result in zip(tasks, found, strict=True) if result is None]
    if missing:
        kinds = ", ".join(sorted({type(task).__name__.lower() for task in missing}))
        logger.info("%s: %d of %d steps to do (%s)", name, len(missing), len(tasks), kinds)
        runner.map(do_task, bench, missing, _teller(name, len(missing)))
        found = [steps.find(task) for task in tasks]
    return [result for result in found if result is not None]


def do_here(name: str, task: Task[Result], steps: Steps, bench: Any, runner: Runner) -> Result:
    """The result of a step driven from this process; the chains of its runs are trained by workers.

    Args:
        name: as in `do_each`.
        task: which trains runs with the runner of the bench.
        steps: as in `do_each`.
        bench: a dataclass; its `runner` is replaced.
        runner: where workers are.
    """
    if steps.find(task) is None:
        logger.info("%s: %s", name, _title(task))
    made: list[Any] = LocalRunner().map(do_task, replace(bench, runner=runner), [task], _teller(name, 1))
    result: Result = made[0]
    return result


def do_task(bench: Any, task: Task[Result]) -> Generator[str | Done, None, Result]:
    """One mapped step: in whatever process, its record is written there."""
    steps: Steps = bench.steps
    return (yield from steps.do(task, bench))


def _teller(name: str, count: int) -> Tell:
    """Logs what steps tell, by their number; one that a lost worker had begun tells again."""
    done: set[int] = set()

    def tell(number: int, what: str | Done) -> None:
        if isinstance(what, Done):
            done.add(number)
            logger.info("%s: %s took %.0f s (%d of %d)", name, what.title, what.seconds, len(done), count)
        else:
            logger.info("%s: %s", name, what)

    return tell


def _title(task: Task[Any]) -> str:
    """Its kind, and the name that it or its target has, if any."""
    name = getattr(getattr(task, "target", task), "name", "")
    return f"{type(task).__name__.lower()} {name}".rstrip()


def _path(task: Task[Any]) -> str:
    return f"steps/{type(task).__name__}-{digest_json(_content(task))}.json"


def _content(task: Task[Any]) -> Any:
    return TypeAdapter(type(task)).dump_python(task, mode="json")
