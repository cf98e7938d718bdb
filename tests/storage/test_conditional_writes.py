"""Servers and folders that let an object be created twice are refused before anything is written; others are not.

Real are the S3 server, the gateway before it, which drops a header and signs anew as gateways do, and the programs.
The file system whose links replace is this machine's, with one call of the C library exchanged.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import programs
import pytest
from gateways import Gateway
from places import config_in, storage_on
from servers import SeaweedFS
from small_runs import all_samples, dataset, files_of, folder_of, small_config

from ray_sisa import probe
from ray_sisa.approximate.methods import make_method
from ray_sisa.errors import StoreError
from ray_sisa.layout import PROBES, numbered
from ray_sisa.location import join_run
from ray_sisa.run import Run
from ray_sisa.store import Store

ONE_PLACE = {"shards": 1, "slices": 1, "key": "placement"}
TWICE = r"storage_path = s3://runs/\w+/run: lets a process create one object twice: it ignores `If-None-Match`"


@pytest.fixture
def careless(server: SeaweedFS, keys: None) -> Iterator[Gateway]:
    """A gateway that drops the condition of a write."""
    with Gateway(server, drops=["if-none-match"]) as gateway:
        yield gateway


@pytest.fixture
def careful(server: SeaweedFS, keys: None) -> Iterator[Gateway]:
    """A gateway that passes all."""
    with Gateway(server) as gateway:
        yield gateway


@pytest.fixture
def trained(s3: str) -> Run:
    """A run of one shard and slice, trained, with a request pending; made at the server itself."""
    config = config_in(s3).model_copy(update={"placement": small_config(Path(), placement=ONE_PLACE).placement})
    run = Run.create(config, dataset=dataset(all_samples()))
    run.train(runner="local")
    run.forget(samples=run.sample_ids(0, 1)[:1])
    return run


def through(gateway: Gateway, run: Run) -> str:
    """Where a run is, reached through a gateway."""
    address = run.store.uri.partition("endpoint_override=")[2].partition("&")[0]
    return run.store.uri.replace(address, gateway.endpoint.removeprefix("http://"))


# --- servers


def test_a_number_is_never_given_twice(trained: Run, careless: Gateway) -> None:
    first, second = Store(through(careless, trained)), Store(through(careless, trained))
    for store, content in ((first, b"one request"), (second, b"another")):
        with pytest.raises(StoreError, match=TWICE):
            store.create(numbered("ledger", 2), content)
    assert trained.store.numbers("ledger") == [1]
    assert careless.dropped["if-none-match"] > 0


WRITES: dict[str, Callable[[Run], object]] = {
    "forget": lambda run: run.forget(samples=run.sample_ids(0, 1)[1:2]),
    "unlearn": lambda run: run.unlearn(runner="local"),
    "repair": lambda run: run.repair(run.check(), runner="local"),
    "approximate": lambda run: run.approximate(
        make_method("fine_tune", []), forget=run.sample_ids(0, 1)[1:2], runner="local"
    ),
}


def test_whoever_opens_a_run_to_write_is_refused(trained: Run, careless: Gateway) -> None:
    before = trained.store.sizes("")
    for write in WRITES.values():
        with pytest.raises(StoreError, match=TWICE) as caught:
            write(Run.open(through(careless, trained)))
        assert "Use a server that knows conditional writes" in caught.value.remedy
    assert trained.store.sizes("") == before
    assert Run.open(through(careless, trained)).status() == trained.status()  # who only reads is not


def test_a_run_is_not_created(careless: Gateway, server: SeaweedFS) -> None:
    storage = storage_on(server, through=careless)
    with pytest.raises(StoreError, match=TWICE):
        Run.create(config_in(storage), dataset=dataset(all_samples()))
    assert Store(join_run(storage, "run")).sizes("") == {}


def test_a_gateway_that_passes_all_is_of_no_matter(trained: Run, careful: Gateway) -> None:
    run = Run.open(through(careful, trained))
    run.forget(samples=run.sample_ids(0, 1)[1:2])
    assert run.unlearn(runner="local").requests == (1, 2)
    assert (run.check().findings, run.check().notes) == ((), ())


def test_a_process_asks_once(careful: Gateway, server: SeaweedFS) -> None:
    store = Store(join_run(storage_on(server, through=careful), "run"))
    store.prove()
    assert careful.requests == {
        "PUT": 2,
        "GET": 1,
        "POST": 1,
    }  # the second write is refused: what is there is looked at
    store.prove()
    Store(store.uri).prove()
    assert careful.requests.total() == 4
    assert store.sizes("") == {}


def test_a_server_that_knows_no_conditions_says_so_at_once(server: SeaweedFS, keys: None) -> None:
    with Gateway(server, refuses=["if-none-match"]) as gateway:
        began = time.monotonic()
        store = Store(join_run(storage_on(server, through=gateway), "run"))
        with pytest.raises(StoreError, match="501") as caught:
            store.create("run.json", b"")
        assert "conditional writes" in caught.value.remedy
        assert time.monotonic() - began < 30  # it is not repeated for as long as a server may be away


# --- probes that a kill left


def test_a_probe_that_a_kill_left_is_no_damage_and_is_swept(storage_path: str) -> None:
    run = Run.create(config_in(storage_path), dataset=dataset(all_samples()))
    run.train(runner="local")
    asked = ("forget", run.store.uri, "--samples", run.sample_ids(0, 1)[0])
    killed = programs.ray_sisa(*asked, environment={"RAY_SISA_CRASH_AT": f"before delete {PROBES}"}).wait()
    assert killed.code == -9
    assert len(run.store.sizes(PROBES)) == 1
    assert run.check().findings == ()
    assert notes(run) == ["1 probe(s), of processes at work or killed: run `ray-sisa unlearn RUN`"]
    assert programs.ray_sisa(*asked).wait().code == 0
    run.unlearn(runner="local")
    assert run.store.sizes(PROBES) == {}
    assert (run.check().findings, notes(run)) == ((), [])


def notes(run: Run) -> list[str]:
    """Of a check, but for what an emulator of a cloud does not tell of retention."""
    return [note for note in run.check().notes if "could not be found out" not in note]


def test_a_probe_that_is_swept_meanwhile_is_made_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reconcile elsewhere sweeps between the two creates, which both succeed then."""
    create, swept = store._create, []

    def swept_after_the_first(path: str, data: bytes) -> bool:
        made = create(path, data)
        if not swept:
            Store(store.uri).sweep_unfinished()
            swept.append(path)
        return made

    monkeypatch.setattr(store, "_create", swept_after_the_first)
    store.prove()
    assert swept
    assert store.sizes("") == {}


def test_probes_of_many_do_not_meet(storage_path: str) -> None:
    stores = [Store(f"{join_run(storage_path, 'run')}") for _ in range(12)]
    failed: list[BaseException] = []

    def prove(store: Store) -> None:
        try:
            for _ in range(5):
                probe.prove(store, store._create)
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=prove, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert stores[0].sizes("") == {}


# --- folders

REPLACING = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
int linkat(int from, const char *old, int to, const char *new, int flags) { return renameat(from, old, to, new); }
int link(const char *old, const char *new) { return rename(old, new); }
"""


@pytest.fixture(scope="session")
def links_replace(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A library that makes each new link replace what is there, as on file systems that know no exclusive create."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler, to make a file system whose links replace")
    folder = tmp_path_factory.mktemp("links")
    (folder / "links.c").write_text(REPLACING)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "links.so", folder / "links.c"], check=True)
    return str(folder / "links.so")


def test_a_folder_whose_links_replace(tmp_path: Path, links_replace: str) -> None:
    run = Run.create(small_config(tmp_path), dataset=dataset(all_samples()))
    before = files_of(folder_of(run))
    ended = subprocess.run(
        [sys.executable, "-m", "ray_sisa.cli", "forget", run.store.uri, "--samples", run.sample_ids(0, 1)[0]],
        env=os.environ | {"LD_PRELOAD": links_replace},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 1
    assert f"storage_path = {run.store.uri}: lets a process create two files of one name" in ended.stderr
    assert files_of(folder_of(run)) == before
