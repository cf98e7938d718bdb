"""The model-inversion study as a job: data in, record and report out."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import TypeAdapter

from ray_sisa.inversion_study.page import REPORT, RESULT, write_report
from ray_sisa.inversion_study.pictures import PICTURES, read_pictures, write_pictures
from ray_sisa.inversion_study.presets import PRESETS
from ray_sisa.inversion_study.results import InversionRecord
from ray_sisa.inversion_study.roles import read_roles, section_of
from ray_sisa.inversion_study.study import run_study
from ray_sisa.study.place import open_place, write_result

logger = logging.getLogger(__name__)


def run_job(
    preset_name: str, source: str, storage: str, out: Path, gpus_per_worker: float | None = None
) -> InversionRecord:
    """Runs a preset of the study, or goes on with it, and writes `result.json`, pictures and `report.html`.

    Args:
        preset_name: of `PRESETS`.
        source: folder or URI that holds omniglot/*.parquet, or `torchvision`.
        storage: folder or URI of runs and steps.
        out: folder of the record; made if absent.
        gpus_per_worker: in place of the preset's.

    Raises:
        SisaError: data that is not there, a cluster that cannot hold a worker, and whatever a run raises.
    """
    preset = PRESETS[preset_name]
    gpus = preset.gpus_per_worker if gpus_per_worker is None else gpus_per_worker
    roles = read_roles(section_of(source), preset.num_train, preset.num_images)  # before Ray is started for nothing
    with open_place(storage, gpus) as place:
        record = run_study(preset, roles, place)
    out.mkdir(parents=True, exist_ok=True)
    write_pictures(place.steps, record, out / PICTURES)
    write_result(record, storage, out / RESULT)
    write_report(record, read_pictures(out / PICTURES, record), out)
    logger.info("%s: %s", preset.name, out / REPORT)
    return record


def read_record(path: Path) -> InversionRecord:
    """The record in a `result.json`."""
    return TypeAdapter(InversionRecord).validate_json(path.read_bytes())
