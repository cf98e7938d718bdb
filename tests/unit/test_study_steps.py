"""What a study has done is found again, by what was asked, and damage to its record is told."""

import logging
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_sisa.engine.local_runner import LocalRunner
from ray_sisa.errors import StoreError
from ray_sisa.store import Store
from ray_sisa.study.steps import Steps, Task, do_each, do_here


@dataclass(frozen=True, kw_only=True, slots=True)
class Doubled:
    value: float
    names: tuple[str, ...]


@dataclass(kw_only=True, slots=True)
class Bench:
    steps: Steps
    calls: list[float]
    runner: Any = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Double:
    value: float
    name: str = "x"

    result_type = Doubled

    def do(self, bench: Bench) -> Doubled:
        bench.calls.append(self.value)
        return Doubled(value=2 * self.value, names=(self.name,))


@dataclass(frozen=True, kw_only=True, slots=True)
class Slow:
    value: float

    result_type = Doubled

    def do(self, bench: Bench) -> Generator[str, None, Doubled]:
        yield "half of it"
        return Doubled(value=self.value, names=())


def do(bench: Bench, *tasks: Task[Doubled]) -> list[Doubled]:
    return do_each("arm", tasks, bench.steps, bench, LocalRunner())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(steps=Steps(Store(str(tmp_path)), "c0ffee"), calls=[])


def test_a_step_is_done_once(bench: Bench) -> None:
    done = [do(bench, Double(value=1.5)) for _ in range(3)]
    assert done == [[Doubled(value=3.0, names=("x",))]] * 3
    assert bench.calls == [1.5]


def test_steps_tell_how_far_they_are(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    done = do(bench, Double(value=1.0), Slow(value=5.0))
    assert done == [Doubled(value=2.0, names=("x",)), Doubled(value=5.0, names=())]
    assert [record.getMessage() for record in caplog.records] == [
        "arm: 2 of 2 steps to do (double, slow)",
        "arm: double x took 0 s (1 of 2)",
        "arm: half of it",
        "arm: slow took 0 s (2 of 2)",
    ]
    caplog.clear()
    do(bench, Slow(value=5.0))
    assert not caplog.records


def test_a_step_driven_from_here_has_the_runner_of_the_study(bench: Bench) -> None:
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Runs:
        result_type = bool

        def do(self, bench: Bench) -> bool:
            return bench.runner is runner

    runner = LocalRunner()
    assert do_here("arm", Runs(), bench.steps, bench, runner)


def test_another_process_finds_it(bench: Bench, tmp_path: Path) -> None:
    do(bench, Double(value=1.0))
    again = Steps(Store(str(tmp_path)))
    assert again.find(Double(value=1.0)) == Doubled(value=2.0, names=("x",))
    assert again.found == bench.steps.found
    assert [origin.commit for origin in again.found.values()] == ["c0ffee"]


@pytest.mark.parametrize("other", [Double(value=1.0, name="y"), Double(value=1.0000001)], ids=str)
def test_whatever_a_step_says_is_in_its_name(bench: Bench, other: Double) -> None:
    do(bench, Double(value=1.0))
    assert bench.steps.find(other) is None


def test_a_damaged_record_is_told(bench: Bench, tmp_path: Path) -> None:
    do(bench, Double(value=1.0))
    [path] = (tmp_path / "steps").iterdir()
    path.write_bytes(path.read_bytes().replace(b"2.0", b"7.0"))
    with pytest.raises(StoreError, match=r"is no record of a step.*Remove it"):
        bench.steps.find(Double(value=1.0))


def test_arrays_are_kept_under_their_content(bench: Bench, tmp_path: Path) -> None:
    kept = {"test": np.arange(6, dtype=np.float32).reshape(2, 3), "forget": np.ones(2, np.float32)}
    name = bench.steps.keep(**kept)
    found = bench.steps.arrays(name)
    assert found.keys() == kept.keys()
    assert all(np.array_equal(found[key], value) for key, value in kept.items())
    assert bench.steps.keep(**dict(reversed(kept.items()))) == name
    [path] = (tmp_path / "arrays").iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match="is not what was kept"):
        bench.steps.arrays(name)
