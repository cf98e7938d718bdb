"""How a Ray of our own is made to keep to itself. Ray is imported, in processes of their own, and not started."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """
import json, os, ray
from ray_sisa.engine import ray_local
from ray._private import services
from ray._raylet import AuthenticationMode, get_authentication_mode
name = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
usual, before = services.get_node_ip_address(), os.environ.get(name)
with ray_local.apart():
    inside = [services.get_node_ip_address(), os.environ[name]]
after = [services.get_node_ip_address() == usual, os.environ.get(name) == before]
asks = get_authentication_mode() == AuthenticationMode.TOKEN
print(json.dumps([inside, after, asks, os.environ.get("RAY_AUTH_MODE")]))
"""


def told(home: Path, **variables: str) -> tuple[list[Any], str]:
    """What the script tells, in a home and with these variables, and what it logs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"HOME": str(home)} | variables
    done = subprocess.run([sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout), done.stderr


def token(home: Path) -> Path:
    return home / ".ray" / "auth_token"


def test_it_listens_on_loopback_and_asks_for_a_token_of_this_users(tmp_path: Path) -> None:
    (inside, after, asks, variable), said = told(tmp_path)
    assert inside == ["127.0.0.1", "0"]
    assert after == [True, True]
    assert "other machines may reach" not in said
    assert (asks, variable) == (True, "token")
    assert stat.S_IMODE(token(tmp_path).stat().st_mode) == 0o600
    assert len(token(tmp_path).read_text()) == 64


def test_whoever_has_turned_tokens_off_is_followed(tmp_path: Path) -> None:
    (inside, after, asks, _), _ = told(tmp_path, RAY_AUTH_MODE="disabled", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="1")
    assert (inside, after, asks) == (["127.0.0.1", "0"], [True, True], False)
    assert not token(tmp_path).exists()


@pytest.mark.parametrize("in_file", [True, False])
def test_a_token_that_is_there_stays(in_file: bool, tmp_path: Path) -> None:
    token(tmp_path).parent.mkdir()
    if in_file:
        token(tmp_path).write_text("mine")
    (_, _, asks, _), _ = told(tmp_path, **({} if in_file else {"RAY_AUTH_TOKEN": "mine"}))
    assert asks
    assert [path.read_text() for path in token(tmp_path).parent.iterdir()] == (["mine"] if in_file else [])
