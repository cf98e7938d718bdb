"""Law: nothing below a run's folder leads out of it. Links, pipes and devices are told, and neither read nor followed.

A run that somebody else made may hold any of them. Those above it, in `storage_path`, are the operator's.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from small_runs import dataset, digits, small_config
from typer.testing import CliRunner

from ray_sisa.cli import app
from ray_sisa.errors import SisaError, StoreError
from ray_sisa.local_files import MAX_DEPTH, IrregularFile, LocalFiles
from ray_sisa.run import Run

PLACEMENT = {"shards": 1, "slices": 2, "key": "k"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Run:
    config = small_config(tmp_path_factory.mktemp("runs"), placement=PLACEMENT)
    run = Run.create(config, dataset=dataset(digits(0, 30)))
    run.train(runner="local")
    return run


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    shutil.copytree(trained.store.uri, tmp_path / "run")
    return Run.open(str(tmp_path / "run"))


def folder(run: Run) -> Path:
    return Path(run.store.uri)


def contents(place: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in place.rglob("*") if path.is_file()}


def found(run: Run) -> dict[str, str]:
    return {finding.path: finding.problem for finding in run.check().findings}


def test_links_are_told_and_what_they_lead_to_is_left(run: Run, tmp_path: Path) -> None:
    """Another run and other files stay as they were. A request is completed only where all that it purges is here."""
    other, precious = tmp_path / "other", tmp_path / "precious"
    shutil.copytree(folder(run), other)
    (precious / "deep").mkdir(parents=True)
    (precious / "deep" / "file").write_text("precious")
    links = {"stages/zzz": precious / "deep", "slices/zzz": other / "stages", "x": precious, "features": precious}
    for path, target in links.items():
        (folder(run) / path).symlink_to(target)
    before = contents(other) | contents(precious)
    assert found(run) == dict.fromkeys(links, "is a symbolic link, and is never followed or read")
    run.forget(samples=run.sample_ids(0, 1)[:1])
    with pytest.raises(StoreError, match=r"features is a symbolic link.*Move what it leads to into its place"):
        run.unlearn(runner="local")
    (folder(run) / links.popitem()[0]).unlink()
    assert run.unlearn(runner="local").requests == (1,)
    run.repair(run.check(), runner="local")
    assert contents(other) | contents(precious) == before
    assert found(run).keys() == links.keys()


def fifo(path: Path) -> None:
    os.mkfifo(path)


def listening(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the path of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(4 << 40)


KINDS: list[Callable[[Path], None]] = [fifo, listening, endless, sparse]
PLACES = ["run.json", "lease/00000099.json", "lease/activity.json", "ledger/00000001.json", "segments/00001000.jsonl"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("path", [*PLACES, "weights", "slice"])
def test_what_is_no_file_is_not_read(run: Run, path: str, kind: Callable[[Path], None]) -> None:
    """Neither without end, nor into more memory than there is: each command says what is in the way."""
    lacking = {"weights": "stages/*/weights.safetensors", "slice": "slices/*.arrow"}
    place = next(folder(run).glob(lacking[path])) if path in lacking else folder(run) / path
    if path.startswith("ledger"):
        run.forget(samples=run.sample_ids(0, 1)[:1])
        run.forget(samples=run.sample_ids(0, 1)[1:2])
    place.parent.mkdir(exist_ok=True)
    place.unlink(missing_ok=True)
    kind(place)
    told = run.check()
    assert place.relative_to(folder(run)).as_posix() in {finding.path for finding in told.findings}
    for ask in (Run.status, Run.ensemble):
        try:
            ask(Run.open(run.store.uri))
        except SisaError as error:
            assert place.name in str(error) or "what should exist" in str(error), error
    os.lstat(place)


def test_folders_that_are_links_are_not_written_through(run: Run, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (folder(run) / "reports").symlink_to(tmp_path / "elsewhere")
    for write in (run.store.put, run.store.create):
        with pytest.raises(StoreError, match=r"reports is a symbolic link.*Move what it leads to into its place"):
            write("reports/page.html", b"text")
    with pytest.raises(StoreError, match="cannot read it: reports is a symbolic link"):
        run.store.find("reports/page.html")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_links_to_files_are_replaced_and_deleted_as_links(tmp_path: Path) -> None:
    files, target = LocalFiles(str(tmp_path / "run")), tmp_path / "target"
    files.write("a", b"1")
    target.write_bytes(b"precious")
    (tmp_path / "run" / "link").symlink_to(target)
    with pytest.raises(IrregularFile, match="link is a symbolic link"):
        files.read("link", lambda size: None)
    assert not files.create("link", b"2")
    files.write("link", b"3")
    assert (tmp_path / "run" / "link").read_bytes() == b"3"
    (tmp_path / "run" / "link2").symlink_to(target)
    files.delete("link2")
    assert target.read_bytes() == b"precious"
    assert files.sizes("") == {"a": 1, "link": 1}


@pytest.mark.parametrize("path", ["..", "../a", "a/../b", "/a", "a//b", "./a", ""])
def test_names_that_lead_elsewhere(tmp_path: Path, path: str) -> None:
    files = LocalFiles(str(tmp_path / "run"))
    for ask in (
        lambda: files.read(path, lambda size: None),
        lambda: files.write(path, b"1"),
        lambda: files.delete(path),
    ):
        with pytest.raises(ValueError, match="name"):
            ask()
    assert list(tmp_path.iterdir()) == []


def test_folders_in_folders_without_end(tmp_path: Path) -> None:
    files = LocalFiles(str(tmp_path))
    (tmp_path / "/".join("a" * 200)).mkdir(parents=True)
    assert files.sizes("") == {}
    assert files.irregular() == {"/".join("a" * (MAX_DEPTH + 1)): "a folder within too many others"}


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "\udc80", "a\tb"], ids=ascii)
def test_names_that_are_not_as_they_look(run: Run, name: str) -> None:
    """Told as they are written in Python, and none of them is in the way of a check or a reconcile."""
    (folder(run) / name).write_bytes(b"")
    (folder(run) / "slices" / name).write_bytes(b"")
    assert found(run).keys() == {name, f"slices/{name}"}
    told = CliRunner().invoke(app, ["check", run.store.uri])
    assert f"\n{ascii(name)[1:-1]}: is no object of a run" in f"\n{told.stdout}"
    assert name not in told.stdout
    assert run.train(runner="local").sample_passes == 0
    assert found(run).keys() == {name}
