"""Law: what cannot be done is refused with an error that names field, value and remedy, and nothing is half-written."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from small_runs import CNN, COLUMNS, MLP, dataset, files_of, folder_of, small_config, write_parquet

from ray_sisa.data import Dataset
from ray_sisa.errors import ConfigError, DataError, RequestError, SisaError, StoreError
from ray_sisa.run import Run
from ray_sisa.samples import Samples, make_samples


@contextmanager
def unchanged(run: Run) -> Iterator[None]:
    """The store is byte for byte, and file by file, what it was."""
    before = files_of(folder_of(run), leases=True)
    yield
    assert files_of(folder_of(run), leases=True) == before


def refused(kind: type[SisaError], folder: Path, *, dataset: Dataset | None = None, **config: Any) -> str:
    """The message of the error that creating such a run raises; its folder must not come to be."""
    with pytest.raises(kind) as error:
        Run.create(small_config(folder / "runs", **config), dataset=dataset)
    assert not (folder / "runs").exists()
    return str(error.value)


# --- requests


def test_unknown_ids_are_listed_and_the_request_is_refused_as_a_whole(copied: Callable[..., Run]) -> None:
    run = copied()
    known = run.sample_ids(0, 1)[0]
    with unchanged(run), pytest.raises(RequestError) as error:
        run.forget(samples=[known, "nobody", "no-one"], subjects=["stranger"])
    assert all(name in str(error.value) for name in ("nobody", "no-one", "stranger", "3 not in this run"))
    assert known not in str(error.value)


def test_unknown_ids_can_be_passed_over(copied: Callable[..., Run]) -> None:
    run = copied()
    known = run.sample_ids(0, 1)[0]
    forgotten = run.forget(samples=[known, "nobody"], ignore_unknown=True)
    assert (forgotten.samples, forgotten.unknown, forgotten.unknown_examples) == (1, 1, ("nobody",))


def test_of_many_unknown_ids_the_number_and_the_first_five_are_kept(copied: Callable[..., Run]) -> None:
    run = copied()
    known = run.sample_ids(0, 1)[0]
    strangers = [f"stranger-{i:05d}" for i in range(1000)]
    forgotten = run.forget(samples=[*strangers, known, *strangers], subjects=["nobody"], ignore_unknown=True)
    assert (forgotten.samples, forgotten.unknown) == (1, 2001)
    assert forgotten.unknown_examples == tuple(strangers[:5])
    with unchanged(run), pytest.raises(RequestError, match="1000 not in this run"):
        run.forget(samples=strangers)


def test_a_sample_named_twice_counts_once(copied: Callable[..., Run]) -> None:
    run = copied()
    first, second = run.sample_ids(0, 1)[:2]
    forgotten = run.forget(samples=iter([first, second, first]))
    assert (forgotten.samples, forgotten.already_forgotten) == (2, 0)
    assert run.ledger().requests[0].sample_ids == sorted([first, second])


def test_a_subject_is_no_sample_nor_the_other_way_round(copied: Callable[..., Run]) -> None:
    run = copied()
    with unchanged(run):
        with pytest.raises(RequestError, match="person-007"):
            run.forget(samples=["person-007"])
        with pytest.raises(RequestError, match="digit-0007"):
            run.forget(subjects=["digit-0007"])


@pytest.mark.parametrize("request_", [{}, {"samples": []}, {"samples": ["nobody"], "ignore_unknown": True}])
def test_an_empty_request(request_: dict[str, Any], copied: Callable[..., Run]) -> None:
    run = copied()
    with unchanged(run), pytest.raises(RequestError, match="names no sample of this run"):
        run.forget(**request_)


def test_an_idempotency_key_used_for_other_samples(copied: Callable[..., Run]) -> None:
    run = copied()
    first, second = run.sample_ids(0, 1)[:2]
    run.forget(samples=[first], key="ticket-1")
    with unchanged(run), pytest.raises(RequestError, match=r"ticket-1.*was used for other samples by request 1"):
        run.forget(samples=[second], key="ticket-1")


def test_an_unknown_request_or_shard(copied: Callable[..., Run]) -> None:
    run = copied()
    with unchanged(run):
        with pytest.raises(RequestError, match="must be a request, 1 to 0"):
            run.evaluate(forget=1, runner="local")
        with pytest.raises(RequestError, match=r"nobody.*1 not in this run"):
            run.evaluate(forget=["nobody"], runner="local")
        with pytest.raises(RequestError, match="must be 0 to 2"):
            run.verify(shards=[0, 3], runner="local")


# --- runs


def test_a_run_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="has no run"):
        Run.open(str(tmp_path / "nowhere" / "run"))
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_trained_yet(tmp_path: Path, samples: Samples) -> None:
    run = Run.create(small_config(tmp_path), dataset=dataset(samples))
    with unchanged(run):
        for ask in (run.ensemble, lambda: run.evaluate(runner="local")):
            with pytest.raises(StoreError, match="has no ensemble yet"):
                ask()


def test_another_configuration_for_a_run_says_what_differs(tmp_path: Path, samples: Samples) -> None:
    run = Run.create(small_config(tmp_path), dataset=dataset(samples))
    other = small_config(tmp_path, recipe=MLP | {"seed": 7, "batch_size": 16}, placement={"shards": 2, "key": "other"})
    with unchanged(run), pytest.raises(ConfigError) as error:
        Run.create(other, dataset=dataset(samples))
    assert "these differ: placement.key, placement.shards, recipe.batch_size, recipe.seed" in str(error.value)
    assert "Choose another name" in str(error.value)


def test_scaling_may_differ_from_that_of_a_run(tmp_path: Path, samples: Samples) -> None:
    run = Run.create(small_config(tmp_path), dataset=dataset(samples))
    with unchanged(run):
        again = Run.create(small_config(tmp_path, scaling={"max_failures": 7}), dataset=dataset(samples))
    assert again.record.config.scaling.max_failures == 7


def test_a_damaged_ledger_is_refused(copied: Callable[..., Run]) -> None:
    run = copied()
    run.forget(samples=run.sample_ids(0, 1)[:1])
    run.forget(samples=run.sample_ids(0, 2)[:1])
    (folder_of(run) / "ledger/00000001.json").unlink()
    run = Run.open(run.store.uri)  # an open run does not read again what it has read
    for ask in (run.status, run.ensemble, lambda: run.unlearn(runner="local")):
        with pytest.raises(StoreError, match="the ledger lost a request"):
            ask()


def test_a_damaged_stage_is_not_served(copied: Callable[..., Run]) -> None:
    run = copied()
    stage = run.stages()[-1]
    (folder_of(run) / f"stages/{stage.key}/weights.safetensors").write_bytes(b"short")
    with pytest.raises(StoreError, match=r"is not what was committed \(5 bytes"):
        run.ensemble()
    # The remedy that the error names.
    shutil.rmtree(folder_of(run) / f"stages/{stage.key}")
    digest = run.status().ensemble_digest
    assert run.unlearn(runner="local").stages_trained == 1
    assert run.status().ensemble_digest == digest


# --- configurations and data


def test_more_slices_than_subjects(tmp_path: Path, samples: Samples) -> None:
    placement = {"shards": 9, "slices": 9}
    message = refused(ConfigError, tmp_path, dataset=dataset(samples), placement=placement)
    assert "9 shards x 9 slices = 81" in message
    assert "subjects (80)" in message


def test_a_weights_file_that_is_not_there(tmp_path: Path, samples: Samples) -> None:
    recipe = MLP | {"weights": str(tmp_path / "absent.safetensors")}
    message = refused(ConfigError, tmp_path, dataset=dataset(samples), recipe=recipe)
    assert "recipe.weights" in message
    assert "absent.safetensors" in message


@pytest.mark.parametrize("model", ["resnet21", "torchvision:resnet81", "no_such_module:network"])
def test_an_unknown_network(model: str, tmp_path: Path, samples: Samples) -> None:
    message = refused(ConfigError, tmp_path, dataset=dataset(samples), recipe=MLP | {"model": model})
    assert f"recipe.model = {model}" in message


def test_a_network_that_does_not_take_the_data(tmp_path: Path) -> None:
    features = np.zeros((90, 4), np.float32)
    train = make_samples(ids=[f"s{i}" for i in range(90)], images=features, labels=[0] * 90)
    vectors = Dataset(train=train, test=None, num_classes=2, mean=(0.0,), std=(1.0,))
    assert "takes images, and the data are feature vectors" in refused(
        ConfigError, tmp_path, dataset=vectors, recipe=CNN
    )


@pytest.mark.parametrize("column", COLUMNS)
def test_a_column_that_is_not_there(column: str, parquet: dict[str, str], tmp_path: Path) -> None:
    message = refused(ConfigError, tmp_path, data=parquet | {"columns": COLUMNS | {column: "absent"}})
    assert f"data.columns.{column} = absent" in message
    assert "whose columns are: id, person, img, label" in message


def test_images_of_unequal_size(tmp_path: Path) -> None:
    ids = [f"s{i:02d}" for i in range(91)]
    columns = {"id": ids, "person": ids, "img": [_png(8)] * 90 + [_png(9)], "label": [0] * 91}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    message = refused(DataError, tmp_path, data={"train": str(tmp_path / "train.parquet")})
    assert "s90" in message
    assert "8" in message


def _png(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (side, side)).save(file, format="PNG")
    return file.getvalue()


def test_labels_out_of_range(parquet: dict[str, str], tmp_path: Path) -> None:
    message = refused(DataError, tmp_path, data=parquet | {"num_classes": 9})
    assert "must be from 0 to num_classes - 1 = 8" in message
    assert "digit-0009" in message


def test_labels_out_of_range_in_memory(samples: Samples) -> None:
    labels = samples.labels.copy()
    labels[5] = 10
    train = make_samples(ids=samples.ids, subjects=samples.subjects, images=samples.images, labels=labels)
    with pytest.raises(DataError, match="digit-0005"):
        dataset(train)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_file_that_is_not_there(split: str, parquet: dict[str, str], tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.parquet")
    assert absent in refused(DataError, tmp_path, data=parquet | {split: absent})


def test_a_ledger_that_lost_its_last_request_is_refused(copied: Callable[..., Run]) -> None:
    run = copied()
    run.forget(samples=run.sample_ids(0, 1)[:1])
    run.unlearn(runner="local")
    (folder_of(run) / "ledger/00000001.json").unlink()
    reopened = Run.open(run.store.uri)
    for ask in (reopened.status, reopened.ensemble, lambda: reopened.unlearn(runner="local")):
        with pytest.raises(StoreError, match="its request 1 is lost or was edited"):
            ask()


def test_a_source_whose_content_changed_is_refused(
    copied: Callable[..., Run], samples: Samples, parquet: dict[str, str], tmp_path: Path
) -> None:
    run = copied()
    images = samples.images.copy()
    images[7] ^= 1
    changed = make_samples(ids=samples.ids, subjects=samples.subjects, images=images, labels=samples.labels)
    train = write_parquet(tmp_path / "changed.parquet", changed)
    source = run.record.config.data.model_copy(update={"train": train})
    with pytest.raises(RequestError, match=r"digit-0007: has 1 samples whose content is not"):
        run.evaluate(forget=run.sample_ids(0, 1)[:1], source=source, runner="local")


def test_a_network_that_does_not_fit_the_data_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = small_config(tmp_path, recipe=MLP | {"model": "torchvision:vit_b_16"})
    rgb = np.zeros((12, 8, 8, 3), np.uint8)
    train = make_samples(ids=[f"i{n}" for n in range(12)], images=rgb, labels=[0] * 12)
    data = Dataset(train=train, test=None, num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)
    with pytest.raises(ConfigError, match=r"vit_b_16: cannot take samples of shape \[8, 8, 3\]"):
        Run.create(config, dataset=data)
    assert not list(tmp_path.rglob("*.json"))
