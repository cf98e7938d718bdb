"""Where a run lives: a folder or a URI as a user writes it, and the object store behind it.

`./runs`, `/mnt/runs`, `s3://bucket/prefix`, and for a server of one's own, in the words that Ray users know from
pyarrow, `s3://bucket/prefix?endpoint_override=HOST:PORT&scheme=http`. Credentials are never part of it: they come from
the environment (AWS_ACCESS_KEY_ID ...), a profile, or the machine's role.
"""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError
from obstore.store import from_url

from ray_sisa import endpoint, local_path, uploads, uris
from ray_sisa.errors import StoreError
from ray_sisa.foreign_text import redacted

logger = logging.getLogger(__name__)

TIMEOUT_S = float(os.environ.get("RAY_SISA_STORE_TIMEOUT_S", "180"))
"""How long a server may be away, in seconds, before an operation fails. It then fails within a quarter more, and a
command ends within half more, since to give back the run's lease is tried once."""
STALL_S = min(30.0, TIMEOUT_S / 6)  # how long a reply may take to begin, and to go on
RETRY_S = min(10.0, TIMEOUT_S / 18)  # the library's own patience, within which it hears no Ctrl-C
CONNECT_S = min(5.0, TIMEOUT_S / 36)
ALLOW_HTTP = {"gs": "GOOGLE_ALLOW_HTTP", "az": "AZURE_ALLOW_HTTP"}  # for a server of one's own, by scheme
_PROCESSES: set[int] = set()  # that have used a server: a fork inherits what it finds here
# What will be the same the next time, though the library has no other name for it.
FOR_GOOD = re.compile(
    r"builder error|NoSuchBucket|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|"
    r"status code: (3\d\d|40[0-7]|41\d|501)|not found in the environment|no credentials",
    re.IGNORECASE,
)
# No credentials were given, and none came from the machine's role.
FROM_ROLE = re.compile(r"/latest/(api/token|meta-data)|169\.254\.")
AGAIN = "See that the server runs and can be reached, then run the same command again"
REMEDIES = {
    "NoSuchBucket": "Make the bucket, or correct storage_path; a run's name goes before the options",
    FROM_ROLE.pattern: "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE: there are no credentials",
    r"AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|status code: 40[13]": (
        "Check the credentials: they must be valid, and allow to get, put, list and delete objects there"
    ),
    "status code: 501": "Use a server that knows conditional writes (`If-None-Match`): docs/operations.md, Storage",
    r"No space left|quota|File too large": "Free some space, then run the same command again",
    r"Permission denied|Read-only file system": "Let this user read and write there, then run the same command again",
    "only files and folders are looked at": "Move what it leads to into its place, or remove it",
    r"Not a directory|File exists": "A file is in the way: choose another storage_path, or move the file",
}


def resolve_uri(path: str) -> str:
    """A folder or URI as one absolute URI or path, the same from every process.

    A name that stands after the options, where the eye puts it, goes before them.

    Raises:
        StoreError: a URI with credentials or with an option that is not known, or text that is no path.
    """
    if not uris.is_uri(path):
        return _resolve_path(path)
    base, query = _name_first(*path.partition("?")[::2])
    if "#" in base + query:
        rule = "holds #, at which a URI ends: a name behind it would be lost, and all runs there be one"
        where = redacted(without_options(base))
        raise StoreError("storage_path", where, rule, "Write it without # and what follows, which nothing ever read")
    uri = uris.parse(base + (f"?{query}" if query else ""), "storage_path", StoreError, uris.S3)
    endpoint.check_options(base, uri.options)
    return base.rstrip("/") + (f"?{query}" if query else "")


def join_run(storage_path: str, name: str) -> str:
    """Where the run `name` lives."""
    uri = resolve_uri(storage_path)
    base = without_options(uri)
    return f"{base}/{name}{uri.removeprefix(base)}"


def without_options(uri: str) -> str:
    """A resolved URI as messages name it."""
    return uri.partition("?")[0] if uris.is_uri(uri) else uri


class Outage:
    """Since when a server has not answered. All requests to it share it, so that each need not find out for itself."""

    def __init__(self) -> None:
        self.has_answered = False
        """Whether the server ever did."""
        self._began: float | None = None
        self._failed_at = -math.inf
        self._told = self._has_failed = False

    def is_first(self) -> bool:
        """Whether this is the first failure of a server that has never answered."""
        is_first, self._has_failed = not (self._has_failed or self.has_answered), True
        return is_first

    def answered(self) -> None:
        """An answer of the server came, whatever it says."""
        self._began, self.has_answered = None, True

    def failed(self, began: float, what: str) -> float:
        """How many seconds the server has been away by now, which is told once.

        Args:
            began: when the request was made that has just failed, on the monotonic clock.
            what: the error, for those who wait.
        """
        now = time.monotonic()
        if self._began is None or now - self._failed_at > TIMEOUT_S:  # nobody asked for so long
            self._began, self._told = began, False
        self._failed_at = now
        away = now - self._began
        if away > RETRY_S and not self._told:
            self._told = True
            logger.warning("waiting up to %g s for a server: %s", TIMEOUT_S, what)
        return away


def open_remote(uri: str, upload_s: float = 0.0) -> obstore.store.ObjectStore:
    """The objects under a URI.

    Args:
        uri: as `resolve_uri` gives it.
        upload_s: how long an upload may take, in seconds, on top of the time that a reply may take to begin.

    Raises:
        StoreError: a kind of store that is not known.
    """
    check_not_forked(uri)
    options, base = _options(uri), without_options(uri)
    if base.startswith("s3://"):
        endpoint.check_environment()
    backoff = {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2}
    retry = {"backoff": backoff, "max_retries": 1000, "retry_timeout": timedelta(seconds=RETRY_S)}
    client: dict[str, Any] = {
        "timeout": timedelta(days=1),  # of a whole request, large ones included: stalls are what ends one
        "read_timeout": timedelta(seconds=STALL_S + upload_s),
        "connect_timeout": timedelta(seconds=CONNECT_S),
    }
    if os.environ.get(ALLOW_HTTP.get(urlsplit(base).scheme, ""), "").lower() == "true":
        client["allow_http"] = True  # the library reads these only where it is given no options of a client
    special = _s3_options(options) if base.startswith("s3://") else {}
    client |= special.pop("client_options", {})
    arguments: dict[str, Any] = {"retry_config": retry, "client_options": client, **special}
    try:
        return from_url(base, **arguments)
    except BaseException as error:
        if not is_failure(error):
            raise
        remedy = "Give a folder, or a URI such as s3://bucket/prefix"
        raise StoreError("storage_path", base, f"cannot be opened: {reason(error)}", remedy) from None


def check_not_forked(uri: str) -> None:
    """Passes where no server has been used yet, or by this very process.

    The library's threads do not survive a fork, and a request would wait for them without end.

    Raises:
        StoreError: a process before the fork has used one.
    """
    _PROCESSES.add(os.getpid())
    if len(_PROCESSES) > 1:
        rule = "cannot be used in a process that was forked from one that had used an object store"
        raise StoreError("storage_path", without_options(uri), rule, "Start processes by `spawn`")


def is_failure(error: BaseException) -> bool:
    """Whether the library failed, be it by a panic, which is no `Exception`, of the language that it is written in."""
    return isinstance(error, BaseError | ValueError | OSError) or type(error).__name__ == "PanicException"


def check_not_plain(uri: str) -> None:
    """Passes after a first failure of a server, unless it answers plain HTTP where HTTPS was asked for.

    Raises:
        StoreError: it does, so that no patience helps.
    """
    options = _options(uri)
    if not uri.startswith("s3://") or not endpoint.is_plain(url := endpoint.in_force(options)):
        return
    rule = f"asks {url} by HTTPS, and it answers plain HTTP"
    remedy = "Add scheme=http to the options of the URI, or write http:// in AWS_ENDPOINT_URL"
    raise StoreError("storage_path", without_options(uri), rule, remedy)


def is_answer(error: BaseException) -> bool:
    """Whether an error of the library is an answer about an object: it is not there, or it is there already."""
    return isinstance(error, AlreadyExistsError) or (
        isinstance(error, FileNotFoundError) and "NoSuchBucket" not in str(error)
    )


def may_pass(error: BaseException, answered: bool = True) -> bool:
    """Whether the same request to a server may succeed later.

    Args:
        error: of the library.
        answered: whether the server has ever answered: credentials that were there may come back.
    """
    text = str(error)
    if not isinstance(error, GenericError) or FOR_GOOD.search(text):
        return False
    return answered or not FROM_ROLE.search(text)


def reason(error: BaseException) -> str:
    """What an error of the library says, in a line and without what may be secret: bodies of replies, query strings."""
    line, _, details = str(error).partition("\n")
    code = re.search(r"<Code>([A-Za-z]+)</Code>", str(error))
    # Of a connection that failed, only the details say why.
    cause = re.search(r'(?:message|error): "([^"<]+)"|kind: (Timeout|TimedOut)', details)
    line = re.sub(r"<\?xml.*|<Error>.*", "", line)
    line = re.sub(r" in [\d.]+[mµn]?s\b(, after \d+ retries, max_retries: \d+, retry_timeout: \S+ )?", "", line)
    more = [found[1] or "no reply in time" for found in (code, cause) if found and (found[1] or "no reply") not in line]
    return re.sub(r"\?[^\s]*", "", line).strip(" :,-") + (f" ({', '.join(more)})" if more else "")


def remedy(error: BaseException) -> str:
    """What to do about an error of the library."""
    text = str(error)
    for pattern, advice in REMEDIES.items():
        if re.search(pattern, text):
            return advice
    if "HTTP error" in text or "status code: " in text:
        return f"So it was for {TIMEOUT_S:g} s (RAY_SISA_STORE_TIMEOUT_S). {AGAIN}"
    return "Check the path, its permissions and its server"


def _options(uri: str) -> dict[str, str]:
    return uris.parse(uri, "storage_path", StoreError, uris.S3).options if uris.is_uri(uri) else {}


def _resolve_path(path: str) -> str:
    uploads.check_kept(path)
    try:
        resolved = local_path.parse(path).resolve()
        resolved.exists()  # asks the system, which knows best what no path can be
        return str(resolved)
    except (OSError, ValueError, RuntimeError) as error:
        rule = f"is no path: {error}"
        raise StoreError("storage_path", ascii(path)[:200], ascii(rule)[1:-1][:200], "Correct it") from None


def _name_first(base: str, query: str) -> tuple[str, str]:
    """`s3://b/runs`, `scheme=http/name` as `s3://b/runs/name`, `scheme=http`; a path of an endpoint stays its own."""
    others, ampersand, last = query.rpartition("&")
    option, slash, name = last.partition("/")
    if not slash or not option.startswith(("scheme=", "region=")):
        return base, query
    return f"{base.rstrip('/')}/{name}", others + ampersand + option


def _s3_options(options: Mapping[str, str]) -> dict[str, Any]:
    """What obstore needs for S3, or for a server that speaks it."""
    found: dict[str, Any] = {}
    url = endpoint.in_force(options)
    if options.get("endpoint_override"):
        found["endpoint"] = url
        found["virtual_hosted_style_request"] = False
    if url.startswith("http://"):
        found["client_options"] = {"allow_http": True}
    if options.get("region"):
        found["region"] = options["region"]
    if provider := _profile():
        found["credential_provider"] = provider
    return found


def _profile() -> Any:
    """Credentials of a profile, where one is named or is all there is; None where the environment or a role gives them.

    Raises:
        StoreError: a profile is named, and what reads it is not installed.
    """
    named = "AWS_PROFILE" in os.environ
    if not named and ("AWS_ACCESS_KEY_ID" in os.environ or not _credentials_file().exists()):
        return None
    try:
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        if not named:
            return None
        rule = "is set, and boto3, which reads profiles, is not installed"
        raise StoreError("AWS_PROFILE", os.environ["AWS_PROFILE"], rule, "pip install 'ray-sisa[s3]'") from None
    try:
        return Boto3CredentialProvider()
    except (BotoCoreError, ValueError) as error:
        if not named:
            return None
        rule = f"cannot be used: {error}"
        raise StoreError(
            "AWS_PROFILE", os.environ["AWS_PROFILE"], rule, "Correct it, or the file of profiles"
        ) from None


def _credentials_file() -> Path:
    return Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
