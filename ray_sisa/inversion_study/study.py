"""The model-inversion study, whole: its arms in order, put together into one record."""

from __future__ import annotations

import time
from dataclasses import asdict

from ray_sisa.inversion_study.arm import Arm
from ray_sisa.inversion_study.faithful import run_faithful
from ray_sisa.inversion_study.honest import run_honest
from ray_sisa.inversion_study.presets import Preset
from ray_sisa.inversion_study.results import Facts, InversionRecord
from ray_sisa.inversion_study.roles import Roles, at_side
from ray_sisa.inversion_study.sisa import run_sisa
from ray_sisa.study.place import Place
from ray_sisa.study.provenance import provenance
from ray_sisa.study.results import Provenance


def run_study(preset: Preset, whole: Roles, place: Place) -> InversionRecord:
    """Runs the study, or goes on with it.

    Args:
        preset: its size.
        whole: the images at full resolution.
        place: where to work.
    """
    began = time.perf_counter()
    faithful = run_faithful(place, whole, preset)
    roles = at_side(whole, preset.side)
    honest = run_honest(Arm("honest", place, roles), preset)
    sisa = run_sisa(Arm("sisa", place, roles), preset)
    made = provenance(preset.name, place.steps, faithful[0].plain[0].uri, time.perf_counter() - began)
    return InversionRecord(facts=_facts(made, whole), faithful=faithful, honest=honest, sisa=sisa)


def _facts(made: Provenance, roles: Roles) -> Facts:
    return Facts(
        **asdict(made),
        num_train=len(roles.dataset.train),
        num_validation=len(roles.dataset.test or ()),
        num_public=len(roles.public),
        num_victims=len(roles.victims),
        num_seen=int(roles.seen.sum()),
        shown=int((~roles.seen[roles.shown]).sum()),
    )
