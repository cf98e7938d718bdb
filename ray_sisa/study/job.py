"""The CIFAR-100 study as a job: data in, record and report out."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ray_sisa import data
from ray_sisa.config import DataConfig
from ray_sisa.errors import ConfigError
from ray_sisa.location import join_run
from ray_sisa.study.cifar100 import run_study
from ray_sisa.study.page import write_page
from ray_sisa.study.place import open_place, write_result
from ray_sisa.study.presets import PRESETS, Preset
from ray_sisa.study.results import StudyRecord

logger = logging.getLogger(__name__)
CIFAR100: dict[str, Any] = {
    "num_classes": 100,
    "mean": (0.5071, 0.4865, 0.4409),
    "std": (0.2673, 0.2564, 0.2762),
}


def run_job(
    preset_name: str,
    source: str,
    storage: str,
    out: Path,
    gpus_per_worker: float | None = None,
    weights: Path | None = None,
) -> StudyRecord:
    """Runs a preset of the study, or goes on with it, and writes `result.json` and `report.html`.

    Args:
        preset_name: of `PRESETS`.
        source: folder or URI that holds cifar100/{train,test}.parquet, or `torchvision`.
        storage: folder or URI of runs and steps.
        out: folder of the record; made if absent.
        gpus_per_worker: in place of the preset's.
        weights: folder of the weights that the preset names by file name alone; `source` by default.

    Raises:
        SisaError: data that is not there, a cluster that cannot hold a worker, and whatever a run raises.
    """
    preset, weights = PRESETS[preset_name], weights or Path(source)
    _check_weights(preset, weights)
    section = section_of(source)
    # CIFAR-100 as it was published has a few test images in the training set, in whatever file it comes.
    dataset = replace(data.load(DataConfig.model_validate({**section, **CIFAR100})), is_published=True)
    gpus = preset.gpus_per_worker if gpus_per_worker is None else gpus_per_worker
    with open_place(storage, gpus, weights) as place:
        record = run_study(preset, dataset, section, place)
    out.mkdir(parents=True, exist_ok=True)
    write_result(record, storage, out / "result.json")
    write_page(record, out / "report.html")
    logger.info("%s: %s", preset.name, out / "report.html")
    return record


def _check_weights(preset: Preset, folder: Path) -> None:
    """Passes if all weights are there that the last arm will ask for: it would be a pity to learn that then."""
    for recipe in (preset.transfer, preset.frozen):
        name = recipe["weights"]
        if ":" not in name and not (folder / name).is_file():
            rule = f"is not in {folder}"
            raise ConfigError("--weights", name, rule, "Name the folder that holds it with --weights")


def read_record(path: Path) -> StudyRecord:
    """The record in a `result.json`."""
    return TypeAdapter(StudyRecord).validate_json(path.read_bytes())


def section_of(source: str) -> dict[str, Any]:
    """Section `data` of the runs' configurations, without constants."""
    if source == "torchvision":
        return {"source": "torchvision:CIFAR100", "root": "data", "download": True}
    return {
        "source": "parquet",
        "train": join_run(source, "cifar100/train.parquet"),
        "test": join_run(source, "cifar100/test.parquet"),
        "columns": {"id": "id", "image": "img", "label": "fine_label"},
    }
