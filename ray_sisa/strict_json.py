"""JSON as its standard has it: the one place where text of it is made for whoever reads it.

JSON has no NaN and no infinity, and most readers refuse them. Records of a store are pydantic's, which refuse such
numbers when they are made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Plain values as JSON.

    Raises:
        ValueError: a number among them is not finite; see `finite`.
    """
    return json.dumps(value, indent=indent, allow_nan=False)


def finite(value: Any) -> Any:
    """The same plain values with null for each number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value
