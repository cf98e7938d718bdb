"""URIs as users and records have them: one function takes all of them apart, and refuses those with credentials.

What a URI holds is written down with the run, in errors and in logs. Credentials come from the environment, a profile
or the machine's role. Nothing here asks a server.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

from ray_sisa.errors import SisaError

S3 = ("endpoint_override", "region", "scheme")
"""Options that say where a server is."""
OF_DATA = (
    *S3,
    *("allow_bucket_creation", "allow_bucket_deletion", "check_directory_existence_before_creation"),
    *("allow_delayed_open", "background_writes", "smart_defaults"),
    *("tls_ca_dir_path", "tls_ca_file_path", "tls_verify_certificates"),
    *("project_id", "retry_limit_seconds"),
    *("blob_storage_authority", "blob_storage_scheme", "dfs_storage_authority", "dfs_storage_scheme", "enable_tls"),
    *("client_id", "credential_kind", "tenant_id"),
    *("buffer_size", "default_block_size", "kerb_ticket", "replication", "user"),
)
"""All options of pyarrow's file systems that hold no secret; of Azure, any that it does not know is part of a token."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_BUCKETS = ("s3", "s3a", "gs", "gcs", "az", "azure", "adl")  # whose authority is a name alone
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:]*)(:\d{1,5})?")
REMEDY = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE (docs/operations.md, Environment variables)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Uri:
    """A URI: what stands before its options, and these as they were written and by name."""

    base: str
    query: str
    options: dict[str, str]


def is_uri(text: str) -> bool:
    """Whether a text is a URI of another place than this machine's files."""
    return _SCHEME.match(text) is not None and not text.startswith("file:")


def parse(text: str, field: str, kind: type[SisaError], known: Collection[str] = OF_DATA) -> Uri:
    """A URI without credentials, taken apart.

    Args:
        text: the URI.
        field: where it comes from, for errors, which are of this `kind`.
        known: options that it may have.

    Raises:
        kind: credentials, whose value is not repeated, or an option that is not known.
    """
    base, _, query = text.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if "@" in unquote(query) or _has_user(base):
        raise kind(field, "", "holds credentials, which would be written down with the run", REMEDY)
    for name in options:
        if name not in known:
            rule = f"has the option {name!r}; known are {', '.join(known)}"
            raise kind(field, base, rule, "Give credentials in the environment, and nothing else here")
    return Uri(base=base, query=query, options=options)


def _has_user(base: str) -> bool:
    """Whether the part before the options names a user, a password or keys: a secret may hold a slash of its own."""
    scheme, _, rest = base.partition("://")
    authority, _, path = rest.partition("/")
    user, at, host = unquote(authority).rpartition("@")
    if at:
        is_container = scheme in ("abfs", "abfss") and ":" not in user
        return not (is_container or (scheme in ("gs", "gcs") and user == "anonymous"))
    if ":" not in host:
        return False
    return scheme in _BUCKETS or not _HOST.fullmatch(host) or "@" in unquote(path)
