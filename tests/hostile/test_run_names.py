"""Law: no name of a run, and no record in its store, leads out of `storage_path`; symlinks in it are the operator's."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import dataset, digits, files_of, folder_of, small_config
from typer.testing import CliRunner

from ray_sisa.cli import app
from ray_sisa.config_values import load_config
from ray_sisa.digests import seal
from ray_sisa.errors import ConfigError, SisaError
from ray_sisa.layout import RUN
from ray_sisa.records import Head, RunRecord
from ray_sisa.run import Run

NAMES = [
    "",
    ".",
    "..",
    "../run",
    "a/b",
    "a/../../b",
    "/absolute",
    "\\\\server\\share",
    "~root",
    "$HOME",
    "a\0b",
    "a\nb",
    "run\n",
    " run",
    "run ",
    "-run",
    ".hidden",
    "a" * 129,
    "a" * 100_000,
    "r\u00fcn",
    "a%2fb",
    "a?b",
    "a#b",
    "a:b",
    "\ud800",
]
PLACEMENT = {"shards": 2, "slices": 2, "key": "k"}


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name[:20]))
def test_names_that_are_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "inner").mkdir()
    with pytest.raises(ConfigError, match="name") as error:
        Run.create(small_config(tmp_path / "inner" / "runs", name=name), dataset=dataset(digits(0, 30)))
    str(error.value).encode()
    assert len(str(error.value)) < 1500
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]
    assert list((tmp_path / "inner").iterdir()) == []


@pytest.mark.parametrize("name", [n for n in NAMES if n.isprintable() and len(n) < 200], ids=ascii)
def test_neither_on_the_command_line(tmp_path: Path, name: str) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        f"name: run\nstorage_path: {tmp_path}/runs\ndata: {{source: digits}}\n"
        "placement: {shards: 1, slices: 1}\nrecipe: {model: mlp, epochs_per_slice: 1}\n"
    )
    load_config(config)
    result = CliRunner().invoke(app, ["train", str(config), "--set", f"name='{name}'", "--runner", "local"])
    assert (result.exit_code, result.stderr.startswith("error: configuration")) == (1, True), result.output
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("name", ["a", "A.b-c_9", "0", "a..b", "a" * 128])
def test_names(tmp_path: Path, name: str) -> None:
    run = Run.create(small_config(tmp_path / "runs", name=name, placement=PLACEMENT), dataset=dataset(digits(0, 30)))
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [name]
    assert Run.open(run.store.uri).record == run.record


@pytest.mark.parametrize("where", ["a\0b", "a" * 100_000, "\ud800", ""])
def test_runs_that_cannot_be_opened(tmp_path: Path, where: str) -> None:
    with pytest.raises(SisaError) as error:
        Run.open(f"{tmp_path}/{where}")
    str(error.value).encode()


# --- records that name objects elsewhere


@pytest.fixture
def run(tmp_path: Path) -> Run:
    config = small_config(tmp_path / "a" / "runs", placement=PLACEMENT)
    run = Run.create(config, dataset=dataset(digits(0, 30)))
    run.train(runner="local")
    return run


ELSEWHERE = ["../../../../outside", "/outside", "..", "%2e%2e/outside", "a/../../../../../outside", "\0", ""]
ASKS: list[Callable[[Run], object]] = [
    lambda run: run.ensemble(),
    lambda run: run.forget(samples=["digit-0000"]),
    lambda run: run.verify(runner="local"),
    lambda run: run.unlearn(runner="local"),
]


def plant_outside(run: Run, folder: Path) -> dict[str, Any]:
    """Real objects outside of the run, under every name that a path out of it could reach."""
    inside = folder_of(run)
    stage = next((inside / "stages").iterdir())
    for parent in (folder, folder / "a", folder / "a" / "runs"):
        shutil.copy(next((inside / "index").iterdir()), parent / "outside.arrow")
        shutil.copytree(stage, parent / "outside")
    return {name: state for name, state in files_of(folder).items() if "outside" in name}


@pytest.mark.parametrize("name", ELSEWHERE, ids=ascii)
@pytest.mark.parametrize("field", ["index_digests", "test_digest", "slices", "initial_weights"])
def test_a_run_record_that_names_objects_elsewhere(run: Run, tmp_path: Path, field: str, name: str) -> None:
    outside = plant_outside(run, tmp_path)
    record = run.record
    changed = {
        "index_digests": {"index_digests": (name,) * 2},
        "test_digest": {"test_digest": name},
        "slices": {"slices": tuple(tuple(e.model_copy(update={"digest": name}) for e in s) for s in record.slices)},
        "initial_weights": {"training": record.training.model_copy(update={"initial_weights": name})},
    }[field]
    write(run, RUN, record.model_copy(update=changed))
    reopen_and_ask(run, tmp_path, outside)


@pytest.mark.parametrize("name", ELSEWHERE, ids=ascii)
def test_a_head_that_names_stages_elsewhere(run: Run, tmp_path: Path, name: str) -> None:
    outside = plant_outside(run, tmp_path)
    head = run.store.read("heads/00000001.json", Head)
    voters = tuple(c.model_copy(update={"key": name}) for c in head.constituents)
    write(run, "heads/00000001.json", head.model_copy(update={"constituents": voters}))
    with pytest.raises(SisaError):
        Run.open(run.store.uri).ensemble()
    reopen_and_ask(run, tmp_path, outside)


def write(run: Run, path: str, record: RunRecord | Head) -> None:
    (folder_of(run) / path).write_bytes(seal(record.model_dump_json().encode()))


def reopen_and_ask(run: Run, folder: Path, outside: dict[str, Any]) -> None:
    """Whatever is asked is answered or refused; nothing outside is changed, nor anything new put there."""
    for ask in ASKS:
        try:
            ask(Run.open(run.store.uri))
        except SisaError as error:
            str(error).encode()
    now = {name: s for name, s in files_of(folder).items() if not name.startswith("a/runs/run/")}
    assert now == outside
