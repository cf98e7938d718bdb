"""The ensemble in force, loaded: constituents that vote. It never serves a stage that saw a deleted sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ray_sisa.errors import DataError
from ray_sisa.records import Constituent, Head, RunRecord
from ray_sisa.store import Store
from ray_sisa.voting import Rule, vote

if TYPE_CHECKING:
    from torch import Tensor


class Ensemble:
    """Constituents of one head on one device.

    Attributes:
        head: number of the head.
        constituents: who votes, by shard.
    """

    def __init__(
        self, store: Store, run: RunRecord, head: Head, constituents: Sequence[Constituent], device: str = "cpu"
    ) -> None:
        """Loads the weights of all constituents, every byte checked.

        Raises:
            StoreError: a stage is absent or damaged.
        """
        from ray_sisa.stages import load_stage

        self.head = head.number
        self.constituents = tuple(constituents)
        self._run, self._device = run, device
        self._weights: list[dict[str, Tensor]] = [load_stage(store, c.key) for c in self.constituents]

    def predict_proba(self, images: np.ndarray, rule: Rule = "mean") -> np.ndarray:
        """Aggregated scores, float [N, K], rows summing to 1: the higher, the likelier the class.

        Args:
            images: uint8 [N, H, W, C], or float32 [N, D] features, as the run was trained on.
            rule: `mean` probability, `majority` of labels, or `weighted` by live samples.

        Raises:
            DataError: images of another shape, or no constituent left to vote.
        """
        from ray_sisa.training import predict_log_probabilities

        training = self._run.training
        if tuple(images.shape[1:]) != training.image_shape:
            rule_text = f"must have the shape of the training data, {list(training.image_shape)}"
            raise DataError("images", list(images.shape[1:]), rule_text, "Resize or convert them")
        outputs = [predict_log_probabilities(w, images, training, self._device) for w in self._weights]
        return aggregate(outputs, self.constituents, rule)

    def predict(self, images: np.ndarray, rule: Rule = "mean") -> np.ndarray:
        """Labels, int64 [N]; ties go to the lowest label."""
        labels: np.ndarray = self.predict_proba(images, rule).argmax(1)
        return labels


def aggregate(outputs: Sequence[np.ndarray], constituents: Sequence[Constituent], rule: Rule) -> np.ndarray:
    """Scores [N, K] of log-probabilities [N, K] of each constituent."""
    num_samples = [c.num_samples for c in constituents]
    probabilities = np.exp(np.stack(outputs)) if outputs else np.empty((0, 0, 0), np.float32)
    return vote(probabilities, rule, num_samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """What constituents are asked about, the same for all."""

    store: Store
    run: RunRecord
    images: np.ndarray
    device: str


def constituent_outputs(inputs: Inputs, key: str) -> np.ndarray:
    """Log-probabilities float32 [N, K] of the stage `key`: one job of an evaluation."""
    from ray_sisa.stages import load_stage
    from ray_sisa.training import predict_log_probabilities

    weights = load_stage(inputs.store, key)
    return predict_log_probabilities(weights, inputs.images, inputs.run.training, inputs.device)
