"""Which processes are provably gone: real ones that run, were stopped, killed, or live in a container."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ray_sisa.process import is_gone, this_process
from ray_sisa.records import ProcessRecord

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which process had an id before")

ROOT = Path(__file__).parents[2]
TELL = "import sys; from ray_sisa.process import this_process; print(this_process().model_dump_json(), flush=True); "
ASK = (
    "import os, sys; from ray_sisa.process import *; os.setuid(65534); "
    "print(is_gone(ProcessRecord.model_validate_json(sys.argv[1])))"
)
# The first thread ends and another goes on, as in a killed process whose last write is still under way.
LEADERLESS = (
    "import ctypes, threading; threading.Thread(target=sys.stdin.readline).start(); "
    "ctypes.CDLL(None).pthread_exit(None)"
)


def this() -> ProcessRecord:
    found = this_process()
    assert found
    return found


def python(code: str, *arguments: str, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@contextmanager
def told(then: str = "sys.stdin.readline()", before: tuple[str, ...] = ()) -> Iterator[Any]:
    """A process and what it says of itself; killed at the end if it still lives."""
    with python(TELL + then, before=before) as process:
        assert process.stdout
        line = process.stdout.readline()
        try:
            yield process, ProcessRecord.model_validate_json(line) if line else None
        finally:
            process.kill()


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_runs_is_not_gone() -> None:
    assert this() == this()
    assert not is_gone(this())


def test_what_was_killed_is_gone_whether_its_parent_knows_or_not() -> None:
    with told() as (process, record):
        assert not is_gone(record)
        process.send_signal(signal.SIGSTOP)
        assert not is_gone(record)
        process.kill()
        wait_until(lambda: is_gone(record))  # a zombie
        assert Path(f"/proc/{process.pid}/stat").exists()
        process.wait()
        assert is_gone(record)


def test_what_has_a_thread_left_is_not_gone() -> None:
    with told(LEADERLESS) as (process, record):
        wait_until(lambda: ") Z " in Path(f"/proc/{process.pid}/stat").read_text())
        assert not is_gone(record)
        process.communicate("\n")
        wait_until(lambda: is_gone(record))


def test_another_process_under_its_id_means_that_it_is_gone() -> None:
    assert is_gone(this().model_copy(update={"started": this().started - 1}))


@pytest.mark.parametrize(
    "elsewhere", [{"host": "another"}, {"boot": "an earlier one"}, {"namespaces": "1/1"}], ids=lambda e: next(iter(e))
)
def test_nothing_is_known_of_what_is_elsewhere(elsewhere: dict[str, str]) -> None:
    with told() as (process, record):
        process.kill()
        process.wait()
        assert is_gone(record)
        assert not is_gone(record.model_copy(update=elsewhere))


def test_nothing_is_known_of_a_container() -> None:
    """In a namespace of its own a process has an id that is another's here, or nobody's."""
    with told("", before=("unshare", "--pid", "--fork", "--mount-proc")) as (process, record):
        if record is None:
            pytest.skip(f"no namespaces here: {process.stderr.read()}")
        process.wait()
        assert record.boot == this().boot
        assert record.host == this().host
        assert record.namespaces != this().namespaces
        assert not is_gone(record)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to be root, to become somebody else")
def test_another_users_process_is_not_gone() -> None:
    with python(ASK, this().model_dump_json()) as asking:
        out, err = asking.communicate(timeout=60)
    assert out == "False\n", err
