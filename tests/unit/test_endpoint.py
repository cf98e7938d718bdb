"""Where a server is, as users write it: what the library would panic at, or wait for in vain, is refused and named."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ray_sisa import endpoint, location
from ray_sisa.errors import StoreError
from ray_sisa.location import join_run, open_remote, resolve_uri
from ray_sisa.store import Store


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*endpoint.VARIABLES, *endpoint.REGIONS, "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRETEXAMPLE")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("AWS_ENDPOINT_URL", "127.0.0.1:9"),
        ("AWS_ENDPOINT_URL_S3", "127.0.0.1:9"),
        ("AWS_ENDPOINT", "127.0.0.1:9"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1: 9"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:99999"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:0"),
        ("AWS_ENDPOINT_URL", "http://"),
        ("AWS_ENDPOINT_URL", "http://key:secret@server"),
        ("AWS_ENDPOINT_URL", "ftp://127.0.0.1:9"),
        ("AWS_REGION", "us east"),
        ("AWS_DEFAULT_REGION", "us/east"),
    ],
)
def test_variables_that_are_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(StoreError) as refused:
        Store("s3://bucket/runs/name")
    assert (refused.value.field, refused.value.value) == (name, "" if "@" in value else value)
    Store("memory:///name")  # which no variable for S3 concerns


@pytest.mark.parametrize(
    "query",
    [
        "endpoint_override=127.0.0.1: 9&scheme=http",
        "endpoint_override=127.0.0.1+9&scheme=http",
        "endpoint_override=127.0.0.1:99999&scheme=http",
        "endpoint_override=&scheme=http",
        "endpoint_override",
        "endpoint_override=ftp://127.0.0.1:9",
        "endpoint_override=127.0.0.1:9&scheme=ftp",
        "endpoint_override=127.0.0.1:9&scheme=",
        "region=us east",
    ],
)
def test_options_that_are_refused(query: str) -> None:
    with pytest.raises(StoreError, match=r"has (endpoint_override|scheme|region)=.*options last"):
        resolve_uri(f"s3://bucket/runs/name?{query}")


@pytest.mark.parametrize(
    ("options", "url"),
    [
        ("endpoint_override=localhost:9000&scheme=http", "http://localhost:9000"),
        ("endpoint_override=minio_1:9000", "https://minio_1:9000"),
        ("endpoint_override=http://[::1]:9000", "http://[::1]:9000"),
        ("endpoint_override=https://example.org/storage/v1/s3", "https://example.org/storage/v1/s3"),
        ("endpoint_override=example.org/s3", "https://example.org/s3"),  # a path stays a path, and is no run's name
    ],
)
def test_options_that_are_understood(options: str, url: str) -> None:
    uri = f"s3://bucket/runs/name?{options}"
    assert resolve_uri(uri) == uri
    assert endpoint.in_force(dict(part.split("=") for part in options.split("&"))) == url
    open_remote(uri)


def test_the_environment_is_asked_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    assert endpoint.in_force({}) == ""
    for name in reversed(endpoint.VARIABLES):
        monkeypatch.setenv(name, f"http://{name.lower()}:1")
        assert endpoint.in_force({}) == f"http://{name.lower()}:1"


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("s3://b/runs?endpoint_override=h:1&scheme=http/name", "s3://b/runs/name?endpoint_override=h:1&scheme=http"),
        ("s3://b/runs/?scheme=http&region=r/name", "s3://b/runs/name?scheme=http&region=r"),
        ("s3://b?scheme=http/a/name/", "s3://b/a/name?scheme=http"),
        ("s3://b/runs?scheme=http/", "s3://b/runs?scheme=http"),
    ],
)
def test_a_name_after_the_options_goes_before_them(written: str, meant: str) -> None:
    assert resolve_uri(written) == meant
    assert resolve_uri(meant) == meant


def test_a_panic_of_the_library_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it panics at that nobody thought of: here a port, let through on purpose."""
    monkeypatch.setattr(endpoint, "check_options", lambda uri, options: None)
    store = Store("s3://bucket/name?endpoint_override=127.0.0.1:99999&scheme=http")
    with pytest.raises(StoreError, match=r"cannot read it: .*InvalidPort"):
        store.find("run.json")


class _Plain(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def plain() -> Iterator[str]:
    """HOST:PORT of a web server without TLS."""
    with HTTPServer(("127.0.0.1", 0), _Plain) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_plain_http_is_told_from_no_answer(plain: str) -> None:
    assert endpoint.is_plain(f"https://{plain}")
    assert not endpoint.is_plain(f"http://{plain}")
    assert not endpoint.is_plain("https://127.0.0.1:9")
    assert not endpoint.is_plain("")


@pytest.mark.parametrize("by", ["option", "variable"])
def test_a_server_of_plain_http_is_named_at_the_first_failure(
    by: str, plain: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(location, "RETRY_S", 0.2)
    if by == "variable":
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"https://{plain}")
    store = Store("s3://bucket/runs" + (f"?endpoint_override={plain}" if by == "option" else ""))
    with pytest.raises(StoreError, match=f"asks https://{plain} by HTTPS, and it answers plain HTTP") as told:
        store.find("run.json")
    assert "scheme=http" in told.value.remedy
    assert "waiting" not in caplog.text


def test_options_survive_the_way_of_a_run() -> None:
    storage = "s3://b/runs?endpoint_override=h:1&scheme=http"
    assert resolve_uri(f"{storage}/name") == join_run(storage, "name")
