"""Law: resume is rerun. Processes are killed (SIGKILL) before each write that training and unlearning make.

What a kill right after a write leaves is what one right before the next leaves, so this is every place between two
writes. Real are the processes, the kill and the store; the writes of the lease are not among the places.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from killable import Killable
from small_runs import MLP, assert_same_models, dataset, files_of, folder_of, small_config

from ray_sisa.engine.work import EpochDone, Event, StageDone
from ray_sisa.errors import BusyError
from ray_sisa.ingest import ingest
from ray_sisa.layout import FEATURES, RUN, stage_record, stage_weights
from ray_sisa.location import join_run
from ray_sisa.run import Run
from ray_sisa.samples import Samples
from ray_sisa.store import Store

LAYOUT = {"shards": 2, "slices": 2}
# What a frozen backbone adds, and differential privacy.
MORE_TO_TRAIN = {"mlp": set[str](), "frozen": {"put initial", "put features"}, "private": {"create spent"}}
MORE_TO_UNLEARN = {"mlp": set[str](), "frozen": {"put features", "delete features"}, "private": {"create spent"}}
WAIT_S = 60.0  # far more than a killed process holds the run


def _writes(trace: list[str]) -> list[str]:
    return [line for line in trace if not line.startswith("read ")]


def _kinds(writes: list[str]) -> set[str]:
    """`verb folder/file` of each write, without what makes names unique."""
    shortened = set()
    for line in writes:
        verb, path = line.split()
        parts = path.split("/")
        shortened.add(f"{verb} {parts[0]}/{parts[2]}" if parts[0] == "stages" else f"{verb} {parts[0]}")
    return shortened


def _rerun(run: Run) -> list[str]:
    """Completes a run and returns the keys trained, having checked that what was committed stayed untouched."""
    folder, events = folder_of(run), list[Event]()
    present = {record.key for record in run.stages()}
    before = files_of(folder)
    run.train(runner="local", tell=events.append, wait_s=WAIT_S)
    after = files_of(folder)
    trained = [event.record.key for event in events if isinstance(event, StageDone)]
    assert not present & set(trained)
    assert len(trained) == len(set(trained))
    assert all(after[name] == before[name] for key in present for name in (stage_record(key), stage_weights(key)))
    assert {record.key for record in run.stages()} == present | set(trained)
    return trained


@pytest.fixture
def recipe() -> str:
    """Of the runs of a test that does not say otherwise."""
    return "mlp"


@pytest.fixture
def undisturbed(
    tmp_path: Path, parquet: dict[str, str], killable: Killable, recipe: str, recipes: dict[str, dict[str, Any]]
) -> tuple[Run, list[str]]:
    """A run that was trained in peace, and the writes that this took."""
    config = small_config(tmp_path, name="undisturbed", recipe=recipes[recipe], data=parquet, placement=LAYOUT)
    trace = killable.run("train", tmp_path / "trace", config=config.model_dump(mode="json"))
    return Run.open(str(tmp_path / "undisturbed")), _writes(trace)


@pytest.mark.parametrize("recipe", ["mlp", "frozen", "private"])
def test_training_killed_anywhere_goes_on_to_the_same_end(
    undisturbed: tuple[Run, list[str]],
    recipe: str,
    recipes: dict[str, dict[str, Any]],
    parquet: dict[str, str],
    killable: Killable,
    tmp_path: Path,
) -> None:
    expected, writes = undisturbed
    assert _kinds(writes) == MORE_TO_TRAIN[recipe] | {
        "put slices",
        "put seals",
        "put index",
        "put test",
        "create run.json",
        "put stages/weights.safetensors",
        "create stages/stage.json",
        "create heads",
    }
    for number, write in enumerate(writes):
        config = small_config(tmp_path, name=f"killed-{number}", recipe=recipes[recipe], data=parquet, placement=LAYOUT)
        job = {"config": config.model_dump(mode="json")}
        trace = killable.run("train", tmp_path / "trace", kill_before=number, **job)
        committed = sum(line.endswith("/stage.json") for line in _writes(trace))
        run = Run.create(config)
        assert len(run.store.committed_stages()) == committed, f"killed before: {write}"
        assert len(_rerun(run)) == 4 - committed, f"killed before: {write}"
        assert_same_models(run, expected)
        assert run.store.sizes(FEATURES) == expected.store.sizes(FEATURES)
        assert run.privacy() == expected.privacy()  # charged once, before or after the kill
        assert run.status().head == 1


@pytest.mark.parametrize("recipe", ["mlp", "frozen", "private"])
def test_unlearning_killed_anywhere_goes_on_to_the_same_end(
    undisturbed: tuple[Run, list[str]], recipe: str, killable: Killable, tmp_path: Path
) -> None:
    base = folder_of(undisturbed[0])
    ids = [undisturbed[0].sample_ids(0, 1)[0], undisturbed[0].sample_ids(1, 2)[0]]

    def start(name: str) -> Run:
        shutil.copytree(base, tmp_path / name)
        return Run.open(str(tmp_path / name))

    expected = start("expected")
    job = {"samples": ids}
    writes = _writes(killable.run("unlearn", tmp_path / "trace", uri=expected.store.uri, **job))
    assert _kinds(writes) == MORE_TO_UNLEARN[recipe] | {
        "create ledger",
        "create heads",  # rolled back, and full
        "put slices",
        "put seals",
        "delete slices",
        "delete seals",
        "delete stages/stage.json",
        "delete stages/weights.safetensors",
        "put stages/weights.safetensors",
        "create stages/stage.json",
        "create certificates",
    }
    assert len([line for line in writes if line.startswith("create heads")]) == 2
    for number, write in enumerate(writes):
        run = start(f"killed-{number}")
        killable.run("unlearn", tmp_path / "trace", uri=run.store.uri, kill_before=number, **job)
        run.forget(samples=ids)  # the same command again: the same request
        assert not {c.key for c in run.ensemble().constituents} & _tainted(undisturbed[0], ids), f"before: {write}"
        _rerun(run)
        assert_same_models(run, expected)
        assert run.store.sizes(FEATURES) == expected.store.sizes(FEATURES)
        assert run.privacy() == expected.privacy()
        assert [c.request for c in run.certificates()] == [1]
        assert run.certificates()[0].retired_stages == expected.certificates()[0].retired_stages
        assert run.status().requests == 1
        assert run.verify(sample=1, runner="local").ok
        shutil.rmtree(folder_of(run))


def _tainted(run: Run, ids: list[str]) -> set[str]:
    (first, last) = ids
    assert (first, last) == (run.sample_ids(0, 1)[0], run.sample_ids(1, 2)[0])
    return {r.key for r in run.stages() if (r.shard, r.slice) != (1, 1)}


def test_a_run_interrupted_within_a_stage_goes_on_from_the_last_commit(
    undisturbed: tuple[Run, list[str]], parquet: dict[str, str], tmp_path: Path
) -> None:
    expected, _ = undisturbed
    config = small_config(tmp_path, name="interrupted", recipe=MLP, data=parquet, placement=LAYOUT)
    run, epochs = Run.create(config), 0

    def interrupt(event: Event) -> None:
        nonlocal epochs
        epochs += isinstance(event, EpochDone)
        if epochs == 4:  # two epochs of the first stage, one of the second and the end of it
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.train(runner="local", tell=interrupt)
    assert len(run.store.committed_stages()) == 1
    assert len(_rerun(run)) == 3
    assert_same_models(run, expected)


def test_a_second_reconcile_says_who_holds_the_run(copied: Callable[..., Run]) -> None:
    run, refusals = copied(), []
    run.forget(samples=run.sample_ids(0, 3)[:1])

    def intrude(event: Event) -> None:
        with pytest.raises(BusyError, match="is working on this run") as refused:
            Run.open(run.store.uri).unlearn(runner="local", wait_s=0)
        refusals.append(refused.value.value)

    run.unlearn(runner="local", tell=intrude)
    assert len(set(refusals)) == 1
    assert str(os.getpid()) in refusals[0]


def test_two_processes_may_create_one_run_at_once(tmp_path: Path, samples: Samples) -> None:
    """Each draws a placement key of its own; one run comes of it, and all of what it needs is there."""
    config = small_config(tmp_path, placement={"key": None})
    started = threading.Barrier(2)
    found: list[Run] = []

    class Together(Store):
        def create(self, path: str, data: bytes) -> bool:
            if path == RUN:
                started.wait()  # both have written all else by now
            return super().create(path, data)

    def create() -> None:
        record = ingest(Together(join_run(config.storage_path, config.name)), config, dataset(samples))
        found.append(Run(Store(join_run(config.storage_path, config.name)), record))

    threads = [threading.Thread(target=create) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0].record == found[1].record
    run = found[0]
    assert run.check().ok  # nothing is left of the one that came second
    for shard in range(3):
        assert run.forget(samples=run.sample_ids(shard, 1)[:1]).samples == 1
    run.train(runner="local")
    assert run.status().complete
    assert run.verify(runner="local").ok
