"""Check: is the store what the ledger says it should be, to the last byte? And repair: mend what can be mended.

Reads every object of a run, whatever state the run is in, and names each that is damaged, missing, in another's place,
or must not exist. It writes nothing; `repair` deletes what can be made again, and a reconcile then makes it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from ray_sisa import retention, seals
from ray_sisa.check_models import Models
from ray_sisa.check_records import Records, in_segments
from ray_sisa.check_seals import UNEQUAL
from ray_sisa.check_spending import look_at_charges
from ray_sisa.errors import StoreError
from ray_sisa.findings import LOOK, REPAIR, UNLEARN, Finding, Findings, is_name
from ray_sisa.layout import CERTIFICATES, HEADS, LEASES, LEDGER, NO_RUN, PROBES, RUN, kind_of, numbered, stage_record
from ray_sisa.lease import hold_lease, holder_of
from ray_sisa.live import LiveSet
from ray_sisa.records import LeaseRecord, RunRecord
from ray_sisa.store import Store

# What no run without run.json ever had.
LATER = {HEADS, LEDGER, CERTIFICATES, "stages/stage", "stages/weights"}
IRREGULAR = "what it leads to is no part of the run: whatever should lie here is not there"
AGREE = "Restore first what else is found here; then check again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checked:
    """What a check found."""

    objects: int
    bytes: int
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    """What is unfinished and no damage: the next train or unlearn sees to it."""
    sound: bool
    """Whether run.json, index, ledger and heads agree: else what should exist is not known, and nothing is repaired."""

    @property
    def ok(self) -> bool:
        """Whether every object is what it must be."""
        return not self.findings


def check(store: Store, tell: Callable[[int, int], None] = lambda done, of: None) -> Checked:
    """Reads every object of a run and says what is wrong.

    Args:
        store: of the run; somebody may work on it meanwhile.
        tell: hears how many objects have been looked at, of how many.

    Raises:
        StoreError: the store cannot be reached, or holds no run.
    """
    leases = store.numbers(LEASES)
    found = _look(store, tell)
    if found.ok or (store.numbers(LEASES) == leases and not _holder(store, with_dead=True)):
        return found
    # Somebody worked on the run: what went between listing and reading is not found a second time.
    again = _look(store, tell)
    return replace(again, findings=tuple(finding for finding in again.findings if finding in found.findings))


def repair(store: Store, found: Checked, wait_s: float | None = None) -> None:
    """Deletes what a check found that can be made again, commit records first, and puts back requests from segments.

    What is damaged where it says nothing is written anew from what is read of it.

    A reconcile then makes again what should be there. A crash anywhere leaves less than before, and nothing wrong.

    Raises:
        StoreError: what should exist is not known; nothing was changed.
        BusyError: somebody works on the run, and still does after so many seconds, or after what a lease lasts.
    """
    if not found.sound:
        rule = "cannot be repaired: what should be there follows from objects that are lost, damaged or another run's"
        raise StoreError("run", store.uri, rule, "Restore what `ray-sisa check RUN` names first; nothing was changed")
    whole = {finding.path for finding in found.findings if finding.problem == UNEQUAL}
    paths = {finding.path for finding in found.findings if finding.repairable} - whole
    # A stage without its weights is absent only if it has no record either.
    paths |= {stage_record(path.split("/")[1]) for path in paths if kind_of(path) == "stages/weights"}
    _end_damaged_lease(store, paths)
    with hold_lease(store, wait_s=wait_s):
        for path in sorted(whole):
            seals.write_anew(store, path)
        requests = {numbered(LEDGER, number): data for number, data in in_segments(store).items()}
        for path in sorted(paths & requests.keys()):
            store.put(path, requests[path])
        # Since the check, others may have written heads: only the last one can be written anew.
        last = [numbered(HEADS, number) for number in store.numbers(HEADS)[-1:]]
        doomed = [p for p in paths if kind_of(p) != LEDGER and (kind_of(p) != HEADS or p in last)]
        store.delete(sorted(doomed, key=lambda path: (not path.endswith(".json"), path)))


def _end_damaged_lease(store: Store, paths: Iterable[str]) -> None:
    """Lets the next lease follow a damaged one, which says neither who holds the run nor until when.

    Its number must not be taken again: a holder that was paused tells by a higher one that it lost the run.
    """
    numbers = store.numbers(LEASES)
    if numbers and numbered(LEASES, numbers[-1]) in paths:
        ended = LeaseRecord(number=numbers[-1] + 1, holder="ray-sisa check --repair", expires_at=0.0)
        store.create(ended.path, ended.to_bytes())


def _holder(store: Store, *, with_dead: bool = False) -> str | None:
    """Who works on the run, if anybody does; with the dead, also who did until just now."""
    try:
        lease = holder_of(store, with_dead=with_dead)
    except StoreError:
        return None  # a damaged lease is a finding
    return lease.holder if lease else None


def _look(store: Store, tell: Callable[[int, int], None]) -> Checked:
    """One look at every object of one listing: what comes later is none of its concern."""
    sizes = store.sizes("")
    if not sizes:
        raise StoreError("run", store.uri, "has no run", NO_RUN)
    found = Findings(store, sizes, tell)
    for path, what in store.irregular().items():
        found.add(path, f"is {what}, and is never followed or read", repairable=False, meaning=IRREGULAR, remedy=LOOK)
    sound = False
    if RUN not in sizes and not LATER & set(map(kind_of, sizes)):
        found.note("there is no run.json: not all samples are here yet. Run `ray-sisa train CONFIG` again")
    else:
        sound = _whole_run(store, found)
    if kept := retention.told(store):
        found.note(kept)
    tell(len(sizes), len(sizes))
    if holder := _holder(store):
        found.note(f"{holder} works on the run")
    return Checked(
        objects=len(sizes),
        bytes=sum(sizes.values()),
        findings=found.findings,
        notes=found.notes,
        sound=sound,
    )


def _whole_run(store: Store, found: Findings) -> bool:
    """Looks at a run that has begun; whether what should exist is known."""
    with found.about(RUN) as damage:
        run = store.read(RUN, RunRecord)
    if damage:
        found.note("nothing else was looked at: what should be there follows from run.json")
        return False
    live = LiveSet(store, run)
    records = Records(store, run, live, found)
    sound = records.agree()
    if sound:
        head = records.heads[max(records.heads)] if records.heads else None
        Models(store, live, records.ledger, head, found).look()
        look_at_charges(store, live, records.ledger, records.heads.values(), found)
    else:
        # What should exist follows from these: where they do not agree, nothing can be said to be too much.
        unsure = ("features/", "seals/", "slices/", "spent/", "stages/")
        found.seen |= {path for path in found.sizes if path.startswith(unsure)}
        found.note("slices and stages were not looked at: what should be there follows from what is found here")
    _strangers(store, found, sound)
    return sound


def _strangers(store: Store, found: Findings, sound: bool) -> None:
    """Objects that nothing accounts for."""
    if probes := {path for path in found.sizes if kind_of(path) == PROBES and is_name(path)}:
        found.seen |= probes
        found.note(f"{len(probes)} probe(s), of processes at work or killed: {UNLEARN}")
    for path in sorted(found.sizes.keys() - found.seen):
        if not is_name(path):
            found.add(path, "is no object of a run", repairable=False, meaning="nothing reads it", remedy=LOOK)
        else:
            # Not removed on the word of a run.json that may be another run's.
            remedy = f"{REPAIR}: it is removed" if sound else AGREE
            problem, meaning = "is not used by the run", "a process that lost a race may have left it"
            found.add(path, problem, repairable=sound, meaning=meaning, remedy=remedy)
    if parts := store.unfinished():
        found.note(f"{len(parts)} unfinished file(s), of processes at work or killed: {UNLEARN}")
