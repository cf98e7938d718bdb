"""Processes that train, unlearn or load an ensemble, and kill themselves (SIGKILL) before a chosen write.

`Killable` is the test's end. Run as a script, this is the process at the other end, which has imported everything and
used nothing, so that it can fork a child for each job in milliseconds: one JSON job a line in, one JSON answer out.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

LEASE_S = 0.2  # a killed process blocks the next for as long


class Killable:
    """The forking process, for the length of a `with` block."""

    def __enter__(self) -> Self:
        environment = os.environ | {"RAY_SISA_LEASE_S": str(LEASE_S), "PYTHONPATH": os.pathsep.join(sys.path)}
        environment["RAY_SISA_ALLOW_MODELS"] = "small_runs:dropout_network"
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()  # the end of its work
        self._process.wait(30)
        self._process.stdout.close()

    def run(self, command: str, trace: Path, *, kill_before: int | None = None, **job: Any) -> list[str]:
        """What a job in a child process did, `verb path` a line; it must end as told: killed, or by itself.

        Args:
            command: `train`, with a configuration; `unlearn`, with `uri` and `samples`; `ensemble`, with `uri`.
            trace: file for what the child does.
            kill_before: the write (from 0) before which the child is killed; None to let it end.
            job: what the command needs.
        """
        trace.write_text("")
        line = json.dumps({"command": command, "trace": str(trace), "kill_before": kill_before, **job})
        assert self._process.stdin and self._process.stdout
        print(line, file=self._process.stdin, flush=True)
        status = json.loads(self._process.stdout.readline())
        assert status == (0 if kill_before is None else -signal.SIGKILL), f"{command} ended with {status}"
        return trace.read_text().splitlines()


def _hook(trace: Path, kill_before: int | None) -> None:
    """Makes `Store` tell what it does, and die before write `kill_before`; leases and probes are not counted."""
    from ray_sisa.store import Store

    find, put, create, delete = Store.find, Store.put, Store.create, Store.delete
    writes = 0

    def write(verb: str, path: str) -> None:
        nonlocal writes
        if path.startswith(("lease/", "probes/")):
            return
        if writes == kill_before:
            os.kill(os.getpid(), signal.SIGKILL)
        writes += 1
        tell(verb, path)

    def tell(verb: str, path: str) -> None:
        with trace.open("a") as lines:
            print(verb, path, file=lines)

    def traced_find(self: Store, path: str) -> bytes | None:
        tell("read", path)
        return find(self, path)

    def traced_put(self: Store, path: str, data: bytes) -> None:
        write("put", path)
        put(self, path, data)

    def traced_create(self: Store, path: str, data: bytes) -> bool:
        write("create", path)
        return create(self, path, data)

    def traced_delete(self: Store, paths: Iterable[str]) -> None:
        for path in paths:
            write("delete", path)
            delete(self, [path])

    Store.find, Store.put = traced_find, traced_put  # type: ignore[method-assign]
    Store.create, Store.delete = traced_create, traced_delete  # type: ignore[method-assign]


def _work(job: dict[str, Any]) -> None:
    from ray_sisa.config_values import make_config
    from ray_sisa.run import Run

    _hook(Path(job["trace"]), job["kill_before"])
    if job["command"] == "train":
        Run.create(make_config(job["config"])).train(runner="local")
    elif job["command"] == "unlearn":
        run = Run.open(job["uri"])
        run.forget(samples=job["samples"])
        run.unlearn(runner="local")
    else:
        Run.open(job["uri"]).ensemble()


def _fork(job: dict[str, Any]) -> int:
    """Exit status of a child that does the job; negative if a signal ended it."""
    child = os.fork()
    if child == 0:
        try:
            _work(job)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _serve() -> None:
    # What a child needs is imported here; nothing of it is used, since threads do not survive a fork.
    import pyarrow.parquet  # noqa: F401
    import torch._dynamo  # noqa: F401, the first step of an optimiser imports it

    import ray_sisa.engine.local_runner
    import ray_sisa.run
    import ray_sisa.stages  # noqa: F401

    for line in sys.stdin:
        print(_fork(json.loads(line)), flush=True)


if __name__ == "__main__":
    _serve()
