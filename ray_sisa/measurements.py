"""What was measured of a run, in its store: written only while it respects every request, removed once one taints it.

A measurement tells of models, and so of whatever these were trained on. One that was made before a sample was deleted
goes with the sample; a record in its place says that it was there, and which request removed it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel

from ray_sisa import heads
from ray_sisa.clock import now
from ray_sisa.digests import seal, unseal
from ray_sisa.errors import BusyError, SisaError, StoreError
from ray_sisa.layout import HEADS, PAGE, REPORTS, measurement, numbered, report
from ray_sisa.ledger import EMPTY, Ledger
from ray_sisa.records import Head, StoredRecord
from ray_sisa.store import Store

if TYPE_CHECKING:
    from ray_sisa.run import Run

Measured = TypeVar("Measured")

MAX_TRIES = 5  # of one measurement, each overtaken by a request
_NAME = re.compile(r"(evaluation|inversion)-\d{8}-[0-9a-f]{12}\.json")

logger = logging.getLogger(__name__)


class RemovedMeasurement(StoredRecord):
    """reports/removed-<name>: a measurement was removed, since models or samples in it were to be forgotten."""

    name: str
    """Of the object that was removed."""
    head: int
    """That was measured."""
    respected: int
    """Number of the last request that it respected."""
    requests: tuple[int, ...]
    """That it did not, and that deleted samples which were live until then."""
    removed_at: str

    @property
    def path(self) -> str:
        """Where it belongs."""
        return report(f"removed-{self.name}")


class _Respects(BaseModel):
    """What any measurement says of the state of the run that it was made of."""

    head: int
    ledger: int | None = None


class Overtaken(Exception):
    """A request came that what is being measured does not respect."""


def keep(
    run: Run,
    kind: str,
    measure: Callable[[Head, Ledger, Callable[[], None]], Measured],
    to_json: Callable[[Measured], bytes],
) -> Measured:
    """Measures what is in force and keeps it in the run; again where a request came that it does not respect.

    Nothing tainted stays: a request that is acknowledged before the object is there is seen after it is, and whoever
    completes one that is acknowledged later removes the object.

    Args:
        run: whose models are asked.
        kind: of measurement, as its name begins.
        measure: takes the head in force, the ledger, and what raises once that is behind: to be called before models
            are asked.
        to_json: what is kept of it.

    Raises:
        BusyError: requests came during each try; nothing is kept.
    """
    for _ in range(MAX_TRIES):
        # The head before the ledger, see `heads.check_respected`.
        head, ledger = heads.head_in_force(run.store), run.ledger()

        def check(ledger: Ledger = ledger) -> None:
            if run.ledger().touched(ledger.position):
                raise Overtaken

        try:
            try:
                made = measure(head, ledger, check)
            except SisaError:
                check()  # what was to be read may have been purged meanwhile, as it should be
                raise
            check()
            content = seal(to_json(made))
            path = measurement(kind, head.number, content)
            run.store.create(path, content)
            try:
                check()
            except Overtaken:
                run.store.delete([path])
                raise
        except Overtaken:
            logger.warning("a request came while the ensemble was measured: it is measured again without the samples")
            continue
        return made
    rule = f"came during each of {MAX_TRIES} measurements, and none respects all of them; none is kept"
    raise BusyError("requests", run.ledger().position, rule, "Run the command again")


def tainted(store: Store, ledger: Ledger) -> dict[str, _Respects]:
    """The measurements in a store that are to be removed, by path; those that cannot be read are for a check.

    They are those after which a request deleted a sample that was live until then: a model that was asked may have seen
    it, and it may be one of the samples that models were asked about.
    """
    found = {}
    for path in sorted(store.sizes(REPORTS)):
        if not _NAME.fullmatch(path.removeprefix(f"{REPORTS}/")):
            continue
        try:
            respected = _Respects.model_validate_json(unseal(store.find(path) or b""))
        except ValueError:
            continue
        if ledger.touched(_position(store, respected)):
            found[path] = respected
    return found


def purge(store: Store, ledger: Ledger, *, retires: bool) -> None:
    """Removes the measurements that a ledger taints, and the page, which shows them and the stages it `retires`."""
    doomed = tainted(store, ledger)
    if not doomed and not retires:
        return
    for path, respected in doomed.items():
        position = _position(store, respected)
        # Save before delete: what was removed is told even if this process ends between the two.
        record = RemovedMeasurement(
            name=path.removeprefix(f"{REPORTS}/"),
            head=respected.head,
            respected=position,
            requests=tuple(r.number for r in ledger.requests[position:] if ledger.touched(r.number - 1, r.number)),
            removed_at=now(),
        )
        store.create(record.path, record.to_bytes())
    if doomed:
        logger.info("%d measurements of models that saw deleted samples are removed", len(doomed))
    page = report(PAGE)
    store.delete([*([page] if page in store.sizes(REPORTS) else []), *doomed])


def removed(store: Store) -> list[str]:
    """The objects that tell of measurements which were removed."""
    return sorted(path for path in store.sizes(REPORTS) if path.startswith(report("removed-")))


def removed_by_request(store: Store) -> dict[int, tuple[str, ...]]:
    """Names of the measurements that were removed for each request, if any were."""
    found: dict[int, tuple[str, ...]] = {}
    for path in removed(store):
        try:
            record = store.find_record(path, RemovedMeasurement)
        except StoreError:
            record = None  # a check names it; no request waits for it
        if record is None:
            continue
        for request in record.requests:
            found[request] = (*found.get(request, ()), record.name)
    return found


def _position(store: Store, respected: _Respects) -> int:
    """Number of the last request that a measurement respects; earlier versions did not write it, but the head's."""
    if respected.ledger is not None:
        return respected.ledger
    try:
        head = store.find_record(numbered(HEADS, respected.head), Head)
    except SisaError:
        head = None
    return head.ledger if head else EMPTY.position
