"""The state inside a stage in the store: saved, found by whoever goes on, dropped once it is of no use.

A partial is as clean as the stage in whose folder it lies, and goes with it. It saves time and nothing else: one that
is damaged, or from another environment, is passed over, and the stage starts over to the same end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ray_sisa import weights
from ray_sisa.clock import now
from ray_sisa.digests import digest_bytes
from ray_sisa.errors import SisaError, StoreError
from ray_sisa.layout import damaged, partial_record, partial_state, partials
from ray_sisa.records import Environment, EpochMetrics, PartialRecord
from ray_sisa.snapshot import Partial, Position
from ray_sisa.store import Store

# What must be equal for the rest of a stage to give the bits that the whole gives here.
SAME = ("device", "device_name", "threads", "torch", "ray_sisa")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A partial and its record."""

    record: PartialRecord
    partial: Partial


def save(
    store: Store,
    key: str,
    partial: Partial,
    metrics: Sequence[EpochMetrics],
    seconds: float,
    environment: Environment,
) -> PartialRecord:
    """Writes the state inside the stage `key`: the state first, its record after it, and then deletes all others.

    A crash before the record leaves a state without one, which is absent; one after it leaves an older partial beside
    this one, which is newer. Steps count partials, so two writers of one number write the same state.
    """
    data, place = weights.to_bytes(partial.tensors), partial.position
    record = PartialRecord(
        key=key,
        number=place.step,
        epoch=place.epoch,
        batch=place.batch,
        num_batches=place.num_batches,
        metrics=tuple(metrics),
        seconds=seconds,
        state_bytes=len(data),
        state_digest=digest_bytes(data),
        environment=environment,
        saved_at=now(),
    )
    kept = {partial_state(key, place.step), record.path}
    store.put(partial_state(key, place.step), data)
    # Not `create`: a damaged record of this number must not stand in the way.
    store.put(record.path, record.to_bytes())
    store.delete(sorted(store.sizes(partials(key)).keys() - kept))
    return record


def find(store: Store, key: str, environment: Environment, check: Callable[[Partial], None]) -> Saved | None:
    """The state inside the stage `key` from which it can go on here, or None; of several, the one that is farthest.

    Args:
        store: where to look.
        key: key of the stage.
        environment: of this process.
        check: raises a SisaError for a state that the stage never has.
    """
    for number in reversed(store.numbers(partials(key))):
        try:
            saved = _read(store, key, number, environment)
            if saved is not None:
                check(saved.partial)
                return saved
        except SisaError as error:
            logger.warning("A saved state is passed over, and the stage starts over. %s", error)
    return None


def drop(store: Store, key: str) -> None:
    """Deletes all that was saved inside the stage `key`."""
    store.delete(sorted(store.sizes(partials(key))))  # a record comes before its state: without it the state is absent


def _read(store: Store, key: str, number: int, environment: Environment) -> Saved | None:
    """A partial with every byte checked; None where it is of another environment."""
    record = store.read(partial_record(key, number), PartialRecord)
    there, here = record.environment, environment
    differing = [
        f"{n} {getattr(there, n)}, here {getattr(here, n)}" for n in SAME if getattr(there, n) != getattr(here, n)
    ]
    if differing:
        logger.info(
            "The state saved in %s is of another environment: %s", store.where(record.path), "; ".join(differing)
        )
        return None
    position = Position(epoch=record.epoch, batch=record.batch, num_batches=record.num_batches)
    if position.step != number or [m.epoch for m in record.metrics] != list(range(record.epoch)):
        raise StoreError(store.where(record.path), "", "contradicts itself", damaged(record.path))
    path = partial_state(key, number)
    data = store.get(path)
    if digest_bytes(data) != record.state_digest:
        rule = f"is not what was saved ({len(data)} bytes, {record.state_bytes} expected, or other content)"
        raise StoreError(store.where(path), "", rule, damaged(path))
    return Saved(record=record, partial=Partial(position=position, tensors=weights.from_bytes(data)))
