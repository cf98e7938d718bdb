"""The Ray that a driver starts for itself: no other machine reaches a port of it, and its token is the user's alone.

Real are the driver, its Ray and the sockets, as the kernel lists them.
"""

from __future__ import annotations

import os
import socket
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from processes import descendants

pytestmark = pytest.mark.ray

DRIVER = """
import sys
from ray_sisa.config import Scaling
from ray_sisa.engine.runner import open_runner
with open_runner("ray", Scaling()) as runner:
    print(runner.capacity(), flush=True)
    sys.stdin.readline()
"""


def listening(pids: set[int]) -> set[tuple[int, str]]:
    """Port and address of each TCP socket on which one of these processes listens."""
    sockets = set()
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            try:
                sockets.add(os.readlink(entry))
            except OSError:
                continue  # closed, or the process ended, while it was looked at
    found = set()
    for kind, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path(f"/proc/net/{kind}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                address, _, port = fields[1].partition(":")
                words = [address[i : i + 8] for i in range(0, len(address), 8)]
                packed = b"".join(struct.pack("=I", int(word, 16)) for word in words)
                found.add((int(port, 16), socket.inet_ntop(family, packed)))
    return found


def test_only_this_machine_reaches_it_and_only_with_the_token(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(tmp_path), "RAY_ADDRESS": "local"}
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as driver:
        assert driver.stdin
        assert driver.stdout
        try:
            assert int(driver.stdout.readline()) >= 1
            below = descendants(driver.pid)
            assert any("gcs_server" in command for command in below.values())
            found = listening({driver.pid, *below})
        finally:
            driver.stdin.close()
            driver.wait(60)
    assert len(found) > 3
    assert {address for _, address in found} <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, found
    token = tmp_path / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    assert len(token.read_text()) == 64
