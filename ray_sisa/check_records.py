"""What a check looks at first: run.json, what is written once, requests, ensembles, certificates, reports.

From these follows what slices and stages should exist, so it says as well whether they agree. It writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass

from pydantic import TypeAdapter

from ray_sisa import check_seals, heads, ledger, measurements
from ray_sisa.activity import Activity
from ray_sisa.audit import read_evaluation
from ray_sisa.digests import END, digest_bytes, unseal
from ray_sisa.errors import StoreError
from ray_sisa.findings import REPAIR, UNLEARN, Findings, wrong
from ray_sisa.layout import (
    ACTIVITY,
    BACKUP,
    CERTIFICATES,
    HEADS,
    LEASES,
    LEDGER,
    REPORTS,
    RUN,
    SEGMENTS,
    initial_weights,
    kind_of,
    measurement,
    numbered,
    segment,
    shard_index,
    test_object,
)
from ray_sisa.lease import find_lease
from ray_sisa.ledger import EMPTY, Ledger
from ray_sisa.live import LiveSet
from ray_sisa.measurements import RemovedMeasurement
from ray_sisa.records import Certificate, Head, Request, RunRecord
from ray_sisa.slices import samples_in
from ray_sisa.stages import load_initial
from ray_sisa.store import Store

REPEATED = "the request is read from the segment that repeats it"
PUT_BACK = f"{REPAIR}: it is put back as the segment has it"
PUT_IN_FORCE = f"{REPAIR}: it is removed, and the ensemble put in force anew"
SERVING = "which ensemble is in force is not known for certain: nobody is served"
ATTACK_AGAIN = f"{REPAIR}: it is removed; `ray-sisa attack inversion RUN` measures again"
EVALUATION = re.compile(r"reports/evaluation-\d{8}-[0-9a-f]{12}\.json")
UNTOLD = "which measurement was removed, and for which request, is on record in a certificate at most"
REMOVED = re.compile(r"reports/removed-(evaluation|inversion)-\d{8}-[0-9a-f]{12}\.json")
INVERSION = re.compile(r"reports/inversion-\d{8}-[0-9a-f]{12}\.json")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    keys: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Inverted:
    target: _Target


@dataclass(frozen=True, kw_only=True, slots=True)
class _Inversion:
    """What the report of an attack says of the run; its numbers are vouched for by its seal."""

    head: int
    ensemble_digest: str
    targets: tuple[_Inverted, ...]

    @property
    def keys(self) -> set[str]:
        """Of the stages attacked."""
        return {key for inverted in self.targets for key in inverted.target.keys}


class Records:
    """Looks at all but slices and stages; each method at one kind of object, adding to the findings."""

    def __init__(self, store: Store, run: RunRecord, live: LiveSet, found: Findings) -> None:
        """Takes a run whose run.json is sound."""
        self._store, self._run, self._live, self._found = store, run, live, found
        self.ledger: Ledger = EMPTY
        self.heads: dict[int, Head] = {}
        """Those that are what they must be, by number."""

    def agree(self) -> bool:
        """Whether index, ledger and heads are there and agree, so that it is known what else should exist."""
        sound = [*[self._index(shard) for shard in range(len(self._run.slices))], self._initial()]
        self._test()
        requests = self._requests() and all(sound) and self._places()
        history = self._history(know_names=requests)
        certified = self._certificates(know_ledger=requests)
        self._leases()
        self._activity()
        self._reports(know_ledger=requests)
        return requests and history and certified

    def _index(self, shard: int) -> bool:
        with self._found.about(shard_index(self._run.index_digests[shard])) as found:
            index = self._live.index(shard)
            summaries = index.summaries(len(self._run.training.epochs), self._run.training.image_shape)
            if [(s.digest, s.num_samples) for s in summaries] != [
                (e.digest, e.num_samples) for e in self._run.slices[shard]
            ]:
                raise wrong("does not hold the samples that run.json names")
        return not found

    def _test(self) -> None:
        if digest := self._run.test_digest:
            path = test_object(digest)
            with self._found.about(path) as found:
                data = self._store.get(path)
                samples_in(data, self._store.where(path), digest)
                check_seals.compare(self._store, self._found, path, data)
            if found:  # another one may be the right one, if run.json is of another run
                self._found.seen |= {path for path in self._found.sizes if kind_of(path) == "test"}

    def _initial(self) -> bool:
        digest = self._run.training.initial_weights
        if digest is None:
            return True
        with self._found.about(initial_weights(digest)) as found:
            load_initial(self._store, digest)
        return not found

    # Requests.

    def _requests(self) -> bool:
        """Reads the ledger, request by request; those that are damaged may stand in a segment as well."""
        told = in_segments(self._store)
        requests: list[Request] = []
        digests: list[str] = []
        for number, data in self._objects(max([*self._found.numbers(LEDGER), *told], default=0)):
            path = numbered(LEDGER, number)
            meaning, remedy = (REPEATED, PUT_BACK) if number in told else ("", "")
            with self._found.about(path, repairable=number in told, meaning=meaning, remedy=remedy) as found:
                request = self._request(path, data)
            if found and number in told:
                data, found = told[number], []
                request = self._request(path, data)
            if not found and request.previous != (digests[-1] if digests else None):
                found = ["does not follow from the request before it: one of the two is not of this run"]
                for either in (path, numbered(LEDGER, max(1, number - 1))):
                    self._found.add(either, found[0] if either == path else f"is not what {path} follows")
            if found or data is None:
                self._found.seen |= {path for path in self._found.sizes if kind_of(path) in (LEDGER, SEGMENTS)}
                return False
            requests.append(request)
            digests.append(digest_bytes(data))
        self.ledger = Ledger(requests=tuple(requests), digests=tuple(digests))
        self._segments(told)
        return True

    def _objects(self, last: int) -> Iterator[tuple[int, bytes | None]]:
        """The objects of the ledger by number; from a server many are read at a time."""
        for first in range(1, last + 1, ledger.SEGMENT):
            numbers = range(first, min(first + ledger.SEGMENT, last + 1))
            yield from zip(numbers, _readable(self._store, [numbered(LEDGER, n) for n in numbers]), strict=True)

    def _request(self, path: str, data: bytes | None) -> Request:
        if data is None and (data := self._store.find(path)) is None:  # which says why it cannot be read
            raise wrong("is not there, and later requests are, or a segment that repeats it")
        return self._store.parse(path, data, Request)

    def _segments(self, told: Mapping[int, bytes]) -> None:
        length = ledger.SEGMENT
        lacking = set(range(length, self.ledger.position + 1, length)) - set(self._found.numbers(SEGMENTS))
        if lacking:
            self._found.note(f"{segment(min(lacking))} of {len(lacking)} still to be made: {UNLEARN}")
        for end in self._found.numbers(SEGMENTS):
            with self._found.about(segment(end)):
                if end not in told:
                    raise wrong("does not repeat the requests of the ledger")

    def _places(self) -> bool:
        """Whether requests name samples that are where they say: else a deletion would silently mean nothing."""
        keys: dict[object, int] = {}
        named: dict[tuple[int, int], list[tuple[int, Set[str]]]] = {}
        broken: dict[int, str] = {}
        for request in self.ledger.requests:
            key = request.idempotency_key, request.scope
            if keys.setdefault(key, request.number) != request.number:
                broken[request.number] = f"has the idempotency key of request {keys[key]}"
            for place in request.places:
                named.setdefault((place.shard, place.slice), []).append((request.number, set(place.samples)))
        for (shard, number), asked in named.items():
            known = set(self._live.index(shard).sample_ids(number)) if shard in range(len(self._run.slices)) else set()
            broken |= {n: "names samples that are not where it says" for n, ids in asked if ids - known}
        for number, problem in sorted(broken.items()):
            self._found.add(numbered(LEDGER, number), problem)
        return not broken

    # Ensembles.

    def _history(self, *, know_names: bool) -> bool:
        """Reads all heads, the last one first: each names the digest of the one before, and so vouches for it."""
        numbers = self._found.numbers(HEADS)
        strange: list[int] = []
        expected: str | None = None
        vouched, agree = False, True
        for number in range(max(numbers, default=0), 0, -1):
            with self._about_head(number) as found:
                head = self._store.read(numbered(HEADS, number), Head)
                if vouched and expected != digest_bytes(self._store.get(head.path)):
                    raise wrong(f"is not the head that head {number + 1} follows")
                if head.ensemble_digest != heads.ensemble_digest(head.constituents):
                    raise wrong("is not the ensemble that its digest names")
            vouched = not found
            if vouched and know_names:
                agree = self._respects(head) and agree
                # Those before it are vouched for by their digests.
                vouched = bool(self.heads) or self._is_of_this_run(head)
                strange += [] if vouched else [number]
            if vouched:
                expected = head.previous
                self.heads[number] = head
        return self._judge(strange) and agree

    def _about_head(self, number: int) -> AbstractContextManager[list[str]]:
        """A finding about a head: the last one can be written anew, since all that it says follows from the rest."""
        last = number == max(self._found.numbers(HEADS))
        meaning, remedy = (SERVING, PUT_IN_FORCE) if last else ("", "")
        return self._found.about(numbered(HEADS, number), repairable=last, meaning=meaning, remedy=remedy)

    def _respects(self, head: Head) -> bool:
        """Whether the ledger has what a head respects: if not, it may be the ledger that lost it."""
        lost = head.ledger > self.ledger.position
        if not lost and head.ledger_tip == self.ledger.tip(head.ledger):
            return True
        verb = "is not there" if lost else "is another"
        self._found.add(numbered(LEDGER, head.ledger), f"{verb}, and head {head.number} respects it")
        problem = f"respects request {head.ledger}, which {verb} in the ledger"
        self._found.add(numbered(HEADS, head.number), problem, meaning=SERVING, remedy=f"{BACKUP}, or the ledger")
        return False

    def _is_of_this_run(self, head: Head) -> bool:
        """Whether a head names stages that the run has under the requests that it respects, all if it is complete."""
        if head.ledger > self.ledger.position:
            return True  # not known, and a finding
        chains = self._live.chains(self.ledger, up_to=head.ledger)
        diverged = {each.key for each in head.excluded}
        if not diverged <= {key for chain in chains for key in chain.keys}:
            return False
        names = {chain.shard: chain.before(diverged).keys for chain in chains}
        votes = {c.shard: c.key for c in head.constituents}
        full = {shard: keys[-1] for shard, keys in names.items() if keys}
        return votes == full if head.complete else all(key in names.get(shard, ()) for shard, key in votes.items())

    def _judge(self, strange: Sequence[int]) -> bool:
        """Says of heads that are not of this run whether they, or run.json, are in another's place."""
        if strange and not self.heads:
            problem = (
                f"is not that of the run whose ensembles are here: {numbered(HEADS, strange[0])} names other stages"
            )
            self._found.add(RUN, problem, meaning="the run is taken for another")
            return False
        for number in strange:
            with self._about_head(number):
                raise wrong("names stages that are not of this run")
        return True

    def _certificates(self, *, know_ledger: bool) -> bool:
        """Reads all certificates: each is of a request that the ledger has, and of a head."""
        sound = True
        for number in self._found.numbers(CERTIFICATES):
            path = numbered(CERTIFICATES, number)
            with self._found.about(path) as found:
                certificate = self._store.read(path, Certificate)
            if found or not know_ledger:
                continue
            if number > self.ledger.position:
                self._found.add(numbered(LEDGER, number), "is not there, and it has a certificate")
                sound = False
                continue
            with self._found.about(path):
                if certificate.request_digest != self.ledger.tip(number):
                    raise wrong("is not of the request that the ledger has")
                head = self.heads.get(certificate.head)
                if head and head.ensemble_digest != certificate.ensemble_digest:
                    raise wrong(f"names another ensemble than head {head.number}")
                self._lost_head(certificate)
        lacking = sorted({r.number for r in self.ledger.requests} - set(self._found.numbers(CERTIFICATES)))
        if lacking:
            self._found.note(f"{_some(lacking, CERTIFICATES)} still to be written: {UNLEARN}")
        return sound

    def _lost_head(self, certificate: Certificate) -> None:
        if certificate.head > max(self._found.numbers(HEADS), default=0):
            self._found.add(
                numbered(HEADS, certificate.head),
                f"is not there, and certificate {certificate.request} names it",
                repairable=True,
                meaning="an earlier ensemble is in force, less what was deleted since",
                remedy=f"{REPAIR}: the ensemble is put in force anew",
            )

    # Who works, and what was measured.

    def _leases(self) -> None:
        for number in self._found.numbers(LEASES):
            with self._found.about(numbered(LEASES, number)):
                # Its holder may renew or release it while this reads.
                find_lease(self._store, number)

    def _activity(self) -> None:
        if ACTIVITY in self._found.sizes:
            with self._found.about(ACTIVITY):
                self._store.find_record(ACTIVITY, Activity)  # its writer may remove it while this reads

    def _reports(self, *, know_ledger: bool) -> None:
        doomed = measurements.tainted(self._store, self.ledger) if know_ledger else {}
        if doomed:
            self._found.note(f"{len(doomed)} measurement(s) of models that saw what was deleted: {UNLEARN}")
        for path in sorted(self._found.sizes):
            if REMOVED.fullmatch(path):
                with self._found.about(path, meaning=UNTOLD, remedy=f"{REPAIR}: it is removed"):
                    self._store.find_record(path, RemovedMeasurement)
            elif EVALUATION.fullmatch(path):
                with self._found.about(path):
                    evaluation = read_evaluation(self._store, path)
                    head = self.heads.get(evaluation.head)
                    if evaluation.complete and head and head.ensemble_digest != evaluation.ensemble_digest:
                        raise wrong(f"is of another ensemble than head {head.number}")
            elif INVERSION.fullmatch(path):
                with self._found.about(path, remedy=ATTACK_AGAIN):
                    self._inversion(path)
            elif kind_of(path) == REPORTS:
                self._found.look(path)  # pages and pictures, made anew on request

    def _inversion(self, path: str) -> None:
        data = self._store.get(path)
        try:
            inversion = TypeAdapter(_Inversion).validate_json(unseal(data))
        except ValueError as error:
            raise wrong(f"is not a valid report of an attack: {str(error).partition(chr(10))[0]}") from None
        if path != measurement("inversion", inversion.head, data):
            raise wrong("is not the report that it is named after")
        head = self.heads.get(inversion.head)
        attacked = [c for c in head.constituents if c.key in inversion.keys] if head else []
        # With requests pending a shard is attacked at an earlier stage than the head names, or not at all.
        is_of_head = len(attacked) == len(inversion.keys)
        if head and is_of_head and heads.ensemble_digest(attacked) != inversion.ensemble_digest:
            raise wrong(f"is of another ensemble than head {head.number}")


def in_segments(store: Store) -> dict[int, bytes]:
    """Requests as segments repeat them, by number, from segments that agree with each request of the ledger."""
    found: dict[int, bytes] = {}
    for end in store.numbers(SEGMENTS):
        told = _requests_of(store, end)
        there = _readable(store, [numbered(LEDGER, number) for number in told])
        agree = all(
            data == own or not _is_request(store, number, own)
            for (number, data), own in zip(told.items(), there, strict=True)
        )
        if told and agree:
            found |= told
    return found


def _readable(store: Store, paths: Sequence[str]) -> list[bytes | None]:
    """The bytes of objects; None for those that are not there, or are in a folder and no files of a fitting size."""
    try:
        return store.find_all(paths)
    except StoreError:
        if not store.is_local:
            raise  # a server that is away, most likely
    return [_find_readable(store, path) for path in paths]


def _find_readable(store: Store, path: str) -> bytes | None:
    try:
        return store.find(path)
    except StoreError:
        return None


def _requests_of(store: Store, end: int) -> dict[int, bytes]:
    """The requests in a segment by number; none if it is damaged."""
    *parts, rest = (_readable(store, [segment(end)])[0] or b"").split(END + b"\n")
    told = dict(enumerate((part + END for part in parts), start=end - ledger.SEGMENT + 1))
    whole = len(told) == ledger.SEGMENT and not rest and end % ledger.SEGMENT == 0
    return told if whole and all(_is_request(store, number, data) for number, data in told.items()) else {}


def _is_request(store: Store, number: int, data: bytes | None) -> bool:
    try:
        return data is not None and store.parse(numbered(LEDGER, number), data, Request).number == number
    except StoreError:
        return False


def _some(numbers: Sequence[int], folder: str) -> str:
    """The first of some objects of a series, and how many there are."""
    return numbered(folder, numbers[0]) + (f" and {len(numbers) - 1} more" if len(numbers) > 1 else "")
