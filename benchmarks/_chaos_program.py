"""The program `ray-sisa`, loaded once and forked for each command: a process of its own within milliseconds.

`Program` is the end of the drill. Run as a script, this is the server at the other end: it has imported the libraries
and used nothing of them. The package itself is imported by each child, under the environment that it was given.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, Self

ROOT = Path(__file__).resolve().parent.parent
START_S = 120.0  # torch takes its time on a busy machine
LIBRARIES = (
    "jinja2",
    "numpy",
    "obstore",
    "pyarrow.compute",
    "pyarrow.parquet",
    "pydantic",
    "ray.autoscaler.sdk",
    "safetensors.torch",
    "sklearn.datasets",
    "torch._dynamo",  # the first step of an optimiser imports it
    "typer",
    "yaml",
)


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Whether the condition came to hold in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class Process:
    """One command as it runs."""

    def __init__(self, connection: socket.socket) -> None:
        self._lines = connection.makefile("r")
        self._connection = connection
        self.pid = int(self._lines.readline())
        self.code: int | None = None

    def wait(self, timeout_s: float) -> int | None:
        """Its exit code, negative if a signal ended it; None if it still runs after so many seconds."""
        if self.code is None:
            self._connection.settimeout(max(timeout_s, 0.001))
            try:
                self._connection.recv(1, socket.MSG_PEEK)
            except (TimeoutError, BlockingIOError):
                return None
            self._connection.settimeout(None)
            self.code = int(self._lines.readline())
            self._lines.close()
            self._connection.close()
        return self.code

    def kill(self) -> None:
        """Kills it, if it runs, and waits for its end."""
        if self.wait(0) is None:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, signal.SIGKILL)
            self.wait(START_S)


class Program:
    """The server, for the length of a `with` block."""

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="rs")  # short, as the paths of sockets must be
        self._address = str(Path(self._folder.name, "program"))
        self._server = subprocess.Popen([sys.executable, __file__, self._address])
        if not wait_until(lambda: self._listens() or self._server.poll() is not None, START_S):
            raise TimeoutError("the program did not load")
        return self

    def _listens(self) -> bool:
        """Whether it takes connections: its socket is there a moment before."""
        with socket.socket(socket.AF_UNIX) as connection:
            return connection.connect_ex(self._address) == 0

    def __exit__(self, *error: object) -> None:
        self._server.terminate()
        self._server.wait()
        self._folder.cleanup()

    @property
    def pid(self) -> int:
        """Of the server."""
        return self._server.pid

    def start(self, *arguments: str, log: Path, environment: dict[str, str] | None = None) -> Process:
        """Starts `ray-sisa ARGUMENTS`; what it prints is added to the file `log`."""
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(self._address)
        job = {"arguments": arguments, "log": str(log), "environment": environment or {}}
        connection.sendall(json.dumps(job).encode() + b"\n")
        return Process(connection)


class _Fork(socketserver.StreamRequestHandler):
    """A process for each connection: it forks the command, says its process id, and waits for its exit code."""

    def handle(self) -> None:
        line = self.rfile.readline()
        if not line:
            return  # only asked whether somebody listens
        job = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(job)
        self.wfile.write(f"{child}\n".encode())
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with suppress(BrokenPipeError):  # the drill itself has ended
            self.wfile.write(f"{code}\n".encode())


class _Server(socketserver.ForkingMixIn, socketserver.UnixStreamServer):
    block_on_close = False


def _become(job: dict[str, Any]) -> NoReturn:
    """Is `ray-sisa` from here on; never returns."""
    os.closerange(3, 256)  # the connection: only the parent may hold it
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    code = 1
    try:
        os.environ.update(job["environment"])
        from ray_sisa.cli import main

        main(job["arguments"])
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(bool(end.code))
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    for library in LIBRARIES:
        importlib.import_module(library)
    with _Server(sys.argv[1], _Fork) as server:
        server.serve_forever()
