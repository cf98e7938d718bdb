"""Disks that are full, read-only, forbidden, in the way or taken away: a clear error, and nothing half-written.

Programs that have imported all they need give up root's rights, fill a real small file system, or may write no large
file; then the same command completes, with the same models.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import programs
import pytest
from places import config_in
from small_runs import all_samples, block_over_two_shards, dataset

import ray_sisa.engine.local_runner
import ray_sisa.engine.worker  # noqa: F401
from ray_sisa import audit, verify  # noqa: F401
from ray_sisa.data import Dataset
from ray_sisa.errors import SisaError, StoreError
from ray_sisa.location import join_run
from ray_sisa.run import Run
from ray_sisa.store import Store

NOBODY = 65534
MS_REMOUNT, CLONE_NEWNS, CLONE_NEWUSER = 32, 0x00020000, 0x10000000
SHORT_LEASE = {"RAY_SISA_LEASE_S": "0.5"}
NO_MOUNT = 77  # exit code: this machine lets its users mount nothing


def train_and_forget(storage_path: str) -> list[str]:
    """Digests of the ensembles of a whole run."""
    run = Run.create(config_in(storage_path), dataset=data())
    # It may have to wait: where nothing can be written, a lease cannot be given back, and ends by itself.
    trained = run.train(runner="local", wait_s=60).ensemble_digest
    run.forget(samples=block_over_two_shards(run), key="the block")
    return [trained, run.unlearn(runner="local", wait_s=60).ensemble_digest]


@functools.cache
def data() -> Dataset:
    return dataset(all_samples())


def refused(action: Callable[[], object]) -> str:
    """The message of the error that an action raises."""
    with pytest.raises(SisaError) as caught:  # of a worker it is a TrainingError, with the StoreError inside
        action()
    return str(caught.value)


# --- forbidden


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A folder that any user reaches and may write."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


def without_rights(storage_path: str) -> None:
    """Prints what an ordinary user is told about folders that it may not write or read, and its models afterwards."""
    data()
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    folder = Path(storage_path)
    folder.mkdir(mode=0o500)
    told = {"make": refused(lambda: train_and_forget(storage_path))}
    folder.chmod(0o700)
    digests = train_and_forget(storage_path)
    store = Store(join_run(storage_path, "run"))
    objects = Path(store.uri)
    for path in [objects, *objects.rglob("*")]:
        if path.is_dir():
            path.chmod(0o500)
    told["put"] = refused(lambda: store.put("ledger/00000002.json", b"{}"))
    told["create"] = refused(lambda: store.create("ledger/00000002.json", b"{}"))
    told["delete"] = refused(lambda: store.delete(["ledger/00000001.json"]))
    told["forget"] = refused(lambda: Run.open(store.uri).forget(samples=["digit-0001"]))
    told["unlearn"] = refused(lambda: Run.open(store.uri).unlearn(runner="local"))
    still = Run.open(store.uri).status().complete
    (objects / "ledger" / "00000001.json").chmod(0)
    told["get"] = refused(lambda: store.find("ledger/00000001.json"))
    (objects / "ledger" / "00000001.json").chmod(0o400)
    (objects / "ledger").chmod(0)
    told["numbers"] = refused(lambda: store.numbers("ledger"))
    told["sizes"] = refused(lambda: store.sizes("ledger"))
    for path in [objects, *objects.rglob("*"), objects / "ledger"]:
        if path.is_dir():
            path.chmod(0o700)
    print(json.dumps({"told": told, "still": still, "digests": digests, "sound": Run.open(store.uri).check().ok}))


def test_what_may_not_be_read_or_written(open_to_all: Path, expected: tuple[str, str]) -> None:
    ended = programs.start(without_rights, str(open_to_all / "runs"), environment=SHORT_LEASE).wait()
    assert ended.code == 0, ended.err
    answer = ended.answer
    for action, message in answer["told"].items():
        assert message.startswith(str(open_to_all / "runs" / "run")), (action, message)
        assert "Permission denied" in message, (action, message)
        assert "Let this user read and write there" in message, (action, message)
    assert tuple(answer["digests"]) == expected
    assert answer["still"] is answer["sound"] is True


# --- full


def in_little_space(storage_path: str) -> None:
    """Trains and forgets on a file system that is doubled whenever it is full; prints errors and digests."""
    mount(storage_path, kilobytes := 32)
    told, unsound = [], []
    while True:
        try:
            digests = train_and_forget(storage_path)
            break
        except SisaError as error:
            told.append(str(error))
        unsound += damage(storage_path)
        mount(storage_path, kilobytes := kilobytes * 3 // 2, MS_REMOUNT)
    unsound += damage(storage_path)
    print(json.dumps({"told": told, "digests": digests, "unsound": unsound}))


def damage(storage_path: str) -> list[str]:
    """What of a run is not whole, apart from what is not yet there; and files that no listing shows."""
    store = Store(join_run(storage_path, "run"))
    found = [f.path for f in Run.open(store.uri).check().findings] if store.find("run.json") else []
    return found + [str(path) for path in Path(storage_path).rglob("*#*")]


def mount(place: str, kilobytes: int, flags: int = 0) -> None:
    """Makes a place a file system of its own that holds so much; ends the program where nobody may."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not flags:
        user, group = os.geteuid(), os.getegid()
        Path(place).mkdir()
        if libc.unshare(CLONE_NEWNS | (CLONE_NEWUSER if user else 0)):
            raise SystemExit(NO_MOUNT)
        if user:
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        libc.mount(None, b"/", None, 0x40000 | 0x4000, None)  # private: nobody else is to see it
    if libc.mount(b"tmpfs", place.encode(), b"tmpfs", flags, f"size={kilobytes}k".encode()):
        raise SystemExit(NO_MOUNT)


def test_a_full_disk(tmp_path: Path, expected: tuple[str, str]) -> None:
    ended = programs.start(in_little_space, str(tmp_path / "runs"), environment=SHORT_LEASE).wait()
    if ended.code == NO_MOUNT:
        pytest.skip("this machine lets its users mount nothing")
    assert ended.code == 0, ended.err
    answer = ended.answer
    assert len(answer["told"]) > 3
    for message in answer["told"]:
        assert str(tmp_path / "runs" / "run") in message
        assert "No space left" in message, message
        assert "Free some space, then run the same command again" in message
    assert answer["unsound"] == []
    assert tuple(answer["digests"]) == expected


def with_small_files(storage_path: str) -> None:
    """The same where no file may grow beyond a limit, which any user can have."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    told, unsound = [], []
    for limit in (500, 3000, 12_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        told.append(refused(lambda: train_and_forget(storage_path)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        unsound += damage(storage_path)
    digests = train_and_forget(storage_path)
    print(json.dumps({"told": told, "digests": digests, "unsound": unsound + damage(storage_path)}))


def test_files_that_may_not_grow(tmp_path: Path, expected: tuple[str, str]) -> None:
    ended = programs.start(with_small_files, str(tmp_path / "runs"), environment=SHORT_LEASE).wait()
    assert ended.code == 0, ended.err
    answer = ended.answer
    for message in answer["told"]:
        assert str(tmp_path / "runs" / "run") in message
        assert "Free some space" in message
    assert answer["unsound"] == []
    assert tuple(answer["digests"]) == expected


# --- in the way, or taken away


@pytest.mark.parametrize("what", ["a file", "below a file", "a dangling link", "a link to itself"])
def test_what_is_no_folder(what: str, tmp_path: Path) -> None:
    place = tmp_path / "runs"
    if what == "a dangling link":
        place.symlink_to(tmp_path / "nowhere" / "else")
    elif what == "a link to itself":
        place.symlink_to(place)
    else:
        place.write_text("text")
    storage_path = str(place / "below" if what == "below a file" else place)
    if what == "a dangling link":
        # What it points to is made, as for any folder that is not there yet.
        train_and_forget(storage_path)
        assert (tmp_path / "nowhere" / "else" / "run" / "run.json").exists()
        return
    before = place.lstat()
    message = refused(lambda: train_and_forget(storage_path))
    assert str(place) in message
    assert "choose another storage_path" in message or "Symlink loop" in message
    assert place.lstat() == before
    if what != "a link to itself":
        assert place.read_text() == "text"
    for verb in ("find", "numbers", "sizes"):
        with suppress(StoreError):
            assert not getattr(Store(join_run(storage_path, "run")), verb)("ledger")


@pytest.mark.parametrize("point", ["before put stages/weights 2", "before create heads"])
def test_a_folder_that_is_taken_away(
    point: str, tmp_path: Path, config_file: Callable[..., str], expected: tuple[str, str]
) -> None:
    storage_path = str(tmp_path / "runs")
    command = ("train", config_file(storage_path), "--runner", "local")
    program = programs.ray_sisa(*command, environment={"RAY_SISA_CRASH_AT": f"stop {point}"})
    programs.wait_until(lambda: programs.state_of(program) == "T", program)
    shutil.rmtree(storage_path)
    os.kill(program.pid, signal.SIGCONT)
    ended = program.wait()
    assert ended.code == 1
    assert "error: " in ended.err and "Traceback" not in ended.err.partition("failed (application)")[0]
    assert storage_path in ended.err
    again = programs.ray_sisa(*command, "--json").wait()
    assert again.code == 0, again.err
    assert again.answer["ensemble_digest"] == expected[0]
    assert Run.open(join_run(storage_path, "run")).check().ok
