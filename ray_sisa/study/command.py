"""The command line of a study's job: what can be said to it, and how it ends. What it does is the job's own."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Collection
from pathlib import Path

from ray_sisa.errors import SisaError
from ray_sisa.termination import TERMINATED, Terminated, graceful


def make_parser(description: str | None, name: str, presets: Collection[str]) -> argparse.ArgumentParser:
    """What every study can be told: `preset`, `data`, `storage`, `out`, `gpus_per_worker`.

    Args:
        description: of the study.
        name: of the study; runs are under `runs/study-NAME` unless it is told otherwise.
        presets: names of its sizes.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=presets, required=True, help="how large")
    parser.add_argument("--data", default=os.environ.get("RAY_SISA_DATA"), help="folder of the data, or torchvision")
    parser.add_argument(
        "--storage", default=f"runs/study-{name}", help="folder or URI of its runs; nodes must reach it"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the record")
    parser.add_argument("--gpus-per-worker", type=float, help="in place of the preset's; 0 for the CPU")
    return parser


def main(parser: argparse.ArgumentParser, folder: str, run: Callable[[argparse.Namespace], object]) -> None:
    """Runs a study with what the command line says.

    Args:
        parser: from `make_parser`; the study may have added to it.
        folder: of the data of the study, inside `data`.
        run: is given what was said; `data` is always something.

    Raises:
        SystemExit: the command line is not right, or the study ended in an error that it tells.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr)
    given = parser.parse_args()
    if not given.data:
        parser.error(f"--data: missing; name a folder with {folder}/, or torchvision (or set RAY_SISA_DATA)")
    try:
        with graceful():
            run(given)
    except SisaError as error:
        sys.exit(f"error: {error}")
    except Terminated:
        sys.exit(TERMINATED)
