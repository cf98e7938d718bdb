"""The object store of a run, and the one owner of every path in it.

    run.json                            configuration in full, placement, data fingerprint; created once
    initial/<digest>.safetensors        initial weights, where the recipe names a file
    index/<digest>.arrow                who is in a shard: ids, subjects, row digests
    test/<digest>.arrow                 the test set
    slices/<digest>.arrow               samples of one (shard, slice) as they are live
    stages/<key>/weights.safetensors    the result of a stage
    stages/<key>/stage.json             its commit record, written last
    ledger/<n>.json                     deletion request n, from 1
    heads/<n>.json                      ensemble n in force, from 1
    certificates/<n>.json               what was done for request n
    lease/<n>.json                      who reconciles
    reports/<name>                      what was measured

An object is written once under its name and never changed. Nothing here knows what the objects mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, from_url
from pydantic import BaseModel, ValidationError

from ray_sisa.errors import StoreError

Record = TypeVar("Record", bound=BaseModel)

RUN = "run.json"
DIGITS = 8  # numbered objects sort by name


def stage_record(key: str) -> str:
    """Commit record of a stage."""
    return f"stages/{key}/stage.json"


def stage_weights(key: str) -> str:
    """Weights of a stage."""
    return f"stages/{key}/weights.safetensors"


def slice_object(digest: str) -> str:
    """Samples of a slice."""
    return f"slices/{digest}.arrow"


def test_object(digest: str) -> str:
    """The test set."""
    return f"test/{digest}.arrow"


def shard_index(digest: str) -> str:
    """Index of a shard."""
    return f"index/{digest}.arrow"


def initial_weights(digest: str) -> str:
    """Weights that all shards start from."""
    return f"initial/{digest}.safetensors"


def numbered(folder: str, number: int) -> str:
    """Object `number` of a numbered series: ledger, heads, certificates or lease."""
    return f"{folder}/{number:0{DIGITS}d}.json"


def report(name: str) -> str:
    """A report by its file name."""
    return f"reports/{name}"


def resolve_uri(path: str) -> str:
    """A folder or URI as one absolute URI or path, the same from every process."""
    if len(urlsplit(path).scheme) > 1 and not path.startswith("file://"):
        return path.rstrip("/")
    return str(Path(path.removeprefix("file://")).expanduser().resolve())


def join_run(storage_path: str, name: str) -> str:
    """Where the run `name` lives."""
    return f"{resolve_uri(storage_path)}/{name}"


class Store:
    """Objects under one URI or folder, with atomic puts and conditional create. Survives pickling."""

    def __init__(self, uri: str) -> None:
        self.uri = resolve_uri(uri)
        self.is_local = self.uri.startswith("/")
        self._objects: obstore.store.ObjectStore | None = None
        self._readable()

    def __reduce__(self) -> tuple[type[Store], tuple[str]]:
        return (Store, (self.uri,))

    def find(self, path: str) -> bytes | None:
        """The bytes of an object, or None where there is none."""
        objects = self._readable()
        if objects is None:
            return None
        try:
            return obstore.get(objects, path).bytes().to_bytes()
        except FileNotFoundError:
            return None
        except (BaseError, OSError) as error:
            raise self._failed("read", path, error) from None

    def get(self, path: str, remedy: str = "Restore it from a backup") -> bytes:
        """The bytes of an object.

        Raises:
            StoreError: there is no such object, or it cannot be read; `remedy` says what to do about the first.
        """
        data = self.find(path)
        if data is None:
            raise StoreError(f"{self.uri}/{path}", "", "is not there", remedy)
        return data

    def put(self, path: str, data: bytes) -> None:
        """Writes an object whose name follows from its content, atomically; a second time changes nothing."""
        try:
            obstore.put(self._writable(), path, data)
        except (BaseError, OSError) as error:
            raise self._failed("write", path, error) from None

    def create(self, path: str, data: bytes) -> bool:
        """Writes an object unless one of that name is there; False then. Of several writers, one gets True."""
        try:
            obstore.put(self._writable(), path, data, mode="create")
        except AlreadyExistsError:
            return False
        except (BaseError, OSError) as error:
            raise self._failed("write", path, error) from None
        return True

    def sizes(self, folder: str) -> dict[str, int]:
        """Sizes in bytes of all objects under a folder, by path."""
        objects = self._readable()
        if objects is None:
            return {}
        try:
            batches = obstore.list(objects, folder or None, chunk_size=1000)
            return {entry["path"]: entry["size"] for batch in batches for entry in batch}
        except FileNotFoundError:
            return {}
        except (BaseError, OSError) as error:
            raise self._failed("list", folder, error) from None

    def delete(self, paths: Iterable[str]) -> None:
        """Deletes objects; those already gone are no error."""
        for path in paths:
            try:
                obstore.delete(self._writable(), path)
            except FileNotFoundError:
                continue
            except (BaseError, OSError) as error:
                raise self._failed("delete", path, error) from None

    def sweep_unfinished(self) -> None:
        """Removes what processes killed within a put left of samples and weights: local files that no listing shows."""
        if self.is_local:
            for folder in ("slices", "stages"):
                for path in Path(self.uri, folder).rglob("*#*"):
                    path.unlink(missing_ok=True)

    def numbers(self, folder: str) -> list[int]:
        """Numbers of the objects of a numbered series, ascending."""
        pattern = re.compile(rf"{folder}/(\d+)\.json")
        return sorted(int(match[1]) for path in self.sizes(folder) if (match := pattern.fullmatch(path)))

    def stage_files(self) -> dict[str, list[str]]:
        """Paths of all objects of each stage, committed or not, by its key."""
        found: dict[str, list[str]] = {}
        for path in self.sizes("stages"):
            found.setdefault(path.split("/")[1], []).append(path)
        return found

    def committed_stages(self) -> set[str]:
        """Keys of the stages that have a commit record, and the weights that it names."""
        return {k for k, paths in self.stage_files().items() if {stage_record(k), stage_weights(k)} <= set(paths)}

    def slice_digests(self) -> set[str]:
        """Digests of the slice objects present."""
        return {Path(path).stem for path in self.sizes("slices")}

    def read(self, path: str, kind: type[Record], remedy: str = "Restore it from a backup") -> Record:
        """The record of a kind in a JSON object.

        Raises:
            StoreError: absent, or not a valid record.
        """
        return self.parse(path, self.get(path, remedy), kind)

    def find_record(self, path: str, kind: type[Record]) -> Record | None:
        """The record of a kind in a JSON object, or None where there is none."""
        data = self.find(path)
        return None if data is None else self.parse(path, data, kind)

    def parse(self, path: str, data: bytes, kind: type[Record]) -> Record:
        """The record of a kind in the bytes of the object `path`.

        Raises:
            StoreError: not a valid record.
        """
        try:
            return kind.model_validate_json(data)
        except ValidationError as error:
            rule = f"is not a valid {kind.__name__} ({error.error_count()} problem(s): {error.errors()[0]['msg']})"
            raise StoreError(f"{self.uri}/{path}", "", rule, "Restore it from a backup") from None

    def _readable(self) -> obstore.store.ObjectStore | None:
        """None for a local folder that is not there: it holds no object, until this or another process puts one."""
        if self._objects is None:
            try:
                self._objects = (
                    LocalStore(self.uri, automatic_cleanup=True, mkdir=False) if self.is_local else from_url(self.uri)
                )
            except (BaseError, ValueError, OSError) as error:
                if not self.is_local or Path(self.uri).exists():
                    raise self._failed("open", "", error) from None
        return self._objects

    def _writable(self) -> obstore.store.ObjectStore:
        if self._objects is None:
            try:
                self._objects = LocalStore(self.uri, automatic_cleanup=True, mkdir=True)
            except (BaseError, ValueError, OSError) as error:
                raise self._failed("create", "", error) from None
        return self._objects

    def _failed(self, verb: str, path: str, error: Exception) -> StoreError:
        where = f"{self.uri}/{path}" if path else self.uri
        reason = str(error).partition("\n")[0]  # the rest is the library's own trace
        return StoreError(where, "", f"cannot {verb} it: {reason}", "Check the path, its permissions and its server")
