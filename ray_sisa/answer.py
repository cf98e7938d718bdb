"""An answer of the program, and what answers are laid out with: rows, columns, durations.

Pure functions of text and numbers; what the commands answer is elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ray_sisa.foreign_text import escaped

DIGEST_SHOWN = 12


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a command found or did."""

    fields: dict[str, Any]
    """Of the JSON object."""
    text: str
    """For a person."""
    ok: bool = True
    """Whether the command exits with 0."""


def duration(seconds: float) -> str:
    """Seconds as a person reads them: `12 ms`, `0.3 s`, `42 s`, `7 min 5 s`, `3 h 12 min`."""
    if 0 < seconds < 0.1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def head_rows(number: int, digest: str) -> list[tuple[str, str]]:
    """The row of `table` that names a head and its ensemble; `digest` is empty where there is none."""
    return [("head", f"{number}" + (f" (ensemble {digest[:DIGEST_SHOWN]})" if digest else ""))]


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Labels, at least one, and beside each its value, on one line."""
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {escaped(value)}" for label, value in rows)


def columns(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows under a heading, each column as wide as its widest cell."""
    lines = [heading, *([escaped(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(heading))]
    padded = ("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)
