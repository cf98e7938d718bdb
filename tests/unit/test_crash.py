"""Crash points: a real process kills or stops itself beside the write that was named, once, and nowhere else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

WRITES = """
import sys
from ray_sisa.store import Store
store = Store(sys.argv[1])
for name in ("a", "b", "c"):
    store.put(f"slices/{name}.arrow", b"")
    store.create(f"stages/{name}/stage.json", b"")
store.delete([f"slices/{name}.arrow" for name in "abc"])
print("end")
"""


def start(folder: Path, **environment: str) -> subprocess.Popen[str]:
    paths = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-c", WRITES, str(folder)],
        env=os.environ | environment | {"PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def left(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ("before put slices", []),
        ("after put slices", ["slices/a.arrow"]),
        ("before create stages/stage", ["slices/a.arrow"]),
        ("after create stages/stage", ["slices/a.arrow", "stages/a/stage.json"]),
        ("before put slices 2", ["slices/a.arrow", "stages/a/stage.json"]),
        ("after delete slices 2", ["slices/c.arrow", *(f"stages/{name}/stage.json" for name in "abc")]),
    ],
)
def test_killed_there(tmp_path: Path, point: str, expected: list[str]) -> None:
    code, out, _ = ended(start(tmp_path / "run", RAY_SISA_CRASH_AT=point))
    assert (code, out) == (-signal.SIGKILL, "")
    assert left(tmp_path / "run") == expected


def test_once_in_all_processes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    point = {"RAY_SISA_CRASH_AT": "before put slices 2", "RAY_SISA_CRASH_LOG": str(log)}
    process = start(tmp_path / "run", **point)
    assert ended(process)[0] == -signal.SIGKILL
    assert json.loads(log.read_text()) == {"point": "before put slices", "pid": process.pid}
    assert ended(start(tmp_path / "run", **point))[:2] == (0, "end\n")


def test_stopped_there_and_woken(tmp_path: Path) -> None:
    process = start(tmp_path / "run", RAY_SISA_CRASH_AT="stop before put slices 3")
    assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
    assert left(tmp_path / "run/slices") == ["a.arrow", "b.arrow"]
    process.send_signal(signal.SIGCONT)
    assert ended(process)[:2] == (0, "end\n")


def test_a_trace_names_every_point_and_strikes_at_none(tmp_path: Path) -> None:
    log = tmp_path / "log"
    trace = {"RAY_SISA_CRASH_AT": "trace", "RAY_SISA_CRASH_LOG": str(log)}
    processes = [start(tmp_path / name, **trace) for name in ("one", "other")]
    assert [ended(process)[:2] for process in processes] == [(0, "end\n")] * 2
    passed = [json.loads(line) for line in log.read_text().splitlines()]
    writes = ["put slices", "create stages/stage"] * 3 + ["delete slices"] * 3
    expected = [f"{when} {write}" for write in writes for when in ("before", "after")]
    expected[3:3] = ["before delete probes", "after delete probes"]  # within the first create
    for process in processes:
        assert [line["point"] for line in passed if line["pid"] == process.pid] == expected
    code, _, err = ended(start(tmp_path / "run", RAY_SISA_CRASH_AT="trace"))
    assert code == 1 and "RAY_SISA_CRASH_LOG" in err


@pytest.mark.parametrize("point", ["", "before", "before put", "within put slices", "before write slices", "a b c d"])
def test_what_is_no_point_is_refused(tmp_path: Path, point: str) -> None:
    code, _, err = ended(start(tmp_path / "run", RAY_SISA_CRASH_AT=point))
    assert code == 1
    assert "must read [stop] before|after put|create|delete KIND [COUNT], or trace" in err
