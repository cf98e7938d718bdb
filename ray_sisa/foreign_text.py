"""Text that others wrote, as it may be printed: without the credentials that a URI can hold.

It imports nothing of the package, since errors are made with it.
"""

from __future__ import annotations

import re

_USER_INFORMATION = re.compile(r"(:/+)\S+(?:@|%40)")  # greedy: a secret may hold what ends it elsewhere


def redacted(text: str) -> str:
    """The text with what stands between `://` and the last `@` after it left out: user, password, keys."""
    return _USER_INFORMATION.sub(r"\1***@", text)
