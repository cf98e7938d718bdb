"""Law: what was measured of a model goes with the samples that it saw, whenever it was written, and this is told.

Every reader, writer and store is real; a request comes at a chosen moment because a step of the evaluation sends it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from small_runs import files_of, folder_of

from ray_sisa import audit
from ray_sisa.audit import Evaluation
from ray_sisa.engine.local_runner import LocalRunner
from ray_sisa.errors import BusyError
from ray_sisa.report import write_report
from ray_sisa.run import Run


class Asks(LocalRunner):
    """Notes which stages are asked; `before` and `after` each asking comes what is given."""

    def __init__(self, before: Callable[[], None] = lambda: None, after: Callable[[], None] = lambda: None) -> None:
        super().__init__()
        self.asked: list[list[str]] = []
        self._before, self._after = before, after

    def map(self, function: Any, shared: Any, items: Sequence[Any], *rest: Any) -> list[Any]:
        self._before()
        self.asked.append(list(items))
        found: list[Any] = super().map(function, shared, items, *rest)
        self._after()
        return found


def _evaluate(run: Run, runner: LocalRunner | None = None) -> Evaluation:
    """Of one sample, which is too few to be attacked, so that it takes no time."""
    return run.evaluate(forget=run.sample_ids(2, 1)[:1], runner=runner or LocalRunner())


def _measured(run: Run) -> list[str]:
    return sorted(name for name in files_of(folder_of(run)) if name.startswith("reports/evaluation-"))


def _once(action: Callable[[], object]) -> Callable[[], None]:
    left = [action]
    return lambda: [left.pop()() for _ in left[:1]] and None


def test_a_request_that_comes_before_the_models_are_asked_keeps_them_from_being_asked(
    copied: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, runner = copied(), Asks()
    tainted = {r.key for r in run.stages() if (r.shard, r.slice) == (0, 3)}
    forget = _once(lambda: Run.open(run.store.uri).forget(samples=run.sample_ids(0, 3)[:1]))
    select = audit.select

    def slow(*arguments: Any) -> Any:
        chosen = select(*arguments)
        forget()
        return chosen

    monkeypatch.setattr(audit, "select", slow)
    found = _evaluate(run, runner)
    assert len(runner.asked) == 1 and not tainted & set(runner.asked[0])
    assert (found.ledger, found.complete, [(s.shard, s.slice) for s in found.shards]) == (1, False, FALLEN_BACK)
    assert run.evaluations() == [found] and len(_measured(run)) == 1


FALLEN_BACK = [(0, 2), (1, 3), (2, 3)]


@pytest.mark.parametrize("is_done", [False, True], ids=["is acknowledged", "is completed"])
def test_a_request_that_comes_while_models_are_asked_leaves_no_report_of_them(
    copied: Callable[..., Run], is_done: bool
) -> None:
    run = copied()

    def request() -> None:
        other = Run.open(run.store.uri)
        other.forget(samples=run.sample_ids(0, 3)[:1])
        if is_done:
            other.unlearn(runner="local")

    runner = Asks(after=_once(request))
    found = _evaluate(run, runner)
    assert len(runner.asked) == 2
    assert (found.ledger, found.complete) == (1, is_done)
    assert run.evaluations() == [found] and len(_measured(run)) == 1
    run.unlearn(runner="local")
    assert run.check().findings == () and len(_measured(run)) == 1


def test_requests_without_end_end_the_evaluation_with_nothing_kept(copied: Callable[..., Run]) -> None:
    run = copied()
    waiting = iter(run.sample_ids(0, 3))
    with pytest.raises(BusyError, match="came during each of 5 measurements"):
        _evaluate(run, Asks(after=lambda: bool(run.forget(samples=[next(waiting)])) and None))
    assert _measured(run) == []


def test_measurements_of_models_that_saw_a_sample_go_with_it_and_the_certificate_says_so(
    copied: Callable[..., Run],
) -> None:
    run = copied()
    first, other = run.sample_ids(0, 3)[0], run.sample_ids(1, 3)[0]
    _evaluate(run)
    run.evaluate(forget=[first], runner="local")
    write_report(run)
    before = _measured(run)
    assert len(before) == 2
    run.forget(samples=[first])
    assert run.evaluations() == []  # at once for who reads, gone with the next unlearn
    assert any("measurement(s) of models that saw" in note for note in run.check().notes)
    pending = run.evaluate(forget=1, runner="local")  # of models that never saw it
    run.unlearn(runner="local")
    after = run.evaluate(forget=1, runner="local")
    assert run.evaluations() == [pending, after]
    (certificate,) = run.certificates()
    assert [f"reports/{name}" for name in certificate.removed_measurements] == before
    assert not (folder_of(run) / "reports" / "report.html").exists()
    assert (run.check().findings, run.check().notes) == ((), ())

    # A request that names nothing live removes nothing; one that does removes what it tainted alone.
    run.forget(samples=[first], key="again")
    run.unlearn(runner="local")
    assert run.evaluations() == [pending, after]
    run.forget(samples=[other])
    run.unlearn(runner="local")
    assert run.evaluations() == [] and len(run.certificates()[2].removed_measurements) == 2


def test_a_restored_measurement_is_not_told_and_swept(copied: Callable[..., Run]) -> None:
    run = copied()
    _evaluate(run)
    (name,) = _measured(run)
    path = Path(folder_of(run), name)
    content = path.read_bytes()
    run.forget(samples=run.sample_ids(0, 3)[:1])
    run.unlearn(runner="local")
    assert not path.exists()
    path.write_bytes(content)
    assert run.evaluations() == []
    run.unlearn(runner="local")
    assert not path.exists() and re.search("evaluation", str(run.certificates()[0].removed_measurements))
