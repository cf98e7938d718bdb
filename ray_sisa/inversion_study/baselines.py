"""Reconstructions that ask no target: what an attack must beat before it tells of a leak."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ray_sisa.inversion.baselines import linear_code, mean_image
from ray_sisa.inversion_study.quality import qualities
from ray_sisa.inversion_study.results import Baseline
from ray_sisa.inversion_study.tasks import Bench, keep_pictures
from ray_sisa.split_convnet import WIDTH

NAMES = ("mean", "white", "pca")


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineTask:
    """One baseline: the mean of the public images, white paper, or as many principal components as activations."""

    name: str
    images: str
    """Digest of all images."""

    result_type = Baseline

    def do(self, bench: Bench) -> Baseline:
        """Learns from the public images alone."""
        roles = bench.roles[self.images]
        public, victims = (self._of(roles.public.images, samples.images) for samples in (roles.public, roles.victims))
        return Baseline(
            name=self.name,
            asks=self.name == "pca",
            quality=qualities(roles, public, victims),
            arrays=keep_pictures(bench.steps, roles, victims),
        )

    def _of(self, public: np.ndarray, images: np.ndarray) -> np.ndarray:
        if self.name == "pca":
            return linear_code(public, images, WIDTH)
        one = mean_image(public) if self.name == "mean" else np.ones(images.shape[1:], np.float32)
        return np.broadcast_to(one, images.shape)
