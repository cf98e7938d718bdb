"""Law: a run that somebody else made gets no credentials: no server is asked that its record alone names."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from small_runs import COLUMNS, MLP, dataset, digits, small_config
from typer.testing import CliRunner

from ray_sisa import stored_sources
from ray_sisa.cli import app
from ray_sisa.config import DataConfig
from ray_sisa.errors import DataError, RequestError
from ray_sisa.run import Run


class Server(ThreadingHTTPServer):
    """Hears what is sent to it, and refuses everything."""

    heard: list[str]


class Refuse(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.heard.append(str(self.headers))
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDOFTHEREADER")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "TOKENOFTHEREADER")
    monkeypatch.setattr(stored_sources, "_NAMED", set())
    server = Server(("127.0.0.1", 0), Refuse)
    server.heard = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_source_of_the_record_gets_no_credentials_unless_the_caller_names_it(server: Server, tmp_path: Path) -> None:
    uri = f"s3://bucket/x.parquet?endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=us-east-1"
    config = small_config(tmp_path, placement={"shards": 1, "slices": 1}, recipe=MLP, data={"train": uri})
    run = Run.create(config, dataset=dataset(digits(0, 30)))
    run.train(runner="local")
    stored_sources._NAMED.clear()
    evaluate = ["evaluate", run.store.uri, "--runner", "local", "--forget"]
    (tmp_path / "ids").write_text("digit-0001")
    told = CliRunner().invoke(app, [*evaluate, str(tmp_path / "ids")])
    assert (told.exit_code, server.heard) == (1, []), told.output
    assert "your credentials would be shown to that server. If you trust it, name it yourself: --source" in told.stderr

    CliRunner().invoke(app, [*evaluate, str(tmp_path / "ids"), "--source", uri])
    assert "AKIDOFTHEREADER" in server.heard[0]  # so that nothing would have kept them back before
    assert "TOKENOFTHEREADER" in server.heard[0]
    heard = len(server.heard)
    with pytest.raises(Exception, match="cannot be opened"):
        Run.create(config).evaluate(forget=["digit-0001"], runner="local")
    assert len(server.heard) > heard


def test_nothing_is_downloaded_to_where_a_record_says(tmp_path: Path) -> None:
    data = {"source": "torchvision:MNIST", "root": str(tmp_path / "theirs"), "download": True, "train": None}
    config = small_config(tmp_path, placement={"shards": 1, "slices": 1}, data=data | {"columns": {}})
    run = Run.create(config, dataset=dataset(digits(0, 30)))
    run.train(runner="local")
    with pytest.raises(DataError, match=r"data\.root"):
        Run.open(run.store.uri).evaluate(forget=["digit-0001"], runner="local")
    assert not (tmp_path / "theirs").exists()


OWN = "?endpoint_override=mine:9000&scheme=http"
HARMLESS = [
    "data/train.parquet",
    "/data/train.parquet",
    "file:///data/train.parquet",
    "s3://bucket/train.parquet",
    "s3://bucket/train.parquet?region=eu-west-1",
    "gs://bucket/train.parquet",
    "abfs://container@account.dfs.core.windows.net/train.parquet",
    f"s3://bucket/train.parquet{OWN}",
    f"s3://bucket/train.parquet{OWN}&region=x",
]
NAMING = [
    "s3://bucket/x?endpoint_override=theirs:9000",
    "s3://bucket/x?scheme=http",
    f"s3://bucket/x{OWN}&endpoint_override=theirs:9000",
    f"s3://bucket/x{OWN}&tls_ca_file_path=/x",
    "s3://bucket/x?region=a&region=@theirs/",
    "s3://bucket/x?region=@theirs/",
    "s3://bucket/x?%65ndpoint_override=theirs:9000",
    "s3://bucket/x?endpoint_override=https://theirs:9000",
    "gs://bucket/x?endpoint_override=theirs:9000&scheme=http",
    f"gs://bucket/x{OWN}",
    "abfs://container@theirs.example/x",
    "abfs://container@account.dfs.core.windows.net/x?enable_tls=false",
    "hdfs://theirs:8020/x",
    "viewfs://theirs/x",
    "unknown://theirs/x",
]


def source(location: str | tuple[str, ...]) -> DataConfig:
    return DataConfig(source="parquet", train=location, columns=COLUMNS, num_classes=10)


@pytest.mark.parametrize("location", HARMLESS)
def test_places_that_choose_no_server(location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    stored_sources.check(source(location), f"s3://bucket/run{OWN}")


@pytest.mark.parametrize("location", NAMING)
def test_places_that_choose_one(location: str) -> None:
    """Also as one of several, and where the run lies in a folder; the server of the environment is the caller's."""
    with pytest.raises(RequestError, match="your credentials would be shown to that server"):
        stored_sources.check(source(("data/a.parquet", location)), f"s3://bucket/run{OWN}")
    with pytest.raises(RequestError, match="your credentials would be shown to that server"):
        stored_sources.check(source(location), "/runs/x")


def test_the_server_of_the_environment_is_the_callers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://mine:9000")
    stored_sources.check(source(f"s3://bucket/x{OWN}"), "/runs/x")
    with pytest.raises(RequestError):
        stored_sources.check(source("s3://bucket/x?endpoint_override=theirs:9000&scheme=http"), "/runs/x")
