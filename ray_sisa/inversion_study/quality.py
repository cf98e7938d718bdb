"""How near reconstructions come to public images and to victims, those apart that the attacker never trained on."""

from __future__ import annotations

import numpy as np

from ray_sisa.evaluation.inversion import Reconstruction, measure
from ray_sisa.inversion.baselines import mean_image
from ray_sisa.inversion_study.results import Part
from ray_sisa.inversion_study.roles import Roles, characters
from ray_sisa.samples import Samples


def qualities(roles: Roles, public: np.ndarray, victims: np.ndarray) -> dict[Part, Reconstruction]:
    """Measures reconstructions of all public images and of all victims, float32 [N, H, W, C] in 0..1."""
    found: dict[Part, Reconstruction] = {
        "public": _measured(roles, roles.public, public),
        "victims": _measured(roles, roles.victims, victims),
    }
    parts: dict[Part, np.ndarray] = {"unseen": ~roles.seen, "seen": roles.seen}
    for part, rows in parts.items():
        if rows.any():
            found[part] = _measured(roles, roles.victims.take(np.flatnonzero(rows)), victims[rows])
    return found


def of_others(roles: Roles, images: Samples, reconstructed: np.ndarray) -> Reconstruction:
    """Measures reconstructions of other images than all victims, against the same mean image."""
    return _measured(roles, images, reconstructed)


def _measured(roles: Roles, samples: Samples, reconstructed: np.ndarray) -> Reconstruction:
    return measure(
        samples.images,
        reconstructed,
        mean_image=mean_image(roles.public.images),
        clusters=characters(samples),
        # Pixels of a reduced resolution are grey; what is darker than half is ink there as well.
        ink=True,
        num_resamples=1000,
    )
