"""Who of a machine may look into a run on its disk, whatever the umask says."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_runs import all_samples, dataset, small_config

from ray_sisa.modes import StorageMode
from ray_sisa.run import Run
from ray_sisa.store import Store


@pytest.fixture(params=[0o000, 0o022, 0o077], ids=["umask 000", "umask 022", "umask 077"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> set[tuple[str, int]]:
    """Modes of a folder and of all that is in it, by whether it is a folder."""
    return {
        ("folder" if path.is_dir() else "file", stat.S_IMODE(path.stat().st_mode))
        for path in (folder, *folder.rglob("*"))
    }


def test_a_new_run_is_its_owners_alone(tmp_path: Path) -> None:
    run = Run.create(small_config(tmp_path), dataset=dataset(all_samples()))
    run.forget(samples=run.sample_ids(0, 1)[:1])
    assert modes(tmp_path / "run") == {("folder", 0o700), ("file", 0o600)}
    assert b"storage_mode" not in run.store.get("run.json")  # as it was before there was a choice


@pytest.mark.parametrize(("mode", "folder", "file"), [("owner", 0o700, 0o600), ("group", 0o2770, 0o660)])
def test_the_mode_is_the_one_that_is_asked_for(
    mode: StorageMode, folder: int, file: int, umask: int, tmp_path: Path
) -> None:
    store = Store(str(tmp_path / "new" / "run"), mode)
    store.create("run.json", b"1")
    store.put("stages/key/stage.json", b"2")
    Store(store.uri).create("ledger/0000000001.json", b"3")  # whoever writes later need not know
    assert modes(tmp_path / "new" / "run") == {("folder", folder), ("file", file)}


@pytest.mark.parametrize(("folder", "file"), [(0o755, 0o644), (0o750, 0o640)])
def test_a_folder_that_is_there_keeps_its_mode_and_gives_it_on(folder: int, file: int, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(folder)
    Store(str(tmp_path / "run")).put("stages/key/stage.json", b"1")
    assert modes(tmp_path / "run") == {("folder", folder), ("file", file)}


def test_a_run_may_be_made_for_a_group(tmp_path: Path) -> None:
    config = small_config(tmp_path).model_copy(update={"storage_mode": "group"})
    run = Run.create(config, dataset=dataset(all_samples()))
    assert modes(tmp_path / "run") == {("folder", 0o2770), ("file", 0o660)}
    assert run.record.config.storage_mode == "group"
