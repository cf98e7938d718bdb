"""`ray-sisa` and other code in processes of their own that start in a blink, under any environment and any user.

They are forked from a server that has imported what is slow to import and used none of it, and import the package anew:
what it reads from the environment is read there. None has ever used an object store before, as after a spawn.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["torch._dynamo", "pyarrow.parquet", "sklearn.linear_model", "obstore", "typer", "yaml"])
STARTED: list[Program] = []  # in this session
PATIENCE_S = 120  # far more than any program here takes


@dataclass(frozen=True, kw_only=True, slots=True)
class Ended:
    """How a program ended; negative where a signal did it."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def answer(self) -> dict[str, Any]:
        """The one JSON object that it printed."""
        found: dict[str, Any] = json.loads(self.out)
        return found


class Program:
    """A running program."""

    def __init__(self, process: ForkServerProcess, folder: str) -> None:
        self._process, self._folder = process, folder
        self._began, self._ended = time.monotonic(), False

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.is_alive()

    @property
    def err(self) -> str:
        """What it has written to standard error so far."""
        return self._read("err")

    def wait(self) -> Ended:
        """How it ended; after `PATIENCE_S` it is killed, and that is an error."""
        self._process.join(PATIENCE_S)
        seconds = time.monotonic() - self._began
        if self._process.is_alive():
            self._process.kill()
            raise TimeoutError(f"runs for {seconds:.0f} s:\n{self.err}")
        assert self._process.exitcode is not None
        ended = Ended(code=self._process.exitcode, out=self._read("out"), err=self.err, seconds=seconds)
        self._close()
        return ended

    def end(self) -> None:
        """Kills it if it still runs."""
        if not self._ended:
            self._process.kill()
            self._process.join()
            self._close()

    def _close(self) -> None:
        self._ended = True
        self._process.close()
        shutil.rmtree(self._folder)

    def _read(self, name: str) -> str:
        path = Path(self._folder, name)
        return path.read_text() if path.exists() else ""


def start(function: Callable[..., None], *arguments: Any, environment: Mapping[str, str] | None = None) -> Program:
    """Starts a function of a module; it inherits this process's environment as it is now, with what is given on top."""
    folder = tempfile.mkdtemp()
    everything = dict(os.environ) | dict(environment or {})
    process = CONTEXT.Process(
        target=_work, args=(folder, everything, function.__module__, function.__name__, arguments)
    )
    process.start()
    STARTED.append(Program(process, folder))
    return STARTED[-1]


def ray_sisa(*arguments: str, environment: Mapping[str, str] | None = None) -> Program:
    """Starts the program `ray-sisa`."""
    return start(program, arguments, environment=environment)


def program(arguments: tuple[str, ...]) -> None:
    """The program, in this process."""
    sys.argv = ["ray-sisa", *arguments]
    sys.modules.pop("ray_sisa.cli", None)  # where it has run before in this process
    runpy.run_module("ray_sisa.cli", run_name="__main__")


def state_of(program: Program) -> str:
    """R, S, T and so on, as proc(5) has it; nothing once it has ended."""
    with suppress(FileNotFoundError):
        return Path(f"/proc/{program.pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def wait_until(condition: Callable[[], bool], *running: Program) -> None:
    """Returns when it comes true, which these programs live to see."""
    deadline = time.monotonic() + 60
    while not condition():
        assert all(program.alive for program in running), [program.err for program in running]
        assert time.monotonic() < deadline, [program.err for program in running]
        time.sleep(0.02)


def _work(folder: str, environment: dict[str, str], module: str, name: str, arguments: tuple[Any, ...]) -> None:
    for number, stream in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{stream}", os.O_WRONLY | os.O_CREAT, 0o644), number)
    os.environ.clear()
    os.environ.update(environment)
    try:
        # By name: its module may import the package, which reads the environment.
        getattr(__import__(module), name)(*arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    else:
        code = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
