"""Samples in the training set and in the test set at once: refused, let through, counted, and told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from small_runs import MLP, digits, small_config, write_parquet

from ray_sisa import overlap, printing, printing_measures
from ray_sisa.config import DataConfig
from ray_sisa.config_values import make_config
from ray_sisa.data import Dataset, load
from ray_sisa.digests import seal
from ray_sisa.errors import DataError
from ray_sisa.ingest import differing_fields
from ray_sisa.layout import RUN
from ray_sisa.planning import plan_config
from ray_sisa.report import make_page, render
from ray_sisa.run import Run
from ray_sisa.samples import Samples, concatenate

CONFIG = DataConfig(source="parquet", train="given-as-a-dataset", num_classes=10)
ALLOWED = CONFIG.model_copy(update={"allow_overlap": True})


def dataset(train: Samples, test: Samples | None, **what: bool) -> Dataset:
    return Dataset(train=train, test=test, num_classes=10, mean=(0.0,), std=(1.0,), **what)


def renamed(samples: Samples, prefix: str) -> Samples:
    ids = pa.array([f"{prefix}{i}" for i in range(len(samples))])
    return replace(samples, ids=ids, subjects=ids)


def test_a_test_set_apart() -> None:
    assert overlap.count(CONFIG, dataset(digits(0, 100), digits(100, 50), has_names=True)) == 0
    assert overlap.count(CONFIG, dataset(digits(0, 100), None)) is None


@pytest.mark.parametrize("label", ["the same label", "another label"])
def test_content_in_both_is_refused(label: str, caplog: pytest.LogCaptureFixture) -> None:
    test = renamed(digits(98, 50), "test-")
    if label == "another label":
        test = replace(test, labels=(test.labels + 1) % 10)
    both = dataset(digits(0, 100), test)
    rule = r"data.test = .*training set too, 2 of 50 \(0 by id, 2 by content\), such as test-0, test-1.*allow_overlap"
    with pytest.raises(DataError, match=rule):
        overlap.count(CONFIG, both)
    assert overlap.count(ALLOWED, both) == 2
    assert overlap.count(CONFIG, replace(both, is_published=True)) == 2
    assert "2 of 50 (0 by id, 2 by content) samples are training samples too" in caplog.text


def test_an_id_in_both_is_refused_where_ids_name_samples() -> None:
    train, test = digits(0, 100), digits(100, 50)
    numbered = dataset(renamed(train, ""), renamed(test, ""))
    assert overlap.count(CONFIG, numbered) == 0
    with pytest.raises(DataError, match=r"50 of 50 \(50 by id, 0 by content\).*leave data.columns.id out"):
        overlap.count(CONFIG, replace(numbered, has_names=True))


def test_the_digits_are_apart() -> None:
    config = DataConfig(source="digits")
    assert overlap.count(config, load(config)) == 0


def test_cifar_100_has_ten_test_images_in_its_training_set(real_data: Path) -> None:
    config = DataConfig(
        source="parquet",
        train=str(real_data / "cifar100/train.parquet"),
        test=str(real_data / "cifar100/test.parquet"),
        columns={"id": "id", "label": "fine_label"},
        num_classes=100,
        allow_overlap=True,
    )
    assert overlap.count(config, load(config)) == 10


def parquet_data(folder: Path, **settings: Any) -> dict[str, Any]:
    """60 digits to train on and 30 to test on, of which 3 are training samples under another id."""
    (folder / "data").mkdir()
    test = concatenate([digits(60, 27), renamed(digits(0, 3), "again-")])
    return {
        "train": write_parquet(folder / "data/train-0.parquet", digits(0, 60)),
        "test": write_parquet(folder / "data/test-0.parquet", test),
        **settings,
    }


def test_the_hubs_layout_cannot_train_on_its_test_set(tmp_path: Path) -> None:
    source = parquet_data(tmp_path)
    config = small_config(tmp_path, data={**source, "train": str(tmp_path / "data")})
    for use in (Run.create, plan_config):
        with pytest.raises(
            DataError, match=r"data.test = .*test-0.parquet: shares 1 of its 1 file\(s\) with data.train"
        ):
            use(config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]
    apart = small_config(tmp_path, data={**source, "train": f"{tmp_path}/data/train-*.parquet"})
    with pytest.raises(DataError, match=r"3 of 30 \(0 by id, 3 by content\)"):
        Run.create(apart)
    assert not (tmp_path / "run" / RUN).exists()


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A trained run, three of whose test samples are training samples."""
    folder = tmp_path_factory.mktemp("overlapping")
    one = {"shards": 1, "slices": 1}
    config = small_config(folder, data=parquet_data(folder, allow_overlap=True), placement=one, recipe=MLP)
    run = Run.create(config)
    run.train(runner="local")
    return run


def test_the_number_is_told_wherever_the_test_set_is_used(overlapping: Run) -> None:
    assert overlapping.record.test_samples_in_training == 3
    status = printing.status(overlapping.status())
    assert status.fields["test_samples_in_training"] == 3
    assert "30 samples, 3 of them also in the training set" in status.text
    measured = overlapping.evaluate(runner="local")
    assert overlapping.evaluations()[-1] == measured
    answer = printing_measures.evaluated(measured, with_roc=False, is_repeatable=True)
    assert answer.fields["test_samples_in_training"] == 3
    assert "(30 samples), 3 of them also in the training set" in answer.text
    page = render(make_page(overlapping))
    assert "3 of the 30 test samples were trained on" in page
    assert "30 samples, 3 of them also in the training set" in " ".join(page.split())


def test_no_key_depends_on_the_permission_or_the_number(overlapping: Run, tmp_path: Path) -> None:
    test = digits(60, 27)
    config = overlapping.record.config.model_copy(update={"storage_path": str(tmp_path)})
    apart = Run.create(config, replace(load(overlapping.record.config.data), test=test))
    assert apart.record.test_samples_in_training == 0
    assert [c.keys for c in apart.live.chains(apart.ledger())] == [
        c.keys for c in overlapping.live.chains(overlapping.ledger())
    ]


def test_a_run_of_before_has_no_number_and_opens(overlapping: Run, copied_without: Callable[..., Run]) -> None:
    run = copied_without("test_samples_in_training")
    assert run.record.test_samples_in_training is None
    assert "not compared with the training samples" in printing.status(run.status()).text
    assert run.check().ok
    # Its source is read again without being judged.
    run.forget(samples=["digit-0001"])
    run.unlearn(runner="local")
    assert run.evaluate(forget=1, runner="local").test_samples_in_training is None
    assert run.verify(runner="local").ok


@pytest.fixture
def copied_without(overlapping: Run, tmp_path: Path) -> Callable[..., Run]:
    """A copy of the run as a program without a field wrote it, whose configuration gave no permission."""

    def copy(field: str) -> Run:
        shutil.copytree(overlapping.store.uri, tmp_path / "before")
        content = json.loads((tmp_path / "before" / RUN).read_bytes())
        del content[field], content["checksum"], content["config"]["data"]["allow_overlap"]
        (tmp_path / "before" / RUN).write_bytes(seal(json.dumps(content, indent=1).encode()))
        return Run.open(str(tmp_path / "before"))

    return copy


def test_the_permission_is_no_part_of_what_is_written_unless_given(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    assert "allow_overlap" not in config.model_dump()["data"]
    assert "allow_overlap" not in json.loads(config.model_dump_json())["data"]
    allowing = make_config({**config.model_dump(), "data": {**config.model_dump()["data"], "allow_overlap": True}})
    assert allowing.model_dump()["data"]["allow_overlap"] is True
    assert differing_fields(config, allowing) == differing_fields(allowing, config) == []
