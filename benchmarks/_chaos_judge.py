"""What a run must be after any kill, and at its end: judged against one that nothing disturbed.

Which samples a stage saw is worked out here from the undisturbed run, for every set of requests that may have been in
force; nothing that the judged run says of itself is believed. It writes nothing.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from _chaos_program import wait_until
from _chaos_storage import listed

from ray_sisa.errors import SisaError
from ray_sisa.heads import latest_head
from ray_sisa.layout import LEASES, RUN, kind_of
from ray_sisa.ledger import deleted_by_shard
from ray_sisa.run import Run
from ray_sisa.store import Store

LOOKS = 3
LAND_S = 3.0  # for what a killed process had sent to a server, and not heard of


@dataclass(frozen=True, kw_only=True, slots=True)
class Deletion:
    """A deletion request as the drill sends it."""

    key: str
    samples: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What is wrong with a run at its end, in words; nothing if all is as it must be."""

    divergent: tuple[str, ...]
    lost: tuple[str, ...]
    tainted_left: tuple[str, ...]
    check_findings: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is."""
        return not (self.divergent or self.lost or self.tainted_left or self.check_findings)


class Judge:
    """Knows how a run must end, and what each of its stages and slices holds."""

    def __init__(self, undisturbed: Run, deletions: Sequence[Deletion]) -> None:
        """Takes a run that was trained and unlearned in peace, and the requests that it completed, in their order."""
        self._deletions = deletions
        self._digest = undisturbed.status().ensemble_digest
        self._stages = _weights(undisturbed)
        self._slices = undisturbed.store.slice_digests()
        self._holds: dict[str, frozenset[str]] = {}
        """Ids of the samples that a stage saw or a slice has, by key or digest."""
        for number in range(len(deletions) + 1):
            for requests in itertools.combinations(undisturbed.ledger().requests, number):
                self._add(undisturbed, deleted_by_shard(requests))

    def served_tainted(self, uri: str, acknowledged: Iterable[Deletion]) -> list[str]:
        """What a reader is served now although it saw samples of an acknowledged request."""
        gone = _ids(acknowledged)
        store = Store(uri)
        if store.find(RUN) is None or latest_head(store) is None:
            return []
        votes = _look(uri)
        return [f"shard {c.shard}: {c.key}" for c in votes if self._is_tainted(c.key, gone)]

    def at_rest(self, uri: str) -> list[str]:
        """What `check` finds wrong while nobody works on the run; what is only unfinished is not wrong."""
        found: list[str] = []

        def is_sound() -> bool:
            found[:] = _findings(Run.open(uri), with_notes=False) if Store(uri).find(RUN) is not None else ()
            return not found

        wait_until(is_sound, LAND_S)
        return found

    def at_end(self, uri: str) -> Verdict:
        """What is wrong once all requests have been acknowledged and all commands have ended."""
        run = Run.open(uri)
        return Verdict(
            divergent=_told(self._differences(run)),
            lost=_told(self._lost(run)),
            tainted_left=_told(self._left(run.store.uri)),
            check_findings=_told(_findings(run, with_notes=True)),
        )

    def _add(self, run: Run, deleted: Mapping[int, set[str]]) -> None:
        for shard in range(len(run.record.slices)):
            gone = deleted.get(shard, set())
            seen: set[str] = set()
            for stage in run.live.chain(shard, gone).stages:
                live = set(run.sample_ids(shard, stage.slice)) - gone
                seen |= live
                self._holds[stage.key], self._holds[stage.slice_digest] = frozenset(seen), frozenset(live)

    def _is_tainted(self, name: str, gone: frozenset[str]) -> bool:
        return name not in self._holds or bool(self._holds[name] & gone)

    def _differences(self, run: Run) -> Iterable[str]:
        if run.status().ensemble_digest != self._digest:
            yield f"ensemble {run.status().ensemble_digest}, undisturbed {self._digest}"
        if not run.status().complete:
            yield "not complete"
        ours = _weights(run)
        for key in sorted(ours.keys() | self._stages.keys()):
            if ours.get(key) != self._stages.get(key):
                yield f"stage {key}: weights {ours.get(key)}, undisturbed {self._stages.get(key)}"
        yield from (f"slice {digest}" for digest in run.store.slice_digests() ^ self._slices)

    def _lost(self, run: Run) -> Iterable[str]:
        """Requests that are not in the ledger exactly once, as they were sent, and certified."""
        requests = run.ledger().requests
        certified = {certificate.request: certificate for certificate in run.certificates()}
        for deletion in self._deletions:
            there = [r for r in requests if r.idempotency_key == deletion.key or set(r.sample_ids) & _ids([deletion])]
            if len(there) != 1 or set(there[0].sample_ids) != set(deletion.samples):
                yield f"{deletion.key} is in the ledger {len(there)} times"
            elif there[0].number not in certified:
                yield f"{deletion.key} has no certificate"
            elif certified[there[0].number].num_samples != len(deletion.samples):
                yield f"{deletion.key} is certified for {certified[there[0].number].num_samples} samples"
        if len(requests) != len(self._deletions) or len(certified) != len(self._deletions):
            yield f"{len(requests)} requests and {len(certified)} certificates for {len(self._deletions)} sent"

    def _left(self, uri: str) -> Iterable[str]:
        """Objects of stages and slices that saw deleted samples, or that nobody knows; and of stages not whole."""
        gone = _ids(self._deletions)
        for name in sorted(listed(uri)):
            folder, _, rest = name.partition("/")
            owner = rest.split("/")[0].removesuffix(".arrow")
            if folder not in ("stages", "slices"):
                continue
            if self._is_tainted(owner, gone) or kind_of(name).startswith("partial") or "#" in name:
                yield name


def last_object(uri: str) -> str:
    """The kind of the object that was written last, of those that are there; leases do not count."""
    times = {name: time for name, time in listed(uri).items() if not name.startswith(f"{LEASES}/")}
    return kind_of(max(times, key=times.__getitem__)) if times else ""


def _findings(run: Run, *, with_notes: bool) -> Iterable[str]:
    checked = run.check()
    yield from (f"{finding.path}: {finding.problem}" for finding in checked.findings)
    yield from checked.notes if with_notes else ()


def _told(faults: Iterable[str]) -> tuple[str, ...]:
    """All faults; a run that cannot be read that far has one more."""
    found: list[str] = []
    try:
        found.extend(faults)
    except SisaError as error:
        found.append(f"cannot be told: {error}")
    return tuple(found)


def _look(uri: str) -> Sequence[Any]:
    """Who votes, all loaded; again where what was being read was purged meanwhile."""
    for look in range(LOOKS):
        try:
            return Run.open(uri).ensemble().constituents
        except SisaError:
            if look == LOOKS - 1:
                raise
    raise AssertionError


def _weights(run: Run) -> dict[str, str]:
    return {record.key: record.weights_digest for record in run.stages()}


def _ids(deletions: Iterable[Deletion]) -> frozenset[str]:
    return frozenset(sample for deletion in deletions for sample in deletion.samples)
