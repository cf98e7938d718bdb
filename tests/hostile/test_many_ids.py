"""A file of millions of ids takes the memory of a small one: measured as the peak of real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from small_runs import dataset, digits, folder_of, small_config

from ray_sisa.run import Run

ROOT = Path(__file__).parents[2]
NUM_IDS = 1_000_000
NUM_KNOWN, KNOWN = 60, "digit-0000"
ALLOWED = 96 << 20  # bytes above what a request of a few ids takes: two batches and what Arrow keeps


@pytest.fixture
def run(tmp_path: Path) -> Run:
    placement = {"shards": 3, "slices": 3, "key": "k"}
    return Run.create(small_config(tmp_path, placement=placement), dataset=dataset(digits(0, NUM_KNOWN)))


def write(path: Path, names: Iterable[str]) -> Path:
    with path.open("w") as file:
        file.writelines(f"{name}\n" for name in names)
    return path


# The high-water mark of the process's own memory: what `getrusage` gives is inherited from the process that started it.
CHILD = """
import atexit, re, sys
from ray_sisa.cli import main
mark = lambda: re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
atexit.register(lambda: print(mark(), file=sys.stderr))
main(sys.argv[1:])
"""


def forget(run: Run, *arguments: object) -> tuple[dict[str, Any], int]:
    """The answer of the command in a process of its own, and the most memory that the process had, in bytes."""
    command = [sys.executable, "-c", CHILD, "forget", str(folder_of(run)), *map(str, arguments), "--json"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    return json.loads(done.stdout), int(done.stderr.splitlines()[-1]) * 1024


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".txt", ".jsonl"])
def test_memory_does_not_grow_with_the_file(run: Run, tmp_path: Path, ending: str) -> None:
    _, least = forget(run, "--samples", KNOWN)
    ids = digits(0, NUM_KNOWN).ids.to_pylist()
    strangers = (f"stranger-{i:09d}" for i in range(NUM_IDS))
    # The known ones are spread over the file.
    spaced = (
        name for i, name in enumerate(strangers) for name in ([ids.pop(), name] if ids and not i % 9973 else [name])
    )
    quote = json.dumps if ending == ".jsonl" else str
    path = write(tmp_path / f"ids{ending}", map(quote, spaced))

    fields, most = forget(run, "--from", path, "--ignore-unknown")
    assert not ids
    assert (fields["samples"], fields["already_forgotten"], fields["unknown"]) == (NUM_KNOWN - 1, 1, NUM_IDS)
    assert fields["unknown_examples"] == [f"stranger-{i:09d}" for i in range(5)]
    assert most < least + ALLOWED

    fields, most = forget(run, "--subjects-from", path)
    assert fields["error"]["rule"].startswith(f"{NUM_IDS + NUM_KNOWN} not in this run")
    assert most < least + ALLOWED


@pytest.mark.slow
def test_neither_does_it_with_long_ids(run: Run, tmp_path: Path) -> None:
    _, least = forget(run, "--samples", KNOWN)
    path = write(tmp_path / "ids.txt", (f"{i}{'x' * 10_000}" for i in range(20_000)))
    fields, most = forget(run, "--from", path)
    assert fields["error"]["rule"].startswith("20000 not in this run")
    assert most < least + ALLOWED


def test_an_endless_line_takes_none(run: Run) -> None:
    _, least = forget(run, "--samples", KNOWN)
    fields, most = forget(run, "--from", "/dev/zero")
    assert "more than 1048576 bytes in line 1" in fields["error"]["rule"]
    assert most < least + ALLOWED
