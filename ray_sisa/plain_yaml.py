"""YAML of plain values from people who may mean harm: no tag runs anything, and no document is more than it looks.

Text, and what its aliases expand to, is bounded before any value is made. Numbers that YAML 1.1 reads in base 8 or 60,
and hardly anybody means so, are refused. What values mean is for others to say.
"""

from __future__ import annotations

import datetime
import re
import reprlib
from pathlib import Path
from typing import Any

import yaml

from ray_sisa.errors import ConfigError

MAX_CHARACTERS = 1 << 18  # of a document, and of what its aliases make of it; PyYAML takes seconds for so many
MAX_NUMBER = 64  # characters of a number or date: reading a long one takes quadratic time

_FIELD = "configuration"
_OCTAL = re.compile(r"[-+]?0[0-7_]+")  # of YAML 1.1: not 0, not 0x1F, not 0b101
_NUMBERS = {f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp")}


def read(path: Path) -> str:
    """The text of a YAML file.

    Raises:
        ConfigError: it cannot be read, is not UTF-8, or is too long.
    """
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARACTERS + 1)
    except (OSError, ValueError) as error:
        raise ConfigError(_FIELD, str(path), f"cannot be read: {_cut(error)}", "Check the path") from None
    return text


def parse(text: str, where: str) -> Any:
    """The one value in a YAML document.

    Raises:
        ConfigError: not YAML of plain values, a key that stands twice, or more than the limits; names `where`.
    """
    if len(text) > MAX_CHARACTERS:
        rule = f"is longer than {MAX_CHARACTERS} characters"
        raise ConfigError(_FIELD, where, rule, "Give a configuration, not data")
    try:
        return _PlainLoader(text).get_single_data()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        verb = "cannot be taken" if isinstance(error, _Refused) else "is not valid YAML"
        rule = f"{verb}{at}: {_cut(getattr(error, 'problem', error))}"
        raise ConfigError(_FIELD, where, rule, "Correct the file") from None
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
        # What PyYAML's constructors let out: a date that is none, a tag whose text does not fit, nesting without end.
        rule = f"has a value that cannot be read: {type(error).__name__}: {_cut(error)}"
        raise ConfigError(_FIELD, where, rule, "Correct the file") from None


def meaning(value: object) -> str | None:
    """What YAML makes of a word without quotes that a person may have meant as text; None of any other value."""
    if value is None:
        return "nothing (as are null and ~)"
    if isinstance(value, bool):
        return f"the truth value {str(value).lower()} (as are yes, on, no and off)"
    if isinstance(value, datetime.date):
        return f"the date {value}"
    return "a number" if isinstance(value, int | float) else None


def shown(value: object) -> str:
    """A value as messages show it, in bounded time whatever it holds."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # an integer with too many digits
        return f"a value of type {type(value).__name__}"


class _Short(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 200
        self.maxlist = self.maxtuple = self.maxdict = 10
        self.maxlevel = 4


_SHORT = _Short()


class _PlainLoader(yaml.SafeLoader):
    """Plain values only, as `safe_load`; a key that stands twice is an error, where YAML would let the last one win."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _Weights().of(node)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for name in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if name in seen:
                raise _refusal(node, f"the key {shown(name)} stands twice")
            seen.add(name)
        return super().construct_mapping(node, deep)


class _Weights:
    """Characters and nodes of a document with its aliases written out, counted without writing them out."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}
        self._open: set[int] = set()

    def of(self, node: yaml.Node) -> int:
        """How many; refuses too many, a value within itself, and numbers that are too long."""
        if id(node) in self._known:
            return self._known[id(node)]
        if id(node) in self._open:
            raise _refusal(node, "a value holds itself")
        self._open.add(id(node))
        weight = 1 + self._inside(node)
        self._open.remove(id(node))
        if weight > 2 * MAX_CHARACTERS:
            raise _refusal(node, f"its aliases expand to more than {MAX_CHARACTERS} characters")
        self._known[id(node)] = weight
        return weight

    def _inside(self, node: yaml.Node) -> int:
        if isinstance(node, yaml.ScalarNode):
            if node.tag in _NUMBERS:
                _check_number(node)
            return len(node.value)
        if isinstance(node, yaml.MappingNode):
            return sum(self.of(key) + self.of(value) for key, value in node.value)
        return sum(self.of(item) for item in node.value)


def _check_number(node: yaml.ScalarNode) -> None:
    """Passes if a number or date is short, and a number is one of base 10, 16 or 2."""
    if len(node.value) > MAX_NUMBER:
        raise _refusal(node, f"a number has more than {MAX_NUMBER} characters")
    base = 60 if ":" in node.value else 8 if _OCTAL.fullmatch(node.value) else 10
    if base != 10 and not node.tag.endswith("timestamp"):
        read = yaml.constructor.SafeConstructor().construct_document(node)
        rule = (
            f"{node.value} would be read as {read}, in base {base}: put it in quotes, or write {read} if you mean that"
        )
        raise _refusal(node, rule)


class _Refused(yaml.constructor.ConstructorError):
    """Valid YAML that is refused all the same."""


def _refusal(node: yaml.Node, problem: str) -> yaml.YAMLError:
    return _Refused(None, None, problem, node.start_mark)


def _cut(reason: object) -> str:
    text = str(reason)
    return text if len(text) <= 200 else f"{text[:200]}..."
