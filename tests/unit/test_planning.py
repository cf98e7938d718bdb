"""What plans say: the closed form of the paper for random deletions, and exactly what unlearning then does."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from ray_sisa import planning
from ray_sisa.cli import app
from ray_sisa.config import RunConfig
from ray_sisa.config_values import make_config
from ray_sisa.errors import ConfigError, DataError, RequestError
from ray_sisa.run import Run


def config(folder: Path, **placement: object) -> RunConfig:
    return make_config(
        {
            "name": "planned",
            "storage_path": str(folder),
            "data": {"source": "digits"},
            "placement": {"shards": 2, "slices": 2, "key": "a"} | placement,
            "recipe": {"model": "mlp", "epochs_per_slice": 1},
            "evaluation": {"test_during_training": "never"},
        }
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    Run.create(config(folder)).train(runner="local")
    return folder / "planned"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Iterator[Run]:
    shutil.copytree(trained, tmp_path / "run")
    yield Run.open(str(tmp_path / "run"))


def files(run: Run) -> dict[str, int]:
    return run.store.sizes("")


@given(
    shards=st.integers(1, 12), slices=st.integers(1, 12), epochs=st.integers(1, 5), num_requests=st.integers(1, 1000)
)
def test_expected_fraction_is_the_closed_form(shards: int, slices: int, epochs: int, num_requests: int) -> None:
    plan = planning.deletion_plan(1000, shards, [epochs] * slices, num_requests, 0)
    hits = sum(i * (1 - (1 - i / (slices * shards)) ** num_requests) for i in range(1, slices + 1))
    assert plan.fraction == pytest.approx(2 / (slices * (slices + 1)) * hits)
    assert plan.full_training_sample_passes == round(epochs * 1000 * (slices + 1) / 2)
    assert 0 < plan.stages <= shards * slices


@pytest.mark.parametrize("num_requests", [1, 2, 3])
def test_expected_number_of_stages_is_the_mean_over_all_draws(num_requests: int) -> None:
    shards, slices = 2, 3
    places = [(s, r) for s in range(shards) for r in range(1, slices + 1)]
    retrained = [
        sum(slices - min(r for t, r in draw if t == s) + 1 for s in {s for s, _ in draw})
        for draw in itertools.product(places, repeat=num_requests)
    ]
    plan = planning.deletion_plan(600, shards, [1] * slices, num_requests, 0)
    assert plan.stages == pytest.approx(np.mean(retrained))


@pytest.mark.parametrize("num_requests", [0, -1, 11])
def test_a_number_of_deletions_out_of_range_is_refused(num_requests: int) -> None:
    with pytest.raises(RequestError, match="from 1 to the number of samples, 10"):
        planning.deletion_plan(10, 2, [1, 1], num_requests, 0)


def test_training_costs_itself() -> None:
    plan = planning.training_plan(1000, 4, [1] * 5, 7)
    assert (plan.sample_passes, plan.fraction, plan.stages, plan.storage_bytes) == (3000, 1.0, 20, 7)


def test_a_configuration_is_planned_without_a_trace(tmp_path: Path) -> None:
    plan = planning.plan_config(config(tmp_path / "runs"))
    parameters = 65 * 64 + 65 * 64 + 65 * 10
    assert plan.storage_bytes == 4 * 4 * parameters + 1438 * 64
    assert (plan.fraction, plan.stages) == (1.0, 4)
    assert list(tmp_path.iterdir()) == []


def test_a_private_configuration_is_planned_with_at_most_its_target(tmp_path: Path) -> None:
    content = config(tmp_path / "runs").model_dump(mode="json")
    content["recipe"]["dp"] = {"target_epsilon": 3.0, "delta": 1e-4, "accountant": "rdp"}
    path = tmp_path / "private.yaml"
    path.write_text(json.dumps(content))  # JSON is YAML
    told = json.loads(CliRunner().invoke(app, ["plan", str(path), "--json"]).stdout)
    assert 2.9 < told["epsilon"] <= 3.0
    text = CliRunner().invoke(app, ["plan", str(path)]).stdout
    assert "epsilon        " in text
    assert told["epsilon_note"] in text and "if all slices were equal" in text
    assert [entry.name for entry in tmp_path.iterdir()] == ["private.yaml"]


@pytest.mark.parametrize(
    ("change", "field"), [({"batch_size": 1000}, "recipe.batch_size"), ({"delta": 0.01}, "recipe.dp.delta")]
)
def test_a_plan_refuses_what_training_would_of_equal_slices(
    change: dict[str, float], field: str, tmp_path: Path
) -> None:
    content = config(tmp_path / "runs").model_dump(mode="json")
    content["recipe"]["batch_size"] = change.get("batch_size", 32)
    content["recipe"]["dp"] = {"noise_multiplier": 1.0, "delta": change.get("delta", 1e-5)}
    with pytest.raises(ConfigError) as caught:
        planning.plan_config(make_config(content))
    assert caught.value.field == field


def test_of_parquet_files_one_row_is_decoded(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    table = pa.table({"x": [1.0, None], "label": [0, 99]})  # the second row could not be loaded
    pq.write_table(table, folder / "a.parquet")
    pq.write_table(table, folder / "b.parquet")
    content = config(tmp_path).model_dump(mode="json") | {
        "data": {"source": "parquet", "train": str(folder), "num_classes": 2, "columns": {"features": ["x"]}},
    }
    plan = planning.plan_config(make_config(content))
    assert plan.sample_passes == 4 * (2 + 1) / 2
    assert plan.storage_bytes == 4 * 4 * (2 * 64 + 65 * 64 + 65 * 2) + 4 * 4


def test_absent_data_is_named(tmp_path: Path) -> None:
    data = {"source": "parquet", "train": str(tmp_path / "none.parquet"), "num_classes": 2}
    with pytest.raises(DataError, match=r"none\.parquet"):
        planning.plan_config(make_config(config(tmp_path).model_dump(mode="json") | {"data": data}))


def test_forgetting_costs_what_was_planned(run: Run) -> None:
    before = files(run)
    samples = run.sample_ids(1, 1)[:2] + run.sample_ids(0, 2)[:1]
    plan = planning.plan_forgetting(run, samples=samples)
    assert files(run) == before
    run.forget(samples=samples)
    assert planning.plan_next(run) == plan
    done = run.unlearn(runner="local")
    assert (plan.stages, plan.sample_passes) == (done.stages_trained, done.sample_passes) != (0, 0)
    assert plan.full_training_sample_passes == done.full_training_sample_passes
    assert plan.fraction == done.sample_passes / done.full_training_sample_passes
    assert planning.plan_next(run).stages == 0


def test_the_storage_of_a_run_is_close_to_what_was_planned(run: Run) -> None:
    planned = planning.plan_config(run.record.config).storage_bytes
    assert planning.plan_next(run).storage_bytes == planned
    held = sum(size for path, size in files(run).items() if path.endswith("weights.safetensors"))
    held += sum(size for path, size in files(run).items() if path.startswith("slices/"))
    assert 1 <= held / planned < 1.5  # of samples this small, ids and labels weigh something


def test_what_is_forgotten_already_costs_nothing(run: Run) -> None:
    samples = run.sample_ids(0, 1)[:1]
    run.forget(samples=samples)
    assert planning.plan_forgetting(run, samples=samples).stages == 0


def test_random_deletions_from_a_run_follow_the_closed_form(run: Run) -> None:
    plan = planning.plan_random_deletions(run, 3)
    assert plan == planning.deletion_plan(1438, 2, (1, 1), 3, plan.storage_bytes)


@pytest.mark.parametrize("samples", [[], ["digits/nobody"]])
def test_samples_that_are_not_there_cannot_be_planned(run: Run, samples: list[str]) -> None:
    with pytest.raises(RequestError, match=r"not in this run|names no sample"):
        planning.plan_forgetting(run, samples=samples)
