"""Endpoints of object stores of one's own, judged before the library gets them: at some it panics, at others it waits.

An endpoint comes from an option of a URI or from the environment; regions likewise. No credentials pass through here.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Mapping
from urllib.parse import urlsplit

from ray_sisa.errors import StoreError

VARIABLES = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")  # the first that is set counts
REGIONS = ("AWS_REGION", "AWS_DEFAULT_REGION")
PROBE_S = 3.0
_URL = re.compile(r"(?:(https?)://)?(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?(/[^\s?#@]*)?")
_REGION = re.compile(r"[A-Za-z0-9._-]+")


def in_force(options: Mapping[str, str]) -> str:
    """The URL of the endpoint that options of a URI, else the environment, name for S3; empty for Amazon's own."""
    if endpoint := options.get("endpoint_override"):
        return endpoint if "://" in endpoint else f"{options.get('scheme', 'https')}://{endpoint}"
    return next(filter(None, map(os.environ.get, VARIABLES)), "")


def check_options(uri: str, options: Mapping[str, str]) -> None:
    """Passes options of a URI that say where a server is.

    Raises:
        StoreError: an option that breaks a rule, named with its value.
    """
    for name, value in options.items():
        if name == "endpoint_override" and not _is_url(value):
            rule = f"has endpoint_override={value!r}, which must read HOST:PORT or http://HOST:PORT"
        elif name == "scheme" and value not in ("http", "https"):
            rule = f"has scheme={value!r}, which must be http or https"
        elif name == "region" and not (value and is_region(value)):
            rule = f"has region={value!r}, which must be a name such as us-east-1"
        else:
            continue
        remedy = "Write s3://BUCKET/PREFIX/NAME?endpoint_override=HOST:PORT&scheme=http, options last"
        raise StoreError("storage_path", uri, rule, remedy)


def check_environment() -> None:
    """Passes an environment whose variables for S3 say where a server is, or nothing.

    Raises:
        StoreError: a variable that breaks a rule.
    """
    for name in VARIABLES:
        value = os.environ.get(name, "")
        if value and not (value.startswith(("http://", "https://")) and _is_url(value)):
            shown = "" if "@" in value else value  # a password may hold anything, so none of it is repeated
            raise StoreError(name, shown, "must read http://HOST:PORT or https://HOST", "Correct it, or unset it")
    for name in REGIONS:
        value = os.environ.get(name, "")
        if not is_region(value):
            raise StoreError(name, value, "must be a name such as us-east-1", "Correct it, or unset it")


def is_region(text: str) -> bool:
    """Whether a text can be the name of a region; none is named by an empty one."""
    return not text or _REGION.fullmatch(text) is not None


def is_plain(url: str) -> bool:
    """Whether a server that is to be asked by HTTPS answers plain HTTP instead; asks it once by both."""
    parts = urlsplit(url)
    if parts.scheme != "https" or not parts.hostname:
        return False
    address = (parts.hostname, parts.port or 443)
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # whether it speaks TLS, not who it is
    try:
        with socket.create_connection(address, PROBE_S) as connection, context.wrap_socket(connection):
            return False
    except ssl.SSLError:
        pass
    except OSError:
        return False
    try:
        with socket.create_connection(address, PROBE_S) as connection:
            connection.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
            return connection.recv(5) == b"HTTP/"
    except OSError:
        return False


def _is_url(text: str) -> bool:
    match = _URL.fullmatch(text)
    return match is not None and (match[3] is None or 0 < int(match[3]) < 65536)
