"""One reconcile at a time: a lease with an expiry, renewed by a heartbeat, built on conditional create alone.

Lease n+1 may be created by anyone once lease n has expired or its holder is provably dead, and by its holder before
that. The holder with the highest number has the run; a holder that was paused, or a worker that outlived its driver,
finds a higher number when it looks, and stops.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from ray_sisa.errors import BusyError, StoreError
from ray_sisa.layout import LEASES, UNREACHABLE, damaged, numbered
from ray_sisa.process import is_gone, this_process
from ray_sisa.records import LeaseRecord
from ray_sisa.store import Store

logger = logging.getLogger(__name__)

NUM_LOOKS, LOOK_S = 20, 0.1
DURATION_S = float(os.environ.get("RAY_SISA_LEASE_S", "30"))  # how long a holder that falls silent has the run
LONGEST_S = max(24 * 3600.0, 10 * DURATION_S)  # that ends later is no lease of a clock that is right
PATIENCE = 1.2  # leases that the next one waits for it, unless told otherwise: clocks differ


class Lease:
    """A lease in hand; `check` says whether it still is."""

    def __init__(self, store: Store, record: LeaseRecord, duration_s: float) -> None:
        self._store, self._record, self._duration_s = store, record, duration_s
        self._released = threading.Event()
        self._lock = threading.Lock()
        self._heart = threading.Thread(target=self._beat, name="ray-sisa-lease", daemon=True)
        self._heart.start()

    @property
    def record(self) -> LeaseRecord:
        """The lease as it was renewed last."""
        with self._lock:
            return self._record

    def check(self) -> None:
        """Returns if the lease is in hand.

        Raises:
            BusyError: it expired and somebody else took it.
        """
        numbers = self._store.numbers(LEASES)
        mine = self.record
        # The holder's own renewal may have come between the listing and this line: only a stranger's counts.
        if numbers and numbers[-1] > mine.number:
            latest = find_lease(self._store, numbers[-1])
            if latest and latest.holder != mine.holder:
                raise BusyError("lease", latest.holder, "took over this run", "Run the command again")

    def release(self) -> None:
        """Gives the run back at once."""
        self._released.set()
        self._heart.join()
        # An expired record takes its place: numbers only grow, so a paused holder can always tell that it lost.
        record = _next(self._record, -math.inf)
        try:
            if self._store.create(numbered(LEASES, record.number), record.to_bytes()):
                self._store.delete([numbered(LEASES, self._record.number)])
        except StoreError as error:
            # The work is done, or has failed for a reason of its own, which this one must not hide.
            logger.warning("the run could not be given back, and is free in %g s: %s", self._duration_s, error)

    def _beat(self) -> None:
        while not self._released.wait(self._duration_s / 3):
            record = _next(self._record, self._duration_s)
            try:
                if not self._store.create(numbered(LEASES, record.number), record.to_bytes()):
                    there = self._store.find_record(numbered(LEASES, record.number), LeaseRecord)
                    # Ours if an earlier beat wrote it and only the answer was lost; else `check` says whose.
                    if there is None or there.holder != record.holder:
                        return
                    record = there
                with self._lock:
                    old, self._record = self._record, record
                # Only after the new one is there, so that no moment is without a lease.
                self._store.delete([numbered(LEASES, old.number)])
            except StoreError:
                continue  # tried again at the next beat; if the store stays away, the lease ends by itself


def is_held(store: Store, record: LeaseRecord) -> bool:
    """Whether the holder of a lease, as it was a while ago, has the run still: False once somebody else took it.

    Raises:
        StoreError: this store does not know of that lease at all.
    """
    for _ in range(NUM_LOOKS):
        _, latest = _latest(store)
        if latest is not None and latest.number >= record.number:
            return latest.holder == record.holder
        time.sleep(LOOK_S)  # a listing may fall between the making of a lease and the deletion of the one before
    rule = "does not know of the lease that the driver holds: it is another folder than the driver's"
    raise StoreError("storage_path", store.where(""), rule, UNREACHABLE)


def holder_of(store: Store, *, with_dead: bool = False) -> LeaseRecord | None:
    """The lease of whoever works on the run; None if nobody does.

    Args:
        store: of the run.
        with_dead: also of one that is provably dead, until its lease ends: its workers may be at work still.

    Raises:
        StoreError: the lease is damaged, or cannot be read.
    """
    _, latest = _latest(store)
    is_over = latest is None or (_left_s(latest) < 0 if with_dead else _is_over(latest))
    return None if is_over else latest


@contextmanager
def hold_lease(store: Store, *, wait_s: float | None = None, duration_s: float = DURATION_S) -> Iterator[Lease]:
    """Holds the run for the length of the block.

    Args:
        store: of the run.
        wait_s: how long to wait for another holder, in seconds; None is a little longer than a lease lasts, so that
            one that has died is waited for, wherever it was.
        duration_s: how long a holder that falls silent keeps the run, in seconds.

    Raises:
        BusyError: another process still holds it after the wait; the error says which.
    """
    lease = _take(store, PATIENCE * duration_s if wait_s is None else wait_s, duration_s)
    try:
        yield lease
    finally:
        lease.release()


def _take(store: Store, wait_s: float, duration_s: float) -> Lease:
    holder = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
    mine = LeaseRecord(number=0, holder=holder, expires_at=0.0, process=this_process())
    deadline = time.monotonic() + wait_s
    is_told = wait_s == 0
    while True:
        numbers, latest = _latest(store)
        if latest is None or _is_over(latest):
            record = _next(mine.model_copy(update={"number": numbers[-1] if numbers else 0}), duration_s)
            if store.create(numbered(LEASES, record.number), record.to_bytes()):
                if store.numbers(LEASES)[-1] == record.number:
                    store.delete(numbered(LEASES, n) for n in numbers)
                    if latest is not None and _left_s(latest) > 0:
                        logger.warning("%s has died on this machine: its lease is taken over at once", latest.holder)
                    return Lease(store, record, duration_s)
                # Others have had this number, and given it back, since the look at what there is.
                store.delete([numbered(LEASES, record.number)])
        elif time.monotonic() >= deadline:
            rule = f"is working on this run (its lease ends in {_left_s(latest):.0f} s unless it is renewed)"
            raise BusyError("lease", latest.holder, rule, "Wait for it to end, or pass --wait SECONDS")
        elif not is_told:
            logger.warning(
                "waiting up to %g s for %s, which works on this run (its lease ends in %d s unless it is renewed)",
                wait_s,
                latest.holder,
                _left_s(latest),
            )
            is_told = True
        time.sleep(min(0.2, duration_s / 10))


def _latest(store: Store) -> tuple[list[int], LeaseRecord | None]:
    """Numbers of all leases there are, and the last one."""
    numbers = store.numbers(LEASES)
    return numbers, find_lease(store, numbers[-1]) if numbers else None


def find_lease(store: Store, number: int) -> LeaseRecord | None:
    """A lease by its number, if it is there.

    Raises:
        StoreError: it is damaged, or would keep everybody from the run for longer than any holder asks for.
    """
    lease = store.find_record(numbered(LEASES, number), LeaseRecord)
    if lease and _left_s(lease) > LONGEST_S:
        rule = f"ends in {_left_s(lease) / 86400:,.0f} days, and a lease lasts for seconds"
        raise StoreError(store.where(lease.path), "", rule, damaged(lease.path))
    return lease


def _is_over(lease: LeaseRecord) -> bool:
    return _left_s(lease) < 0 or (lease.process is not None and is_gone(lease.process))


def _left_s(lease: LeaseRecord) -> float:
    return lease.expires_at - time.time()


def _next(lease: LeaseRecord, duration_s: float) -> LeaseRecord:
    ends = max(0.0, time.time() + duration_s)
    return lease.model_copy(update={"number": lease.number + 1, "expires_at": ends})
