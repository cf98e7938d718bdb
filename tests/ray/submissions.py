"""A study at its smallest, submitted to a real head: its driver killed, submitted again, and once more when done."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from processes import wait_until
from real_head import Head

Record = TypeVar("Record")


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished(Generic[Record]):
    """The study after two submissions, and after a third."""

    storage: Path
    out: Path
    record: Record
    again: Record
    before_kill: dict[str, int]
    """Steps by name, with the time in ns at which each was written."""
    after: dict[str, int]
    at_end: dict[str, int]


def submit_thrice(
    head: Head, job: str, data: Path, folder: Path, read: Callable[[Path], Record], enough: int
) -> Finished[Record]:
    """Submits a study's job until nothing is left to do.

    Args:
        head: that it is submitted to.
        job: file of the checkout.
        data: folder of the data.
        folder: where it works.
        read: reads the record in a file.
        enough: steps done before the driver is killed.
    """
    storage, out = folder / "storage", folder / "out"
    entrypoint = [job, "--preset", "smoke", "--data", str(data), "--storage", str(storage), "--out", str(out)]
    first = subprocess.Popen(
        head.command(*entrypoint),
        cwd=head.checkout,
        env=head.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    wait_until(lambda: len(steps_of(storage)) >= enough or first.poll() is not None, timeout_s=600)
    for pid in head.processes(f"python {job} --preset"):
        os.kill(pid, signal.SIGKILL)
    logs, _ = first.communicate(timeout=120)
    assert first.returncode != 0, logs.decode()
    before_kill = steps_of(storage)
    head.submit(*entrypoint)
    record, after = read(out / "result.json"), steps_of(storage)
    head.submit(*entrypoint)
    return Finished(
        storage=storage,
        out=out,
        record=record,
        again=read(out / "result.json"),
        before_kill=before_kill,
        after=after,
        at_end=steps_of(storage),
    )


def steps_of(storage: Path) -> dict[str, int]:
    found = (storage / "study" / "steps").glob("*.json")
    return {path.name: path.stat().st_mtime_ns for path in found}
