"""The address of a Ray cluster, judged before Ray gets it: its form, and whether a cluster answers there.

Left to itself Ray tries a dead address for twelve minutes. Only plain sockets are used, and Ray is never imported.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from ray_sisa.errors import ResourcesError, SisaError
from ray_sisa.termination import kept

REPLY_S = 3.0  # for a connection, and for the reply on it
PROBE_S = 8.0  # for the whole probe, the name lookup included
ATTACH_S = 120.0  # for Ray, once the probe has succeeded
HOST_PORT = re.compile(r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>[^\s:/?#@\[\]]+)):(?P<port>\d{1,5})")
# The opening of an HTTP/2 connection (RFC 9113, 3.4): its preface and an empty SETTINGS frame. Every gRPC server, as a
# cluster's GCS is, answers with SETTINGS of its own: a header of 9 bytes whose fourth is the type.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + struct.pack(">I", 0)[1:] + b"\x04\0\0\0\0\0"
HEADER_SIZE, SETTINGS = 9, 4
FORM = "Set it to HOST:PORT of the head's GCS (`ray start --head` prints it; usually port 6379), or unset it"
LOOK = "Start the cluster there, correct the address, or unset it to use the cluster that runs here or a new local one"

TOKEN = "Check that it runs there (10001 is not the GCS) and, if it wants a token, RAY_AUTH_MODE and RAY_AUTH_TOKEN"


@contextmanager
def joining(named: str, resolve: Callable[[], str | None]) -> Iterator[str | None]:
    """Judges an address, then lets the block attach to it, for a bounded time; SIGTERM does there what it did before.

    The block gets HOST:PORT, or None where it is to start a cluster.

    Args:
        named: what RAY_ADDRESS says; empty where it says nothing.
        resolve: gives HOST:PORT that Ray will attach to, or None where it will start a cluster.

    Raises:
        ResourcesError: the address is malformed, no cluster answers there, or attaching fails or takes too long.
    """
    check(named)
    try:
        found = resolve()
        if found is not None:
            probe(found, named)
        with kept(), _bounded(named or found) if found else nullcontext():
            yield found
    except SisaError:
        raise
    except Exception as error:  # of many classes, and of long texts
        rule = f"cannot be joined: {' '.join(str(error).split())}"
        raise ResourcesError("RAY_ADDRESS", named, rule, TOKEN) from error


def check(named: str) -> None:
    """Passes what a driver can attach to, by its form: nothing, `auto`, `local`, or HOST:PORT.

    Raises:
        ResourcesError: anything else.
    """
    if named in ("", "auto", "local"):
        return
    if named.startswith(("http://", "https://")):
        rule = "is the address of a dashboard, which takes jobs; a driver attaches to the cluster's GCS"
        raise ResourcesError("RAY_ADDRESS", named, rule, f"{FORM}; `ray job` takes RAY_API_SERVER_ADDRESS, too")
    if named.startswith("ray://"):
        rule = "is the address of a Ray Client server, which cannot stream what workers report"
        raise ResourcesError("RAY_ADDRESS", named, rule, f"{FORM}; from outside the cluster use `ray job submit`")
    match = HOST_PORT.fullmatch(named)
    if match is None or not 0 < int(match["port"]) < 65536:
        rule = "must read HOST:PORT (an IPv6 address in brackets), auto or local"
        raise ResourcesError("RAY_ADDRESS", named, rule, FORM)


def probe(address: str, named: str) -> None:
    """Returns if a gRPC server, as a cluster's GCS is one, answers at HOST:PORT.

    Args:
        address: where to look.
        named: what RAY_ADDRESS says, for the error; empty where Ray found the address in its own file.

    Raises:
        ResourcesError: nobody answers in time, or something else does.
    """
    problems = ["does not answer in time"]
    # Apart, since the lookup of a name takes as long as its servers like.
    looking = threading.Thread(target=lambda: problems.append(_problem(address)), daemon=True)
    looking.start()
    looking.join(PROBE_S)
    problem = problems[-1]
    if not problem:
        return
    if named not in ("", "auto"):
        raise ResourcesError("RAY_ADDRESS", named, problem, LOOK)
    rule = f"was the last cluster that was started on this machine, and {problem}"
    raise ResourcesError("RAY_ADDRESS", address, rule, "`ray stop` forgets it; RAY_ADDRESS=local starts a new one")


def _problem(address: str) -> str:
    """What is wrong at HOST:PORT; empty if a gRPC server answers."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), REPLY_S) as connection:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
                return ""  # whoever listens speaks after a handshake with certificates, which is Ray's to make
            return _not_grpc(connection)
    except (socket.gaierror, UnicodeError) as error:
        return f"has a name that cannot be resolved: {error}"
    except TimeoutError:
        return "does not answer in time"
    except OSError as error:
        return f"does not answer: {error.strerror or error}"


def _not_grpc(connection: socket.socket) -> str:
    connection.sendall(PREFACE)
    reply = b""
    while len(reply) < HEADER_SIZE and (piece := connection.recv(HEADER_SIZE - len(reply))):
        reply += piece
    if len(reply) == HEADER_SIZE and reply[3] == SETTINGS:
        return ""
    kind = (
        "a web server, such as a dashboard"
        if reply.startswith((b"HTTP/", b"<"))
        else "something else than a Ray cluster"
    )
    return f"is where {kind} listens"


@contextmanager
def _bounded(address: str) -> Iterator[None]:
    """Ends a block in the main thread that takes longer than `ATTACH_S`, as soon as Python gets to run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, _stop)
    signal.setitimer(signal.ITIMER_REAL, ATTACH_S)
    try:
        yield
    except _TooLongError:
        rule = f"answers, and could not be joined within {ATTACH_S:g} s"
        raise ResourcesError("RAY_ADDRESS", address, rule, f"Look at the head's logs. {LOOK}") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class _TooLongError(BaseException):
    """No `Exception`: Ray tries again after each of those."""


def _stop(number: int, frame: object) -> None:
    raise _TooLongError
