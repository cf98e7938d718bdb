"""The servers that other tests rely on: an S3 server that keeps what it acknowledged, a proxy that does as it is told.

The client is obstore, told to try only once, so that each fault is seen as it is.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
import pytest
import servers
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError
from obstore.store import S3Store
from servers import BLOCK, HOST, FaultProxy, Faults, SeaweedFS, claim_ports, remove_sockets

DATA = bytes(range(256)) * 400


@pytest.fixture(scope="module")
def server() -> Iterator[SeaweedFS]:
    with SeaweedFS() as server:
        yield server


@pytest.fixture
def proxy(server: SeaweedFS) -> Iterator[FaultProxy]:
    with FaultProxy(server.address, seed=1) as proxy:
        yield proxy


def client(server: SeaweedFS, endpoint: str = "", *, patience: float = 1, **config: Any) -> S3Store:
    """A client that gives up after so many seconds without a byte, and tries nothing twice."""
    usual = {"bucket": server.bucket, "access_key_id": server.access_key, "secret_access_key": server.secret_key}
    return S3Store(
        **usual | config,
        endpoint=endpoint or server.endpoint,
        client_options={"allow_http": True, "read_timeout": timedelta(seconds=patience)},
        retry_config={"max_retries": 0},
    )


def until(true: Callable[[], bool], patience: float = 30) -> bool:
    """Whether it comes true within so many seconds."""
    deadline = time.monotonic() + patience
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def read(store: S3Store, path: str) -> bytes:
    return obstore.get(store, path).bytes().to_bytes()


# The S3 server.


def test_clients_find_it_by_the_environment(server: SeaweedFS, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    store = S3Store(server.bucket, prefix="found")
    obstore.put(store, "a", DATA)
    assert read(store, "a") == read(client(server), "found/a") == DATA


def test_it_creates_once(server: SeaweedFS) -> None:
    obstore.put(client(server), "once", b"first", mode="create")
    with pytest.raises(AlreadyExistsError):
        obstore.put(client(server), "once", b"second", mode="create")
    assert read(client(server), "once") == b"first"


@pytest.mark.parametrize("key", ["access_key_id", "secret_access_key"])
def test_others_are_refused(server: SeaweedFS, key: str) -> None:
    with pytest.raises(PermissionDeniedError):
        obstore.put(client(server, **{key: "another"}), "refused", b"")


def test_a_bucket_that_is_not_there_is_not_made(server: SeaweedFS) -> None:
    with pytest.raises(FileNotFoundError, match="NoSuchBucket"):
        obstore.put(client(server, bucket="absent"), "a", b"")


def test_what_it_acknowledged_is_kept(server: SeaweedFS) -> None:
    """A writer writes one object after the other; the server is killed meanwhile, and started again."""
    store, kept = client(server), list[str]()

    def write() -> None:
        with suppress(BaseError):
            while True:
                obstore.put(store, f"kept/{len(kept)}", str(len(kept)).encode())
                kept.append(f"kept/{len(kept)}")

    writer = threading.Thread(target=write)
    writer.start()
    assert until(lambda: len(kept) >= 20 or not writer.is_alive())
    server.kill()
    writer.join(60)
    assert len(kept) >= 20
    with pytest.raises(BaseError):
        read(store, kept[0])
    starter = threading.Thread(target=server.start)  # it goes on without the thread that started it
    starter.start()
    starter.join(120)
    assert [read(store, path) for path in kept] == [path.removeprefix("kept/").encode() for path in kept]


def test_claimed_ports_are_free_and_nobody_elses() -> None:
    claims = [claim_ports() for _ in range(20)]
    try:
        ports = [port for ports, _ in claims for port in ports]
        assert len(set(ports)) == 20 * BLOCK
        assert max(ports) + 10000 < 32768
    finally:
        for _, claim in claims:
            claim.close()


def test_ports_in_use_are_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    ports, claim = claim_ports()
    claim.close()
    monkeypatch.setattr(servers, "FIRST_PORT", ports[0])
    monkeypatch.setattr(servers, "BLOCKS", 1)
    for taken in (ports[0], ports[-1] + 10000):
        with socket.create_server((HOST, taken)), pytest.raises(OSError, match="no free block"):
            claim_ports()


def test_it_does_not_outlive_the_tests(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(Path(servers.__file__).parent)}
    ports, claim = claim_ports()
    claim.close()
    code = f"import servers; servers.FIRST_PORT, servers.BLOCKS = {ports[0]}, 1; servers.SeaweedFS().__enter__()"
    owner = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    threads = Path(f"/proc/{owner.pid}/task")
    found: list[str] = []

    def started() -> bool:
        children = [pid for thread in threads.glob("*/children") for pid in thread.read_text().split()]
        found[:] = [pid for pid in children if _is_server(pid)]
        return bool(found)

    try:
        assert until(started)
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    assert until(lambda: not _is_server(found[0]))
    remove_sockets(ports)


def _is_server(pid: str) -> bool:
    """Whether a process runs `weed`; one that has ended has no command line, even before it is reaped."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"/weed")
    except OSError:
        return False


# The proxy.


def test_it_passes_everything(server: SeaweedFS, proxy: FaultProxy) -> None:
    """Signatures included: they cover the Host header, which names the proxy."""
    store = client(server, proxy.endpoint)
    obstore.put(store, "pass/a", DATA)
    obstore.put(store, "pass/empty", b"")
    assert (read(store, "pass/a"), read(store, "pass/empty")) == (DATA, b"")
    assert obstore.head(store, "pass/a")["size"] == len(DATA)
    assert [entry["path"] for entry in obstore.list(store, "pass").collect()] == ["pass/a", "pass/empty"]
    obstore.delete(store, ["pass/a", "pass/absent"])
    with pytest.raises(FileNotFoundError):
        read(store, "pass/a")
    assert proxy.requests == {"PUT": 2, "GET": 4, "HEAD": 1, "POST": 1}
    assert not proxy.injected


@pytest.mark.parametrize("fault", ["error", "drop", "hang"])
def test_a_write_that_is_not_forwarded(server: SeaweedFS, proxy: FaultProxy, fault: str) -> None:
    proxy.faults = Faults(**{fault: 1})
    with pytest.raises(BaseError, match=r"50[03]" if fault == "error" else "error sending request"):
        obstore.put(client(server, proxy.endpoint), f"not/{fault}", b"data")
    with pytest.raises(FileNotFoundError):
        read(client(server), f"not/{fault}")
    assert (proxy.requests, proxy.injected) == ({"PUT": 1}, {fault: 1})


@pytest.mark.parametrize("fault", ["lose", "cut", "stall"])
def test_a_write_that_happens_without_a_reply(server: SeaweedFS, proxy: FaultProxy, fault: str) -> None:
    proxy.faults = Faults(**{fault: 1})
    with pytest.raises(BaseError, match="error sending request"):
        obstore.put(client(server, proxy.endpoint), f"lost/{fault}", b"data")
    assert read(client(server), f"lost/{fault}") == b"data"
    assert (proxy.requests, proxy.injected) == ({"PUT": 1}, {fault: 1})


@pytest.mark.parametrize("fault", ["cut", "stall"])
def test_a_body_that_ends_too_early(server: SeaweedFS, proxy: FaultProxy, fault: str) -> None:
    obstore.put(client(server), "body", DATA)
    proxy.faults = Faults(**{fault: 1})
    with pytest.raises(BaseError, match="response body"):
        read(client(server, proxy.endpoint), "body")
    assert proxy.injected == {fault: 1}


def test_faults_strike_where_and_as_often_as_told(server: SeaweedFS, proxy: FaultProxy) -> None:
    store = client(server, proxy.endpoint)
    proxy.faults = Faults(where="PUT .*/ledger/", limit=2, error=1)
    outcomes = []
    for path in ("heads/1", "ledger/1", "ledger/2", "ledger/3"):
        try:
            obstore.put(store, path, b"")
            outcomes.append("written")
        except BaseError:
            outcomes.append("failed")
    assert outcomes == ["written", "failed", "failed", "written"]
    assert proxy.injected == {"error": 2}


def test_shares_are_met_and_the_seed_repeats_them(server: SeaweedFS) -> None:
    def struck() -> list[bool]:
        outcomes = []
        with FaultProxy(server.address, seed=7) as proxy:
            proxy.faults = Faults(error=0.3, drop=0.2)
            for _ in range(100):
                try:
                    obstore.put(client(server, proxy.endpoint), "share", b"")
                    outcomes.append(False)
                except BaseError:
                    outcomes.append(True)
            assert 15 <= proxy.injected["error"] <= 45
            assert 8 <= proxy.injected["drop"] <= 35
        return outcomes

    assert struck() == struck()


def test_replies_are_delayed(server: SeaweedFS, proxy: FaultProxy) -> None:
    store = client(server, proxy.endpoint)
    proxy.faults = Faults(delay=0.4)
    start = time.monotonic()
    obstore.put(store, "late", b"data")
    assert time.monotonic() - start >= 0.4
    assert not proxy.injected


def test_new_faults_let_go_of_those_kept_waiting(server: SeaweedFS, proxy: FaultProxy) -> None:
    proxy.faults = Faults(delay=1000)
    outcome: list[bytes] = []
    obstore.put(client(server), "waiting", b"data")
    patient = client(server, proxy.endpoint, patience=60)
    reader = threading.Thread(target=lambda: outcome.append(read(patient, "waiting")))
    reader.start()
    assert until(lambda: proxy.requests["GET"] == 1)
    proxy.faults = Faults()
    reader.join(20)
    assert outcome == [b"data"]


def test_a_server_behind_that_is_gone(server: SeaweedFS) -> None:
    with socket.create_server((HOST, 0)) as listener:
        address = listener.getsockname()
    with FaultProxy(address) as proxy, pytest.raises(BaseError, match="error sending request"):
        read(client(server, proxy.endpoint), "a")


def test_it_leaves_no_thread(server: SeaweedFS) -> None:
    before = threading.active_count()
    with FaultProxy(server.address) as proxy:
        obstore.put(client(server, proxy.endpoint), "thread", b"")
        proxy.faults = Faults(hang=1)
        with pytest.raises(BaseError):
            read(client(server, proxy.endpoint), "thread")
        assert threading.active_count() > before
    assert threading.active_count() == before
