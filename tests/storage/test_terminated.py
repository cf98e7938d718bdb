"""SIGTERM ends a program as Ctrl-C does: with what it holds given back. Real processes and a real signal."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import programs

from ray_sisa.layout import LEASES
from ray_sisa.lease import hold_lease
from ray_sisa.run import Run
from ray_sisa.store import Store


def test_a_training_is_terminated(tmp_path: Path, config_file: Callable[..., str]) -> None:
    """Stopped in the midst by a crash point, told to end, and woken: the run can be had again at once."""
    stop = {"RAY_SISA_CRASH_AT": "stop before put stages/weights 2"}
    command = ("train", config_file(str(tmp_path)), "--runner", "local", "--json")
    program = programs.ray_sisa(*command, environment=stop)
    programs.wait_until(lambda: programs.state_of(program) == "T", program)
    os.kill(program.pid, signal.SIGTERM)
    os.kill(program.pid, signal.SIGCONT)
    ended = program.wait()
    assert ended.code == 143
    assert ended.out == ""
    assert "terminated: run the same command again to continue" in ended.err.splitlines()
    assert "Traceback" not in ended.err
    store = Store(str(tmp_path / "run"))
    assert store.numbers(LEASES)
    with hold_lease(store):
        pass
    assert Run.open(store.uri).train(runner="local").stages_reused >= 1
