"""Text that others wrote, as it may be printed: without what a terminal obeys, and without credentials of URIs.

Ids, keys, names of columns, objects and lease holders are anybody's text. It imports nothing of the package, since
errors are made with it.
"""

from __future__ import annotations

import logging
import re

NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"
_USER_INFORMATION = re.compile(r"(:/+)\S+(?:@|%40)")  # greedy: a secret may hold what ends it elsewhere


def redacted(text: str) -> str:
    """The text with what stands between `://` and the last `@` after it left out: user, password, keys."""
    return _USER_INFORMATION.sub(r"\1***@", text)


def escaped(text: str, keep: str = "") -> str:
    """The text with everything but printable characters, and those to `keep`, written as Python escapes them.

    A no-break space, which stands between numbers and their units here, counts as printable. So no escape sequence
    reaches a terminal, no newline fakes a line, and nothing turns the direction of writing.
    """
    if text.isprintable():
        return text
    kept = keep + NO_BREAK_SPACE
    return "".join(c if c.isprintable() or c in kept else c.encode("unicode_escape").decode() for c in text)


class Formatter(logging.Formatter):
    """Formats log records, each message as one line."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line of a record; a traceback that follows it keeps its lines."""
        return escaped(redacted(super().formatMessage(record)))
