"""Ids as people, programs and files give them: text or integers, taken one by one, in memory that does not grow.

An id is any text that UTF-8 can hold, compared by code points: nothing is normalised, and none becomes a path. What an
id names is for others to say.
"""

from __future__ import annotations

import itertools
import json
import sys
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, BinaryIO

from ray_sisa.errors import RequestError, SisaError

if TYPE_CHECKING:
    import pyarrow as pa

Ids = Iterable[str | int]
"""Integers stand for their decimal text, as those of a Parquet column do."""

MAX_BYTES = 1 << 16  # of one id in UTF-8
MAX_LINE = 1 << 20  # bytes of a line of a file: JSON may spend six on one of an id

# A batch ends with whichever comes first.
BATCH_IDS = 1 << 16
BATCH_CHARACTERS = 1 << 22

SHOWN = 100  # characters of an id in a message

_Parse = Callable[[bytes, str, str], str | None]


def as_text(name: object, field: str = "id", kind: type[SisaError] = RequestError) -> str:
    """One id as text.

    Raises:
        kind: neither text nor an integer, too long, or with half of a surrogate pair; by default a RequestError.
    """
    if isinstance(name, Integral) and not isinstance(name, bool):
        try:
            name = str(int(name))
        except ValueError:
            raise kind(field, "an integer", "has thousands of digits", "Give it as text") from None
    if not isinstance(name, str):
        rule = f"is neither text nor an integer, but {type(name).__name__}"
        raise kind(field, repr(name)[:SHOWN], rule, "Give ids as text or integers")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        rule = "holds half of a surrogate pair, which is no character"
        raise kind(field, shown(name), rule, "Give the id as valid Unicode") from None
    if size > MAX_BYTES:
        raise kind(field, shown(name), f"takes {size} bytes in UTF-8, more than {MAX_BYTES}", "Use a shorter id")
    return name


def shown(name: str) -> str:
    """An id as messages show it: cut, and escaped wherever it would look like something else."""
    cut = name if len(name) <= SHOWN else f"{name[:SHOWN]}... ({len(name)} characters)"
    is_plain = cut.isprintable() and unicodedata.is_normalized("NFC", cut) and cut == cut.strip()
    return cut if is_plain else ascii(cut)


def batches(names: Ids, field: str = "ids") -> Iterator[pa.StringArray]:
    """The ids in order, checked, as string arrays of bounded size.

    Raises:
        RequestError: one text where several ids are expected, or what `as_text` refuses.
    """
    if isinstance(names, str | bytes):
        raise RequestError(field, repr(names)[:SHOWN], "is one text, not several ids", "Give a list of ids")
    batch: list[str] = []
    size = 0
    for name in names:
        # A character takes four bytes at most, so what is short needs no closer look.
        text = name if type(name) is str and 4 * len(name) <= MAX_BYTES else as_text(name, field)
        batch.append(text)
        size += len(text)
        if len(batch) == BATCH_IDS or size >= BATCH_CHARACTERS:
            yield _array(batch, field)
            batch, size = [], 0
    if batch:
        yield _array(batch, field)


def read(option: str, path: str, check: Callable[[Sequence[str]], None] = lambda otherwise: None) -> Iterator[str]:
    """Ids in a file, one a line, blank lines and a byte order mark passed over; "-" is standard input.

    Spaces around an id are dropped. In a file that ends in .jsonl a line is a JSON string or integer, so an id may
    hold anything, newlines and spaces at its ends too. The file is read as the ids are taken.

    Args:
        option: that names the file, for errors.
        path: of the file.
        check: gets the lines from which spaces were dropped, as they stand, some at a time.

    Raises:
        RequestError: a file that cannot be read, is not UTF-8, or has a line that is no id; what `check` raises.
    """
    parse = _parse_json if path.endswith(".jsonl") else _parse_text
    try:
        if path == "-":
            yield from _checked(_parsed(sys.stdin.buffer, parse, option, path), check)
            return
        with open(path, "rb") as file:
            yield from _checked(_parsed(file, parse, option, path), check)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise RequestError(option, shown(path), f"cannot be read: {reason}", "Give a file with one id a line") from None


def _checked(lines: Iterable[tuple[str | None, str]], check: Callable[[Sequence[str]], None]) -> Iterator[str]:
    """The ids, and to `check` those lines that were more than their id."""
    otherwise: list[str] = []
    for name, line in lines:
        if name is not None:
            yield name
        if line != (name or ""):
            otherwise.append(line)
        if len(otherwise) == BATCH_IDS:
            check(otherwise)
            otherwise = []
    check(otherwise)


def _parsed(file: BinaryIO, parse: _Parse, option: str, path: str) -> Iterator[tuple[str | None, str]]:
    """The id of each line, if it has one, and, of lines of text, the line as it stands."""
    for number in itertools.count(1):
        line = file.readline(MAX_LINE + 1)
        if not line:
            return
        if len(line) > MAX_LINE:
            rule = f"has more than {MAX_LINE} bytes in line {number}"
            raise RequestError(option, shown(path), rule, "Give one id a line")
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        name = parse(line, f"{shown(path)}, line {number}", option)
        yield name, (name or "") if parse is _parse_json else line.decode().rstrip("\r\n")


def _parse_text(line: bytes, where: str, option: str) -> str | None:
    try:
        return line.decode().strip(" \t\r\n") or None
    except UnicodeDecodeError:
        rule = "cannot be read: it is not UTF-8"
        raise RequestError(option, where, rule, "Give UTF-8 text, one id a line") from None


def _parse_json(line: bytes, where: str, option: str) -> str | None:
    if not line.strip():
        return None
    try:
        name = json.loads(line.decode())
    except (ValueError, RecursionError):
        rule = "is not one JSON string or integer"
        raise RequestError(option, where, rule, 'Write each id as JSON, for example "a\\nb" or 7') from None
    return as_text(name, f"{option} {where}")


def _array(names: list[str], field: str) -> pa.StringArray:
    import pyarrow as pa  # late: the command line needs this module for its help

    try:
        return pa.array(names, pa.string())
    except UnicodeEncodeError:
        return pa.array([as_text(name, field) for name in names], pa.string())  # one of them is refused by name
