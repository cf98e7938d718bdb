"""Law: a damaged object is found, never served, and mended where it follows from the rest.

Every kind of object of a run is damaged in every way, one object at a time: in a run with requests done and pending, a
segment, evaluations, an attack, weights to start from, and a stage that was cut short. Nothing is faked but the size
of segments.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import MLP, digits, small_config

from ray_sisa import ledger, weights
from ray_sisa.approximate.methods import make_method
from ray_sisa.approximating import Approximating, approximate
from ray_sisa.approximations import load
from ray_sisa.check import Checked, check, repair
from ray_sisa.engine.work import Event, StageUnderway
from ray_sisa.ensemble import Inputs, aggregate, constituent_outputs
from ray_sisa.errors import SisaError, StoreError
from ray_sisa.findings import KINDS
from ray_sisa.inversion.kernel import KernelConfig
from ray_sisa.layout import HEADS, LEDGER, REMADE, kind_of, numbered, samples_of
from ray_sisa.records import Constituent
from ray_sisa.run import Run
from ray_sisa.slices import samples_in
from ray_sisa.stages import load_stage
from ray_sisa.store import Store
from ray_sisa.voting import Rule

# Features are of a frozen backbone, and a run with one has no approximate models: test_frozen.py damages them.
# Charges are of differentially private runs: tests/unit/test_spending.py damages them.
# Stages that diverged are of runs that pass them over: test_diverged.py damages their records.
# What a driver is doing is no part of a run, and gone with the driver: tests/unit/test_activity.py damages it.
HERE = KINDS.keys() - {"activity", "features", "spent", "stages/diverged"}
PLACES = {"shards": 2, "slices": 2}
EVERY_STEP = {"checkpoint_every": {"minutes": 1e-9}}
NUM_RANDOM_FLIPS = 6
ARROW = ["slices", "test"]  # named by the digest of what is in them; all else by its bytes, or told in a record


def grow(run: Run, aggregations: Sequence[Rule]) -> None:
    """A life: trained, two requests one after the other, measured, a third request whose unlearning is cut short."""
    run.train(runner="local")
    for shard in (0, 1):
        run.forget(samples=run.sample_ids(shard, 2)[:1])
        run.unlearn(runner="local")
    for aggregation in aggregations:
        run.evaluate(runner="local", aggregation=aggregation)
    run.attack_inversion("linear", digits(400, 40), digits(702, 20), decoder=KernelConfig(), runner="local")
    approximate_one_stage(run)
    run.forget(samples=run.sample_ids(0, 2)[1:2])
    saves = iter(range(3)[::-1])

    def stop(event: Event) -> None:
        if isinstance(event, StageUnderway) and event.what == "saved" and next(saves) == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.unlearn(runner="local", tell=stop)


def approximate_one_stage(run: Run) -> None:
    """Leaves two approximate models in a stage that lives on: what only runs of one shard are given, by its worker."""
    stage, ids = run.live.chains(run.ledger())[1].stages[0], run.sample_ids(1, 1)[:3]
    work = Approximating(store=run.store, run=run.record, stage=stage, forget=tuple(ids), device="cpu", wait_s=0.0)
    for alpha in (1.2, 2):
        approximate(work, make_method("dampening", [f"alpha={alpha}"]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Truth:
    """A run as it should be, never changed, and what it answers."""

    run: Run
    files: dict[str, bytes]
    images: np.ndarray
    constituents: tuple[Constituent, ...]
    ended: Run
    """The same run once all is done."""
    final_digest: str
    """Of its ensemble."""

    def scores(self, constituents: Sequence[Constituent]) -> np.ndarray:
        """What these constituents say, by another way than an ensemble of the run in question."""
        inputs = Inputs(store=self.run.store, run=self.run.record, images=self.images, device="cpu")
        return aggregate([constituent_outputs(inputs, c.key) for c in constituents], constituents, "mean")


@pytest.fixture(scope="module", autouse=True)
def short_segments() -> Iterator[None]:
    """Segments of two requests, for as long as the runs of this file live."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "SEGMENT", 2)
        yield


@pytest.fixture(scope="module")
def recipe(short_segments: None, trained: Callable[[str], Run], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A recipe that starts from weights in a file."""
    start = tmp_path_factory.mktemp("weights") / "start.safetensors"
    source = trained("mlp")
    start.write_bytes(weights.to_bytes(load_stage(source.store, source.stages()[0].key)))
    return MLP | {"weights": str(start)}


def life(folder: Path, parquet: dict[str, Any], recipe: dict[str, Any], aggregations: Sequence[Rule]) -> Run:
    config = small_config(folder, placement=PLACES, recipe=recipe, data=parquet, scaling=EVERY_STEP)
    run = Run.create(config)
    grow(run, aggregations)
    return run


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory, parquet: dict[str, str], recipe: dict[str, Any]) -> Truth:
    run = life(tmp_path_factory.mktemp("truth"), parquet, recipe, ["mean", "majority"])
    ended = copy_of(run, tmp_path_factory.mktemp("ended"))
    ended.unlearn(runner="local")
    assert check(ended.store).ok
    return Truth(
        run=run,
        files=contents(run.store),
        images=digits(240, 20).images,
        constituents=run.in_force(),
        ended=ended,
        final_digest=str(ended.status().ensemble_digest),
    )


@pytest.fixture(scope="module")
def other(
    tmp_path_factory: pytest.TempPathFactory, parquet: dict[str, str], recipe: dict[str, Any]
) -> dict[str, bytes]:
    """The objects of another run of the same data and placement, after a life alike."""
    other_recipe = recipe | {"seed": 7, "weights": None, "optimizer": {"name": "adam", "lr": 0.02}}
    run = life(tmp_path_factory.mktemp("other"), parquet | {"mean": [0.6]}, other_recipe, ["mean"])
    return contents(run.store)


def contents(store: Store) -> dict[str, bytes]:
    return {path: store.get(path) for path in store.sizes("")}


def copy_of(run: Run, folder: Path) -> Run:
    shutil.copytree(run.store.uri, folder / "run")
    return Run.open(str(folder / "run"))


@pytest.fixture
def damaged(truth: Truth, tmp_path: Path) -> Store:
    """A copy of the run, to be damaged."""
    return copy_of(truth.run, tmp_path).store


# Ways to damage an object: what becomes of which objects, None if it is gone.

Damage = dict[str, bytes | None]


def flip(data: bytes, position: int, bit: int = 0) -> bytes:
    return data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :]


def flips(path: str, truth: Truth, other: dict[str, bytes]) -> Iterator[Damage]:
    data, draw = truth.files[path], random.Random(path)
    for position in (0, len(data) // 2, len(data) - 1):
        yield {path: flip(data, position)}
    for _ in range(NUM_RANDOM_FLIPS):
        yield {path: flip(data, draw.randrange(len(data)), draw.randrange(8))}


def truncations(path: str, truth: Truth, other: dict[str, bytes]) -> Iterator[Damage]:
    data = truth.files[path]
    yield {path: data[:-1]}
    yield {path: data[: len(data) // 2]}
    yield {path: data + b"\0"}


def emptied(path: str, truth: Truth, other: dict[str, bytes]) -> Iterator[Damage]:
    yield {path: b""}


def deleted(path: str, truth: Truth, other: dict[str, bytes]) -> Iterator[Damage]:
    yield {path: None}


def swapped(path: str, truth: Truth, other: dict[str, bytes]) -> Iterator[Damage]:
    for twin in sorted(truth.files):
        if kind_of(twin) == kind_of(path) and twin > path and truth.files[twin] != truth.files[path]:
            yield {path: truth.files[twin], twin: truth.files[path]}


def replaced(path: str, truth: Truth, other: dict[str, bytes]) -> Iterator[Damage]:
    """By the object that another run has under the name, or by one of its kind."""
    same = other.get(path) or next((other[p] for p in sorted(other) if kind_of(p) == kind_of(path)), None)
    if same is not None and same != truth.files[path]:
        yield {path: same}


WAYS = {w.__name__: w for w in (flips, truncations, emptied, deleted, swapped, replaced)}
ONLY_ONE = {"run.json", "test", "initial", "partial/record", "partial/state", "segments", "lease"}
SHARED = {"index", "test", "initial", "slices", "seals"}  # the other run has the same, or none
PAIRS = [
    (kind, way)
    for kind in sorted(HERE)
    for way in WAYS
    if not (way == "swapped" and kind in ONLY_ONE) and not (way == "replaced" and kind in SHARED)
]


def cases(kind: str, way: str, truth: Truth, other: dict[str, bytes]) -> list[Damage]:
    paths = sorted(path for path in truth.files if kind_of(path) == kind)
    found = [damage for path in paths for damage in WAYS[way](path, truth, other)]
    assert found
    return found


def apply(store: Store, damage: Damage) -> None:
    for path, data in damage.items():
        store.delete([path])
        if data is not None:
            store.put(path, data)


def mend(store: Store, damage: Damage, truth: Truth) -> None:
    apply(store, {path: truth.files[path] for path in damage})


def test_every_kind_of_object_is_damaged(truth: Truth, other: dict[str, bytes]) -> None:
    assert set(map(kind_of, truth.files)) == HERE
    assert set(map(kind_of, other)) == HERE - {"initial"}
    assert check(truth.run.store).ok


# Found, and not served.


def names(text: str, path: str) -> bool:
    """Whether a message names an object; one of a series may be named by its series and number."""
    series, _, number = path.partition("/")
    if path in text or not number[:8].isdigit():
        return path in text
    return f"{series.removesuffix('s')} {int(number[:8])}" in text or (f"/{series}" in text and number[7] in text)


def is_noticed(found: Checked, damage: Damage) -> bool:
    """Whether a check names an object that was damaged: in a finding or, where it may be absent, in a note."""
    if any(finding.path in damage for finding in found.findings):
        return all(finding.problem and finding.meaning and finding.remedy for finding in found.findings)
    return all(data is None for data in damage.values()) and any(p in note for p in damage for note in found.notes)


def is_no_loss(damage: Damage) -> bool:
    """What may be absent without a trace, or has the same content for every run that has it."""
    ((path, data), *more) = damage.items()
    if data is None:
        return kind_of(path) in {"reports", "lease", "partial/record", "approximate/record"}
    return kind_of(path) == "lease" and not more  # of another run, as expired as the run's own


def ask_ensemble(run: Run, truth: Truth) -> None:
    ensemble = run.ensemble()
    assert {c.key for c in ensemble.constituents} <= {c.key for c in truth.constituents}
    np.testing.assert_array_equal(ensemble.predict_proba(truth.images), truth.scores(ensemble.constituents))


def ask_status(run: Run, truth: Truth) -> None:
    ours, theirs = run.status(), truth.run.status()
    assert (ours.live_samples, ours.requests) == (theirs.live_samples, theirs.requests)
    assert {s.stage for s in ours.shards} <= {s.stage for s in theirs.shards} | {None}


def ask_stages(run: Run, truth: Truth) -> None:
    assert all(record in truth.run.stages() for record in run.stages())


def ask_certificates(run: Run, truth: Truth) -> None:
    assert all(certificate in truth.run.certificates() for certificate in run.certificates())


def ask_evaluations(run: Run, truth: Truth) -> None:
    assert all(evaluation in truth.run.evaluations() for evaluation in run.evaluations())


def ask_approximations(run: Run, truth: Truth) -> None:
    for approximation in run.approximations():
        assert approximation in truth.run.approximations()
        load(run.store, approximation)


QUESTIONS = (ask_ensemble, ask_status, ask_stages, ask_certificates, ask_evaluations, ask_approximations)


def assert_right_or_refused(store: Store, damage: Damage, truth: Truth) -> None:
    for ask in QUESTIONS:
        try:
            ask(Run.open(store.uri), truth)
        except SisaError as error:
            assert error.remedy
            missing_run = damage == {"run.json": None} and "has no run" in str(error)
            assert missing_run or any(names(str(error), path) for path in damage), (damage.keys(), str(error))


@pytest.mark.parametrize(("kind", "way"), PAIRS)
def test_found_and_not_served(kind: str, way: str, truth: Truth, other: dict[str, bytes], damaged: Store) -> None:
    for damage in cases(kind, way, truth, other):
        apply(damaged, damage)
        assert is_noticed(check(damaged), damage) or is_no_loss(damage), damage.keys()
        assert_right_or_refused(damaged, damage, truth)
        mend(damaged, damage, truth)
    assert contents(damaged) == truth.files


def says_nothing(path: str, data: bytes) -> list[int]:
    """Positions in an Arrow file whose bits change nothing that is read of it: between two buffers, for one."""
    found = []
    for position in range(len(data)):
        try:
            samples_in(flip(data, position), "", samples_of(path))
        except StoreError:
            continue
        found.append(position)
    return found


@pytest.mark.parametrize("kind", ARROW)
def test_bytes_that_say_nothing_count_too(kind: str, truth: Truth, damaged: Store) -> None:
    path = min((p for p in truth.files if kind_of(p) == kind), key=lambda p: len(truth.files[p]))
    positions = says_nothing(path, truth.files[path])
    assert len(positions) > 100
    for position in positions[:: len(positions) // 20]:
        apply(damaged, {path: flip(truth.files[path], position)})
        (finding,) = check(damaged).findings
        assert finding.path == path
    repair(damaged, check(damaged))
    assert contents(damaged)[path] == truth.files[path]
    assert check(damaged).ok


def test_a_run_from_before_there_were_seals_is_sealed_by_the_next_reconcile(truth: Truth, tmp_path: Path) -> None:
    run = copy_of(truth.ended, tmp_path)
    seals = [path for path in contents(run.store) if kind_of(path) == "seals"]
    before = {path: run.store.get(path) for path in seals}
    run.store.delete(seals)
    found = check(run.store)
    assert found.ok and "still to be written" in found.notes[0]
    run.unlearn(runner="local")
    assert {path: run.store.get(path) for path in seals} == before
    assert not check(run.store).notes


# Worked on.


@pytest.mark.parametrize(
    ("kind", "way"),
    [(kind, way) for kind in sorted(HERE) for way in ("flips", "deleted")],
)
def test_work_ends_as_it_should_or_is_refused(
    kind: str, way: str, truth: Truth, other: dict[str, bytes], damaged: Store
) -> None:
    """`forget`, then `unlearn`: the request is kept or refused; the ensemble is the right one, or none is made."""
    damage = cases(kind, way, truth, other)[0]
    apply(damaged, damage)
    numbers = damaged.numbers(LEDGER)
    try:
        run = Run.open(damaged.uri)
        run.unlearn(runner="local")
        assert run.status().ensemble_digest == truth.final_digest
        acknowledged = run.forget(samples=run.sample_ids(1, 1)[:1])
        numbers.append(acknowledged.request)
        assert run.unlearn(runner="local").requests[-1:] == (4,)
    except SisaError as error:
        assert error.remedy
        assert any(names(str(error), path) for path in damage) or "has no run" in str(error), str(error)
    else:
        assert {finding.path for finding in check(damaged).findings} <= damage.keys()
    assert damaged.numbers(LEDGER) == numbers


IN_EVALUATION = ("run.json", "index", "test", "slices", "stages/weights", "ledger", "heads")


@pytest.mark.parametrize("kind", IN_EVALUATION)
def test_nothing_is_measured_with_what_is_damaged(kind: str, truth: Truth, damaged: Store) -> None:
    path = max(path for path in truth.files if kind_of(path) == kind)
    if kind == "stages/weights":
        path = f"stages/{truth.constituents[-1].key}/weights.safetensors"
    apply(damaged, {path: truth.files[path][:-1]})
    with pytest.raises(SisaError) as refused:
        Run.open(damaged.uri).evaluate(runner="local")
    assert names(str(refused.value), path)
    assert refused.value.remedy


IN_VERIFICATION = ("run.json", "index", "initial", "slices", "stages/stage", "stages/weights", "ledger", "heads")


@pytest.mark.parametrize("kind", [kind for kind in sorted(HERE) if not kind.startswith("partial/")])
def test_verification_tells(kind: str, truth: Truth, tmp_path: Path) -> None:
    run = copy_of(truth.ended, tmp_path)
    path = max(path for path in contents(run.store) if kind_of(path) == kind)
    run.store.put(path, run.store.get(path)[:-1])
    try:
        found = Run.open(run.store.uri).verify(runner="local")
    except SisaError as error:
        assert names(str(error), path), str(error)
        assert kind in IN_VERIFICATION
    else:
        assert found.ok == (kind not in IN_VERIFICATION)
        problems = [*found.problems, *(stage.problem for stage in found.stages)]
        assert found.ok or any(names(problem, path) for problem in problems)


# Repaired.


def repaired(store: Store) -> SisaError | None:
    """Repairs and reconciles; the error if that was impossible."""
    try:
        repair(store, check(store))
        Run.open(store.uri).unlearn(runner="local")
    except SisaError as error:
        return error
    return None


@pytest.mark.parametrize(("kind", "way"), [(k, w) for k, w in PAIRS if w not in ("truncations", "emptied")])
def test_repaired_or_restored(kind: str, way: str, truth: Truth, other: dict[str, bytes], damaged: Store) -> None:
    damage = cases(kind, way, truth, other)[0]
    apply(damaged, damage)
    found = check(damaged)
    error = repaired(damaged)
    if kind in REMADE:
        assert error is None
    elif not found.sound:
        # Nothing is touched where it is not known what should be there, not even what seems to be in excess.
        assert isinstance(error, StoreError)
        assert contents(damaged) == {p: d for p, d in (truth.files | damage).items() if d is not None}
    elif error is not None:
        assert any(names(str(error), path) for path in damage)
    left = check(damaged)
    if not left.ok:
        assert {finding.path for finding in left.findings} <= damage.keys() or not left.sound
        assert kind not in REMADE
        mend(damaged, damage, truth)
    Run.open(damaged.uri).unlearn(runner="local")
    assert check(damaged).ok
    assert Run.open(damaged.uri).status().ensemble_digest == truth.final_digest
    assert Run.open(damaged.uri).status().complete


@pytest.mark.parametrize("number", [1, 3, 6])
def test_only_the_last_head_is_written_anew(number: int, truth: Truth, damaged: Store) -> None:
    path = numbered(HEADS, number)
    assert damaged.numbers(HEADS)[-1] == 6
    apply(damaged, {path: truth.files[path][:-1]})
    (finding,) = check(damaged).findings
    assert finding.path == path
    assert finding.repairable == (number == 6)
    repair(damaged, check(damaged))
    Run.open(damaged.uri).unlearn(runner="local")
    left = [finding.path for finding in check(damaged).findings]
    assert left == ([] if number == 6 else [path])
    assert Run.open(damaged.uri).status().ensemble_digest == truth.final_digest


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("way", ["flips", "emptied", "deleted"])
def test_a_request_is_put_back_from_the_segment_that_repeats_it(
    number: int, way: str, truth: Truth, other: dict[str, bytes], damaged: Store
) -> None:
    path = numbered(LEDGER, number)
    apply(damaged, next(WAYS[way](path, truth, other)))
    (finding,) = check(damaged).findings
    assert (finding.path, finding.repairable) == (path, True)
    repair(damaged, check(damaged))
    assert contents(damaged)[path] == truth.files[path]
    assert check(damaged).ok


def test_a_request_lost_with_its_segment_is_no_request_that_never_was(truth: Truth, damaged: Store) -> None:
    """A damaged request and a damaged segment: the segment is not removed as long as it may be needed."""
    apply(damaged, {numbered(LEDGER, 1): b"", "segments/00000002.jsonl": truth.files["segments/00000002.jsonl"][:-1]})
    assert isinstance(repaired(damaged), StoreError)
    assert numbered(LEDGER, 1) in {finding.path for finding in check(damaged).findings}
    assert "segments/00000002.jsonl" in contents(damaged)
    with pytest.raises(StoreError):
        Run.open(damaged.uri).ensemble()
