"""Ids with commas and outer spaces, named where commas come between ids: what can mean two things deletes neither."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from small_runs import dataset, digits, small_config
from typer.testing import CliRunner, Result

from ray_sisa.cli import app
from ray_sisa.readings import listed, otherwise
from ray_sisa.run import Run
from ray_sisa.samples import make_samples

IDS = ["a", " a", "b", "a,b", "c", "b, c", "d ", "e"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of these ids, each its own subject; no command here needs more of it."""
    samples = digits(0, len(IDS))
    train = make_samples(ids=IDS, images=samples.images, labels=np.asarray(samples.labels))
    config = small_config(tmp_path_factory.mktemp("run"), placement={"shards": 1, "slices": 1})
    return Run.create(config, dataset=dataset(train))


def forget(run: Run, *arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(app, ["forget", run.store.uri, *arguments], input=stdin)


@pytest.mark.parametrize("option", ["--samples", "--subjects"])
@pytest.mark.parametrize(
    ("text", "meant"),
    [(" a", "' a'"), ("a,b", "a,b"), ("e,a,b", "a,b"), ("e, a", "' a'"), ("b, c", "b, c"), ("d ,e", "'d '")],
)
def test_what_can_mean_two_things_is_refused(option: str, text: str, meant: str, run: Run) -> None:
    refused = forget(run, option, text)
    assert refused.exit_code == 1
    assert re.search(f"error: {option} = {meant}: is itself an id of this run.*FILE.jsonl", refused.stderr)
    assert not run.ledger().requests


@pytest.mark.parametrize("option", ["--from", "--subjects-from"])
@pytest.mark.parametrize("by_stdin", [True, False])
def test_so_are_lines_with_outer_spaces(option: str, by_stdin: bool, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_text("b\n a\r\ne\n")
    refused = forget(run, option, "-" if by_stdin else str(path), stdin=path.read_text())
    assert refused.exit_code == 1
    assert f"{option} = ' a': is itself an id" in refused.stderr
    assert not run.ledger().requests


def test_what_can_mean_one_thing_alone_passes_and_a_json_line_says_any_id(run: Run, tmp_path: Path) -> None:
    assert forget(run, "--samples", " e , c", "--reason", "no id is written so").exit_code == 0
    path = tmp_path / "ids.jsonl"
    path.write_text("\n".join(map(json.dumps, [" a", "a,b"])))
    assert forget(run, "--from", str(path)).exit_code == 0
    assert [sorted(request.sample_ids) for request in run.ledger().requests] == [["c", "e"], [" a", "a,b"]]


def test_readings_of_a_list() -> None:
    assert listed(" a, b ,,c") == ["a", "b", "c"]
    assert list(otherwise("a")) == []
    assert set(otherwise(" a,b")) == {" a", " a,b", "a,b"}
    assert sum(1 for _ in otherwise("a," * 10_000)) < 100_000


def test_lines_of_a_file_named_by_mistake_are_hardly_repeated(run: Run) -> None:
    """A service that passes on what is asked for may be asked for a file of its own machine."""
    lines = Path("/etc/passwd").read_text().splitlines()
    assert len(lines) > 5
    for more in ([], ["--ignore-unknown"], ["--json"]):
        refused = forget(run, "--from", "/etc/passwd", *more)
        assert refused.exit_code == 1
        told = refused.stdout + refused.stderr
        assert not [line for line in lines[5:] if line in told]
        assert not [line for line in lines if len(line) > 40 and line in told]
