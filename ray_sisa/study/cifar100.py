"""The CIFAR-100 study, whole: its arms in order, put together into one record."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ray_sisa.data import Dataset
from ray_sisa.study import pixels
from ray_sisa.study.arm import Arm
from ray_sisa.study.features import FrozenStudy
from ray_sisa.study.place import Place
from ray_sisa.study.presets import Preset, Size
from ray_sisa.study.provenance import provenance
from ray_sisa.study.results import Facts, StudyRecord
from ray_sisa.study.samples import part

logger = logging.getLogger(__name__)


def run_study(preset: Preset, dataset: Dataset, data: Mapping[str, Any], place: Place) -> StudyRecord:
    """Runs the study, or goes on with it.

    Args:
        preset: its size.
        dataset: CIFAR-100.
        data: the section `data` of a configuration, without constants, that says where it came from.
        place: where to work.
    """
    began = time.perf_counter()

    def arm(name: str, size: Size, constants: bool = False) -> Arm:
        samples = part(dataset, size)
        return Arm(name, place, samples, num_retained=preset.num_retained, data=data, constants=constants)

    scratch = arm("scratch", preset.size, constants=True)
    pixels.add_patterns(scratch, preset)
    trained = pixels.train_grid(scratch, preset)
    whole = [trained[1, 1, seed] for seed in preset.seeds]
    normalisations = pixels.normalisations(scratch, whole[0])
    methods = pixels.whole_model(scratch, preset, whole)
    grid = pixels.grid_points(scratch, trained)
    unlearnings = pixels.sisa(scratch, preset, trained)

    transferred = arm("transfer", preset.transfer_size)
    pixels.add_patterns(transferred, preset)
    transfer, of_transfer = pixels.transfer(transferred, preset)
    grid += pixels.grid_points(transferred, {(transfer.shards, transfer.slices, preset.seeds[0]): transfer})

    images = arm("frozen", preset.frozen_size)
    frozen = FrozenStudy(place, preset, images)
    unlearnings += [*of_transfer, *frozen.unlearnings(), *frozen.seeds(), *frozen.subjects()]
    grid += frozen.grid()
    placements = frozen.placements()
    made = provenance(preset.name, place.steps, whole[0].uri, time.perf_counter() - began)
    facts = Facts(
        **asdict(made),
        num_train=len(scratch.dataset.train),
        num_test=len(scratch.dataset.test or ()),
        num_classes=scratch.dataset.num_classes,
        frozen_num_train=len(images.dataset.train),
        frozen_num_test=len(images.dataset.test or ()),
    )
    return StudyRecord(
        facts=facts,
        normalisations=normalisations,
        methods=tuple(methods),
        grid=tuple(grid),
        unlearnings=tuple(unlearnings),
        placements=tuple(placements),
    )
