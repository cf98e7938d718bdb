"""Law: a run keeps to its own folder, and no other lies in it; what its records say of time is no reason to hang."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from small_runs import MLP, dataset, digits, small_config
from typer.testing import CliRunner

from ray_sisa.cli import app
from ray_sisa.digests import seal, unseal
from ray_sisa.errors import ConfigError, SisaError, StoreError
from ray_sisa.layout import FOLDERS, LEASES, RUN, numbered
from ray_sisa.lease import LONGEST_S
from ray_sisa.location import join_run, resolve_uri
from ray_sisa.records import LeaseRecord
from ray_sisa.run import Run

PLACEMENT = {"shards": 1, "slices": 1, "key": "k"}


def create(folder: Path, name: str) -> Run:
    return Run.create(small_config(folder, name=name, placement=PLACEMENT, recipe=MLP), dataset=dataset(digits(0, 20)))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = create(tmp_path, "outer")
    run.train(runner="local")
    return run


@pytest.mark.parametrize("name", [*FOLDERS, RUN])
def test_names_that_parts_of_a_run_have(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"name = {name}: is what a part of each run is called"):
        create(tmp_path, name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("inside", ["outer", "outer/slices", "outer/a/b"])
def test_no_run_is_made_in_another(run: Run, tmp_path: Path, inside: str) -> None:
    with pytest.raises(ConfigError, match=r"storage_path = .*/outer: lies in the folder of a run"):
        create(tmp_path / inside, "inner")
    assert run.check().ok


def test_no_run_is_made_around_another(tmp_path: Path) -> None:
    create(tmp_path / "a", "inner")
    with pytest.raises(ConfigError, match=r"name = a: would be a run around another: .*a/inner/run.json is there"):
        create(tmp_path, "a")


@pytest.mark.parametrize("inside", ["slices", "stages", "features", "stages/zzz"])
def test_a_run_that_lies_in_another_is_not_removed(run: Run, tmp_path: Path, inside: str) -> None:
    """As runs could be made before; neither by a request nor by a repair."""
    create(tmp_path, "other").train(runner="local")
    place = tmp_path / "outer" / inside
    place.mkdir(exist_ok=True)
    for path in (tmp_path / "other").iterdir():
        path.rename(place / path.name)
    before = {path for name in FOLDERS for path in (place / name).rglob("*") if path.is_file()} | {place / RUN}
    run.forget(samples=run.sample_ids(0, 1)[:1])
    for ask in (lambda: run.unlearn(runner="local"), lambda: run.repair(run.check(), runner="local")):
        with pytest.raises(StoreError, match=r"run\.json: is another run, in the folder of this one"):
            ask()
        assert before <= set(place.rglob("*"))


@pytest.mark.parametrize("uri", ["s3://bucket/a#b", "s3://bucket/a?region=x#b", "gs://bucket/#"])
def test_where_a_uri_ends(uri: str) -> None:
    """Else two runs of different names would be one."""
    for ask in (lambda: join_run(uri, "x"), lambda: resolve_uri(uri)):
        with pytest.raises(StoreError, match="holds #, at which a URI ends"):
            ask()


MOMENTS = ["", "never", "2026-13-01T00:00:00+00:00", "2026-01-01T00:00:00", "9" * 400, "\x1b[2J", "\ud800"]
COMMANDS = [["status"], ["report"], ["check"], ["plan"]]


@pytest.mark.parametrize("moment", MOMENTS, ids=ascii)
def test_times_that_are_none(run: Run, moment: str) -> None:
    path = Path(run.store.uri, RUN)
    written = run.record.created_at.encode()
    path.write_bytes(
        seal(unseal(path.read_bytes()).replace(written, ascii(moment)[1:-1].replace("\\x", "\\u00").encode()))
    )
    for command in COMMANDS:
        told = CliRunner().invoke(app, [*command, run.store.uri])
        assert (told.exit_code, type(told.exception)) == (1, SystemExit)
        assert "run.json: is not a valid RunRecord" in told.output


DAY_S = 86400


@pytest.mark.parametrize("ends_in_s", [365 * DAY_S, 2 * LONGEST_S, 1e18])
def test_a_lease_that_ends_in_a_year(run: Run, ends_in_s: float) -> None:
    """Damaged: it would keep everybody from the run. A repair frees it, and numbers go on from there."""
    number = run.store.numbers(LEASES)[-1] + 1
    lease = LeaseRecord(number=number, holder="somebody", expires_at=time.time() + ends_in_s)
    run.store.create(lease.path or "", lease.to_bytes())
    assert run.status().work is None  # nobody is at work, whatever it says
    with pytest.raises(SisaError, match=r"ends in [\d,]+ days, and a lease lasts for seconds.*check RUN --repair"):
        run.train(runner="local", wait_s=0)
    assert [finding.path for finding in run.check().findings] == [numbered(LEASES, number)]
    run.repair(run.check(), runner="local")
    assert run.check().ok
    assert run.store.numbers(LEASES)[-1] > number
