"""Where the runs of a drill lie: in folders of this machine, or in a bucket of an S3 server that is started here.

What lies there is listed by other means than those of the package that is judged.
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from _chaos_program import ROOT

if TYPE_CHECKING:
    from servers import SeaweedFS

StoreKind = Literal["disk", "s3"]
MOST_DELETED = 1000  # in one request


class Storage:
    """Of one kind, for the length of a `with` block; the server's credentials are in this process's environment."""

    def __init__(self, kind: StoreKind) -> None:
        self.kind = kind
        self._stack = ExitStack()
        self._server: SeaweedFS | None = None

    def __enter__(self) -> Self:
        if self.kind == "s3":
            sys.path.append(str(ROOT / "tests"))
            from servers import SeaweedFS

            self._server = self._stack.enter_context(SeaweedFS())
            # The judge reads here, and workers have what the nodes of their cluster were started with.
            os.environ |= self._server.environment
        return self

    def __exit__(self, *error: object) -> None:
        for name in self.environment:
            del os.environ[name]
        self._stack.close()

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs to reach it."""
        return self._server.environment if self._server else {}

    def of(self, folder: Path) -> str:
        """The `storage_path` of the run whose logs and configuration are in a folder of this machine."""
        return f"s3://{self._server.bucket}/{folder.name}" if self._server else str(folder)

    def remove(self, folder: Path) -> None:
        """Removes a run and what is in its folder."""
        if self._server:
            bucket, prefix = self._server.bucket, f"{folder.name}/"
            keys = [f"{prefix}{name}" for name in listed(self.of(folder))]
            for first in range(0, len(keys), MOST_DELETED):
                doomed = {"Objects": [{"Key": key} for key in keys[first : first + MOST_DELETED]], "Quiet": True}
                _client().delete_objects(Bucket=bucket, Delete=doomed)
        shutil.rmtree(folder)


def listed(uri: str) -> dict[str, float]:
    """When each object below a folder or an S3 URI was written last, in seconds, by its path there.

    Of a folder all files are listed, whatever a listing of the store would show. S3 tells whole seconds.
    """
    if uri.startswith("s3://"):
        return _objects(uri)
    found = {}
    for path in Path(uri).rglob("*"):
        try:
            if path.is_file():
                found[path.relative_to(uri).as_posix()] = path.stat().st_mtime_ns / 1e9
        except FileNotFoundError:
            continue  # purged meanwhile
    return found


def _objects(uri: str) -> dict[str, float]:
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    pages = _client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/")
    entries = (entry for page in pages for entry in page.get("Contents", ()))
    return {entry["Key"].removeprefix(f"{prefix}/"): entry["LastModified"].timestamp() for entry in entries}


def _client() -> Any:
    import boto3

    return boto3.session.Session().client("s3")  # of the server that the environment names now
