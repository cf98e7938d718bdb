"""The time of day as records carry it."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator


def now() -> str:
    """The present in ISO 8601, UTC, to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _as_written(moment: str) -> str:
    if datetime.fromisoformat(moment).tzinfo is None:
        raise ValueError(f"{moment[:40]!r} is in no time zone")
    return moment


Moment = Annotated[str, AfterValidator(_as_written)]
"""A time of day in a record, as `now` gave it."""
