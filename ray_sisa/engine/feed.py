"""What the stages of a chain are trained on: the samples of slices, or what a frozen backbone makes of them.

A worker reads the features of its slices where they are stored, and makes and stores those that are not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence

import numpy as np

from ray_sisa import features
from ray_sisa.backbone import Backbone, trained_part
from ray_sisa.engine.work import ChainWork, FeaturesUnderway
from ray_sisa.features import Features
from ray_sisa.lineage import Stage
from ray_sisa.records import RunRecord
from ray_sisa.samples import Samples
from ray_sisa.slices import read_slice, read_test
from ray_sisa.stages import environment_of, load_initial
from ray_sisa.training import LabelledImages

TEST_SET = 0  # in place of the number of a slice, which begin at 1


class Feed:
    """Reads, or makes, what the stages of one chain are trained and measured on."""

    def __init__(self, work: ChainWork, run: RunRecord, may_write: Callable[[int], bool], tell_every_s: float) -> None:
        """Takes a chain, and who says whether what is made of a slice may be stored."""
        self._work, self._run, self._may_write, self._tell_every_s = work, run, may_write, tell_every_s
        self._environment = environment_of(work.device, run.training.recipe.threads)
        self._backbone: Backbone | None = None
        self.training = trained_part(run.training)
        """The recipe of what trains."""

    def slice(self, stage: Stage) -> Generator[FeaturesUnderway, None, LabelledImages | None]:
        """The slice of a stage; None where its features were made and may not be stored."""
        return (
            yield from self._arrays(read_slice(self._work.store, stage.slice_digest), stage.slice_digest, stage.slice)
        )

    def test(self) -> Generator[FeaturesUnderway, None, LabelledImages | None]:
        """The test set, where it is measured on while training."""
        digest = self._run.test_digest
        if digest is None or self._work.test_during_training == "never":
            return None
        return (yield from self._arrays(read_test(self._work.store, digest), digest, TEST_SET))

    def _arrays(
        self, samples: Samples, digest: str, number: int
    ) -> Generator[FeaturesUnderway, None, LabelledImages | None]:
        if not self._run.training.is_frozen:
            return LabelledImages.of(samples)
        store, origin = self._work.store, features.origin_of(self._run, self._environment)
        rows = features.find(store, self._run, digest, len(samples), origin)
        if rows is None:
            rows = yield from self._make(samples.images, number)
            if not self._may_write(number):
                return None
            features.write(store, digest, Features(rows=rows, origin=origin))
        return LabelledImages(images=rows, labels=samples.labels)

    def _make(self, images: np.ndarray, number: int) -> Generator[FeaturesUnderway, None, np.ndarray]:
        """Runs the backbone, a batch at a time, telling of itself."""
        if self._backbone is None:
            public = load_initial(self._work.store, self._run.training.initial_weights)
            self._backbone = Backbone(self._run.training, public or {}, self._work.device)
        parts: list[np.ndarray] = []
        told_at = time.monotonic()
        for first in range(0, len(images), self._backbone.batch_size):
            parts.append(self._backbone.features(images[first : first + self._backbone.batch_size]))
            if time.monotonic() - told_at >= self._tell_every_s:
                told_at = time.monotonic()
                done = first + len(parts[-1])
                yield FeaturesUnderway(shard=self._work.shard, slice=number, done=done, num_samples=len(images))
        return np.concatenate(parts)


def concatenate(parts: Sequence[LabelledImages]) -> LabelledImages:
    """All of some slices (at least one), in order."""
    if len(parts) == 1:
        return parts[0]
    images, labels = ([getattr(part, name) for part in parts] for name in ("images", "labels"))
    return LabelledImages(images=np.concatenate(images), labels=np.concatenate(labels))
