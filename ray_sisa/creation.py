"""What the creation of a run writes before `run.json`, and what attempts leave that were killed or came second.

Where the placement key is drawn, each attempt has slices and indexes of its own, under names of its own.
"""

from __future__ import annotations

import logging

from ray_sisa.layout import LEDGER, SEALS, initial_weights, seal_of, shard_index, slice_object, test_object
from ray_sisa.records import RunRecord
from ray_sisa.store import Store

logger = logging.getLogger(__name__)

FOLDERS = ("index", "initial", SEALS, "slices", "test")


def objects_of(run: RunRecord) -> set[str]:
    """Paths of all that the creation of a run wrote, but `run.json`."""
    written = {slice_object(entry.digest) for shard in run.slices for entry in shard if entry.digest}
    if run.test_digest:
        written.add(test_object(run.test_digest))
    written |= {seal_of(path) for path in written}
    written |= {shard_index(digest) for digest in run.index_digests}
    if run.training.initial_weights:
        written.add(initial_weights(run.training.initial_weights))
    return written


def left_by_others(store: Store, run: RunRecord) -> list[str]:
    """What lies beside a run that was never worked on, and is not its own."""
    own = objects_of(run)
    return sorted(path for folder in FOLDERS for path in store.sizes(folder) if path not in own)


def withdraw(store: Store, lost: RunRecord, run: RunRecord) -> None:
    """Removes what an attempt had written that came second to another."""
    # Once samples are deleted, a slice that has become smaller may have a name of this attempt's.
    if not store.numbers(LEDGER):
        store.delete(sorted(objects_of(lost) - objects_of(run)))
    logger.info("another process created this run at the same time; what this one had written for it is removed")
