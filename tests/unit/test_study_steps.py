"""What a study has done is found again, by what was asked, and damage to its record is told."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from ray_sisa.errors import StoreError
from ray_sisa.store import Store
from ray_sisa.study.steps import Steps, do_task


@dataclass(frozen=True, kw_only=True, slots=True)
class Doubled:
    value: float
    names: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Double:
    value: float
    name: str = "x"

    result_type = Doubled

    def do(self, bench: SimpleNamespace) -> Doubled:
        bench.calls.append(self.value)
        return Doubled(value=2 * self.value, names=(self.name,))


@pytest.fixture
def bench(tmp_path: Path) -> SimpleNamespace:
    return SimpleNamespace(steps=Steps(Store(str(tmp_path)), "c0ffee"), calls=[])


def test_a_step_is_done_once(bench: SimpleNamespace) -> None:
    done = [do_task(bench, Double(value=1.5)) for _ in range(3)]
    assert done == [Doubled(value=3.0, names=("x",))] * 3
    assert bench.calls == [1.5]


def test_another_process_finds_it(bench: SimpleNamespace, tmp_path: Path) -> None:
    do_task(bench, Double(value=1.0))
    again = Steps(Store(str(tmp_path)))
    assert again.find(Double(value=1.0)) == Doubled(value=2.0, names=("x",))
    assert again.found == bench.steps.found
    assert [origin.commit for origin in again.found.values()] == ["c0ffee"]


@pytest.mark.parametrize("other", [Double(value=1.0, name="y"), Double(value=1.0000001)], ids=str)
def test_whatever_a_step_says_is_in_its_name(bench: SimpleNamespace, other: Double) -> None:
    do_task(bench, Double(value=1.0))
    assert bench.steps.find(other) is None


def test_a_damaged_record_is_told(bench: SimpleNamespace, tmp_path: Path) -> None:
    do_task(bench, Double(value=1.0))
    [path] = (tmp_path / "steps").iterdir()
    path.write_bytes(path.read_bytes().replace(b"2.0", b"7.0"))
    with pytest.raises(StoreError, match=r"is no record of a step.*Remove it"):
        bench.steps.find(Double(value=1.0))


def test_arrays_are_kept_under_their_content(bench: SimpleNamespace, tmp_path: Path) -> None:
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
