"""Law: a stage that was cut short goes on from its last saved state, to the bytes of one that never stopped.

Real are the processes, the kills and the store. States are saved after every step here, so that tiny stages have many.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from killable import Killable
from small_runs import CNN, DROPOUT, PRIVATE, assert_same_models, dataset, files_of, folder_of, small_config, without

from ray_sisa import weights
from ray_sisa.config import CheckpointEvery, RunConfig
from ray_sisa.digests import digest_bytes
from ray_sisa.engine import local_runner, turns
from ray_sisa.engine.work import ChainEnded, ChainWork, EpochDone, Event, StageDone, StageUnderway
from ray_sisa.engine.worker import train_chain
from ray_sisa.errors import StoreError
from ray_sisa.layout import kind_of, partial_record, partial_state
from ray_sisa.lease import hold_lease
from ray_sisa.live import LiveSet
from ray_sisa.records import PartialRecord
from ray_sisa.run import Run
from ray_sisa.samples import Samples
from ray_sisa.store import Store

WAIT_S = 60.0  # far more than a killed process holds the run
EVERY_STEP = {"checkpoint_every": {"minutes": 1e-9}}
PLACES = {"shards": 1, "slices": 2}
RECIPES: dict[str, dict[str, Any]] = {
    "dropout and Adam": DROPOUT | {"batch_size": 64},
    "BatchNorm, momentum, bfloat16, NoPeek": CNN | {"epochs_per_slice": 2, "nopeek": {"layer": "bn2", "weight": 0.5}},
    "private": PRIVATE | {"model": "small_runs:dropout_network", "epochs_per_slice": 2, "batch_size": 64},
}


def config_of(folder: Path, name: str, parquet: dict[str, str], recipe: str = "dropout and Adam") -> RunConfig:
    return small_config(folder, name=name, recipe=RECIPES[recipe], data=parquet, placement=PLACES, scaling=EVERY_STEP)


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def undisturbed(recipe: str, tmp_path_factory: pytest.TempPathFactory, parquet: dict[str, str]) -> Run:
    """Trained without saving any state."""
    config = small_config(
        tmp_path_factory.mktemp("undisturbed"),
        recipe=RECIPES[recipe],
        data=parquet,
        placement=PLACES,
        scaling={"checkpoint_every": None},
    )
    run, events = Run.create(config), list[Event]()
    run.train(runner="local", tell=events.append)
    assert not [e for e in events if isinstance(e, StageUnderway) and e.what != "passing"]
    return run


def partial_files(run: Run) -> list[str]:
    return [name for name in files_of(folder_of(run)) if kind_of(name).startswith("partial/")]


def assert_same_as(undisturbed: Run, run: Run) -> None:
    assert_same_models(run, undisturbed)
    assert [r.metrics for r in run.stages()] == [r.metrics for r in undisturbed.stages()]
    assert not partial_files(run)


def interrupt(run: Run, saves: int, stage: int = 1) -> str:
    """Stops training after so many states of the stage of a slice; returns its key."""
    left = iter(range(saves)[::-1])

    def stop(event: Event) -> None:
        is_save = isinstance(event, StageUnderway) and event.stage.slice == stage and event.what == "saved"
        if is_save and next(left) == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.train(runner="local", tell=stop)
    (key,) = {name.split("/")[1] for name in partial_files(run)}
    return key


def resume(run: Run) -> tuple[list[int], int]:
    """Ends the training of a run; returns at which steps it took up stages, and how many epochs it told of."""
    events: list[Event] = []
    run.train(runner="local", tell=events.append, wait_s=WAIT_S)
    taken_up = [e for e in events if isinstance(e, StageUnderway) and e.what == "resumed"]
    steps = [e.epoch * e.num_batches + e.batch for e in taken_up]
    return steps, sum(isinstance(e, EpochDone) for e in events)


def last_saved(trace: list[str], stage: str) -> int | None:
    """The state that a process left, by what it wrote: None if it left none, or the stage is committed."""
    number = None
    for line in trace:
        verb, path = line.split()
        if path.startswith(f"stages/{stage}/") and kind_of(path) == "partial/record":
            if verb == "put":
                number = int(Path(path).stem)
            elif verb == "delete" and int(Path(path).stem) == number:
                number = None
        elif path == f"stages/{stage}/stage.json" and verb == "create":
            return None
    return number


@pytest.mark.slow
def test_killed_at_any_write_inside_a_stage_it_goes_on_from_the_state_before(
    undisturbed: Run, recipe: str, parquet: dict[str, str], killable: Killable, tmp_path: Path
) -> None:
    epochs = len(undisturbed.stages()[0].metrics)
    key = undisturbed.stages()[1].key

    def train(name: str, kill_before: int | None) -> list[str]:
        job = {"config": config_of(tmp_path, name, parquet, recipe).model_dump(mode="json")}
        trace = killable.run("train", tmp_path / "trace", kill_before=kill_before, **job)
        return [line for line in trace if not line.startswith("read ")]

    writes = train("whole", None)
    assert_same_as(undisturbed, Run.open(str(tmp_path / "whole")))
    inside = [n for n, line in enumerate(writes) if f"stages/{key}/" in line]
    assert {kind_of(writes[n].split()[1]) for n in inside} >= {"partial/state", "partial/record", "stages/stage"}
    # About the first two states, and all from the last one to the next object; or here and there.
    numbers = inside[2::13] if "dropout" in recipe else [*inside[:6], *inside[-7:], inside[-1] + 1]
    for number in numbers:
        name = f"killed-{number}"
        saved = last_saved(train(name, number), key)
        run = Run.create(config_of(tmp_path, name, parquet, recipe))
        steps, told = resume(run)
        committed = number > writes.index(f"create stages/{key}/stage.json")
        assert steps == ([] if saved is None else [saved]), writes[number]
        num_batches = -(-undisturbed.stages()[1].num_samples // RECIPES[recipe]["batch_size"])
        assert told == (0 if committed else epochs - (saved or 0) // num_batches), writes[number]
        assert_same_as(undisturbed, run)
        shutil.rmtree(folder_of(run))


def test_interrupted_again_and_again(undisturbed: Run, recipe: str, parquet: dict[str, str], tmp_path: Path) -> None:
    run = Run.create(config_of(tmp_path, "run", parquet, recipe))
    taken_up = []
    for stage in (1, 1, 2, 2, 2):
        (number,) = [int(Path(n).stem) for n in partial_files(run) if n.endswith(".json")] or [0]
        taken_up.append(number)
        interrupt(run, saves=1, stage=stage)
    assert taken_up == [0, 1, 2, 1, 2]
    assert resume(run)[0] == [3]
    assert_same_as(undisturbed, run)


@pytest.fixture
def interrupted(parquet: dict[str, str], tmp_path: Path) -> tuple[Run, str]:
    """A run that lies still after five states of its second stage, and the key of that."""
    run = Run.create(config_of(tmp_path, "run", parquet))
    return run, interrupt(run, saves=5, stage=2)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, parquet: dict[str, str]) -> Run:
    """What the interrupted run comes to."""
    run = Run.create(config_of(tmp_path_factory.mktemp("plain"), "run", parquet))
    run.train(runner="local")
    return run


def test_a_resumed_stage_has_cost_what_all_attempts_did(interrupted: tuple[Run, str], plain: Run) -> None:
    run, key = interrupted
    change_record(run, key, seconds=1000.0)
    assert resume(run)[0] == [5]
    assert 1000 < run.stages()[1].seconds < 1100
    assert_same_as(plain, run)


def change_record(run: Run, key: str, **changed: Any) -> None:
    record = run.store.read(partial_record(key, 5), PartialRecord)
    run.store.put(record.path, record.model_copy(update=changed).to_bytes())


def change_state(run: Run, key: str, change: Callable[[bytes], bytes]) -> None:
    path = partial_state(key, 5)
    run.store.put(path, change(run.store.get(path)))


def renamed(data: bytes) -> bytes:
    tensors = weights.from_bytes(data)
    tensors["model/another"] = tensors.pop("model/1.weight")
    return weights.to_bytes(tensors)


def rename_a_tensor(run: Run, key: str) -> None:
    change_state(run, key, renamed)
    change_record(run, key, state_digest=digest_bytes(run.store.get(partial_state(key, 5))))


def go_elsewhere(run: Run, key: str) -> None:
    record = run.store.read(partial_record(key, 5), PartialRecord)
    change_record(run, key, environment=record.environment.model_copy(update={"device_name": "another"}))


def flip_the_middle(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda run, key: change_state(run, key, flip_the_middle),
        lambda run, key: change_state(run, key, lambda data: data[:-1]),
        lambda run, key: run.store.delete([partial_state(key, 5)]),
        lambda run, key: run.store.delete([partial_record(key, 5)]),
        lambda run, key: change_record(run, key, epoch=7),
        rename_a_tensor,
        go_elsewhere,
    ],
    ids=["flipped", "truncated", "no state", "no record", "impossible", "another network's", "another machine's"],
)
def test_what_cannot_be_trusted_is_passed_over_and_the_stage_starts_over(
    spoil: Callable[[Run, str], None], interrupted: tuple[Run, str], plain: Run
) -> None:
    run, key = interrupted
    spoil(run, key)
    assert resume(run) == ([], len(plain.stages()[1].metrics))
    assert_same_as(plain, run)


def test_a_state_that_cannot_be_saved_ends_no_training(
    plain: Run, parquet: dict[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run.create(config_of(tmp_path, "run", parquet))

    class Full(Store):
        def put(self, path: str, data: bytes) -> None:
            if kind_of(path) == "partial/record":
                raise StoreError(path, "", "cannot write it: the disk is full")
            super().put(path, data)

    events: list[Event] = []
    Run(Full(run.store.uri), run.record).train(runner="local", tell=events.append)
    assert not [e for e in events if isinstance(e, StageUnderway) and e.what == "saved"]
    assert "goes on with its state unsaved. " in caplog.text
    assert_same_as(plain, run)


# Deletion.


def test_the_states_of_a_tainted_stage_go_and_none_is_saved_after_the_request(
    samples: Samples, from_scratch: Callable[[Samples, str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TICK_S", 1e9)  # the driver looks away: the worker itself must notice
    run = Run.create(small_config(tmp_path, recipe=DROPOUT, scaling=EVERY_STEP), dataset=dataset(samples))
    forgotten = run.sample_ids(1, 1)[:1]
    tainted: list[str] = []
    left: list[str] = []

    def forget_inside_a_stage(event: Event) -> None:
        if tainted:
            assert not isinstance(event, StageDone) or event.record.key not in tainted
            found = {name for name in partial_files(run) if name.split("/")[1] in tainted}
            assert found <= set(left)
            assert not found or not isinstance(event, ChainEnded)
        elif isinstance(event, StageUnderway) and event.what == "saved" and event.stage.shard == 1:
            Run.open(run.store.uri).forget(samples=forgotten)
            tainted.append(event.stage.key)
            left.extend(partial_files(run))

    run.train(runner="local", tell=forget_inside_a_stage)
    assert tainted
    assert not set(tainted) & run.store.stage_files().keys()
    assert_same_models(run, from_scratch(without(samples, forgotten), "dropout"))
    assert not partial_files(run)


def test_the_states_of_a_stage_that_is_tainted_while_nobody_trains_are_purged(
    interrupted: tuple[Run, str], samples: Samples, tmp_path: Path
) -> None:
    run, key = interrupted
    forgotten = run.sample_ids(0, 1)[:1]
    run.forget(samples=forgotten)
    assert resume(run)[0] == []
    assert key not in run.store.stage_files()
    scratch = Run.create(
        small_config(tmp_path, name="scratch", recipe=RECIPES["dropout and Adam"], placement=PLACES),
        dataset=dataset(without(samples, forgotten)),
    )
    scratch.train(runner="local")
    assert_same_models(run, scratch)
    assert not partial_files(run)


def test_a_chain_in_this_process_is_stopped_inside_an_epoch(
    samples: Samples, from_scratch: Callable[[Samples, str], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (turns, local_runner):
        monkeypatch.setattr(module, "TICK_S", 0.0)  # the same as a long epoch
    config = small_config(tmp_path, recipe=DROPOUT | {"batch_size": 2}, scaling={"checkpoint_every": None})
    run = Run.create(config, dataset=dataset(samples))
    tainted: list[StageUnderway] = []
    after: list[Event] = []

    def forget_inside_an_epoch(event: Event) -> None:
        if tainted:
            after.append(event)
        elif isinstance(event, StageUnderway) and event.stage.shard == 1 and event.batch == 2:
            Run.open(run.store.uri).forget(samples=run.sample_ids(1, 1)[:1])
            tainted.append(event)

    run.train(runner="local", tell=forget_inside_an_epoch)
    assert tainted[0].num_batches > 5
    keys = [e.record.key if isinstance(e, StageDone) else e.stage.key for e in after if not hasattr(e, "ending")]
    assert tainted[0].stage.key not in keys
    assert run.status().complete


# One writer.


@pytest.fixture
def make_work(parquet: dict[str, str], tmp_path: Path) -> Iterator[Callable[[], ChainWork]]:
    """The whole chain of a run whose lease is held."""
    run = Run.create(config_of(tmp_path, "run", parquet))
    chain = LiveSet(run.store, run.record).chain(0, frozenset())
    with hold_lease(run.store) as lease:
        yield lambda: ChainWork(
            store=run.store,
            chain=chain,
            missing=frozenset(chain.keys),
            device="cpu",
            ledger=0,
            lease=lease.record,
            checkpoint_every=CheckpointEvery(epochs=1),
        )


def test_saved_every_so_many_epochs_and_told_of_every_so_often(make_work: Callable[[], ChainWork]) -> None:
    events = list(train_chain(make_work(), tell_every_s=0.0))
    told = [(e.stage.slice, e.what, e.epoch, e.batch) for e in events if isinstance(e, StageUnderway)]
    assert [(number, epoch, batch) for number, what, epoch, batch in told if what == "saved"] == [(1, 1, 0), (2, 1, 0)]
    assert [(epoch, batch) for number, what, epoch, batch in told if (number, what) == (1, "passing")] == [
        (0, 1),
        (1, 1),
    ]
    store = make_work().store
    assert all(len(paths) == 2 for paths in store.stage_files().values())  # weights and record
    quiet = [e for e in train_chain(make_work()) if isinstance(e, StageUnderway) and e.what == "passing"]
    assert not quiet


def test_whoever_lost_the_run_saves_nothing_and_leaves_what_was_saved(make_work: Callable[[], ChainWork]) -> None:
    work = make_work()
    store, first = work.store, work.chain.stages[0].key
    events = train_chain(work)
    for event in events:
        if isinstance(event, StageUnderway) and event.what == "saved":
            break
    left = store.stage_files()[first]
    another = work.lease.model_copy(update={"number": work.lease.number + 100, "holder": "somebody else"})
    store.put(another.path, another.to_bytes())
    assert not [e for e in events if not isinstance(e, EpochDone)]
    assert sorted(store.stage_files()[first]) == sorted(left)
    assert not store.committed_stages()
    assert not list(train_chain(work))


# Verification.


def test_verification_trains_whole_stages(interrupted: tuple[Run, str], plain: Run, tmp_path: Path) -> None:
    """A valid partial of another's making stands beside a committed stage: it would give other weights."""
    run, key = interrupted
    shutil.copytree(plain.store.uri, tmp_path / "copy")
    copy = Run.open(str(tmp_path / "copy"))
    tensors = weights.from_bytes(run.store.get(partial_state(key, 5)))
    data = weights.to_bytes({name: t.fill_(0.01) if t.dtype == torch.float32 else t for name, t in tensors.items()})
    record = run.store.read(partial_record(key, 5), PartialRecord)
    record = record.model_copy(update={"state_digest": digest_bytes(data), "state_bytes": len(data)})
    for store in (copy.store, run.store):
        store.put(partial_state(key, 5), data)
        store.put(record.path, record.to_bytes())
    assert copy.verify(runner="local").ok
    copy.train(runner="local")  # nothing is missing; what lies inside a committed stage is swept
    assert_same_as(plain, copy)
    # That it would have been taken up: the run that trusts it ends with other weights, and verification says so.
    assert resume(run)[0] == [5]
    assert not run.verify(runner="local").ok


def test_logged_at_a_level_that_is_seen(interrupted: tuple[Run, str], caplog: pytest.LogCaptureFixture) -> None:
    run, key = interrupted
    change_state(run, key, flip_the_middle)
    resume(run)
    (record,) = [r for r in caplog.records if r.name == "ray_sisa.partials"]
    assert record.levelno == logging.WARNING
    assert f"stages/{key}/partial/00000005.safetensors" in record.getMessage()
