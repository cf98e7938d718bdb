"""States inside a stage, in a real store: found again as they were saved, or passed over, never believed if changed."""

from __future__ import annotations

import io
import json
import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from ray_sisa import partials, weights
from ray_sisa.config import CheckpointEvery, TrainingRecipe
from ray_sisa.digests import digest_bytes, digest_tensors
from ray_sisa.engine.work import StageUnderway
from ray_sisa.engine.worker import Pace
from ray_sisa.errors import TrainingError
from ray_sisa.layout import partial_record, partial_state, stage_weights
from ray_sisa.lineage import Stage
from ray_sisa.progress import Progress
from ray_sisa.records import Environment, EpochMetrics, PartialRecord
from ray_sisa.snapshot import Partial, Position
from ray_sisa.store import Store
from ray_sisa.training import LabelledImages, check_partial, initial_state, train_stage

KEY, OTHER = "a" * 64, "b" * 64
HERE = Environment(
    device="cpu", device_name="this one", threads=1, python="3", torch="2", ray_sisa="0", platform="linux"
)
METRICS = [EpochMetrics(epoch=0, loss=0.1 + 0.2, train_top1=1 / 3)]


def state(epoch: int, batch: int) -> Partial:
    tensors = {"a/long name": torch.randn(3, 4), "b": torch.tensor(7), "c": torch.zeros(0, dtype=torch.uint8)}
    return Partial(position=Position(epoch=epoch, batch=batch, num_batches=5), tensors=tensors)


def save(store: Store, partial: Partial, key: str = KEY, environment: Environment = HERE) -> PartialRecord:
    metrics = METRICS * partial.position.epoch  # one epoch at the most
    return partials.save(store, key, partial, metrics, 1.5, environment)


def find(store: Store, environment: Environment = HERE) -> partials.Saved | None:
    return partials.find(store, KEY, environment, lambda partial: None)


def refuse(partial: Partial) -> None:
    raise TrainingError("partial", "", "is refused")


def test_what_is_saved_is_found_to_the_bit(store: Store) -> None:
    assert find(store) is None
    saved = state(1, 2)
    record = save(store, saved)
    found = partials.find(Store(store.uri), KEY, HERE, lambda partial: None)
    assert found is not None
    assert found.record == record
    assert (record.number, record.metrics, record.seconds) == (7, tuple(METRICS), 1.5)
    assert found.partial.position == saved.position
    assert digest_tensors(found.partial.tensors) == digest_tensors(saved.tensors)
    assert partials.find(store, OTHER, HERE, lambda partial: None) is None


def test_a_save_deletes_the_others_after_it_and_nothing_else(store: Store) -> None:
    store.put(stage_weights(KEY), b"weights")
    save(store, state(0, 4), OTHER)
    for partial in (state(0, 3), state(1, 2), state(1, 0)):  # the last by one who had to start over
        save(store, partial)
        number = partial.position.step
        assert set(store.sizes(f"stages/{KEY}/partial")) == {partial_state(KEY, number), partial_record(KEY, number)}
    assert set(store.stage_files()[OTHER]) == {partial_state(OTHER, 4), partial_record(OTHER, 4)}
    partials.drop(store, KEY)
    partials.drop(store, KEY)
    assert store.stage_files()[KEY] == [stage_weights(KEY)]
    assert find(store) is None


def test_saving_the_same_again_changes_no_state(store: Store) -> None:
    partial = state(0, 3)
    save(store, partial)
    first = store.get(partial_state(KEY, 3))
    save(store, partial)
    assert store.get(partial_state(KEY, 3)) == first
    assert find(store) is not None


def both(store: Store, first: Partial, second: Partial) -> None:
    """As a crash leaves them that comes before the older one is deleted."""
    save(store, first)
    number = first.position.step
    older = {path: store.get(path) for path in (partial_state(KEY, number), partial_record(KEY, number))}
    save(store, second)
    for path, data in older.items():
        store.put(path, data)


def test_the_farthest_is_found_and_after_it_the_next(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    both(store, state(0, 3), state(1, 4))
    found = find(store)
    assert found is not None and found.record.number == 9
    store.put(partial_state(KEY, 9), b"damaged")
    found = find(store)
    assert found is not None and found.record.number == 3
    assert [r.levelno for r in caplog.records] == [logging.WARNING]


def test_a_state_without_record_is_absent(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    save(store, state(0, 3))
    store.delete([partial_record(KEY, 3)])
    assert find(store) is None
    assert not caplog.records  # a crash leaves it so
    partials.drop(store, KEY)
    assert not store.stage_files()


def flip(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "a bit is flipped": flip,
    "truncated": lambda data: data[:-1],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"\0",
    "JSON of another kind": lambda data: b"[]",
    "nested without end": lambda data: b"[" * 100_000,
    "pickle": lambda data: b"\x80\x04cos\nsystem\n(S'touch planted'\ntR.",
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("path", [partial_state(KEY, 8), partial_record(KEY, 8)], ids=["state", "record"])
def test_what_was_changed_is_passed_over(
    store: Store, path: str, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    save(store, state(1, 3))
    store.put(path, CHANGES[change](store.get(path)))
    assert find(store) is None
    assert [r.levelno for r in caplog.records] == [logging.WARNING]
    assert store.where(path) in caplog.text
    save(store, state(1, 3))  # by the one who started over; it stands where the damaged one stood
    assert find(store) is not None


def test_a_missing_state_is_passed_over(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    save(store, state(1, 3))
    store.delete([partial_state(KEY, 8)])
    assert find(store) is None
    assert "is not there" in caplog.text


@pytest.mark.parametrize("what", ["both", "record", "state"])
def test_swapped_objects_are_passed_over(store: Store, what: str, caplog: pytest.LogCaptureFixture) -> None:
    save(store, state(1, 3))
    save(store, state(1, 3), OTHER)
    for kind in {"both": (partial_record, partial_state), "record": (partial_record,), "state": (partial_state,)}[what]:
        store.put(kind(KEY, 8), store.get(kind(OTHER, 8)))
    assert find(store) is None
    assert caplog.records[0].levelno == logging.WARNING


def test_a_state_under_another_number_is_passed_over(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    save(store, state(1, 3))
    for kind in (partial_record, partial_state):
        store.put(kind(KEY, 9), store.get(kind(KEY, 8)))
        store.delete([kind(KEY, 8)])
    assert find(store) is None
    assert "swapped" in caplog.text


def resealed(record: PartialRecord, **changed: Any) -> bytes:
    """As somebody writes it who knows the format."""
    return record.model_copy(update=changed).to_bytes()


HUGE = struct.pack("<Q", 2**60) + b"{}"
LIES = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
NO_SAFETENSORS = {"no header": b"\0" * 4, "huge header": HUGE, "lying shape": struct.pack("<Q", len(LIES)) + LIES}


@pytest.mark.parametrize("content", NO_SAFETENSORS)
def test_a_hostile_state_with_a_fitting_record_is_passed_over(
    store: Store, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    record, data = save(store, state(1, 3)), NO_SAFETENSORS[content]
    store.put(partial_state(KEY, 8), data)
    store.put(record.path, resealed(record, state_digest=digest_bytes(data), state_bytes=len(data)))
    assert find(store) is None
    assert "is not valid safetensors" in caplog.text


@pytest.mark.parametrize(
    "changed",
    [
        {"epoch": 0},
        {"batch": 4},
        {"num_batches": 6},
        {"num_batches": -1},
        {"epoch": 2, "batch": -2},
        {"metrics": ()},
        {"metrics": tuple(METRICS * 2)},
        {"metrics": (METRICS[0].model_copy(update={"epoch": 5}),)},
    ],
    ids=str,
)
def test_a_record_that_contradicts_itself_is_passed_over(
    store: Store, changed: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    record = save(store, state(1, 3))
    store.put(record.path, resealed(record, **changed))
    assert find(store) is None
    assert "contradicts itself" in caplog.text


@pytest.mark.parametrize("field", ["device", "device_name", "threads", "torch", "ray_sisa"])
def test_another_environment_is_passed_over_without_alarm(
    store: Store, field: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    elsewhere = HERE.model_copy(update={field: 3 if field == "threads" else "another"})
    save(store, state(0, 2), environment=elsewhere)
    assert find(store) is None
    assert [r.levelno for r in caplog.records] == [logging.INFO]
    assert f"{field} " in caplog.text
    assert find(store, elsewhere) is not None


def test_another_python_or_platform_does_as_well(store: Store) -> None:
    save(store, state(0, 2), environment=HERE.model_copy(update={"python": "4", "platform": "another"}))
    assert find(store) is not None


def test_a_state_that_does_not_fit_is_passed_over(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    save(store, state(0, 2))
    assert partials.find(store, KEY, HERE, refuse) is None
    assert "is refused" in caplog.text


def test_the_state_of_another_recipe_is_passed_over(
    store: Store, make_training: Callable[..., TrainingRecipe], random_samples: Callable[..., Any]
) -> None:
    samples = random_samples(20)
    data = LabelledImages(images=samples.images, labels=samples.labels)
    sgd, adam = make_training(), make_training(optimizer={"name": "adam", "lr": 1e-3})
    steps = train_stage(
        start=initial_state(sgd, "chain", None),
        samples=data,
        training=sgd,
        key=KEY,
        epochs=2,
        due=lambda at: "save" if at.step == 2 else None,
    )
    partial = next(item for item in steps if isinstance(item, Partial))
    partials.save(store, KEY, partial, [], 0.0, HERE)

    def fits(training: TrainingRecipe) -> bool:
        def check(found: Partial) -> None:
            check_partial(found, training=training, num_samples=20, epochs=2, device="cpu")

        return partials.find(store, KEY, HERE, check) is not None

    assert fits(sgd)
    assert not fits(adam)
    assert not fits(make_training(num_classes=4))
    assert not fits(make_training(batch_size=4))


def test_files_are_safetensors_and_json(store: Store) -> None:
    partial = state(0, 2)
    save(store, partial)
    folder = Path(store.uri, "stages", KEY, "partial")
    assert {path.name for path in folder.iterdir()} == {"00000002.safetensors", "00000002.json"}
    content = (folder / "00000002.safetensors").read_bytes()
    assert digest_tensors(weights.from_bytes(content)) == digest_tensors(partial.tensors)
    assert json.loads((folder / "00000002.json").read_text())["state_digest"] == digest_bytes(content)


# When.


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def place(step: int) -> Position:
    return Position(epoch=step // 10, batch=step % 10, num_batches=10)


def test_every_so_many_epochs() -> None:
    pace = Pace(CheckpointEvery(epochs=2), 1e9)
    assert [step for step in range(1, 61) if pace(place(step)) == "save"] == [20, 40, 60]


def test_every_so_many_minutes_from_the_start_or_the_last_save() -> None:
    clock = Clock()
    pace = Pace(CheckpointEvery(minutes=2), 1e9, clock)
    saved = []
    for step in range(1, 50):
        clock.now += 17
        if pace(place(step)) == "save":
            saved.append(step)
    assert saved == [8, 16, 24, 32, 40, 48]  # 8 * 17 s are the first beyond 120 s


def test_never() -> None:
    clock = Clock()
    pace = Pace(None, 1e9, clock)
    for step in range(1, 50):
        clock.now += 1e6
        assert pace(place(step)) != "save"


def test_a_stage_tells_of_itself_counted_from_its_first_step_or_the_last_time() -> None:
    clock = Clock()
    pace = Pace(CheckpointEvery(minutes=1), 10.0, clock)
    clock.now += 30  # libraries are loaded
    told = []
    for step in range(1, 20):
        told.append(pace(place(step)))
        clock.now += 6
    assert [step for step, what in enumerate(told, start=1) if what == "tell"] == [3, 5, 8, 10, 12, 14, 18]
    assert [step for step, what in enumerate(told, start=1) if what == "save"] == [6, 16]


# Told.


def test_progress_inside_a_stage() -> None:
    stream, clock = io.StringIO(), Clock()
    stage = Stage(shard=0, slice=1, key=KEY, parent="", slice_digest="", num_samples=100, epochs=4)
    progress = Progress([stage], 2, stream, clock)

    def hear(what: Literal["resumed", "passing", "saved"], epoch: int, batch: int) -> str:
        progress(StageUnderway(stage=stage, what=what, epoch=epoch, batch=batch, num_batches=4))
        return stream.getvalue().splitlines()[-1]

    where = "shard 0 slice 1/2 epoch"
    resumed = hear("resumed", 1, 2)  # 150 of 400 passes
    assert resumed.startswith(f"{where} 2/4 50% done, taken up where its state was saved, 0/1 stages, 38% of passes")
    clock.now += 10
    assert hear("passing", 2, 2) == f"{where} 3/4 50% done, 0/1 stages, 62% of passes"
    clock.now += 10
    assert hear("saved", 3, 0).startswith(f"{where} 4/4 0% done, state saved, 0/1 stages, 75% of passes")
    clock.now += 10
    assert "75% of passes" in hear("passing", 2, 1)  # a second time after a failure: counts once
