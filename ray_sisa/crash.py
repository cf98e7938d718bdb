"""Named crash points beside every commit: RAY_SISA_CRASH_AT makes a process kill or stop itself there.

    RAY_SISA_CRASH_AT="before create heads"                 killed before the first head is written
    RAY_SISA_CRASH_AT="after put stages/weights 3"          killed after the third file of weights
    RAY_SISA_CRASH_AT="stop before create stages/stage"     stopped (SIGSTOP), to be woken by a SIGCONT
    RAY_SISA_CRASH_LOG=FILE                                 strikes once in all processes: whoever makes FILE
    RAY_SISA_CRASH_AT=trace RAY_SISA_CRASH_LOG=FILE         strikes nowhere, and adds each point passed to FILE

A point is `before` or `after`, the operation (`put`, `create`, `delete`) and the kind of object, as `store.kind_of`
names it. For tests and drills; without the variable this module is not even loaded.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from ray_sisa.errors import ConfigError

if TYPE_CHECKING:
    from ray_sisa.store import Store

AT, LOG = "RAY_SISA_CRASH_AT", "RAY_SISA_CRASH_LOG"


class _Trace:
    """Every point that is passed, a line each: for a drill that is to strike at all of them."""

    def __init__(self) -> None:
        if LOG not in os.environ:
            raise ConfigError(LOG, "", f"must name a file where {AT} is trace", "Set both")

    def passed(self, name: str) -> None:
        line = json.dumps({"point": name, "pid": os.getpid()})
        log = os.open(os.environ[LOG], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(log, line.encode() + b"\n")  # at once: several processes may trace into one file
        os.close(log)


class _Point:
    """One point, and how often this process has passed it."""

    def __init__(self, text: str) -> None:
        words = text.split()
        self._signal = signal.SIGSTOP if words[:1] == ["stop"] else signal.SIGKILL
        words = words[words[:1] == ["stop"] :]
        self._left = int(words.pop()) if len(words) == 4 and words[-1].isdigit() else 1
        if len(words) != 3 or words[0] not in ("before", "after") or words[1] not in ("put", "create", "delete"):
            rule = "must read [stop] before|after put|create|delete KIND [COUNT], or trace"
            raise ConfigError(AT, text, rule, "For example: before create heads")
        self._name = " ".join(words)

    def passed(self, name: str) -> None:
        if name != self._name:
            return
        self._left -= 1
        if self._left == 0 and self._is_ours():
            os.kill(os.getpid(), self._signal)

    def _is_ours(self) -> bool:
        if LOG not in os.environ:
            return True
        try:
            log = os.open(os.environ[LOG], os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            return False
        os.write(log, json.dumps({"point": self._name, "pid": os.getpid()}).encode())
        os.close(log)
        return True


def arm(store: type[Store], kind: Callable[[str], str]) -> None:
    """Puts the point that the environment names beside the writes of a store.

    Raises:
        ConfigError: it names none.
    """
    point = _Trace() if os.environ[AT] == "trace" else _Point(os.environ[AT])
    put, create, delete = store.put, store.create, store.delete

    def armed_put(self: Store, path: str, data: bytes) -> None:
        point.passed(f"before put {kind(path)}")
        put(self, path, data)
        point.passed(f"after put {kind(path)}")

    def armed_create(self: Store, path: str, data: bytes) -> bool:
        point.passed(f"before create {kind(path)}")
        made = create(self, path, data)
        point.passed(f"after create {kind(path)}")
        return made

    def armed_delete(self: Store, paths: Iterable[str]) -> None:
        for path in paths:
            point.passed(f"before delete {kind(path)}")
            delete(self, [path])
            point.passed(f"after delete {kind(path)}")

    store.put, store.create, store.delete = armed_put, armed_create, armed_delete  # type: ignore[method-assign]
