"""Samples that are in the training set and in the test set at once: counted when a run is created, and told ever after.

Owns when such a run is refused. It changes no sample: what is let through is trained on and tested on.
"""

from __future__ import annotations

import logging

import numpy as np
import pyarrow.compute as pc

from ray_sisa.config import DataConfig
from ray_sisa.data import Dataset
from ray_sisa.errors import DataError
from ray_sisa.samples import is_among

logger = logging.getLogger(__name__)


def count(config: DataConfig, dataset: Dataset) -> int | None:
    """Number of test samples that are training samples too, by id or by content; None without a test set.

    Ids are compared where they name samples (`Dataset.has_names`), content always: pixels or features, whatever the
    label. A test set that its publisher cut is never refused, nor where `data.allow_overlap` says so.

    Raises:
        DataError: a test sample has the id or the content of a training sample.
    """
    test, train = dataset.test, dataset.train
    if test is None or not len(test):
        return None
    by_content = is_among(test, train)
    by_id = np.zeros(len(test), dtype=bool)
    if dataset.has_names:
        by_id = pc.is_in(test.ids, train.ids).to_numpy(zero_copy_only=False)
    both = np.flatnonzero(by_id | by_content)
    if len(both):
        told = f"{len(both)} of {len(test)} ({by_id.sum()} by id, {by_content.sum()} by content)"
        if not (config.allow_overlap or dataset.is_published):
            raise _refused(told, [test.ids[int(row)].as_py() for row in both[:5]])
        logger.warning("data.test: %s samples are training samples too: what is measured on them is no test", told)
    return len(both)


def _refused(told: str, some: list[str]) -> DataError:
    rule = f"has samples that are in the training set too, {told}, such as {', '.join(some)}: they would be no test"
    remedy = (
        "Take them out of one of the two, or set data.allow_overlap: true. Ids that only number the rows of each file "
        "name no sample: leave data.columns.id out"
    )
    return DataError("data.test", "test samples", rule, remedy)
