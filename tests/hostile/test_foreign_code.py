"""Law: no code that a run names is imported unless the caller names it too, and it is what the run was made with.

A run that somebody else made may name anything: a module beside it or within it, or one that is installed.
"""

from __future__ import annotations

import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_runs import MLP, dataset, digits, small_config, write_parquet
from typer.testing import CliRunner

from ray_sisa import model_code
from ray_sisa.cli import app
from ray_sisa.errors import ConfigError
from ray_sisa.run import Run

SOURCE = """
from pathlib import Path
from torch import nn

Path(r"{mark}").touch()

def network(*, num_classes, image_shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(image_shape[0] * image_shape[1], num_classes))
"""


PLACEMENT = {"shards": 1, "slices": 1, "key": "k"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder, on the path as it is for `python -m`, with nothing allowed."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(model_code, "_ALLOWED", set())
    yield folder
    forget_modules()


def forget_modules() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] in ("runs", "nets", "ours")]:
        del sys.modules[name]


def source_file(name: str) -> Path:
    return Path(name.partition(":")[0].replace(".", "/") + ".py")


def foreign_run(here: Path, name: str, monkeypatch: pytest.MonkeyPatch, *, pinned: bool) -> Path:
    """Receives runs/X, sound and made elsewhere with a network of this name, and its module; returns what it marks.

    One that is not pinned was made by a program that leaves the digest out.
    """
    elsewhere, mark = here.parent / "elsewhere", here.parent / "it-ran"
    source = elsewhere / source_file(name)
    source.parent.mkdir(parents=True)
    source.write_text(SOURCE.format(mark=mark))
    with monkeypatch.context() as patched:
        patched.syspath_prepend(str(elsewhere))
        if not pinned:
            patched.setattr(model_code, "digest", lambda name: None)
            patched.setattr(model_code, "load", lambda name, digest: importlib.import_module(name.partition(":")[0]))
        config = small_config(here.parent / "made", name="X", placement=PLACEMENT, recipe=MLP | {"model": name})
        run = Run.create(config, dataset=dataset(digits(0, 30)))
        run.train(runner="local")
    shutil.copytree(run.store.uri, here / "runs" / "X")
    (here / source_file(name)).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, here / source_file(name))
    forget_modules()
    model_code._ALLOWED.clear()
    mark.unlink()
    return mark


LOCAL = ("--runner", "local")
# And whether it needs the network: what is trained already needs none.
COMMANDS: list[tuple[list[str], bool]] = [
    (["predict", "runs/X", "inputs.npy"], True),
    (["verify", "runs/X", *LOCAL], True),
    (["evaluate", "runs/X", *LOCAL], True),
    (["plan", "runs/X"], True),
    (["check", "runs/X", "--repair", *LOCAL], False),
    (["unlearn", "runs/X", *LOCAL], False),
    (["status", "runs/X"], False),
    (["report", "runs/X"], False),
    (["approximate", "runs/X", "--method", "fine_tune", "--samples", "digit-0001", *LOCAL], True),
    (
        ["attack", "inversion", "runs/X", "--layer", "1", "--public", "a.parquet", "--victims", "b.parquet", *LOCAL],
        True,
    ),
    (["forget", "runs/X", "--samples", "digit-0001"], False),
    (["unlearn", "runs/X", *LOCAL], True),
]


@pytest.mark.parametrize(
    ("name", "pinned"), [("runs.X.reports.payload:network", True), ("nets.payload:network", False)]
)
def test_nothing_that_a_run_names_runs(here: Path, name: str, pinned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the run's own folder, or of the working folder: no command imports it, and those that need it say so."""
    mark = foreign_run(here, name, monkeypatch, pinned=pinned)
    np.save("inputs.npy", np.zeros((1, 8, 8, 1), np.uint8))
    write_parquet(here / "a.parquet", digits(40, 20))
    write_parquet(here / "b.parquet", digits(60, 10))
    for command, needs_it in COMMANDS:
        told = CliRunner().invoke(app, command)
        assert not mark.exists(), command
        assert (f"recipe.model = {name}: is code that the run names" in told.stderr) == needs_it, told.output
        assert (told.exit_code, f"--allow-model {name}" in told.stderr) == ((1, True) if needs_it else (0, False))


def test_what_is_allowed_must_be_what_the_run_was_made_with(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest is compared before anything of the package runs."""
    name = "nets.payload:network"
    mark = foreign_run(here, name, monkeypatch, pinned=True)
    source = (here / source_file(name)).read_text()
    (here / "nets" / "__init__.py").write_text(source)
    (here / source_file(name)).write_text(source + "# another")
    with pytest.raises(ConfigError, match="its source changed since the run was created"):
        Run.open("runs/X", allow_models=[name]).ensemble()
    assert not mark.exists()
    (here / source_file(name)).write_text(source)
    assert CliRunner().invoke(app, ["verify", "runs/X", "--runner", "local", "--allow-model", name]).exit_code == 0
    assert mark.exists()


def test_what_is_allowed_must_be_pinned(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = foreign_run(here, "nets.payload:network", monkeypatch, pinned=False)
    with pytest.raises(ConfigError, match="does not say by a digest which"):
        Run.open("runs/X", allow_models=["nets.payload:network"]).ensemble()
    assert not mark.exists()


@pytest.mark.parametrize("where", ["within", "by a link to it", "by a link in it"])
def test_code_in_a_run_is_never_imported(here: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "nets.payload:network" if where == "by a link to it" else "runs.X.reports.payload:network"
    mark = foreign_run(here, name, monkeypatch, pinned=True)
    inside = here / "runs" / "X" / "reports"
    if where == "by a link to it":
        shutil.move(here / "nets", inside)
        (here / "nets").symlink_to(inside)
    if where == "by a link in it":
        shutil.move(inside / "payload.py", here / "ours.py")
        (inside / "payload.py").symlink_to(here / "ours.py")
    with pytest.raises(ConfigError, match="lies in the folder of a run"):
        Run.open("runs/X", allow_models=[name]).ensemble()
    assert not mark.exists()


def test_the_callers_own_configuration_names_it(here: Path) -> None:
    """And RAY_SISA_ALLOW_MODELS, for servers and jobs; nothing else need be said by those whose run it is."""
    (here / "ours.py").write_text(SOURCE.format(mark=here / "it-ran"))
    config = small_config(here, name="own", placement=PLACEMENT, recipe=MLP | {"model": "ours:network"})
    run = Run.create(config, dataset=dataset(digits(0, 30)))
    run.train(runner="local")
    assert run.verify(runner="local").ok
    assert model_code.allowed() == {"ours:network"}
    model_code._ALLOWED.clear()
    with pytest.raises(ConfigError, match="is code that the run names"):
        Run.open(run.store.uri).ensemble()
    os.environ[model_code.VARIABLE] = "a:b, ours:network"
    try:
        assert Run.open(run.store.uri).ensemble().constituents
    finally:
        del os.environ[model_code.VARIABLE]


@pytest.mark.parametrize("name", ["json.no.such:f", "no_such.module:f", "math:sqrt", ".a:f", "a.:f", "builtins:dict"])
def test_modules_without_a_source_file(here: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be imported|no readable source") as caught:
        model_code.digest(name)
    assert caught.value.field == "recipe.model"
