"""RAY_ADDRESS is judged before Ray gets it, against real sockets; Ray itself is started by none of these."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer

import grpc
import pytest

from ray_sisa.engine import address
from ray_sisa.errors import ResourcesError


@pytest.mark.parametrize(
    ("named", "part"),
    [
        ("http://127.0.0.1:8265", "is the address of a dashboard"),
        ("https://cluster.example", "RAY_API_SERVER_ADDRESS"),
        ("ray://127.0.0.1:10001", "Ray Client"),
        ("head", "must read HOST:PORT"),
        ("127.0.0.1", "must read HOST:PORT"),
        ("head:6379/", "must read HOST:PORT"),
        ("head:6379/session", "must read HOST:PORT"),
        ("head:0", "must read HOST:PORT"),
        ("head:99999", "must read HOST:PORT"),
        ("head:port", "must read HOST:PORT"),
        ("::1:6379", "in brackets"),
        ("user@head:6379", "must read HOST:PORT"),
        (" head:6379", "must read HOST:PORT"),
        ("redis://head:6379", "must read HOST:PORT"),
    ],
)
def test_what_no_driver_can_attach_to(named: str, part: str) -> None:
    with pytest.raises(ResourcesError) as refused:
        address.check(named)
    assert refused.value.field == "RAY_ADDRESS"
    assert part in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "named", ["", "auto", "local", "127.0.0.1:6379", "head.example.org:6379", "[::1]:6379", "[fe80::1%eth0]:6379"]
)
def test_what_a_driver_may_attach_to(named: str) -> None:
    address.check(named)


@contextmanager
def listening(
    family: int, host: str, answer: Callable[[socket.socket], object] = lambda connection: None
) -> Iterator[int]:
    """A port where a server accepts one connection, and gives it to `answer`."""
    with socket.socket(family) as server:
        server.bind((host, 0))
        server.listen()

        def serve() -> None:
            connection, _ = server.accept()
            with connection, suppress(ConnectionError):
                answer(connection)
                connection.recv(1 << 16)
                connection.recv(1)  # until the client goes

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]


@pytest.fixture(params=["127.0.0.1", "[::1]"])
def gcs(request: pytest.FixtureRequest) -> Iterator[str]:
    """Address of a gRPC server."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port(f"{request.param}:0")
    server.start()
    yield f"{request.param}:{port}"
    server.stop(None)


def test_a_grpc_server_passes(gcs: str) -> None:
    address.probe(gcs, gcs)


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_a_port_where_nobody_listens(host: str) -> None:
    family = socket.AF_INET6 if host == "[::1]" else socket.AF_INET
    with socket.socket(family) as reserved:  # bound, and never listens: nobody else gets the port
        reserved.bind((host.strip("[]"), 0))
        named = f"{host}:{reserved.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(ResourcesError, match="does not answer: Connection refused") as refused:
            address.probe(named, named)
    assert time.monotonic() - began < 10
    assert refused.value.value == named


def test_a_name_that_does_not_resolve() -> None:
    with pytest.raises(ResourcesError, match=r"cannot be resolved|in time"):
        address.probe("no-such-host.invalid:6379", "no-such-host.invalid:6379")


def test_a_name_that_is_none() -> None:
    named = f"{'a' * 70}:6379"  # a label has 63 characters at most
    with pytest.raises(ResourcesError, match=r"cannot be resolved"):
        address.probe(named, named)


def test_a_web_server_is_no_cluster() -> None:
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        named = f"127.0.0.1:{server.server_port}"
        with pytest.raises(ResourcesError, match="a web server, such as a dashboard"):
            address.probe(named, named)


@pytest.mark.parametrize("answer", [b"-ERR unknown command\r\n", b"\0" * 9, b"+"])
def test_something_else_is_no_cluster(answer: bytes) -> None:
    def say(connection: socket.socket) -> None:
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)

    with (
        listening(socket.AF_INET, "127.0.0.1", say) as port,
        pytest.raises(ResourcesError, match="something else than"),
    ):
        address.probe(f"127.0.0.1:{port}", f"127.0.0.1:{port}")


def test_one_that_accepts_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a head does that is stopped (SIGSTOP): the kernel accepts for it."""
    monkeypatch.setattr(address, "REPLY_S", 0.2)
    with listening(socket.AF_INET, "127.0.0.1") as port, pytest.raises(ResourcesError, match="does not answer in time"):
        address.probe(f"127.0.0.1:{port}", f"127.0.0.1:{port}")


def test_the_whole_probe_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "PROBE_S", 0.2)
    with listening(socket.AF_INET, "127.0.0.1") as port, pytest.raises(ResourcesError, match="does not answer in time"):
        address.probe(f"127.0.0.1:{port}", f"127.0.0.1:{port}")


def test_an_address_that_ray_remembers_is_told_so() -> None:
    """A head that was killed leaves its address in a file: without RAY_ADDRESS Ray tries that one."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        with (
            pytest.raises(
                ResourcesError, match=r"the last cluster that was started on this machine.*`ray stop` forgets"
            ),
            address.joining("", lambda: f"127.0.0.1:{reserved.getsockname()[1]}"),
        ):
            raise AssertionError("it was joined")


def test_a_new_cluster_needs_no_probe() -> None:
    with address.joining("local", lambda: None):
        pass


def test_an_attach_that_takes_too_long(gcs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the library tries again after every error; the alarm that was set before is in force after."""
    monkeypatch.setattr(address, "ATTACH_S", 0.2)
    before = signal.getsignal(signal.SIGALRM)
    never = threading.Event()
    with (
        pytest.raises(ResourcesError, match=r"answers, and could not be joined within 0\.2 s"),
        address.joining(gcs, lambda: gcs),
    ):
        while True:
            try:
                never.wait(60)
            except Exception:
                continue
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_what_ray_raises_becomes_one_line(gcs: str) -> None:
    with pytest.raises(ResourcesError, match="cannot be joined: one two") as told, address.joining(gcs, lambda: gcs):
        raise LookupError("one\n  two")
    assert "RAY_AUTH_TOKEN" in told.value.remedy


def test_tls_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "RAY_USE_TLS", "1")
    with listening(socket.AF_INET, "127.0.0.1") as port:
        address.probe(f"127.0.0.1:{port}", f"127.0.0.1:{port}")
