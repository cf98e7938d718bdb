"""Retention: what a store keeps of what a run deletes, and what the run does about it (`purge.versions`).

Buckets with versioning or soft delete keep deleted objects, and with them the samples in them. Whether a bucket does is
said when a run is made or reconciled, in its status, in checks and in certificates.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from ray_sisa.buckets import DAY_S, Unknown, open_bucket
from ray_sisa.config import PurgeConfig
from ray_sisa.errors import StoreError
from ray_sisa.layout import FEATURES, LEASES, PROBES, REPORTS, SEALS
from ray_sisa.location import open_remote, without_options
from ray_sisa.store import Store

logger = logging.getLogger(__name__)

_TOLD: set[str] = set()  # stores of which this process has warned
SAMPLES = (
    FEATURES,
    SEALS,
    REPORTS,
    "slices",
    "stages",
)  # what a purge deletes: it holds samples, tells of them or saw them
PASSING = (LEASES, PROBES)  # written and deleted all the time; it holds none
REMEDY = "Turn versioning and soft delete off, or set purge.versions: see Storage in docs/operations.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class Retention:
    """What a store keeps of objects that were deleted."""

    versions: bool = False
    """Whether they stay as versions."""
    soft_delete_s: int = 0
    """For how many seconds they can be restored."""
    unknown: str = ""
    """Why it could not be found out; empty where it was."""

    @property
    def sentence(self) -> str:
        """What this is for deleted objects, for a person; empty where they are gone."""
        kept = ["as versions"] if self.versions else []
        if self.soft_delete_s:
            kept.append(f"for {self.soft_delete_s / DAY_S:g} days, by soft delete")
        if kept:
            return f"the bucket keeps deleted objects {' and '.join(kept)}"
        return f"it could not be found out whether the bucket keeps deleted objects: {self.unknown}" * bool(
            self.unknown
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept:
    """What a store keeps of what a purge deleted from it."""

    retention: Retention = Retention()
    objects: tuple[str, ...] | None = None
    """Objects of which versions are left; None where versions were not removed."""

    @property
    def fate(self) -> Literal["gone", "kept", "unknown"]:
        """What became of deleted objects."""
        if self.objects == () or not self.retention.sentence:
            return "gone"
        return "unknown" if self.retention.unknown else "kept"

    @property
    def reservation(self) -> str:
        """What a certificate must add to its claim; empty where the objects are gone."""
        if self.fate == "gone":
            return ""
        if self.objects:
            return f" But versions of {len(self.objects)} deleted object(s) could not be removed: they are named here."
        return f" But {self.retention.sentence}."


def retention_of(store: Store) -> Retention:
    """What a store keeps, as its provider says; of a folder nothing, snapshots of the file system aside."""
    if store.is_local:
        return Retention()
    try:
        bucket = open_bucket(open_remote(store.uri))
        soft_delete_s = bucket.soft_delete_s()
    except Unknown as reason:
        return Retention(unknown=str(reason))
    try:
        return Retention(versions=bucket.keeps_versions(), soft_delete_s=soft_delete_s)
    except Unknown as reason:
        # What is kept for days is kept, whatever becomes of versions.
        return Retention(soft_delete_s=soft_delete_s, unknown="" if soft_delete_s else str(reason))


def look(store: Store, purge: PurgeConfig) -> Retention:
    """What a store keeps, with a warning unless it is nothing, or nothing that a run cannot remove.

    Raises:
        StoreError: it is refused, or cannot be removed and is to be.
    """
    found = retention_of(store)
    if not found.sentence:
        return found
    removable = found.versions and not found.soft_delete_s and store.uri.startswith("s3")
    if purge.versions == "refuse" or (purge.versions == "delete" and not removable):
        value = f"{purge.versions}, {without_options(store.uri)}"
        rule = found.sentence if purge.versions == "refuse" else f"removes versions, and on S3 alone: {found.sentence}"
        raise StoreError("purge.versions", value, rule, REMEDY)
    if purge.versions == "warn" and store.uri not in _TOLD:
        _TOLD.add(store.uri)
        logger.warning("what a run deletes may stay: %s (purge.versions: warn)", found.sentence)
    return found


def remove_versions(store: Store) -> tuple[str, ...]:
    """Removes every version of what a run has deleted, whenever it did, and returns the objects that it could not.

    It follows from the store alone: what readers do not get has no place in these folders. So a crash before it, or
    within it, is made good by the next time.

    Raises:
        StoreError: versions cannot be listed or deleted at all.
    """
    try:
        left = tuple(open_bucket(open_remote(store.uri)).delete_old([*SAMPLES, *PASSING]))
    except Unknown as reason:
        rule = f"cannot be done: {reason}"
        raise StoreError("purge.versions", f"delete, {without_options(store.uri)}", rule, REMEDY) from None
    if left:
        some = ", ".join(left[:5]) + (", ..." if len(left) > 5 else "")
        logger.warning("versions of %d deleted object(s) could not be removed: %s", len(left), some)
    return left


def told(store: Store) -> str:
    """What a store keeps, and how much of it there is, for a person; empty where it keeps nothing."""
    found = retention_of(store)
    if not found.versions:
        return found.sentence
    try:
        old = open_bucket(open_remote(store.uri)).old_versions(SAMPLES)
    except Unknown as reason:
        return f"{found.sentence}; how many is not known: {reason}"
    return (
        f"{found.sentence}: {sum(not version.is_mark for version in old)} of samples, features, stages and measurements"
    )
