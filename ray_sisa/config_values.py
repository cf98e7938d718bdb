"""A configuration from values: those of a YAML file, plain ones, and `key.path=value` overrides.

Validated whole before anything starts; what breaks a rule is named in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ray_sisa import plain_yaml
from ray_sisa.config import RunConfig
from ray_sisa.errors import ConfigError

_OF_TEXT = {"string_type", "literal_error", "invalid_key"}  # pydantic's names for a value or key that should be text


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The configuration in a YAML file, with `key.path=value` overrides (values are YAML).

    Raises:
        ConfigError: an unreadable file, YAML that does not parse, or a field that breaks a rule.
    """
    path = Path(path)
    content = plain_yaml.parse(plain_yaml.read(path), str(path))
    if not isinstance(content, dict):
        raise ConfigError(
            "configuration",
            str(path),
            "must be a YAML mapping of sections",
            "See the README for an example",
        )
    for override in overrides:
        apply_override(content, override)
    return make_config(content)


def make_config(content: Mapping[str, Any]) -> RunConfig:
    """A configuration from plain values.

    Raises:
        ConfigError: the first fields that break a rule, all of them named.
    """
    try:
        return RunConfig.model_validate(dict(content))
    except ValidationError as error:
        problems = [describe(e) for e in error.errors()]
        value = "; ".join(problems)
        raise ConfigError(
            "configuration",
            value,
            f"{len(problems)} problem(s)",
            "Correct what is named",
        ) from None


def override(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """The configuration with `key.path=value` overrides (values are YAML), validated anew.

    Raises:
        ConfigError: an override that does not parse, or a field that breaks a rule.
    """
    content = config.model_dump(mode="json")
    for text in overrides:
        apply_override(content, text)
    return make_config(content)


def describe(problem: Any) -> str:
    """One of the problems that pydantic found, as a person reads it."""
    field = ".".join(str(part) for part in problem["loc"])
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        return f"{field}: unknown key; remove it or check its spelling"
    if problem["type"] == "missing":
        return f"{field}: missing; it must be given"
    if problem["type"] == "value_error":
        return f"{field}.{message}" if field else message
    made = plain_yaml.meaning(problem["input"]) if problem["type"] in _OF_TEXT else None
    if made:
        message = f"text is expected, and without quotes this is {made}; put it in quotes"
    return f"{field}: {plain_yaml.shown(problem['input'])}: {message}"


def apply_override(content: dict[str, Any], override: str) -> None:
    """Puts the value of a `key.path=value` into plain values.

    Raises:
        ConfigError: it does not parse, or leads through a value.
    """
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise ConfigError(
            "--set",
            override,
            "must read key.path=value",
            "For example --set recipe.seed=1",
        )
    *parents, last = path.split(".")
    node: Any = content
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(
                "--set",
                override,
                f"{parent} is not a section",
                "Check the path before the equals sign",
            )
    node[last] = plain_yaml.parse(value, override)
