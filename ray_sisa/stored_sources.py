"""Sources of samples that a run's record names, judged before anything connects to them.

A run may be somebody else's, and who connects shows credentials: a server that only the record names is not asked. One
that the caller names as well is: as the source, in a configuration of its own, or as where the run itself lies.
"""

from __future__ import annotations

from urllib.parse import parse_qsl, urlsplit

from ray_sisa import endpoint, uris
from ray_sisa.data_config import DataConfig
from ray_sisa.errors import RequestError
from ray_sisa.foreign_text import redacted

BUCKETS = ("s3", "gs", "gcs")  # schemes whose first part is a bucket of the provider's, and no host
OF_AZURE = (".dfs.core.windows.net", ".blob.core.windows.net")
_NAMED: set[str] = set()  # by configurations of this process's caller


def name(data: DataConfig) -> None:
    """Takes the locations of a configuration of the caller's, which may be connected to from now on."""
    _NAMED.update(_locations(data))


def check(data: DataConfig, run: str) -> None:
    """Passes training data that a record names if connecting to them shows credentials to no server of its choice.

    Args:
        data: of the record.
        run: URI of the run, as the caller gave it.

    Raises:
        RequestError: they lie on a server that nobody here has named.
    """
    for location in _locations(data):
        if location not in _NAMED and not _is_harmless(location, run):
            rule = "is what the run's record names, and your credentials would be shown to that server"
            remedy = "If you trust it, name it yourself: --source with that URI, or with a CONFIG.yaml"
            raise RequestError("source", redacted(location), rule, remedy)


def _locations(data: DataConfig) -> tuple[str, ...]:
    return (data.train,) if isinstance(data.train, str) else data.train or ()


def _is_harmless(location: str, run: str) -> bool:
    """Whether a location is a file, or in a bucket of a provider's or of a server that the caller uses anyway."""
    if "://" not in location or location.startswith("file://"):
        return True
    base, _, query = location.partition("?")
    parts, options = urlsplit(base), parse_qsl(query, keep_blank_values=True)
    given = dict(options)
    if len(given) < len(options) or not endpoint.is_region(given.get("region", "")):
        return False
    if parts.scheme not in BUCKETS:
        is_azure = parts.scheme in ("abfs", "abfss") and parts.netloc.endswith(OF_AZURE)
        return is_azure and not given
    if given.keys() <= {"region"}:
        return True
    known = {endpoint.in_force(_options(run)), endpoint.in_force({})} - {""}
    return parts.scheme == "s3" and given.keys() <= set(uris.S3) and endpoint.in_force(given) in known


def _options(uri: str) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(uri).query, keep_blank_values=True))
