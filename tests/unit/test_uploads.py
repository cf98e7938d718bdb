"""Relative paths in a submitted job, which works in a copy of its folder: what is not there is told with its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from ray_sisa.config_values import make_config
from ray_sisa.data import load
from ray_sisa.errors import DataError, SisaError, StoreError
from ray_sisa.location import resolve_uri
from ray_sisa.uploads import uploaded_folder
from ray_sisa.weights import read

CONTENT = {
    "name": "r",
    "storage_path": "s3://bucket/runs",
    "placement": {"shards": 1, "slices": 1},
    "recipe": {"model": "mlp", "epochs_per_slice": 1},
}
PARQUET = {"columns": {"image": "img", "label": "label"}, "num_classes": 10, "mean": [0.3], "std": [0.4]}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a job, where Ray unpacks what was uploaded."""
    folder = tmp_path / "runtime_resources" / "working_dir_files" / "_ray_pkg_0123456789abcdef"
    (folder / "inside").mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def refusal(data: dict[str, object]) -> SisaError:
    with pytest.raises(DataError) as refused:
        load(make_config(CONTENT | {"data": data}).data)
    return refused.value


@pytest.mark.parametrize(
    "data",
    [
        {"source": "parquet", "train": "cifar100/train.parquet", **PARQUET},
        {"source": "torchvision:CIFAR10", "root": "data"},
        {"source": "torchvision:Omniglot", "root": "data"},
    ],
)
def test_absent_data_names_the_ignore_files_and_the_remedies(job: Path, data: dict[str, object]) -> None:
    told = str(refusal(data))
    for name in (".gitignore", ".rayignore", "--working-dir", "s3://BUCKET", "absolute path", "examples/cluster.yaml"):
        assert name in told


def test_weights_likewise(job: Path) -> None:
    with pytest.raises(SisaError, match=r"cifar10_resnet20\.th: cannot be read: .*\.rayignore"):
        read("cifar10_resnet20.th")


def test_from_a_folder_below_and_where_no_job_runs(job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = {"source": "parquet", "train": "train.parquet", **PARQUET}
    monkeypatch.chdir(job / "inside")
    assert uploaded_folder() == job
    assert ".rayignore" in str(refusal(data))
    monkeypatch.chdir(tmp_path)
    assert uploaded_folder() is None
    assert "a relative one starts at the working folder" in str(refusal(data))


def test_an_absolute_path_that_is_absent_has_another_reason(job: Path, tmp_path: Path) -> None:
    assert ".rayignore" not in str(refusal({"source": "parquet", "train": str(tmp_path / "x.parquet"), **PARQUET}))


def test_a_run_is_not_written_into_the_copy(job: Path, tmp_path: Path) -> None:
    for path in ("./runs", "runs"):
        with pytest.raises(StoreError, match=r"storage_path = .*runs: is relative.*which one node has and Ray removes"):
            resolve_uri(path)
    assert resolve_uri(str(tmp_path / "runs")) == str(tmp_path / "runs")
    assert resolve_uri("s3://bucket/runs") == "s3://bucket/runs"
    assert resolve_uri("~/runs") == str(Path("~/runs").expanduser())
    assert list(job.iterdir()) == [job / "inside"]
