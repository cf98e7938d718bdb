"""Law: a backup taken in the order of `docs/operations.md` is whole, and what is restored forgets what the ledger says.

Copies are made of a real run, by `cp` beside a process that unlearns, and part by part at chosen moments of its life:
before a request, killed within its unlearning, in the middle of retraining, and after it. Nothing is faked.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from killable import Killable
from small_runs import assert_same_models, dataset, folder_of, small_config, without

from ray_sisa.engine.work import Event, StageDone
from ray_sisa.errors import StoreError
from ray_sisa.layout import HEADS, LEDGER, numbered
from ray_sisa.records import Head
from ray_sisa.run import Run
from ray_sisa.samples import Samples

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
FIXED = ("run.json", "index", "test", "initial")
# Beside what is written once: each step is copied after the one before it.
STEPS = (
    ("certificates",),
    ("heads", "reports"),
    ("stages", "spent"),
    ("features", "slices", "seals"),
    ("segments", "ledger"),
)
DEADLINE_S = 60.0


def copy(source: Path, target: Path, parts: tuple[str, ...]) -> None:
    """`cp -r`, whatever it says: files that vanish while it copies are the point."""
    target.mkdir(exist_ok=True)
    there = [str(source / part) for part in parts if (source / part).exists()]
    if there:
        subprocess.run(["cp", "-r", *there, str(target)], stderr=subprocess.DEVNULL, check=False)


def back_up(source: Path, target: Path) -> Run:
    """A copy in the documented order."""
    for parts in (FIXED, *STEPS):
        copy(source, target, parts)
    return Run.open(str(target))


def copy_whole(run: Run, target: Path) -> Run:
    shutil.copytree(folder_of(run), target)
    return Run.open(str(target))


def mend(run: Run) -> None:
    """What the page says to do with a copy: complete its requests, and check it."""
    run.unlearn(runner="local")
    assert run.check().ok, run.check().findings
    assert run.status().complete


@contextmanager
def at_work(killable: Killable, run: Run, samples: list[str], trace: Path) -> Iterator[None]:
    """Another process has begun to unlearn these samples; it has ended by itself at the end."""
    heads = run.store.numbers(HEADS)
    deadline = time.monotonic() + DEADLINE_S
    with ThreadPoolExecutor(1) as waiting:
        ended = waiting.submit(killable.run, "unlearn", trace, uri=run.store.uri, samples=samples)
        while run.store.numbers(HEADS) == heads:
            assert not ended.done() and time.monotonic() < deadline
        yield
        ended.result(DEADLINE_S)


@dataclass(frozen=True, kw_only=True, slots=True)
class Life:
    """Copies of a whole run at moments of its life, in order, and the same samples never trained on."""

    moments: tuple[Path, ...]
    asked: tuple[tuple[str, ...], ...]
    """Samples of each request."""


@pytest.fixture(scope="module")
def life(trained: Callable[[str], Run], killable: Killable, tmp_path_factory: pytest.TempPathFactory) -> Life:
    folder = tmp_path_factory.mktemp("life")
    run, double = (copy_whole(trained("mlp"), folder / name) for name in ("run", "double"))
    moments: list[Path] = []

    def keep() -> None:
        moments.append(folder / f"moment-{len(moments)}")
        shutil.copytree(folder_of(run), moments[-1])

    def keep_in_the_middle(event: Event) -> None:
        if isinstance(event, StageDone) and len(moments) == 2:
            keep()

    asked = (tuple(run.sample_ids(0, 1)[:1] + run.sample_ids(1, 2)[:1]), tuple(run.sample_ids(0, 2)[:1]))
    keep()
    first = {"command": "unlearn", "trace": folder / "trace", "samples": list(asked[0])}
    done = [line for line in killable.run(uri=double.store.uri, **first) if not line.startswith("read ")]
    # Killed there, both the larger and the smaller slices are left, and the head is rolled back.
    before = next(i for i, line in enumerate(done) if line.startswith("delete slices/"))
    killable.run(uri=run.store.uri, kill_before=before, **first)
    keep()
    assert len(list(moments[1].glob("slices/*"))) > len(list(moments[0].glob("slices/*")))
    run.unlearn(runner="local", tell=keep_in_the_middle, wait_s=DEADLINE_S)
    assert len(moments) == 3
    run.forget(samples=asked[1])
    run.unlearn(runner="local")
    keep()
    return Life(moments=tuple(moments), asked=asked)


@pytest.fixture(scope="module")
def never_trained(life: Life, samples: Samples, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Run]:
    """Runs without the samples of the first so many requests."""
    made = {}
    for count in range(len(life.asked) + 1):
        gone = [sample for request in life.asked[:count] for sample in request]
        config = small_config(tmp_path_factory.mktemp("scratch"))
        made[count] = Run.create(config, dataset(without(samples, gone)))
        made[count].train(runner="local")
    return made


def test_the_page_gives_this_order() -> None:
    script = re.search(r"for part in ([^;]+); do", PAGE)
    assert script
    assert tuple(script[1].split()) == tuple(itertools.chain(FIXED, *STEPS))


# The run moves on from one moment to another, or not, between two steps: any two moments, any two steps.
ORDERS = [o for o in itertools.combinations_with_replacement(range(4), len(STEPS)) if len(set(o)) <= 2]


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: "".join(map(str, order)))
def test_in_this_order_the_copy_is_whole_whatever_happens_between_its_steps(
    order: tuple[int, ...], life: Life, never_trained: dict[int, Run], tmp_path: Path
) -> None:
    copy(life.moments[0], tmp_path / "copy", FIXED)
    for parts, moment in zip(STEPS, order, strict=True):
        copy(life.moments[moment], tmp_path / "copy", parts)
    run = Run.open(str(tmp_path / "copy"))
    assert run.check().sound
    mend(run)
    assert_same_models(run, never_trained[run.ledger().position])


def test_beside_a_process_that_unlearns(copied: Callable[..., Run], killable: Killable, tmp_path: Path) -> None:
    run = copied()
    samples = run.sample_ids(0, 1)[:1] + run.sample_ids(1, 1)[:1]
    with at_work(killable, run, samples, tmp_path / "trace"):
        backup = back_up(folder_of(run), tmp_path / "backup")
    assert backup.ledger().position == 1
    backup.repair(backup.check(), runner="local")
    assert backup.check().ok
    assert_same_models(backup, run)


def test_a_ledger_that_was_copied_first_is_refused_until_it_is_copied_again(life: Life, tmp_path: Path) -> None:
    early, late = life.moments[0], life.moments[-1]
    copy(early, tmp_path / "copy", STEPS[-1])
    for parts in (FIXED, *STEPS[:-1]):
        copy(late, tmp_path / "copy", parts)
    run = Run.open(str(tmp_path / "copy"))
    found = run.check()
    assert not found.sound
    with pytest.raises(StoreError, match="cannot be repaired"):
        run.repair(found, runner="local")
    with pytest.raises(StoreError, match="is not the ledger that head"):
        run.ensemble()
    copy(late, tmp_path / "copy", STEPS[-1])
    assert run.check().ok


def test_a_slice_that_slipped_through_is_named_and_copied_again(life: Life, tmp_path: Path) -> None:
    """A listing while slices are replaced may show neither the larger one nor the smaller."""
    run = back_up(life.moments[-1], tmp_path / "copy")
    lost = run.live.chains(run.ledger())[0].stages[0].slice_digest
    (tmp_path / "copy" / "slices" / f"{lost}.arrow").unlink()
    (finding,) = run.check().findings
    assert (finding.path, finding.repairable) == (f"slices/{lost}.arrow", False)
    for parts in STEPS[-2:]:
        copy(life.moments[-1], tmp_path / "copy", parts)
    assert run.check().ok


@pytest.mark.parametrize("repaired", [False, True])
def test_old_slices_restored_are_made_smaller_again(
    repaired: bool, life: Life, never_trained: dict[int, Run], tmp_path: Path
) -> None:
    shutil.copytree(life.moments[-1], tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "slices")
    copy(life.moments[0], tmp_path / "copy", ("slices",))
    run = Run.open(str(tmp_path / "copy"))
    if repaired:
        run.repair(run.check(), runner="local")
    mend(run)
    assert_same_models(run, never_trained[2])


def test_an_old_backup_with_the_newest_ledger_forgets_what_was_asked_since(
    life: Life, never_trained: dict[int, Run], tmp_path: Path
) -> None:
    run = back_up(life.moments[0], tmp_path / "copy")
    tainted = set(Run.open(str(life.moments[0])).store.committed_stages())
    assert {c.key for c in run.ensemble().constituents} <= tainted
    copy(life.moments[-1], tmp_path / "copy", STEPS[-1])
    restored = Run.open(run.store.uri)
    wanted = {key for chain in restored.live.chains(restored.ledger()) for key in chain.keys}
    assert {c.key for c in restored.ensemble().constituents} <= wanted  # before anything is repaired
    mend(restored)
    assert_same_models(restored, never_trained[2])


def test_an_old_backup_without_a_newer_ledger_is_asked_again(
    life: Life, never_trained: dict[int, Run], tmp_path: Path
) -> None:
    run = back_up(life.moments[0], tmp_path / "copy")
    for request in life.asked:
        run.forget(samples=request)
        run.forget(samples=request)  # sent twice, since nobody is sure: it is one request
    assert run.ledger().position == len(life.asked)
    run.unlearn(runner="local")
    assert_same_models(run, never_trained[2])


def test_a_run_that_lost_the_end_of_its_ledger_for_good_is_asked_again(
    life: Life, never_trained: dict[int, Run], tmp_path: Path
) -> None:
    """The last resort of the page: heads that respect lost requests go, and the requests are sent again."""
    shutil.copytree(life.moments[-1], tmp_path / "copy")
    (tmp_path / "copy" / numbered(LEDGER, 2)).unlink()
    run = Run.open(str(tmp_path / "copy"))
    with pytest.raises(StoreError, match="its request 2 is lost or was edited"):
        run.ensemble()
    for number in run.store.numbers(HEADS):
        if run.store.read(numbered(HEADS, number), Head).ledger == 2:
            (tmp_path / "copy" / numbered(HEADS, number)).unlink()
    run.forget(samples=life.asked[1])
    run.repair(run.check(), runner="local")
    assert run.check().ok
    assert [certificate.request for certificate in run.certificates()] == [1, 2]
    assert_same_models(run, never_trained[2])


def test_a_run_works_at_another_place_under_another_name(life: Life, tmp_path: Path) -> None:
    shutil.copytree(life.moments[-1], tmp_path / "elsewhere" / "renamed")
    run = Run.open(str(tmp_path / "elsewhere" / "renamed"))
    run.forget(samples=run.sample_ids(2, 3)[:1])
    run.unlearn(runner="local")
    assert run.check().ok
