"""A Ray that this process starts for itself: it listens on the loopback interface alone, and asks all for a token.

Left to itself Ray takes an address that other machines reach, and before 2.59 no token either: a port of Ray is code
execution. Whoever set RAY_AUTH_MODE has decided about the token.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import ray
from ray._private import ray_constants
from ray._raylet import Config  # type: ignore[attr-defined]

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "::1")
_MODE, _TOKEN, _PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


@contextmanager
def apart() -> Iterator[None]:
    """Has the Ray that is started within the block keep to this machine, and to those who have the token."""
    _ask_for_token()
    # As Ray does on a Mac: where no other machine is to join, all of its servers listen on the loopback interface. The
    # variable says so to the processes that it starts.
    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    constant, variable = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(name)
    ray_constants.ENABLE_RAY_CLUSTER, os.environ[name] = False, "0"
    try:
        yield
        address: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
        _check_address(address)
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = constant
        if variable is None:
            del os.environ[name]
        else:
            os.environ[name] = variable


def _check_address(address: str) -> None:
    if address not in LOOPBACK:  # of a Ray that chooses it in another way
        logger.warning("the local Ray listens on %s, which other machines may reach: docs/security.md", address)


def _ask_for_token() -> None:
    """Turns token authentication on, unless somebody has decided, and sees that there is a token."""
    if _MODE not in os.environ:
        os.environ[_MODE] = "token"
        Config.initialize("")  # which has looked at the variable when Ray was imported
    if os.environ[_MODE].lower() == "token" and not {_TOKEN, _PATH} & os.environ.keys():
        _make_token(Path.home() / ".ray" / "auth_token")


def _make_token(path: Path) -> None:
    """Writes a token, for this user alone, where Ray looks for one; Ray itself leaves its mode to the umask."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(handle, "w") as file:
            file.write(secrets.token_hex(32))
