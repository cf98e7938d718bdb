"""What a check looks at next: slices and stages, against what index, ledger and recipe say should exist.

It writes nothing, and is made only where what it goes by is sound.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path

import pyarrow.compute as pc

from ray_sisa import approximations, check_seals, features, heads
from ray_sisa.digests import digest_bytes, digest_tensors
from ray_sisa.errors import StoreError
from ray_sisa.exclusions import DivergenceRecord
from ray_sisa.findings import REPAIR, UNLEARN, Findings, is_name, wrong
from ray_sisa.keyed_ids import known_as
from ray_sisa.layout import (
    CERTIFICATES,
    FEATURES,
    HEADS,
    approximation_weights,
    divergence_record,
    kind_of,
    numbered,
    partial_state,
    samples_of,
    slice_object,
    stage_record,
    stage_weights,
    test_object,
    whole_approximations,
)
from ray_sisa.ledger import Ledger
from ray_sisa.lineage import Chain, Stage, recipe_digest
from ray_sisa.live import LiveSet
from ray_sisa.reconcile import MAX_POSITIONS
from ray_sisa.records import Approximation, Head, PartialRecord, StageRecord
from ray_sisa.slices import read_slice, samples_in
from ray_sisa.stages import load_stage
from ray_sisa.store import Store

STRAY = "must not exist: a late writer or a restored backup left it"
PUT_IN_FORCE = f"{REPAIR}: the ensemble is put in force anew"
TAINTED = "it may hold what was deleted, or have seen it; no reader is served it"


class Models:
    """Looks at slices and stages; each method at one kind of object, adding to the findings."""

    def __init__(self, store: Store, live: LiveSet, ledger: Ledger, head: Head | None, found: Findings) -> None:
        """Takes a ledger that is sound, and the head in force, if there is one that is."""
        self._store, self._live, self._ledger, self._head, self._found = store, live, ledger, head, found
        self._run = live.run
        self._chains = live.chains(ledger)

    def look(self) -> None:
        """Looks at all of them."""
        self._features(self._slices())
        self._stages()
        wanted = {slice_object(stage.slice_digest) for chain in self._chains for stage in chain.stages}
        wanted |= {test_object(self._run.test_digest)} if self._run.test_digest else set()
        check_seals.look_at_rest(self._store, self._found, wanted)

    def _slices(self) -> set[str]:
        """Returns the objects that slices are still to be made from."""
        wanted = {slice_object(s.slice_digest): s for chain in self._chains for s in chain.stages}
        present = {path for path in self._found.sizes if kind_of(path) == "slices"}
        sources: set[str] = set()
        larger = present - wanted.keys()
        for path, stage in sorted(wanted.items(), key=lambda item: item[0]):
            self._found.look(path)
            problem = self._problem(stage) if path in present else "is not there"
            if problem:
                source = self._source(stage, larger)
                sources |= {source} if source else set()
                self._lacking(path, problem, source, is_there=path in present)
        # What a slice is still to be made from is removed by the reconcile that makes it, and by no repair before.
        self._too_much(larger - sources)
        return sources

    def _features(self, sources: Set[str]) -> None:
        sizes = {s.slice_digest: n for chain in self._chains for s, n in _slice_sizes(chain)}
        if self._run.test_digest:
            sizes[self._run.test_digest] = self._run.num_test_samples
        kept = {samples_of(path) for path in sources} | sizes.keys() if self._run.training.is_frozen else set()
        present = sorted(path for path in self._found.sizes if kind_of(path) == FEATURES and is_name(path))
        met: set[tuple[str, features.Origin]] = set()
        for path in present:
            digest = samples_of(path)
            if digest in kept:
                with self._found.about(path):
                    made = features.read(self._store, path)
                    self._fitting(made, sizes.get(digest))
                    if (digest, made.origin) in met:
                        raise wrong("differs from another object of the same samples and environment")
                    met.add((digest, made.origin))
        self._too_much(path for path in present if samples_of(path) not in kept)

    def _fitting(self, made: features.Features, num_samples: int | None) -> None:
        """Passes if features are of the recipe, and of so many samples where that is known."""
        if made.origin.recipe != recipe_digest(self._run.training):
            raise wrong("was made by another recipe")
        if num_samples is not None and len(made.rows) != num_samples:
            raise wrong(f"has {len(made.rows)} rows for {num_samples} samples")

    def _problem(self, stage: Stage) -> str:
        """What is wrong with the slice of a stage, if anything."""
        path = slice_object(stage.slice_digest)
        try:
            data = self._store.get(path)
            samples = samples_in(data, self._store.where(path), stage.slice_digest)
        except StoreError as error:
            return error.rule
        index = self._live.index(stage.shard)
        subjects = index.subjects.take(pc.index_in(known_as(self._run, samples.ids), index.ids))
        if not samples.subjects.equals(subjects):
            return "does not name the subjects that the index names"
        check_seals.compare(self._store, self._found, path, data)
        return ""

    def _source(self, stage: Stage, larger: Set[str]) -> str | None:
        """The object that the slice of a stage can be made from, if it is there."""
        if not larger:
            return None
        paths = map(slice_object, self._live.larger_digests(stage.shard, stage.slice, self._ledger))
        return next((path for path in paths if path in larger), None)

    def _lacking(self, path: str, problem: str, source: str | None, *, is_there: bool) -> None:
        if source is None:
            self._found.add(path, problem)
        elif is_there:
            remedy = f"{REPAIR}: it is removed, and made again from a larger one"
            self._found.add(path, problem, repairable=True, remedy=remedy)
        else:
            self._found.note(f"{path} is still to be made from {source}: {UNLEARN}")
        if source is not None:
            with self._found.about(source):
                read_slice(self._store, Path(source).stem)

    def _stages(self) -> None:
        wanted = {s.key: (s, chain) for chain in self._chains for s in chain.stages}
        files = self._files()
        for key in sorted(files.keys() & wanted.keys()):
            if stage_record(key) in files[key]:
                record = self._stage(*wanted[key])
                self._left_inside(key, files[key])
                self._approximations(record, files[key])
            elif divergence_record(key) in files[key]:
                self._diverged(wanted[key][0])
                self._left_inside(key, files[key])
            else:
                self._unfinished(key, files[key])
        self._absent(files)
        self._too_much(path for key in files.keys() - wanted.keys() for path in files[key])

    def _files(self) -> dict[str, list[str]]:
        files: dict[str, list[str]] = {}
        for path in self._found.sizes:
            if path.startswith("stages/"):
                files.setdefault(path.split("/")[1], []).append(path)
        return files

    def _stage(self, stage: Stage, chain: Chain) -> StageRecord | None:
        """The record of a stage, if it is sound."""
        with self._found.about(stage_record(stage.key)) as found:
            record = self._store.read(stage_record(stage.key), StageRecord)
            _check_same(record, stage, "sample_passes")
            if [a.key for a in record.ancestors] != [s.key for s in chain.stages if s.slice < stage.slice]:
                raise wrong("names other stages before it than its chain has")
        self._found.look(stage_weights(stage.key))
        if not found:
            with self._found.about(stage_weights(stage.key)):
                if digest_tensors(load_stage(self._store, stage.key)) != record.weights_digest:
                    raise wrong("is not the weights that its record names")
            self._voting(record)
        return None if found else record

    def _diverged(self, stage: Stage) -> None:
        """The record of a stage that diverged; that it does is for `verify` to see."""
        with self._found.about(divergence_record(stage.key)):
            _check_same(self._store.read(divergence_record(stage.key), DivergenceRecord), stage)

    def _voting(self, record: StageRecord) -> None:
        """A head names stages by their weights too: trained again elsewhere, a stage may have others."""
        if self._head is None or heads.constituent(record) in self._head.constituents:
            return
        if record.key in {c.key for c in self._head.constituents}:
            problem = f"names other weights for shard {record.shard} than the record of its stage"
            # Not repairable by deletion: the reconcile after it writes the next head.
            self._found.add(numbered(HEADS, self._head.number), problem, repairable=False, remedy=PUT_IN_FORCE)

    def _absent(self, files: Mapping[str, Sequence[str]]) -> None:
        """Stages that are to be trained; those that something there rests on were lost."""
        touched = self._ledger.touched(self._head.ledger) if self._head else {}
        constituents = self._head.constituents if self._head else ()
        votes = {c.key for c in constituents if c.slice < touched.get(c.shard, c.slice + 1)}
        self._lost_head([c.key for c in constituents if c.key not in votes and not files.get(c.key)])
        diverged = {key for key, paths in files.items() if divergence_record(key) in paths}
        diverged -= {key for key, paths in files.items() if stage_record(key) in paths}
        to_be_trained: list[str] = []
        for chain in self._chains:
            reached = chain.before(diverged).keys
            rests_on_it = False
            for key in reversed(chain.keys):
                if stage_record(key) in files.get(key, ()):
                    rests_on_it = True
                elif rests_on_it or key in votes:
                    rests_on_it = True
                    self._found.add(stage_record(key), "is not there, and a later stage or the ensemble rests on it")
                elif key in reached:
                    to_be_trained.append(stage_record(key))
        if to_be_trained:
            shown = f"{to_be_trained[0]}{' and others' if len(to_be_trained) > 1 else ''}"
            self._found.note(f"{len(to_be_trained)} stage(s) still to be trained, {shown}: {UNLEARN}")

    def _lost_head(self, removed: Sequence[str]) -> None:
        """What a request tainted is removed only once a head without it is in force."""
        if removed and self._head is not None:
            self._found.add(
                numbered(HEADS, self._head.number + 1),
                f"is not there, and {stage_record(removed[0])}, which head {self._head.number} names, is removed",
                repairable=True,
                meaning="shards may be missing in the vote; none votes that should not",
                remedy=PUT_IN_FORCE,
            )

    def _left_inside(self, key: str, paths: Sequence[str]) -> None:
        kinds = ("partial/record", "partial/state", "approximate/weights", "stages/weights", "stages/diverged")
        inside = {path for path in paths if kind_of(path) in kinds and is_name(path)}
        inside -= {*whole_approximations(paths).values(), *self._of_the_end(key, paths)}
        self._found.seen |= inside
        if inside:
            ended = "committed" if stage_record(key) in paths else "diverged"
            self._found.note(f"{len(inside)} object(s) left inside the {ended} stage {key}: {UNLEARN}")

    def _of_the_end(self, key: str, paths: Sequence[str]) -> set[str]:
        """What says that a stage has ended, one way or the other."""
        return {stage_weights(key)} if stage_record(key) in paths else {divergence_record(key)}

    def _approximations(self, stage: StageRecord | None, paths: Sequence[str]) -> None:
        """Models that approximate methods made from a stage, as it is now."""
        whole = whole_approximations(paths)
        for path in sorted(p for p in paths if kind_of(p) == "approximate/record" and is_name(p)):
            weights = approximation_weights(*path.removesuffix(".json").split("/")[1::2])
            self._found.look(weights)
            with self._found.about(path) as found:
                record = self._store.read(path, Approximation)
                if stage and not approximations.is_of(record, stage, self._run.training):
                    raise wrong("was not made from its stage as it is now")
            if path not in whole:
                self._found.add(weights, "is not there, and its record is")
            elif not found:
                with self._found.about(weights):
                    if digest_tensors(approximations.load(self._store, record)) != record.weights_digest:
                        raise wrong("is not the weights that its record names")

    def _unfinished(self, key: str, paths: Sequence[str]) -> None:
        """A stage in the making: states inside it with their records, and what a kill left without one."""
        self._found.seen |= {path for path in paths if is_name(path)}
        for path in paths:
            if kind_of(path) == "partial/record" and is_name(path):
                with self._found.about(path) as found:
                    record = self._store.read(path, PartialRecord)
                if not found:
                    with self._found.about(partial_state(key, record.number)):
                        if digest_bytes(self._store.get(partial_state(key, record.number))) != record.state_digest:
                            raise wrong("is not what was saved")

    def _too_much(self, paths: Iterable[str]) -> None:
        """Objects that are not wanted: waiting to be removed if a pending request explains them, else strays."""
        strays = set(paths)
        self._found.seen |= strays
        waiting = strays - self._unexplained(strays)
        for path in sorted(strays - waiting):
            self._found.add(path, STRAY, repairable=True, meaning=TAINTED, remedy=f"{REPAIR}: it is removed")
        if waiting:
            self._found.note(f"{len(waiting)} object(s) to be removed, since requests wait to be completed: {UNLEARN}")
        for path in sorted(waiting):
            if kind_of(path) == "stages/stage":  # readers fall back to what it names before it
                with self._found.about(path):
                    load_stage(self._store, path.split("/")[1])

    def _unexplained(self, paths: Set[str]) -> set[str]:
        """Less those that were right before one of the requests that have no certificate yet."""
        left = set(paths)
        done = max(self._found.numbers(CERTIFICATES), default=0)
        for position in (done, *range(self._ledger.position - 1, done, -1)[:MAX_POSITIONS]):
            if left:
                stages = [stage for c in self._live.chains(self._ledger, up_to=position) for stage in c.stages]
                keys = {stage.key for stage in stages}
                digests = {stage.slice_digest for stage in stages}
                left -= {p for p in left if not p.startswith("stages/") and samples_of(p) in digests and is_name(p)}
                left -= {p for p in left if p.startswith("stages/") and p.split("/")[1] in keys and is_name(p)}
        return left


def _check_same(record: StageRecord | DivergenceRecord, stage: Stage, *more: str) -> None:
    """Passes if a record says of its stage what the run's names say.

    Raises:
        StoreError: it does not.
    """
    for name in ("shard", "slice", "parent", "slice_digest", "num_samples", "epochs", *more):
        if getattr(record, name) != getattr(stage, name):
            raise wrong(f"says {name} {getattr(record, name)}, not {getattr(stage, name)}")


def _slice_sizes(chain: Chain) -> Iterator[tuple[Stage, int]]:
    """Each stage of a chain, and how many live samples its own slice has."""
    before = 0
    for stage in chain.stages:
        yield stage, stage.num_samples - before
        before = stage.num_samples
