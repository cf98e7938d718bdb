"""A real head, as `ray start --head` makes one: ports, token and folder of its own, so it meets no other Ray here."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from processes import descendants, wait_until

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    address: str
    """Of its dashboard, to which jobs are submitted."""
    gcs_address: str
    """Where drivers join."""
    environment: dict[str, str]
    checkout: Path
    pid: int

    def command(self, *entrypoint: str, options: Sequence[str] = ()) -> list[str]:
        """What submits a job, as the jobs say; `options` are those of `ray job submit`."""
        submit = ["ray", "job", "submit", "--address", self.address, "--working-dir", ".", *options]
        return [*submit, "--", "python", *entrypoint]

    def submit(self, *entrypoint: str) -> str:
        """Submits a job from the checkout, and returns its logs once it has succeeded."""
        done = self.run(*self.command(*entrypoint))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "succeeded" in done.stdout
        return done.stdout

    def run(self, *command: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a command from the checkout, with the head's environment unless another is given."""
        return subprocess.run(
            command,
            cwd=self.checkout,
            env=self.environment if environment is None else environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def processes(self, *names: str) -> set[int]:
        """Of the head, by what their command lines contain; all of them without a name."""
        found = descendants(self.pid)
        return {pid for pid, command in found.items() if not names or any(name in command for name in names)}


def bare_checkout(folder: Path) -> Path:
    """A folder with what jobs need of this checkout, and nothing else."""
    for name in ("ray_sisa", "jobs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@contextmanager
def started_head(checkout: Path, settings: Mapping[str, str] | None = None, num_cpus: int = 2) -> Iterator[Head]:
    """A head that wants a token, for the length of the block; `settings` add to its environment."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHONPATH", "RAY_"))}
    environment |= {
        "PATH": f"{BIN}{os.pathsep}{environment['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        **(settings or {}),
    }
    folder = tempfile.mkdtemp(prefix="rs")  # short: Ray's sockets lie in it, and their paths are limited
    ports = _free_ports(5)
    names = ["port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port"]
    options = [f"--{name}={port}" for name, port in zip(names, ports, strict=True)]
    command = [
        "ray",
        "start",
        "--head",
        "--block",
        f"--num-cpus={num_cpus}",
        "--disable-usage-stats",
        f"--temp-dir={folder}",
    ]
    with (Path(folder) / "head.log").open("wb") as log:
        process = subprocess.Popen([*command, *options], env=environment, stdout=log, stderr=log, cwd=folder)
        try:
            address = f"http://127.0.0.1:{ports[1]}"
            _wait_until_up(address, process, Path(folder) / "head.log")
            yield Head(
                address=address,
                gcs_address=f"127.0.0.1:{ports[0]}",
                environment=environment,
                checkout=checkout,
                pid=process.pid,
            )
        finally:
            process.terminate()  # `--block` ends what it started, and nothing else
            process.wait(60)
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def started_node(head: Head) -> Iterator[int]:
    """A node of one CPU that joins a head, for the length of the block: the process id of its raylet."""
    command = ["ray", "start", "--block", "--num-cpus=1", "--disable-usage-stats", f"--address={head.gcs_address}"]
    process = subprocess.Popen(command, env=head.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def raylets() -> list[int]:
        return [pid for pid, line in descendants(process.pid).items() if "raylet/raylet" in line.split(" ")[0]]

    try:
        wait_until(lambda: bool(raylets()) and num_alive(head) > 1, 120)
        yield raylets()[0]
    finally:
        process.terminate()
        process.wait(60)
        wait_until(lambda: num_alive(head) == 1, 120)


def num_alive(head: Head) -> int:
    """How many nodes the head knows to live."""
    nodes = _asked(head, "nodes?view=summary")["data"]["summary"]
    return sum(node["raylet"]["state"] == "ALIVE" for node in nodes)


def logs_of(head: Head, job: str) -> str:
    """What a submitted job has printed so far."""
    return str(_asked(head, f"api/jobs/{job}/logs")["logs"])


def _asked(head: Head, path: str) -> dict[str, Any]:
    request = urllib.request.Request(f"{head.address}/{path}")
    request.add_header("Authorization", f"Bearer {head.environment['RAY_AUTH_TOKEN']}")
    with urllib.request.urlopen(request, timeout=30) as response:
        return dict(json.load(response))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def _wait_until_up(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/api/version", timeout=5).close()
        except urllib.error.HTTPError as error:
            error.close()
            return  # it answers, if only to ask for the token
        except OSError:
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"the head did not start:\n{log.read_text()}")


def answer_of(logs: str) -> dict[str, object]:
    """What a job answered with `--json`."""
    (line,) = [line for line in logs.splitlines() if line.startswith("{")]
    fields: dict[str, object] = json.loads(line)
    return fields
