"""What a record says of how it was made: commit, command, machine and time, without where things lay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from ray_sisa.run import Run
from ray_sisa.study.results import Provenance
from ray_sisa.study.steps import Steps


def provenance(preset: str, steps: Steps, uri: str, seconds: float) -> Provenance:
    """How a record was made.

    Args:
        preset: name of the study's size.
        steps: all that it is made from, found or done.
        uri: of one of its runs, which says on what machine.
        seconds: of this call.
    """
    environment = Run.open(uri).stages()[0].environment
    origins = steps.found.values()
    return Provenance(
        preset=preset,
        command=command_here(),
        commit=", ".join(sorted({origin.commit for origin in origins if origin.commit})),
        started_at=min(origin.started_at for origin in origins),
        seconds=seconds,
        step_seconds=sum(origin.seconds for origin in origins),
        machine=f"{environment.device_name}, {environment.platform}",
        device=environment.device,
        torch=environment.torch,
    )


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
