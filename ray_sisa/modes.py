"""Who of a machine may read and write a run on its disk: the mode of the run's folder, which all in it follows.

A folder from before keeps its mode, and what is written into it has the same. Object stores have rules of their own.
"""

from __future__ import annotations

import logging
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Literal

logger = logging.getLogger(__name__)

StorageMode = Literal["owner", "group"]
MODES: dict[StorageMode, int] = {"owner": 0o700, "group": 0o2770}  # what others of a group make stays the group's


def make_folder(folder: Path, mode: StorageMode) -> None:
    """Makes the folder of a run, unless it is there; nobody else can look into it before it has its mode."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return
    with suppress(OSError):
        folder.chmod(MODES[mode])
    if (met := stat.S_IMODE(folder.stat().st_mode)) != MODES[mode]:
        logger.warning("%s has mode %o and not %o: the file system or its owner decides", folder, met, MODES[mode])


def follow(folder: int, made: int) -> None:
    """Gives what was just made in a folder the folder's mode; both by open handles."""
    about = os.fstat(made)
    mode = stat.S_IMODE(os.fstat(folder).st_mode)
    if not stat.S_ISDIR(about.st_mode):
        mode &= 0o666
    if stat.S_IMODE(about.st_mode) != mode:
        with suppress(PermissionError):  # another of the group made it, or the file system has no modes
            os.fchmod(made, mode)
