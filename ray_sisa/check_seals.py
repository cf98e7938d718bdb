"""What a check looks at beside slices and test set: whether their bytes are those that were sealed, to the last one.

It writes nothing, and looks at objects whose samples are known to be right.
"""

from __future__ import annotations

from collections.abc import Iterable

from ray_sisa.digests import digest_bytes
from ray_sisa.findings import REPAIR, UNLEARN, Findings, is_name
from ray_sisa.layout import SEALS, kind_of, seal_of, sealed_by
from ray_sisa.records import SealRecord
from ray_sisa.store import Store

UNEQUAL = "is not what was written, byte for byte, although all that is read of it is right"
HARMLESS = "nothing that is used has changed; whatever changed it may change more"
ANEW = f"{REPAIR}: it is written anew from what is read of it"


def compare(store: Store, found: Findings, path: str, data: bytes) -> None:
    """Looks at the seal of an object that has these bytes."""
    seal = seal_of(path)
    if seal not in found.sizes:
        return
    with found.about(seal) as damage:
        record = store.read(seal, SealRecord)
    if not damage and record.digest != digest_bytes(data):
        found.add(path, UNEQUAL, repairable=True, meaning=HARMLESS, remedy=ANEW)


def look_at_rest(store: Store, found: Findings, wanted: Iterable[str]) -> None:
    """Looks at the seals that nothing was compared with: of these objects, damaged or gone; and of none of them."""
    due = {seal_of(path): path for path in wanted}
    lacking = sorted(seal for seal, path in due.items() if seal not in found.sizes and path in found.sizes)
    if lacking:
        others = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
        found.note(f"{lacking[0]}{others} still to be written: {UNLEARN}")
    for seal in sorted(
        path for path in found.sizes if kind_of(path) == SEALS and is_name(path) and path not in found.seen
    ):
        with found.about(seal):
            store.read(seal, SealRecord)
        if seal not in due and sealed_by(seal) not in found.sizes:
            found.note(f"{seal} is of an object that is gone: {UNLEARN}")
