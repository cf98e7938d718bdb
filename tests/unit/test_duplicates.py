"""Copies of a sample under other ids: told when it is deleted, and deleted with it where that is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import digits, small_config, write_parquet

from ray_sisa import duplicates
from ray_sisa.keyed_ids import SOURCES
from ray_sisa.run import Run
from ray_sisa.samples import concatenate, make_samples


def _run(folder: Path, ids: str = "plain", *, columns: dict[str, Any] | None = None) -> Run:
    """Forty digits, and three of them once more: `digit-0000` as two copies, one with another label."""
    few = digits(0, 40)
    again = few.take([0, 0, 5])  # type: ignore[arg-type]
    copies = make_samples(
        ids=["copy-a", "copy-b", "copy-c"], images=again.images, labels=(again.labels + np.array([0, 1, 0])) % 10
    )
    folder.mkdir(exist_ok=True)
    train = write_parquet(folder / "train.parquet", concatenate([few, copies]))
    source: dict[str, Any] = {"train": train} | ({"columns": columns} if columns else {})
    config = small_config(folder, data=source, placement={"shards": 2, "slices": 2})
    return Run.create(config.model_copy(update={"ids": ids}))


def _live(run: Run) -> int:
    return run.live.num_samples(run.ledger())


@pytest.mark.parametrize("ids", ["plain", "keyed"])
def test_copies_are_told_and_stay_unless_they_are_to_go_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: str
) -> None:
    for name in SOURCES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_SISA_IDS_KEY", "k" * 32)
    run = _run(tmp_path, ids)
    alone = run.forget(samples=["digit-0001"])
    assert (alone.samples, alone.copies, alone.copies_deleted) == (1, 0, False)
    # Nobody has unlearned: slices are read from what they are still to be made from.
    told = run.forget(samples=["digit-0000"])
    assert (told.samples, told.copies, _live(run)) == (1, 2, 41)
    assert run.forget(samples=["digit-0000"], key="of what is gone").copies == 0
    both = run.forget(samples=["copy-a"], with_duplicates=True)
    assert (both.samples, both.copies, both.copies_deleted, _live(run)) == (2, 1, True, 39)
    assert run.forget(samples=["digit-0005", "copy-c"]).copies == 0  # each is named: none of them stays


def test_without_an_id_column_the_copies_of_a_sample_are_found(tmp_path: Path) -> None:
    run = _run(tmp_path, columns={"image": "img", "label": "label"})
    names = [name for shard in range(2) for number in (1, 2) for name in run.sample_ids(shard, number)]
    second = next(name for name in names if name.endswith("#2"))
    assert run.forget(samples=[second[:-2]]).copies in (1, 2)  # the copy with another label is named by other content
    done = run.forget(samples=[second], with_duplicates=True)
    assert done.samples == 1 + (done.copies or 0)


def test_a_request_with_its_copies_that_is_sent_again_is_the_same(tmp_path: Path) -> None:
    run = _run(tmp_path)
    first = run.forget(samples=["digit-0000"], key="k", with_duplicates=True)
    again = run.forget(samples=["digit-0000"], key="k", with_duplicates=True)
    assert (first.request, first.samples) == (1, 3)
    assert (again.request, again.samples, again.already_forgotten) == (1, 0, 3)
    assert run.ledger().position == 1


def test_large_runs_are_read_only_where_copies_are_to_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = _run(tmp_path)
    monkeypatch.setattr(duplicates, "MAX_BYTES", 1000)
    assert run.forget(samples=["digit-0005"]).copies is None
    assert run.forget(samples=["digit-0000"], with_duplicates=True).copies == 2
