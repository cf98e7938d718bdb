"""The time of day as records carry it."""

from datetime import UTC, datetime


def now() -> str:
    """The present in ISO 8601, UTC, to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
