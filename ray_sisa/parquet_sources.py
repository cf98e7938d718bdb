"""Which Parquet files a source means: a file, a folder, a pattern, or a list of these, local or in an object store.

Owns what is read of a folder, in which order, and whether two sources share files. Opens no file: `parquet_files` does.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType, LocalFileSystem

from ray_sisa import uploads, uris
from ray_sisa.errors import DataError
from ray_sisa.parquet_files import File

Location = str | Sequence[str]
"""A file, a folder, a pattern, a URI of any of these, or several of these."""

_WILD = re.compile(r"[*?\[]")
_WILD_IN_URI = re.compile(r"[*\[]")  # where a question mark begins the options
_KEY_AND_VALUE = re.compile(r"[^=]+=.*")


def find(location: Location, field: str) -> list[File]:
    """The files of a source: those of a list in its order, those of a folder or of a pattern sorted by path.

    Of a folder these are its own *.parquet files; where it has none, those in folders KEY=VALUE below it. A pattern is
    for files: `*`, `?` and `[...]` stay within a name, and `**` stands for any number of folders. Of URIs `?` begins
    the options.

    Raises:
        DataError: there are none, or they cannot be opened.
    """
    parts = [location] if isinstance(location, str) else list(location)
    return [file for part in parts for file in _files(part, field)]


def check_apart(train: Location, test: Location | None) -> None:
    """Passes if no file stands twice in a source, and none in both; links count as what they lead to.

    What files hold is not looked at: `overlap` does.

    Raises:
        DataError: a file that stands twice.
    """
    training = _once(find(train, "data.train"))
    testing = find(test, "data.test") if test is not None else []
    shared = [file.name for file in testing if _is_among(file, training)]
    if test is not None and shared:
        value = test if isinstance(test, str) else ", ".join(test)
        rule = (
            f"shares {len(shared)} of its {len(testing)} file(s) with data.train, {shared[0]} the first: the test set "
            "would be trained on"
        )
        remedy = "Name the training files alone, for example data/train-*.parquet, or set data.allow_overlap: true"
        raise DataError("data.test", value, rule, remedy)
    _once(testing)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Place:
    """A part of a source.

    Attributes:
        filesystem: where it lies.
        path: of a file or folder there.
        name: what errors call that path, without options and secrets.
        pattern: names to match below the folder, one a level.
    """

    filesystem: FileSystem
    path: str
    name: str
    pattern: tuple[str, ...]

    def entries(self, folder: str) -> list[FileInfo]:
        """What a folder holds, by name."""
        return sorted(self.filesystem.get_file_info(FileSelector(folder)), key=lambda entry: str(entry.base_name))

    def is_link(self, entry: FileInfo) -> bool:
        """Whether an entry is a link, which may lead around in circles."""
        return isinstance(self.filesystem, LocalFileSystem) and os.path.islink(entry.path)


def _files(location: str, field: str) -> list[File]:
    try:
        place = _resolve(location, field)
        paths = _paths(place, location, field)
    except (OSError, pa.ArrowException) as error:
        rule = f"cannot be opened: {error}"
        raise DataError(field, location, rule, "Check the path and the access to it") from None
    return [
        File(field=field, name=place.name + path[len(place.path) :], filesystem=place.filesystem, path=path)
        for path in paths
    ]


def _paths(place: _Place, name: str, field: str) -> list[str]:
    """Paths of the files of a place, sorted."""
    kind = place.filesystem.get_file_info(place.path).type
    if kind == FileType.NotFound:
        remedy = "Check the path; a relative one starts at the working folder"
        raise DataError(field, name, "does not exist", uploads.remedy_of_absent(name, remedy))
    if place.pattern:
        found = set(_matching(place, place.path, place.pattern))
        rule = "is a pattern that no file matches"
        remedy = uploads.remedy_of_absent(name, "A pattern is for files, for example data/train-*.parquet")
    elif kind == FileType.File:
        found, rule, remedy = {place.path}, "", ""
    else:
        found = set(_in_folder(place, place.path, field))
        rule = "is a folder without *.parquet files; of the folders in it only those named KEY=VALUE are read"
        remedy = "Name the folder that holds them, or a pattern such as data/**/*.parquet"
    if not found:
        raise DataError(field, name, rule, remedy)
    return sorted(found)


def _in_folder(place: _Place, folder: str, field: str) -> list[str]:
    """Paths of the Parquet files of a folder, or of those below it in folders KEY=VALUE."""
    entries = place.entries(folder)
    files = [e.path for e in entries if e.is_file and e.base_name.endswith(".parquet")]
    keyed = [e.path for e in entries if e.type == FileType.Directory and _KEY_AND_VALUE.fullmatch(e.base_name)]
    if files and keyed:
        rule = f"holds both *.parquet files and folders KEY=VALUE, such as {os.path.basename(keyed[0])}"
        remedy = "Name what is meant by a pattern: data/*.parquet, or data/*=*/*.parquet"
        raise DataError(field, place.name + folder[len(place.path) :], rule, remedy)
    return files or [path for below in keyed for path in _in_folder(place, below, field)]


def _matching(place: _Place, folder: str, pattern: Sequence[str]) -> Iterator[str]:
    """Paths of the files below a folder that a pattern matches; hidden names only where it says so."""
    name, rest = pattern[0], pattern[1:]
    if name == "**":
        yield from _matching(place, folder, rest or ("*",))
    for entry in place.entries(folder):
        is_folder, is_hidden = entry.type == FileType.Directory, entry.base_name.startswith(".")
        if is_hidden and not name.startswith("."):
            continue
        if name == "**":
            if is_folder and not place.is_link(entry):
                yield from _matching(place, entry.path, pattern)
        elif fnmatch.fnmatchcase(entry.base_name, name):
            if rest and is_folder:
                yield from _matching(place, entry.path, rest)
            elif not rest and entry.is_file:
                yield entry.path


def _resolve(location: str, field: str) -> _Place:
    if "://" in location:
        return _resolve_uri(uris.parse(location, field, DataError))
    parts = location.split("/")
    first = next((i for i, part in enumerate(parts) if _WILD.search(part)), len(parts))
    if os.path.lexists(os.path.expanduser(location)):
        first = len(parts)  # a name that is there is meant as it is, whatever it holds
    head = "/".join(parts[:first]) or ("/" if location.startswith("/") else ".")
    path = os.path.abspath(os.path.expanduser(head))
    return _Place(filesystem=LocalFileSystem(), path=path, name=_bare(head), pattern=_names(parts[first:]))


def _resolve_uri(uri: uris.Uri) -> _Place:
    scheme, _, rest = uri.base.partition("://")
    parts = rest.split("/")
    # The first part is a bucket or a host, and no pattern.
    first = next((i for i, part in enumerate(parts) if i and _WILD_IN_URI.search(part)), len(parts))
    head = f"{scheme}://{'/'.join(parts[:first]) or '/'}"
    filesystem, path = FileSystem.from_uri(head + (f"?{uri.query}" if uri.query else ""))
    pattern = tuple(map(unquote, _names(parts[first:])))
    return _Place(filesystem=filesystem, path=_bare(path), name=_bare(head), pattern=pattern)


def _names(parts: Sequence[str]) -> tuple[str, ...]:
    return tuple(part for part in parts if part not in ("", "."))


def _bare(path: str) -> str:
    return path.rstrip("/") or "/"


_Known = dict[tuple[object, ...], File]


def _once(files: Sequence[File]) -> _Known:
    """The files by what tells them apart."""
    known: _Known = {}
    for file in files:
        if _is_among(file, known):
            rule = f"stands twice in the source, the first time as {known[_identity(file)].name}"
            raise DataError(file.field, file.name, f"{rule}: its samples would count twice", "Name each file once")
        known[_identity(file)] = file
    return known


def _is_among(file: File, known: _Known) -> bool:
    found = known.get(_identity(file))
    return found is not None and bool(found.filesystem == file.filesystem)


def _identity(file: File) -> tuple[object, ...]:
    """What is the same of two files under one path, or linked to each other."""
    if not isinstance(file.filesystem, LocalFileSystem):
        return file.filesystem.type_name, file.path
    try:
        status = os.stat(file.path)
    except OSError as error:
        raise file.unreadable(error) from None
    return status.st_dev, status.st_ino
