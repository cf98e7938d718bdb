"""The CIFAR-100 study at its smallest, submitted to a real head: killed, submitted again, and once more when done.

Real: the head, the job, its workers, the data and the public weights, the SIGKILL of the driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from real_head import Head, bare_checkout, started_head
from submissions import Finished, submit_thrice

from ray_sisa import data
from ray_sisa.config import DataConfig
from ray_sisa.config_values import make_config
from ray_sisa.data import Dataset
from ray_sisa.run import Run
from ray_sisa.study.job import CIFAR100, read_record, section_of
from ray_sisa.study.presets import PRESETS, SMOKE, Size
from ray_sisa.study.results import StudyRecord
from ray_sisa.study.samples import part

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.smoke, pytest.mark.timeout(1800)]

SMALL = Size(num_classes=2, train_per_class=10, test_per_class=5)
ENOUGH = 6  # steps done before the driver is killed


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> Iterator[Head]:
    with started_head(bare_checkout(tmp_path_factory.mktemp("checkout"))) as head:
        yield head


@pytest.fixture(scope="module")
def small(real_data: Path) -> Dataset:
    return part(data.load(DataConfig.model_validate({**section_of(str(real_data)), **CIFAR100})), SMALL)


@pytest.fixture(scope="module")
def finished(head: Head, real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished[StudyRecord]:
    folder = tmp_path_factory.mktemp("study")
    return submit_thrice(head, "jobs/study_cifar100.py", real_data, folder, read_record, ENOUGH)


def test_it_goes_on_where_it_was_killed(finished: Finished[StudyRecord]) -> None:
    assert ENOUGH <= len(finished.before_kill) < len(finished.after)
    assert finished.before_kill.items() <= finished.after.items()  # none was written again


def test_once_done_nothing_is_done_again(finished: Finished[StudyRecord]) -> None:
    assert finished.at_end == finished.after
    assert replace(finished.again, facts=finished.record.facts) == finished.record


def test_all_arms_are_there(finished: Finished[StudyRecord]) -> None:
    record = finished.record
    assert {row.method for row in record.methods} == {"original", "retrain", *(m["name"] for m in SMOKE.methods)}
    assert {row.seed for row in record.methods} == set(SMOKE.seeds)
    assert {row.method for row in record.methods if row.exact} == {"retrain"}
    assert {p.arm for p in record.grid} == {"scratch", "transfer", "frozen"}
    layouts = {(p.trained.shards, p.trained.slices) for p in record.grid if p.arm == "scratch"}
    assert layouts == {(s, r) for s in SMOKE.shards for r in SMOKE.slices}
    patterns = {u.pattern for u in record.unlearnings if u.arm == "frozen"}
    assert patterns == {"block", "random", "class", "memorised", *(f"{n} at random" for n in SMOKE.numbers)}
    assert {u.arm for u in record.unlearnings if u.pattern == "subjects"} == {"placed-by-sample", "placed-by-subject"}
    assert len(record.placements) == 4
    assert record.normalisations[0].is_own


def test_what_was_predicted_is_what_it_cost(finished: Finished[StudyRecord]) -> None:
    record = finished.record
    done = [*record.unlearnings, *(placed.carried_out for placed in record.placements)]
    for unlearning in done:
        asked, completed = unlearning.requested, unlearning.completed
        assert completed.sample_passes == asked.predicted_sample_passes
        assert completed.stages == asked.predicted_stages
        assert completed.stages_purged > 0
        assert completed.sample_passes < asked.full_sample_passes


def test_curves_have_every_epoch(finished: Finished[StudyRecord]) -> None:
    for point in (p for p in finished.record.grid if p.arm in ("scratch", "transfer")):
        assert {curve.shard for curve in point.trained.curves} == set(range(point.trained.shards))
        for curve in point.trained.curves:
            assert len(curve.train_top1) == len(curve.test_top1) > 0
            assert None not in curve.test_top1


def test_the_page_shows_it_and_needs_nothing_else(finished: Finished[StudyRecord]) -> None:
    page = (finished.out / "report.html").read_text()
    assert "no exactness certificate" in page
    assert 'src="http' not in page
    assert 'href="http' not in page
    assert "data:image/svg+xml" in page
    assert str(finished.storage.parent) not in page
    assert str(finished.storage.parent) not in (finished.out / "result.json").read_text()


@pytest.mark.parametrize("arm", ["scratch", "transfer", "frozen"])
def test_the_gpu_preset_at_a_small_size(arm: str, real_data: Path, small: Dataset, tmp_path: Path) -> None:
    """Its networks, image sizes and optimisers, on twenty images and one CPU."""
    preset = PRESETS["gpu"]
    recipe = {**getattr(preset, arm), "epochs_per_slice": 1, "batch_size": 10}
    content = {
        "name": arm,
        "storage_path": str(tmp_path),
        "data": {**section_of(str(real_data)), "num_classes": SMALL.num_classes},
        "placement": {"strategy": "permutation", "key": "study", "shards": 2, "slices": 1},
        "recipe": recipe,
    }
    run = Run.create(make_config(content), replace(small, configured=False))
    run.train(runner="local")
    run.forget(samples=run.sample_ids(1, 1)[:2])
    done = run.unlearn(runner="local")
    assert (done.stages_trained, done.affected_shards) == (1, (1,))
    assert run.verify(runner="local", shards=[1]).ok


@pytest.mark.parametrize("name", PRESETS)
def test_the_recipes_of_every_preset_are_valid(name: str) -> None:
    preset = PRESETS[name]
    for recipe in ({**preset.scratch, "total_epochs": preset.total_epochs}, preset.transfer, preset.frozen):
        for shards in preset.shards:
            content = {
                "name": "x",
                "data": {"source": "parquet", "train": "train.parquet", "num_classes": 100},
                "placement": {"shards": shards, "slices": preset.slices[-1]},
                "recipe": recipe,
            }
            assert make_config(content).recipe.model == recipe["model"]
