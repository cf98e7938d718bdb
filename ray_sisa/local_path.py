"""Files and folders as a user writes them: `~`, and `file:` URIs with what URIs escape. Variables are not expanded.

A path that names something as it stands keeps its meaning, whatever it looks like.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

from ray_sisa import uris
from ray_sisa.config import RunConfig
from ray_sisa.errors import ConfigError

_VARIABLE = re.compile(r"\$(?:\w+|\{\w+\})")


def parse(text: str) -> Path:
    """The path that a path or `file:` URI names.

    Raises:
        ValueError: a URI that names no file of this machine, or a home that is not known.
    """
    path = _of_uri(text.removeprefix("file:")) if text.startswith("file:") else text
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(str(error)) from None


def parse_field(field: str, text: str) -> Path:
    """The same of a field of a configuration.

    Raises:
        ConfigError: it names no file of this machine.
    """
    try:
        return parse(text)
    except ValueError as error:
        raise ConfigError(field, text, f"is no path: {error}", "Correct it") from None


def check_written_out(config: RunConfig) -> None:
    """Passes paths and URIs that may be written down with a run: without credentials, and without variables.

    Variables (`$HOME`) a shell would expand, and nothing here does.

    Raises:
        ConfigError: one has credentials, or a variable while nothing is there under that very name.
    """
    fields = {
        "storage_path": config.storage_path,
        "data.train": config.data.train,
        "data.test": config.data.test,
        "data.root": config.data.root,
        "recipe.weights": config.recipe.weights,
    }
    for field, value in fields.items():
        for text in (value,) if isinstance(value, str) else value or ():
            if "://" in text and uris.is_uri(text):
                uris.parse(text, field, ConfigError)
            found = _VARIABLE.search(text)
            if found and not _exists(text):
                rule = f"has the variable {found[0]}, and variables are not expanded in a configuration"
                raise ConfigError(
                    field, text, rule, "Write it out; ~ is your home, and --set takes what a shell expands"
                )


def _of_uri(rest: str) -> str:
    host, slash, path = rest.removeprefix("//").partition("/")
    if not rest.startswith("//") or not slash:
        raise ValueError("a file: URI reads file:///FULL/PATH")
    if host not in ("", "localhost"):
        raise ValueError(f"it names the host {host}; write file:///FULL/PATH, or {host}/{path} without file://")
    decoded = unquote(f"/{path}", errors="strict")
    if Path(f"/{path}").exists() and not Path(decoded).exists():
        return f"/{path}"  # a run that was made when escapes were left as they are
    return decoded


def _exists(text: str) -> bool:
    try:
        return parse(text).exists()
    except (OSError, ValueError):
        return False
