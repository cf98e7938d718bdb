"""What the tests of storage share: servers, a proxy that misbehaves, and places for runs on each kind of storage."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import programs
import pytest
from clouds import Azurite, Emulator, FakeGCS, Missing
from places import config_in, storage_on, use_keys
from servers import FaultProxy, SeaweedFS
from small_runs import all_samples, block_over_two_shards, dataset, digits, small_config, write_parquet

from ray_sisa import location
from ray_sisa.location import join_run
from ray_sisa.run import Run
from ray_sisa.store import Store


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """Whatever a test started ends with it, also where it failed."""
    before = len(programs.STARTED)
    yield
    for program in programs.STARTED[before:]:
        program.end()


@pytest.fixture(scope="session")
def server() -> Iterator[SeaweedFS]:
    """A real S3 server, with one bucket; nobody may stop it, see `own_server`."""
    with SeaweedFS() as server:
        yield server


@pytest.fixture(scope="module")
def own_server() -> Iterator[SeaweedFS]:
    """A server that a test may kill and start again."""
    with SeaweedFS() as server:
        yield server


@pytest.fixture
def no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing by which a store could be used: no variables, no profile, no role of a machine."""
    for name in list(os.environ):
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "no-credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "no-config"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")  # discard: nobody listens there


@pytest.fixture
def keys(server: SeaweedFS, no_credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's credentials in the environment, and no others."""
    use_keys(monkeypatch, server)


@pytest.fixture
def s3(server: SeaweedFS, keys: None) -> str:
    """An empty `storage_path` on S3, with credentials in the environment."""
    return storage_on(server)


@pytest.fixture
def proxy(server: SeaweedFS, keys: None) -> Iterator[FaultProxy]:
    """A proxy before the server, which does nothing wrong yet."""
    with FaultProxy(server.address, seed=7) as proxy:
        yield proxy


def started(emulator: Emulator) -> Iterator[Emulator]:
    try:
        with emulator:
            yield emulator
    except Missing as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def azure_server() -> Iterator[Emulator]:
    """Azurite, with one container."""
    yield from started(Azurite())


@pytest.fixture(scope="session")
def gcs_server() -> Iterator[Emulator]:
    """fake-gcs-server, with one bucket."""
    yield from started(FakeGCS())


@pytest.fixture
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes an empty `storage_path` on `azure` or `gcs`, with credentials in the environment."""

    def storage_on_cloud(name: str) -> str:
        server: Emulator = request.getfixturevalue(f"{name}_server")
        for variable, value in server.environment.items():
            monkeypatch.setenv(variable, value)
        return f"{server.scheme}://{server.bucket}/{secrets.token_hex(4)}"

    return storage_on_cloud


@pytest.fixture(params=["disk", "s3", *(pytest.param(name, marks=pytest.mark.cloud) for name in ("azure", "gcs"))])
def storage_path(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty `storage_path`, on local disk and on S3; and in `make test-all` on what stands for other clouds."""
    if request.param == "disk":
        return str(tmp_path / "runs")
    if request.param == "s3":
        return str(request.getfixturevalue("s3"))
    return str(request.getfixturevalue("cloud")(request.param))


@pytest.fixture
def store(storage_path: str) -> Store:
    """An empty store, on each kind of storage."""
    return Store(join_run(storage_path, "run"))


@pytest.fixture(scope="session")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """D and the test set in Parquet files, as fields of `data`."""
    folder = tmp_path_factory.mktemp("parquet")
    return {
        "train": write_parquet(folder / "train.parquet", all_samples()),
        "test": write_parquet(folder / "test.parquet", digits(240, 60)),
    }


@pytest.fixture
def config_file(parquet: dict[str, str], tmp_path: Path) -> Callable[..., str]:
    """Writes the configuration of a run in a `storage_path` to a file, and returns its path."""

    def write(storage_path: str, **scaling: object) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(config_in(storage_path, parquet, **scaling).model_dump_json())  # JSON is YAML
        return str(path)

    return write


@pytest.fixture(scope="session")
def expected(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Digests of the ensemble of D, and of D without a block over two shards: trained undisturbed, on disk."""
    config = small_config(tmp_path_factory.mktemp("undisturbed"))
    run = Run.create(config, dataset=dataset(all_samples()))
    trained = run.train(runner="local").ensemble_digest
    run.forget(samples=block_over_two_shards(run))
    return trained, run.unlearn(runner="local").ensemble_digest


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stores of this process that give up soon, as with RAY_SISA_STORE_TIMEOUT_S=1.8."""
    for name, seconds in {"TIMEOUT_S": 1.8, "STALL_S": 0.3, "RETRY_S": 0.1}.items():
        monkeypatch.setattr(location, name, seconds)
