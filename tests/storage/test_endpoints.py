"""A server as users name it, against a real one: without its scheme, and with the run's name behind the options."""

from __future__ import annotations

import time
from collections.abc import Callable

import programs
import pytest
from places import storage_on
from servers import SeaweedFS

from ray_sisa.errors import StoreError
from ray_sisa.run import Run
from ray_sisa.store import Store


def test_a_server_of_plain_http_named_without_its_scheme(server: SeaweedFS, keys: None) -> None:
    began = time.monotonic()
    with pytest.raises(StoreError, match=f"asks https://127.0.0.1:{server.address[1]} by HTTPS, and it answers plain"):
        Store(storage_on(server).replace("&scheme=http", "")).find("run.json")
    assert time.monotonic() - began < 30  # the library's own patience, of 10 s, and not the 180 s of an outage


def test_the_run_that_train_prints_and_the_one_that_is_typed(
    server: SeaweedFS, keys: None, config_file: Callable[..., str]
) -> None:
    storage_path = storage_on(server)
    done = programs.ray_sisa("train", config_file(storage_path), "--runner", "local", "--json").wait()
    run = done.answer["run"]
    assert run == Run.open(run).store.uri == Run.open(f"{storage_path}/run").store.uri
    with pytest.raises(StoreError, match="the name goes before any options"):
        Run.open(storage_path.replace("?", "/other?"))
