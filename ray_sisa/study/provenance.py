"""What a record says of how it was made: the commit and the command, without where things lay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def commit_here() -> str:
    """The commit of the working folder, as git describes it; empty where there is none."""
    try:
        shown = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return shown.stdout.strip()


def command_here() -> str:
    """The command that runs, full paths cut to their last part: where things lay is nobody's business."""
    return " ".join(["python", *map(_shortened, sys.argv)])


def _shortened(argument: str) -> str:
    return Path(argument).name if argument.startswith("/") else argument
