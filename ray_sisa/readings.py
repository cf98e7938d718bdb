"""Texts that were read as other ids than they look like: commas come between ids, and spaces around one are dropped.

A run may have ids that hold these. Where such a text is itself an id, nobody can tell which was meant: it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from ray_sisa import ids
from ray_sisa.errors import RequestError

if TYPE_CHECKING:
    from ray_sisa.run import Run

Check = Callable[[Sequence[str]], None]
"""Passes texts that are no ids of a run."""

_MANY, _LONGEST = 64, 8  # parts of a list, from where on ids of so many parts are looked for and no longer ones


def listed(text: str) -> list[str]:
    """The parts of a text between its commas, those that are empty left out."""
    return [part.strip() for part in text.split(",") if part.strip()]


def otherwise(text: str) -> Iterator[str]:
    """What `listed` could have read in place of what it did: neighbours as one id, outer spaces as part of an id."""
    parts = text.split(",")
    longest = len(parts) if len(parts) <= _MANY else _LONGEST
    for first in range(len(parts)):
        for end in range(first + 1, min(first + longest, len(parts)) + 1):
            reading = ",".join(parts[first:end])
            trimmed = reading.strip()
            if reading != trimmed:
                yield reading
            if end > first + 1:
                yield trimmed


def checker(run: Run, option: str, *, by_subject: bool) -> Check:
    """What refuses, as an error about an option, texts that are ids (or subjects) of a run."""

    def is_known(texts: Iterable[str]) -> bool:
        found = run.locate(subjects=texts) if by_subject else run.locate(samples=texts)
        return bool(found.places)

    def check(texts: Sequence[str]) -> None:
        if texts and is_known(texts):
            meant = next(text for text in texts if is_known([text]))
            rule = "is itself an id of this run, and was read as another: commas end ids, and outer spaces are dropped"
            remedy = "Say which is meant in a file: --from FILE.jsonl (or --subjects-from), one JSON string a line"
            raise RequestError(option, ids.shown(meant), rule, remedy)

    return check
