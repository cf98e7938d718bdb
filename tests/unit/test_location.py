"""Where a run lives, as a user writes it: options of a URI, and credentials, which are none of them."""

from __future__ import annotations

import pickle

import pytest

from ray_sisa.errors import StoreError
from ray_sisa.location import join_run, open_remote, resolve_uri, without_options
from ray_sisa.store import Store

URI = "s3://bucket/prefix?endpoint_override=localhost:9000&scheme=http"


def test_options_stay_with_the_uri() -> None:
    assert resolve_uri(URI) == URI
    assert join_run(URI, "a") == "s3://bucket/prefix/a?endpoint_override=localhost:9000&scheme=http"
    assert join_run("s3://bucket/", "a") == "s3://bucket/a"
    assert without_options(join_run(URI, "a")) == "s3://bucket/prefix/a"


def test_a_folder_may_have_a_question_mark_in_its_name() -> None:
    assert resolve_uri("/data/what?x=1") == "/data/what?x=1" == without_options("/data/what?x=1")


@pytest.mark.parametrize("option", ["access_key=A", "secret_key=B", "anonymous=true", "x", "endpoint=localhost"])
def test_unknown_options_are_refused_by_name(option: str) -> None:
    with pytest.raises(StoreError, match="known are endpoint_override, region, scheme") as refused:
        resolve_uri(f"s3://bucket/prefix?{option}")
    assert option.partition("=")[0] in refused.value.rule
    assert option.partition("=")[2] not in str(refused.value).replace("storage_path", "") or "=" not in option


def test_credentials_in_a_uri_are_refused_and_not_repeated() -> None:
    with pytest.raises(StoreError, match="holds credentials") as refused:
        resolve_uri("s3://AKIDEXAMPLE:SECRETEXAMPLE@bucket/prefix")
    assert "EXAMPLE" not in str(refused.value)


def test_a_store_with_options_survives_pickling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "SECRETEXAMPLE")
    store = Store(URI)
    frozen = pickle.dumps(store)
    assert b"EXAMPLE" not in frozen
    assert pickle.loads(frozen).uri == store.uri == URI
    assert store.where("run.json") == "s3://bucket/prefix/run.json"


def test_a_profile_needs_what_reads_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "mine")
    monkeypatch.setitem(__import__("sys").modules, "obstore.auth.boto3", None)
    with pytest.raises(StoreError, match=r"AWS_PROFILE = mine: is set, and boto3") as refused:
        open_remote(URI)
    assert "ray-sisa[s3]" in refused.value.remedy


def test_what_is_no_store_is_refused() -> None:
    with pytest.raises(StoreError, match="cannot be opened"):
        open_remote("nonsense://bucket/a")
