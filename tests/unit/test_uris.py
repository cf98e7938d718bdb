"""Credentials in URIs: refused wherever a URI comes from, and never repeated in what is printed or written down."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import all_samples, dataset, small_config

from ray_sisa import endpoint, parquet_sources, uris
from ray_sisa.errors import DataError, SisaError, StoreError
from ray_sisa.foreign_text import redacted
from ray_sisa.location import resolve_uri
from ray_sisa.report import _configuration
from ray_sisa.run import Run

SECRET = "se/cr+et@x"  # as Amazon's may be: with a slash, and here with what ends user information too
WITH_CREDENTIALS = [
    f"s3://AK:{SECRET}@bucket/run",
    "s3://AK:SECRET@bucket/run",
    "s3://SECRET@bucket/run",
    "s3://AK:se/SECRET/run",  # who forgot the end of it
    "s3://AK%3ASECRET%40bucket/run",
    "s3://bucket/run?endpoint_override=AK:SECRET@127.0.0.1:9&scheme=http",
    "s3://bucket/run?endpoint_override=AK%3ASECRET%40127.0.0.1:9&scheme=http",
    "http://user:12/SECRET@host/run",
    "abfs://:SECRET@account.blob.core.windows.net/run",
    "abfs://container:SECRET@account.dfs.core.windows.net/run",
]


def of_storage(uri: str, folder: Path) -> object:
    return resolve_uri(uri)


def of_data(uri: str, folder: Path) -> object:
    return parquet_sources.find(uri, "data.train")


def of_a_new_run(uri: str, folder: Path) -> object:
    return Run.create(small_config(folder, data={"test": uri}), dataset=dataset(all_samples()))


@pytest.mark.parametrize("uri", WITH_CREDENTIALS)
@pytest.mark.parametrize("use", [of_storage, of_data, of_a_new_run])
def test_credentials_are_refused_and_not_repeated(use: Callable[[str, Path], object], uri: str, tmp_path: Path) -> None:
    with pytest.raises(SisaError, match="holds credentials") as refused:
        use(uri, tmp_path)
    told = "".join(traceback.format_exception(refused.value)) + repr(refused.value.args)
    assert all(part not in told for part in ("SECRET@", "SECRET%", "cr+et", "AK:", "AK%"))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["client_secret=SECRET", "sig=SECRET", "sas_token=SECRET", "secret_key=SECRET"])
def test_options_that_hold_secrets_are_refused_by_name(option: str) -> None:
    with pytest.raises(DataError, match=option.partition("=")[0]) as refused:
        parquet_sources.find(f"abfs://container@account.dfs.core.windows.net/x?{option}", "data.train")
    assert "SECRET" not in str(refused.value)


@pytest.mark.parametrize(
    "uri",
    [
        "abfs://container@account.dfs.core.windows.net/a@b",
        "gs://anonymous@bucket/a",
        "s3://bucket/a@b/c:d",
        "hdfs://host:8020/a",
        "s3://bucket/a?endpoint_override=[::1]:9000&scheme=http&region=r",
    ],
)
def test_what_holds_no_credentials_passes(uri: str) -> None:
    assert uris.parse(uri, "data.train", DataError).base == uri.partition("?")[0]


@pytest.mark.parametrize("value", ["http://user:PASS WORD@host", "user:PASSWORD@host", "http://user:PASS@WORD@host"])
def test_a_password_in_a_variable_is_not_repeated(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", value)
    with pytest.raises(StoreError, match="AWS_ENDPOINT_URL") as refused:
        endpoint.check_environment()
    assert "PASS" not in str(refused.value)
    assert "WORD" not in str(refused.value)


@pytest.mark.parametrize("field", ["field", "value", "rule", "remedy"])
def test_no_error_repeats_them_whatever_it_is_about(field: str) -> None:
    content = {"field": "f", "value": "v", "rule": "r", "remedy": "m"} | {field: f"of s3://AK:{SECRET}@b/c, say"}
    assert "***@b/c, say" in str(DataError(**content))
    assert "cr+et" not in str(DataError(**content)) + repr(DataError(**content).args)


def test_a_run_from_before_opens_and_its_report_leaves_them_out(tmp_path: Path) -> None:
    run = Run.create(small_config(tmp_path), dataset=dataset(all_samples()))
    data = run.record.config.data.model_copy(update={"train": f"s3://AK:{SECRET}@bucket/train.parquet"})
    config = run.record.config.model_copy(update={"data": data})
    (tmp_path / "run" / "run.json").write_bytes(run.record.model_copy(update={"config": config}).to_bytes())
    opened = Run.open(run.store.uri)
    assert opened.record.config.data.train == data.train
    assert opened.forget(samples=opened.sample_ids(0, 1)[:1]).request == 1
    shown = _configuration(opened)
    assert "s3://***@bucket/train.parquet" in shown
    assert "cr+et" not in shown


def test_what_is_no_uri_is_printed_as_it_is() -> None:
    for text in ("a@example.org", "12:30 a@b", "s3://bucket/a b@c", "http://host/a, http://host/b"):
        assert redacted(text) == text
    assert redacted("a http://u:p@h/x http://v:q@i/y") == "a http://***@h/x http://***@i/y"
