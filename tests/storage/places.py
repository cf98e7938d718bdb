"""Where a test's runs lie: on an S3 server, directly or through a proxy, or on disk; and their configuration."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest
from servers import FaultProxy, SeaweedFS
from small_runs import small_config

from ray_sisa.config import RunConfig


def use_keys(monkeypatch: pytest.MonkeyPatch, server: SeaweedFS) -> None:
    """Puts a server's credentials into the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)


def storage_on(server: SeaweedFS, *, through: FaultProxy | None = None, prefix: str = "") -> str:
    """A `storage_path` of its own on a server, or one that is there already, directly or through a proxy."""
    prefix = prefix or secrets.token_hex(4)
    address = (through or server).endpoint.removeprefix("http://")
    return f"s3://{server.bucket}/{prefix}?endpoint_override={address}&scheme=http"


def config_in(storage_path: str, data: dict[str, str] | None = None, **scaling: object) -> RunConfig:
    """The configuration of a small run; `Path` would make one slash of the two of a URI."""
    return small_config(Path("replaced"), data=data, scaling=scaling).model_copy(update={"storage_path": storage_path})
