"""The objects in a local folder: regular files, read, written, listed and deleted without following a link.

A run's folder may come from somebody else. So each folder on the way to a file is opened from the one before it, and
never through a link; only regular files are read; and whatever else lies there is told, and left alone.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from ray_sisa import modes
from ray_sisa.layout import HEADS, RUN

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
BELOW = os.O_NOFOLLOW | os.O_CLOEXEC
MAX_DEPTH = 8  # twice what a run has
NUM_TRIES = 100  # to write into a folder that others remove, since it is empty
KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder within too many others",
}


class IrregularFile(OSError):
    """Something that is no file stands where a file or a folder is expected."""

    def __init__(self, path: str, what: str) -> None:
        super().__init__(f"{path} is {what}: below a run's folder only files and folders are looked at")


class LocalFiles:
    """The files below a folder, by their path in it. A method raises OSError or ValueError where it cannot do it."""

    def __init__(self, root: str, mode: modes.StorageMode = "owner") -> None:
        """Takes a folder without links in its own path; if it is not there yet, it is made with this mode."""
        self._root, self._mode = root, mode

    def read(self, path: str, check: Callable[[int], None]) -> bytes:
        """The bytes of a file, once `check` has passed its size."""
        folder, name = _split(path)
        with self._open(folder) as handles:
            _require_file(os.stat(name, dir_fd=handles[-1], follow_symlinks=False), path)
            # Without a wait for the other end of a pipe that took the file's place meanwhile.
            handle = os.open(name, os.O_RDONLY | os.O_NONBLOCK | BELOW, dir_fd=handles[-1])
            with open(handle, "rb") as file:
                size = _require_file(os.fstat(handle), path)
                check(size)
                return file.read(size)

    def write(self, path: str, data: bytes) -> None:
        """Puts a file under its name, in place of any that is there: all of it at once, and on the disk."""
        self._put(path, data, _replace)

    def create(self, path: str, data: bytes) -> bool:
        """Likewise, unless something of that name is there; False then."""
        try:
            self._put(path, data, _link)
        except FileExistsError:
            return False
        return True

    def delete(self, path: str) -> None:
        """Deletes a file, or a link and not what it leads to; and the folders that it leaves empty."""
        folder, name = _split(path)
        try:
            with self._open(folder) as handles:
                os.unlink(name, dir_fd=handles[-1])
                with suppress(OSError):  # not empty
                    for parent, inner in reversed(list(zip(handles, folder, strict=False))):
                        os.rmdir(inner, dir_fd=parent)
        except NotADirectoryError as error:  # what has the folder's name is a file, and none is in it
            raise FileNotFoundError(*error.args) from None

    def sizes(self, folder: str) -> dict[str, int]:
        """Sizes in bytes of all files under a folder, by path; without those that are still being written."""
        found = self._walk(folder)
        return {path: about.st_size for path, about in found if stat.S_ISREG(about.st_mode) and not _is_passing(path)}

    def unfinished(self, folder: str) -> dict[str, float]:
        """Files under a folder that processes, at work or killed, have begun to write: how old in seconds, by path."""
        ages: dict[str, float] = {}
        with suppress(IrregularFile):  # nothing is written through a link
            for path, about in self._walk(folder):
                if stat.S_ISREG(about.st_mode) and "#" in path.rpartition("/")[2]:
                    ages[path] = time.time() - about.st_mtime
        return ages

    def irregular(self) -> dict[str, str]:
        """What is neither a file nor a folder, or too deep: what it is, by path."""
        return {path: _kind(about) for path, about in self._walk("") if not stat.S_ISREG(about.st_mode)}

    def names(self, folder: str) -> list[str]:
        """Names of all that is in a folder, whatever it is; none where there is no folder."""
        try:
            with self._open(_parts(folder)) as handles:
                return os.listdir(handles[-1])
        except FileNotFoundError:
            return []

    def _walk(self, folder: str) -> Iterator[tuple[str, os.stat_result]]:
        try:
            with self._open(_parts(folder)) as handles:
                yield from _below(handles[-1], folder)
        except FileNotFoundError:
            return

    def _put(self, path: str, data: bytes, name_it: Callable[[int, str, str], None]) -> None:
        folder, name = _split(path)
        for tries_left in reversed(range(NUM_TRIES)):
            try:
                with self._open(folder, make=True) as handles:
                    _write(handles[-1], name, data, name_it)
                    for handle in reversed(handles):  # which name it, or one another
                        os.fsync(handle)
                return
            except FileNotFoundError as error:
                if not tries_left:
                    raise OSError(f"its folder is removed again and again: {error}") from None

    @contextmanager
    def _open(self, folder: Sequence[str], *, make: bool = False) -> Iterator[list[int]]:
        """Handles of the root and of each folder on the way to one below it, that one last."""
        with ExitStack() as opened:
            handles: list[int] = []
            for depth in range(len(folder) + 1):
                below = "/".join(folder[:depth])
                handles.append(_enter(handles[-1], below, make) if below else self._enter_root(make))
                opened.callback(os.close, handles[-1])
            yield handles

    def _enter_root(self, make: bool) -> int:
        try:
            return os.open(self._root, FOLDER)
        except FileNotFoundError:
            if not make:
                raise
        missing = [at for at in (Path(self._root), *Path(self._root).parents) if not at.exists()]
        modes.make_folder(Path(self._root), self._mode)
        for made in missing:
            _sync(made.parent)
        return os.open(self._root, FOLDER)


def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run, rather than one with a file of that name."""
    return (folder / RUN).is_file() and any((folder / inner).is_dir() for inner in ("index", "stages", HEADS))


def _enter(parent: int, path: str, make: bool) -> int:
    """A handle of the folder at `path`, in the one that `parent` is a handle of."""
    name = path.rpartition("/")[2]
    try:
        return os.open(name, FOLDER | BELOW, dir_fd=parent)
    except FileNotFoundError:
        if not make:
            raise
    except OSError as error:
        # Linux says of a link that it is no folder, others that there are too many.
        if error.errno in (errno.ENOTDIR, errno.ELOOP, errno.EMLINK):
            about = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISLNK(about.st_mode):
                raise IrregularFile(path, _kind(about)) from None
        raise
    with suppress(FileExistsError):
        os.mkdir(name, mode=0o700, dir_fd=parent)
    made = os.open(name, FOLDER | BELOW, dir_fd=parent)
    modes.follow(parent, made)
    return made


def _below(handle: int, folder: str) -> Iterator[tuple[str, os.stat_result]]:
    """All that lies under a folder, but for folders; those that are too deep are not entered."""
    with os.scandir(handle) as entries:
        names = [entry.name for entry in entries]
    for name in names:
        path = f"{folder}/{name}" if folder else name
        with suppress(FileNotFoundError):  # gone since
            about = os.stat(name, dir_fd=handle, follow_symlinks=False)
            if not stat.S_ISDIR(about.st_mode) or path.count("/") >= MAX_DEPTH:
                yield path, about
                continue
            inner = _enter(handle, path, make=False)
            try:
                yield from _below(inner, path)
            finally:
                os.close(inner)


def _write(folder: int, name: str, data: bytes, name_it: Callable[[int, str, str], None]) -> None:
    passing = f"{name}#{secrets.randbelow(10**12)}"
    handle = os.open(passing, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BELOW, 0o600, dir_fd=folder)
    try:
        with open(handle, "wb") as file:
            modes.follow(folder, handle)
            file.write(data)
            file.flush()
            os.fsync(handle)
        name_it(folder, passing, name)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(passing, dir_fd=folder)


def _replace(folder: int, passing: str, name: str) -> None:
    os.rename(passing, name, src_dir_fd=folder, dst_dir_fd=folder)


def _link(folder: int, passing: str, name: str) -> None:
    os.link(passing, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)


def _sync(folder: Path) -> None:
    handle = os.open(folder, FOLDER)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _require_file(about: os.stat_result, path: str) -> int:
    """The size of a file.

    Raises:
        IrregularFile: it is none.
    """
    if not stat.S_ISREG(about.st_mode):
        raise IrregularFile(path, _kind(about))
    return about.st_size


def _kind(about: os.stat_result) -> str:
    return KINDS.get(stat.S_IFMT(about.st_mode), "no file")


def _is_passing(path: str) -> bool:
    """Whether a name is one under which a file is written before it gets its own."""
    return path.rpartition("#")[2].isdigit() and "#" in path.rpartition("/")[2]


def _split(path: str) -> tuple[list[str], str]:
    *folder, name = _parts(path) or [""]
    if not name:
        raise ValueError("an object needs a name")
    return folder, name


def _parts(path: str) -> list[str]:
    """The names on the way to a path; none for the root.

    Raises:
        ValueError: one that is no name, and might lead elsewhere.
    """
    parts = path.split("/") if path else []
    if not {"", ".", ".."}.isdisjoint(parts):
        raise ValueError(f"{path!r} is no name of an object")
    return parts
