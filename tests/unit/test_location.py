"""Where a run lives, as a user writes it: options of a URI, and credentials, which are none of them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import obstore
import pytest
from obstore.exceptions import BaseError, GenericError

from ray_sisa import location
from ray_sisa.errors import StoreError
from ray_sisa.location import (
    Outage,
    join_run,
    may_pass,
    open_remote,
    reason,
    remedy,
    resolve_uri,
    without_options,
)
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


# --- errors of the library


REFUSED = (
    "Generic S3 error: Error performing GET http://127.0.0.1:1/b?list-type=2&prefix=x in 2.5s, after 2 retries, "
    "max_retries: 1000, retry_timeout: 10s  - HTTP error: error sending request\n\nDebug source:\n"
    'Generic { message: "Connection refused" }'
)
DENIED = (
    "Generic S3 error: Error performing GET http://127.0.0.1:1/b?x in 1.5ms - Server returned non-2xx status code: "
    "403 Forbidden: <?xml version='1.0'?>\n<Error><Code>AccessDenied</Code><Message>SECRET</Message></Error>"
)


def test_what_the_library_says_becomes_a_line() -> None:
    assert reason(GenericError(REFUSED)) == (
        "Generic S3 error: Error performing GET http://127.0.0.1:1/b - HTTP error: error sending request "
        "(Connection refused)"
    )
    assert reason(GenericError(DENIED)).endswith("status code: 403 Forbidden (AccessDenied)")


@pytest.mark.parametrize(
    ("text", "passes", "advice"),
    [
        (REFUSED, True, "See that the server runs"),
        (REFUSED.replace("in 2.5s", "in 403.25ms"), True, "See that the server runs"),  # no status, but a time
        (DENIED, False, "Check the credentials"),
        ("status code: 404 Not Found: <Code>NoSuchBucket</Code>", False, "Make the bucket"),
        ("status code: 503 Service Unavailable", True, "See that the server runs"),
        ("Unable to copy data: No space left on device (os error 28)", True, "Free some space"),
    ],
)
def test_errors_that_pass_and_what_to_do(text: str, passes: bool, advice: str) -> None:
    assert may_pass(GenericError(text)) is passes
    assert advice in remedy(GenericError(text))


def test_without_credentials_the_role_of_the_machine_is_asked_once() -> None:
    error = GenericError("Error performing PUT http://169.254.169.254/latest/api/token - HTTP error: error sending")
    assert not may_pass(error, answered=False)
    assert may_pass(error, answered=True)
    assert "there are no credentials" in remedy(error)


def test_all_requests_share_an_outage(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [1000.0]
    monkeypatch.setattr(location.time, "monotonic", lambda: now[0])
    outage = Outage()
    lasted = []
    for at, began in ((1001, 1000), (1060, 1059), (1200, 1199)):
        now[0] = at
        lasted.append(outage.failed(began, "why"))
    assert lasted == [1.0, 60.0, 200.0]
    assert caplog.text.count("waiting up to 180 s for a server: why") == 1
    outage.answered()
    assert outage.failed(1199.5, "why") == 0.5
    now[0] = 9000.0  # nobody asked for long: that is another outage
    assert outage.failed(8999.0, "why") == 1.0


@pytest.mark.parametrize(("uri", "variable"), [("gs://bucket/run", "GOOGLE"), ("az://container/run", "AZURE")])
def test_plain_http_is_allowed_by_the_providers_own_variable(
    uri: str, variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server of one's own is asked then; without it the library refuses before it asks."""
    key = {"gcs_base_url": "http://127.0.0.1:9", "disable_oauth": True, "client_email": "", "private_key": ""}
    (tmp_path / "key.json").write_text(json.dumps(key | {"private_key_id": ""}))
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT", str(tmp_path / "key.json"))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "a2V5")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", "http://127.0.0.1:9")
    for name, seconds in {"RETRY_S": 0.1, "STALL_S": 0.3}.items():
        monkeypatch.setattr(location, name, seconds)
    for allowed in ("", "true"):
        monkeypatch.setenv(f"{variable}_ALLOW_HTTP", allowed)
        with pytest.raises(BaseError) as caught:
            obstore.get(open_remote(uri), "object")
        assert ("builder error" in str(caught.value)) == (not allowed), str(caught.value)
