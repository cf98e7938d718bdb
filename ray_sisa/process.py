"""This process as others can tell it from all that ever ran, and whether one that wrote its name down is provably gone.

Only Linux says enough, and only of processes of this machine, boot and container: of any other, nothing is proven.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from ray_sisa.records import ProcessRecord

ENDED = {"Z", "X"}  # states of a process that nobody has waited for yet


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stat:
    state: str
    num_threads: int
    started: int


def this_process() -> ProcessRecord | None:
    """The identity of this process; None where the system does not tell enough."""
    try:
        # The /proc of another process namespace would number processes otherwise than signals do.
        if os.readlink("/proc/self") != str(os.getpid()):
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # Containers of one machine share the boot; start times are told relative to the namespace of time.
        inodes = [os.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("pid", "time")]
        started = _stat(os.getpid()).started
    except (OSError, ValueError):
        return None
    return ProcessRecord(
        host=socket.gethostname(),
        boot=boot,
        namespaces="/".join(map(str, inodes)),
        pid=os.getpid(),
        started=started,
    )


def is_gone(process: ProcessRecord) -> bool:
    """Whether a process can run no further instruction: False wherever that is not certain."""
    mine = this_process()
    if mine is None or _place(process) != _place(mine):
        return False
    try:
        os.kill(process.pid, 0)  # asked first: another user's process may be hidden in /proc
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    try:
        there = _stat(process.pid)
    except (OSError, ValueError):
        return False
    # A killed process may have threads that are within a write still: it has ended with the last of them.
    return there.started != process.started or (there.state in ENDED and there.num_threads <= 1)


def _place(process: ProcessRecord) -> tuple[str, str, str]:
    return process.host, process.boot, process.namespaces


def _stat(pid: int) -> _Stat:
    # The name of the program comes before, in parentheses, and may hold anything.
    fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    if len(fields) < 20:
        raise ValueError(f"/proc/{pid}/stat has too few fields")
    return _Stat(state=fields[0], num_threads=int(fields[17]), started=int(fields[19]))
