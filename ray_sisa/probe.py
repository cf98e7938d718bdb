"""The probe: whether a store refuses to create an object that is there.

The numbers of requests, heads and leases rest on that. Older servers and gateways take the condition (`If-None-Match`)
and ignore it: two requests then get one number, and one of them is lost. So each process tries it once, before the
first object that it creates, on an object of its own that it removes again.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from ray_sisa.errors import StoreError
from ray_sisa.layout import RUN, probe
from ray_sisa.location import without_options

if TYPE_CHECKING:
    from ray_sisa.store import Store

Create = Callable[[str, bytes], bool]

NUM_TRIES = 3  # a reconcile may sweep a probe away between its two creates; never three in a row
REMEDY = (
    "Use a server that knows conditional writes, without a gateway that drops the header, or a file system with "
    "exclusive create: see Storage in docs/operations.md. Nothing was written"
)


def prove(store: Store, create: Create) -> None:
    """Passes where a store refuses to create what is there.

    Args:
        store: which.
        create: creates an object in it unless one is there; False then.

    Raises:
        StoreError: it does not; nothing but the probes was written, and they are removed.
    """
    refuses = any(_is_refused(store, create) for _ in range(NUM_TRIES))
    if not (refuses and _is_refused_to_all(store, create)):
        what = "two files of one name" if store.is_local else "one object twice: it ignores `If-None-Match`"
        rule = f"lets a process create {what}. Two requests could get one number, and one be lost"
        raise StoreError("storage_path", without_options(store.uri), rule, REMEDY)


def _is_refused(store: Store, create: Create) -> bool:
    """Whether the second of two creates of a new object is refused."""
    path = probe(uuid.uuid4().hex)
    create(path, b"first")
    is_refused = not create(path, b"second")
    # Whoever may only append to the ledger need not have the right to delete: the next reconcile sweeps it.
    with suppress(StoreError):
        store.delete([path])
    return is_refused


def _is_refused_to_all(store: Store, create: Create) -> bool:
    """Whether a shared folder refuses to create the file that the run's first process made, on whatever node.

    With the file's own bytes: where it is not refused it changes nothing.
    """
    there = store.find(RUN) if store.is_local else None
    return there is None or not create(RUN, there)
