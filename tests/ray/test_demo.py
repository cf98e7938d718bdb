"""The demo from end to end, as `make demo` runs it: real training on a real Ray, whose processes must be gone after."""

from __future__ import annotations

import json
import os
import re
import select
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from processes import descendants

from ray_sisa.demo import ADDRESS, DemoResult, demo_config, run_demo
from ray_sisa.run import Run

pytestmark = [pytest.mark.ray, pytest.mark.slow]

LEAVE_S = 30.0  # a killed process takes a moment to be gone, more on a busy machine


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A demo that ran, beside what is needed to judge it."""

    result: DemoResult
    lines: list[str]
    processes_seen: set[str]
    processes_left: list[str]
    ray_left: bool
    address: str | None


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Run while RAY_ADDRESS names a cluster that is not there: joining it would fail."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "demo").mkdir()
    with ExitStack() as stack:
        stack.enter_context(environment(ADDRESS, "127.0.0.1:1"))
        others = descendants(os.getpid()).keys()  # what earlier tests keep running
        seen: dict[int, tuple[int, str]] = {}
        lines: list[str] = []

        def echo(line: str) -> None:
            lines.append(line)
            for pid, name in descendants(os.getpid()).items():
                if pid not in seen and pid not in others:
                    seen[pid] = (stack.enter_context(opened(pid)), name)

        result = run_demo(folder, echo=echo)
        return Finished(
            result=result,
            lines=lines,
            processes_seen={name for _, name in seen.values()},
            processes_left=still_there(seen),
            ray_left=ray.is_initialized(),
            address=os.environ.get(ADDRESS),
        )


def test_it_forgets_exactly_and_proves_it(finished: Finished) -> None:
    result, run = finished.result, Run.open(finished.result.run)
    assert result.verified
    assert result.num_verified == len(run.stages()) == 16
    assert run.status().complete
    assert run.status().live_samples == run.record.num_samples - result.num_forgotten
    assert [shard.depth for shard in run.status().shards] == [5, 3, 5, 5]


def test_its_numbers_are_those_of_the_store(finished: Finished) -> None:
    result, run = finished.result, Run.open(finished.result.run)
    certificate = run.certificates()[0]
    assert result.num_forgotten == certificate.num_samples
    assert result.sample_passes == certificate.sample_passes
    assert result.full_training_sample_passes == certificate.full_training_sample_passes
    assert result.sample_passes < result.full_training_sample_passes / 5
    assert 0 < result.seconds_to_effective < result.seconds_to_complete < result.seconds
    evaluations = run.evaluations()  # that of the models which saw the samples went with them
    assert [evaluation.complete for evaluation in evaluations] == [False, True]
    assert len(certificate.removed_measurements) == 1
    states = (result.rolled_back, result.after)
    assert [state.top1 for state in states] == [evaluation.test.top1 for evaluation in evaluations]


def test_the_ensemble_is_good_throughout_and_loses_one_voter_meanwhile(finished: Finished) -> None:
    states = (finished.result.before, finished.result.rolled_back, finished.result.after)
    assert all(state.top1 >= 0.93 and state.top5 >= state.top1 for state in states)
    assert [state.num_voters for state in states] == [4, 3, 4]
    assert [[attack.shard for attack in state.attacks] for state in states] == [[None, 1, 2], [None, 1], [None, 1, 2]]


def test_forgotten_members_are_no_longer_told_from_others(finished: Finished) -> None:
    assert any(attack.above_null for attack in finished.result.before.attacks if attack.shard is not None)
    assert not any(attack.above_null for attack in finished.result.after.attacks)


def test_the_table_shows_the_three_states_and_the_cost(finished: Finished) -> None:
    table = finished.result.table
    assert re.search(r"before +rolled back +after", table)
    for words in ("top-1", "top-5", "attack on ensemble", "attack on shard 1", "attack on shard 2", "no vote"):
        assert words in table
    assert "x fewer" in table and "effective after" in table and "all equal bit for bit" in table
    assert all(len(line) <= 100 for line in table.splitlines())


def test_its_dictionary_is_json(finished: Finished) -> None:
    values = json.loads(json.dumps(finished.result.as_dict()))
    assert values["verified"] is True
    assert values["before"]["attacks"][1]["shard"] == 1
    assert {"rolled_back", "after", "sample_passes", "seconds_to_effective", "report", "run"} <= values.keys()


def test_it_leaves_a_report_and_says_where(finished: Finished) -> None:
    page = Path(finished.result.report).read_text(encoding="utf-8")
    assert page.count("<img") == 3
    assert finished.lines[-1].endswith(finished.result.report)


def test_a_name_that_is_taken_is_left_alone(finished: Finished) -> None:
    folder = Path(finished.result.run).parent
    assert finished.result.run == str(folder / "demo-2")
    assert list((folder / "demo").iterdir()) == []


def test_nothing_of_ray_is_left(finished: Finished) -> None:
    assert any("raylet" in name for name in finished.processes_seen)
    assert any("gcs_server" in name for name in finished.processes_seen)
    assert finished.processes_left == []
    assert not finished.ray_left
    assert finished.address == "127.0.0.1:1"


def test_everybody_sees_the_same_grid(tmp_path: Path) -> None:
    assert demo_config(tmp_path, "one").placement == demo_config(tmp_path, "two").placement


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        yield


@contextmanager
def opened(pid: int) -> Iterator[int]:
    """A descriptor of a process, ready to be read once it has ended; -1 where it has already."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        yield -1
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def still_there(seen: dict[int, tuple[int, str]]) -> list[str]:
    """Names of the processes that do not end in time."""
    waiting = {descriptor: name for descriptor, name in seen.values() if descriptor >= 0}
    deadline = time.monotonic() + LEAVE_S
    while waiting and (left := deadline - time.monotonic()) > 0:
        for descriptor in select.select(list(waiting), [], [], left)[0]:
            del waiting[descriptor]
    return sorted(waiting.values())
