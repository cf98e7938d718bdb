"""What the pages and papers of all studies are written with: templates, the command, a record's name.

Owns no sentence and no number.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from ray_sisa.errors import SisaError
from ray_sisa.report import percent
from ray_sisa.study.wording import counted, difference, duration, enumerated

NONE = "\N{EN DASH}"


def make_templates(autoescape: bool) -> Environment:
    """Templates with the filters and names that every study needs."""
    made = Environment(
        loader=PackageLoader("ray_sisa"),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": percent, "duration": duration, "count": lambda number: f"{number:,.0f}"}
    made.globals |= {"NONE": NONE, "counted": counted, "difference": difference, "enumerated": enumerated}
    return made


def write_document(arguments: list[str], module: str, write: Callable[[Path, str], str]) -> None:
    """The command of a paper: the record, then where to.

    Args:
        arguments: of the command.
        module: what the command is.
        write: the paper of a record's file, under the name that the paper may give that file.
    """
    if len(arguments) != 2:
        sys.exit(f"usage: python -m {module} RESULT.json PAPER.md")
    source, target = map(Path, arguments)
    try:
        target.write_text(write(source, shortened(source)), encoding="utf-8")
    except (OSError, ValueError, SisaError) as error:
        sys.exit(f"error: {error}")


def shortened(source: Path) -> str:
    """A record's path inside the checkout: where that lies is nobody's business."""
    return "/".join(source.resolve().parts[-3:])
