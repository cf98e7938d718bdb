"""The folder that a submitted job works in: a copy of what `--working-dir` names, without what its ignore files name.

A relative path means another place there than where it was written. Nothing here reads what lies in the folder.
"""

from __future__ import annotations

import os
from pathlib import Path

from ray_sisa.errors import StoreError

_FOLDERS, _PREFIX = "working_dir_files", "_ray_pkg_"  # where Ray unpacks what was uploaded, and what it calls it


def uploaded_folder() -> Path | None:
    """The copy that this process works in; None where it is no job with a working folder of its own."""
    try:
        here = Path.cwd()
    except OSError:  # somebody has removed it
        return None
    folders = (f for f in (here, *here.parents) if f.parent.name == _FOLDERS and f.name.startswith(_PREFIX))
    return next(folders, None)


def remedy_of_absent(path: str, otherwise: str) -> str:
    """What to do about a file or folder of data that is not there: in a job, that of a relative path."""
    if uploaded_folder() is None or _is_elsewhere(path):
        return otherwise
    return (
        "This job works in a copy of the folder that --working-dir names, without what .gitignore and .rayignore "
        "there leave out (those of ray_sisa leave out *.parquet and /data/): put the data where every node reads it, "
        "and name it by a URI such as s3://BUCKET/FILE or by the absolute path of a shared folder, as "
        "examples/cluster.yaml does; or take small files off both lists"
    )


def check_kept(storage_path: str) -> None:
    """Passes if what is written to a folder outlives the job.

    Raises:
        StoreError: it would lie in the copy, which Ray removes.
    """
    if uploaded_folder() is not None and not _is_elsewhere(storage_path):
        rule = "is relative, and this job works in a copy of its folder, which one node has and Ray removes"
        remedy = "Give a URI such as s3://BUCKET/runs, or the absolute path of a folder that all nodes share"
        raise StoreError("storage_path", storage_path, rule, remedy)


def _is_elsewhere(path: str) -> bool:
    return "://" in path or os.path.isabs(os.path.expanduser(path))
