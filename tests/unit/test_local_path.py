"""Paths and `file:` URIs as users write them, on a real disk: nothing lands where nobody meant it to."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_runs import all_samples, dataset, small_config

from ray_sisa import local_path
from ray_sisa.config import RunConfig
from ray_sisa.errors import ConfigError, StoreError
from ray_sisa.location import resolve_uri
from ray_sisa.run import Run
from ray_sisa.store import Store


@pytest.mark.parametrize("host", ["", "localhost"])
def test_a_file_uri_is_decoded(host: str, tmp_path: Path) -> None:
    assert resolve_uri(f"file://{host}{tmp_path}/a%20b/%C3%A4") == f"{tmp_path}/a b/ä"


def test_a_path_is_not_decoded(tmp_path: Path) -> None:
    assert resolve_uri(f"{tmp_path}/a%20b") == f"{tmp_path}/a%20b"


@pytest.mark.parametrize(
    ("uri", "part"),
    [
        ("file://data/x", "names the host data; write file:///FULL/PATH, or data/x without"),
        ("file://~/x", "names the host ~"),
        ("file://./x", "names the host ."),
        ("file://runs", "file:///FULL/PATH"),
        ("file:runs", "file:///FULL/PATH"),
        ("file:/runs", "file:///FULL/PATH"),
        ("file:///a%FFb", "is no path"),
        ("file:///a%00b", "is no path"),
    ],
)
def test_a_file_uri_that_names_no_path_here(
    uri: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StoreError, match="storage_path") as refused:
        Store(uri)
    assert part in str(refused.value)
    assert not list(tmp_path.iterdir())


def test_a_run_that_was_made_when_escapes_were_kept_opens_as_ever(tmp_path: Path) -> None:
    (tmp_path / "a%20b").mkdir()
    assert resolve_uri(f"file://{tmp_path}/a%20b") == f"{tmp_path}/a%20b"
    (tmp_path / "a b").mkdir()
    assert resolve_uri(f"file://{tmp_path}/a%20b") == f"{tmp_path}/a b"


def test_home_is_understood_in_every_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_uri("~/runs") == f"{tmp_path}/runs"
    assert local_path.parse_field("data.root", "~/data") == tmp_path / "data"
    with pytest.raises(ConfigError, match=r"recipe\.weights = ~nobody-here/w\.pth: is no path"):
        local_path.parse_field("recipe.weights", "~nobody-here/w.pth")


def changed(config: RunConfig, field: str, value: object) -> RunConfig:
    section, _, name = field.rpartition(".")
    if not section:
        return config.model_copy(update={name: value})
    return config.model_copy(update={section: getattr(config, section).model_copy(update={name: value})})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("storage_path", "$HOME/runs"),
        ("storage_path", "memory:///${USER}/runs"),
        ("data.train", ("a.parquet", "$DATA/train.parquet")),
        ("data.test", "$DATA/test.parquet"),
        ("data.root", "${DATA}"),
        ("recipe.weights", "$HOME/weights.pth"),
    ],
)
def test_variables_are_refused_in_every_field(
    field: str, value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = changed(small_config(Path("runs")), field, value)
    with pytest.raises(ConfigError, match="has the variable") as refused:
        Run.create(config, dataset=dataset(all_samples()))
    assert refused.value.field == field
    assert not list(tmp_path.iterdir())


def test_what_is_there_under_such_a_name_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a run that was made when `$HOME` was the name of a folder."""
    monkeypatch.chdir(tmp_path)
    Path("$HOME").mkdir()
    config = small_config(Path("$HOME"))
    made = Run.create(config, dataset=dataset(all_samples()))
    assert made.store.uri == f"{tmp_path}/$HOME/run"
    assert Run.create(config).record.config.name == Run.open("$HOME/run").record.config.name == "run"
