"""The object store of a run: atomic puts, conditional create, and every failure an error that names object and remedy.

An object is written once under its name and never changed. Nothing here knows what the objects mean; `layout` says
where they lie.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError
from pydantic import ValidationError

from ray_sisa import bounds, location, modes, probe
from ray_sisa.digests import unseal
from ray_sisa.errors import StoreError
from ray_sisa.foreign_text import escaped
from ray_sisa.layout import (
    BACKUP,
    DIGITS,
    FEATURES,
    NUMBERED,
    PROBES,
    RUN,
    damaged,
    divergence_record,
    kind_of,
    slice_object,
    stage_record,
    stage_weights,
)
from ray_sisa.local_files import LocalFiles
from ray_sisa.location import open_remote, resolve_uri, without_options

if TYPE_CHECKING:
    from ray_sisa.records import StoredRecord

Record = TypeVar("Record", bound="StoredRecord")
Result = TypeVar("Result")

NUM_READERS = 16  # requests to a server at a time
SMALL, MAX_PIECE = 5 << 20, 4 << 30  # bytes
UNFINISHED = (FEATURES, "slices", "stages", PROBES)
OLD_S = 3600.0  # far longer than a probe takes
PAUSE_S = 0.5  # between two requests to a server that fails
_PROVEN: set[str] = set()  # stores that refuse to create what is there, as far as this process has tried


class Store:
    """Objects under one URI or folder, with atomic puts and conditional create. Survives pickling."""

    def __init__(self, uri: str, mode: modes.StorageMode = "owner") -> None:
        """Takes a folder or URI, and who may look into a folder that is yet to be made."""
        self.uri = resolve_uri(uri)
        self._mode = mode
        self.is_local = self.uri.startswith("/")
        self._files = LocalFiles(self.uri, mode) if self.is_local else None
        self._objects = None if self.is_local else open_remote(self.uri)
        self._outage = location.Outage()
        self._uploaders: dict[int, obstore.store.ObjectStore] = {}

    def __reduce__(self) -> tuple[type[Store], tuple[str, modes.StorageMode]]:
        return (Store, (self.uri, self._mode))

    def where(self, path: str) -> str:
        """An object as messages name it."""
        return f"{without_options(self.uri)}/{escaped(path)}"

    def find(self, path: str) -> bytes | None:
        """The bytes of an object, or None where there is none."""

        def read() -> bytes:
            if self._files:
                return self._files.read(path, partial(self._check_size, path))
            found = obstore.get(self._remote, path)
            self._check_size(path, found.meta["size"])
            return found.bytes().to_bytes()

        try:
            return self._insist("read", path, read)
        except FileNotFoundError:
            return None

    def find_all(self, paths: Sequence[str]) -> list[bytes | None]:
        """The bytes of many objects, in order; from a server several are read at a time."""
        if self.is_local or len(paths) < 2:
            return [self.find(path) for path in paths]
        # The first alone: where nothing can be read, that is found out once and not by each.
        first = self.find(paths[0])
        with ThreadPoolExecutor(min(NUM_READERS, len(paths) - 1)) as readers:
            return [first, *readers.map(self.find, paths[1:])]

    def get(self, path: str, remedy: str = BACKUP) -> bytes:
        """The bytes of an object.

        Raises:
            StoreError: there is no such object, or it cannot be read; `remedy` says what to do about the first.
        """
        data = self.find(path)
        if data is None:
            raise StoreError(self.where(path), "", "is not there", remedy)
        return data

    def put(self, path: str, data: bytes) -> None:
        """Writes an object whose name follows from its content, atomically; a second time changes nothing."""
        if self._files:
            return self._insist("write", path, partial(self._files.write, path, data))
        # In one piece: parts of an upload that was cut short stay with a server, and no listing shows them.
        multipart = len(data) > MAX_PIECE
        self._insist("write", path, lambda: obstore.put(self._uploader(len(data)), path, data, use_multipart=multipart))

    def create(self, path: str, data: bytes) -> bool:
        """Writes an object unless one of that name is there; False then. Of several writers, one gets True.

        Where the reply to a write is lost it is written again, and finds itself: equal bytes are this very write.

        Raises:
            StoreError: it cannot be written, or the store would let others create it too.
        """
        self.prove()
        return self._create(path, data)

    def prove(self) -> None:
        """Passes where the store refuses to create what is there, which a process tries once: see `probe`.

        Raises:
            StoreError: it does not refuse.
        """
        if self.uri not in _PROVEN:
            probe.prove(self, self._create)
            _PROVEN.add(self.uri)

    def _create(self, path: str, data: bytes) -> bool:
        if self._files:
            return self._insist("write", path, partial(self._files.create, path, data))
        deadline = time.monotonic() + location.TIMEOUT_S
        while True:
            try:
                self._insist("write", path, lambda: obstore.put(self._uploader(len(data)), path, data, mode="create"))
                return True
            except AlreadyExistsError as error:
                there = self.find(path)
                if there is not None:
                    return there == data
                if time.monotonic() > deadline:
                    raise self._failed("write", path, error) from None
                time.sleep(PAUSE_S)  # a server says so too of a write that it has not decided on yet

    def sizes(self, folder: str) -> dict[str, int]:
        """Sizes in bytes of all objects under a folder, by path."""

        def collect() -> dict[str, int]:
            if self._files:
                return self._files.sizes(folder)
            batches = obstore.list(self._remote, folder or None, chunk_size=1000)
            return {entry["path"]: entry["size"] for batch in batches for entry in batch}

        try:
            return self._insist("list", folder, collect)
        except FileNotFoundError:
            return {}

    def delete(self, paths: Iterable[str]) -> None:
        """Deletes objects, in this order; those already gone are no error.

        Raises:
            StoreError: they cannot be deleted, or another run is among them; none was then.
        """
        doomed = list(paths)
        if inner := next((path for path in doomed if path.endswith(f"/{RUN}")), None):
            rule = "is another run, in the folder of this one, which would remove it"
            raise StoreError(self.where(inner), "", rule, "Move that run elsewhere, then run the same command again")
        if self._objects:
            try:
                if doomed:
                    self._insist("delete", doomed[0], lambda: obstore.delete(self._remote, doomed))
                return
            except FileNotFoundError:
                pass  # some kinds of server say so of any that is gone: one by one then
        delete = self._files.delete if self._files else partial(obstore.delete, self._remote)
        for path in doomed:
            with suppress(FileNotFoundError):
                self._insist("delete", path, partial(delete, path))

    def sweep_unfinished(self) -> None:
        """Removes what processes killed within a write left: probes, and local files that no listing shows."""
        self.delete([*self.sizes(PROBES), *self.unfinished()])

    def unfinished(self) -> list[str]:
        """Local files of samples, weights and probes that processes, at work or killed, have begun to write."""
        if (files := self._files) is None:
            return []
        ages = {folder: self._insist("list", folder, partial(files.unfinished, folder)) for folder in UNFINISHED}
        # Whoever takes a request probes without the lease: what is being written now is not to be swept.
        return [path for folder, found in ages.items() for path in found if folder != PROBES or found[path] > OLD_S]

    def irregular(self) -> dict[str, str]:
        """What is neither file nor folder in a local folder, by path: what it is. It is neither read nor followed."""
        return self._insist("list", "", self._files.irregular) if self._files else {}

    def numbers(self, folder: str, after: int = 0) -> list[int]:
        """Numbers, above `after`, of the objects of a numbered series, ascending."""
        matches = (NUMBERED.fullmatch(name) for name in self._names(folder, after))
        return sorted(number for match in matches if match and (number := int(match[1])) > after)

    def _names(self, folder: str, after: int) -> Iterable[str]:
        """Names of files in a folder, those of a number up to `after` possibly left out."""

        def collect() -> list[str]:
            if self._files:
                return self._files.names(folder)
            offset = f"{folder}/{after:0{DIGITS}d}." if after else None
            batches = obstore.list(self._remote, folder, offset=offset, chunk_size=1000)
            return [entry["path"].removeprefix(f"{folder}/") for batch in batches for entry in batch]

        return self._insist("list", folder, collect)

    def stage_files(self) -> dict[str, list[str]]:
        """Paths of all objects of each stage, committed or not, by its key."""
        found: dict[str, list[str]] = {}
        for path in self.sizes("stages"):
            found.setdefault(path.split("/")[1], []).append(path)
        return found

    def committed_stages(self) -> set[str]:
        """Keys of the stages that have a commit record, and the weights that it names."""
        return {k for k, paths in self.stage_files().items() if {stage_record(k), stage_weights(k)} <= set(paths)}

    def diverged_stages(self) -> set[str]:
        """Keys of the stages that have a record of their divergence, and are not committed."""
        files = {k: set(paths) for k, paths in self.stage_files().items()}
        committed = {k for k, paths in files.items() if {stage_record(k), stage_weights(k)} <= paths}
        return {k for k, paths in files.items() if divergence_record(k) in paths} - committed

    def slice_digests(self) -> set[str]:
        """Digests of the slice objects present."""
        stems = {path: Path(path).stem for path in self.sizes("slices")}
        return {stem for path, stem in stems.items() if path == slice_object(stem)}

    def read(self, path: str, kind: type[Record], remedy: str = BACKUP) -> Record:
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
            StoreError: changed since it was written, not a valid record, or that of another object.
        """
        try:
            record = kind.model_validate_json(unseal(data))
        except ValidationError as error:
            rule = f"is not a valid {kind.__name__} ({error.error_count()} problem(s): {error.errors()[0]['msg']})"
        except ValueError as error:
            rule = f"is not a valid {kind.__name__}: {error}"
        else:
            if record.path in (None, path):
                return record
            rule = f"is a {kind.__name__} that belongs at {record.path}: objects were swapped"
        raise StoreError(self.where(path), "", rule, damaged(path))

    @property
    def _remote(self) -> obstore.store.ObjectStore:
        assert self._objects  # where it is no folder
        return self._objects

    def _uploader(self, size: int) -> obstore.store.ObjectStore:
        """The objects, with time enough to write so many bytes at a megabyte a second."""
        if size <= SMALL:
            return self._remote
        seconds = 1 << (size // SMALL).bit_length()
        if seconds not in self._uploaders:
            self._uploaders[seconds] = open_remote(self.uri, seconds * SMALL / 1e6)
        return self._uploaders[seconds]

    def _check_size(self, path: str, size: int) -> None:
        """Passes an object of a size that its kind may have.

        Raises:
            StoreError: it may not; nothing was read.
        """
        if rule := bounds.refusal(path, size):
            raise StoreError(self.where(path), "", rule, damaged(path))

    def _insist(self, verb: str, path: str, request: Callable[[], Result]) -> Result:
        """Makes a request, and again while a server fails for what may be a passing reason.

        The library repeats what surely may be repeated; every request made here may, since objects never change.
        """
        if not self.is_local:
            location.check_not_forked(self.where(""))
        first = time.monotonic()
        while True:
            began = time.monotonic()
            try:
                result = request()
            except BaseException as error:
                if location.is_answer(error):
                    self._outage.answered()
                if location.is_answer(error) or not location.is_failure(error):
                    raise
                failure = self._failed(verb, path, error)
                if self.is_local or not location.may_pass(error, self._outage.has_answered):
                    raise failure from None
                if self._outage.is_first():
                    location.check_not_plain(self.uri)
                away = self._outage.failed(began, f"{failure.field}: {failure.rule}")
                if max(away, time.monotonic() - first) > location.TIMEOUT_S:
                    raise failure from None
            else:
                self._outage.answered()
                return result
            time.sleep(PAUSE_S)

    def _failed(self, verb: str, path: str, error: BaseException) -> StoreError:
        where = self.where(path) if path else without_options(self.uri)
        return StoreError(where, "", f"cannot {verb} it: {location.reason(error)}", location.remedy(error))


if "RAY_SISA_CRASH_AT" in os.environ:
    from ray_sisa import crash

    crash.arm(Store, kind_of)
