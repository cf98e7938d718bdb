"""Some kills of drivers, on disk and S3, of shard actors, a node and a head, by the drill of `benchmarks/chaos.py`.

All is real: the program `ray-sisa` in processes of its own, clusters, SIGKILL. What must hold is written in the drill's
judge, which is tested here too: it must see what it is there to see.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

from _chaos_cluster import RayCluster, descendants, is_alive
from _chaos_commands import NAME, Undisturbed, undisturbed
from _chaos_program import Program, wait_until
from _chaos_record import COUNTS, Drill, merged, part
from _chaos_storage import Storage, StoreKind
from chaos import drill

from ray_sisa.layout import CERTIFICATES, LEDGER, numbered, slice_object, stage_weights
from ray_sisa.run import Run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

LEAVE_S = 30.0


@pytest.fixture(scope="module")
def program() -> Iterator[Program]:
    """The program; when it ends, nothing that was started is left."""
    others = descendants(os.getpid()).keys()
    with Program() as program:
        yield program
    assert wait_until(lambda: not any(map(is_alive, descendants(os.getpid()).keys() - others)), LEAVE_S)


@pytest.fixture(scope="module")
def peace(program: Program, tmp_path_factory: pytest.TempPathFactory) -> tuple[Undisturbed, Path]:
    """A run that nothing disturbed, and where it lies."""
    folder = tmp_path_factory.mktemp("peace")
    return undisturbed(program, folder, Storage("disk")), folder / NAME


def assert_unharmed(done: Drill, kills: int) -> None:
    assert (done.wrong, {name: getattr(done, name) for name in COUNTS}) == ([], dict.fromkeys(COUNTS, 0))
    assert len(done.strikes) == kills


@pytest.mark.parametrize(("kind", "kills"), [("disk", 12), ("s3", 4)])
def test_drivers_killed_anywhere(
    kind: StoreKind, kills: int, program: Program, peace: tuple[Undisturbed, Path], tmp_path: Path
) -> None:
    parts = []
    with Storage(kind) as storage:
        done = drill(
            kills,
            {},
            folder=tmp_path,
            program=program,
            cluster=None,
            storage=storage,
            peace=peace[0],
            draw=random.Random(1),
            keep=lambda done: parts.append(part(done, points=(), arguments="", before={}, seconds=1)),
        )
    assert_unharmed(done, kills)
    assert {strike.phase for strike in done.strikes} >= {"train", "unlearn"}
    assert len({strike.point for strike in done.strikes}) >= kills / 2
    assert (parts[-1]["kills"], len(parts)) == (kills, done.runs)
    whole = merged([parts[-1], parts[0]])
    assert whole["kills"] == kills + parts[0]["kills"] == whole["by_store"][kind]


def test_actors_nodes_and_heads_killed(program: Program, peace: tuple[Undisturbed, Path], tmp_path: Path) -> None:
    """Three chains on two CPUs, of which another job holds one or both for part of the time."""
    with RayCluster() as cluster:
        done = drill(
            0,
            {"actor": 2, "raylet": 1, "head": 1},
            folder=tmp_path,
            program=program,
            cluster=cluster,
            storage=Storage("disk"),
            peace=peace[0],
            draw=random.Random(2),
            nodes="held",
        )
    assert_unharmed(done, 4)
    assert {strike.target for strike in done.strikes} == {"actor", "raylet", "head"}
    assert {strike.nodes for strike in done.strikes} == {"held"}


# --- the judge


@pytest.fixture
def ended(peace: tuple[Undisturbed, Path], tmp_path: Path) -> Run:
    """A copy of the run that nothing disturbed."""
    shutil.copytree(peace[1], tmp_path / "ended")
    return Run.open(str(tmp_path / "ended"))


def test_the_judge_finds_nothing_wrong_with_peace(peace: tuple[Undisturbed, Path], ended: Run) -> None:
    judge = peace[0].judge
    assert judge.at_end(ended.store.uri).ok
    assert not judge.at_rest(ended.store.uri)
    assert not judge.served_tainted(ended.store.uri, peace[0].deletions)


def test_the_judge_sees_a_request_that_was_lost_or_not_completed(peace: tuple[Undisturbed, Path], ended: Run) -> None:
    ended.store.delete([numbered(CERTIFICATES, 2)])
    assert peace[0].judge.at_end(ended.store.uri).lost == (
        "two has no certificate",
        "3 requests and 2 certificates for 3 sent",
    )
    for number in (2, 3):
        ended.store.delete([numbered(LEDGER, number)])
    ended.store.delete([numbered(CERTIFICATES, 3)])
    verdict = peace[0].judge.at_end(ended.store.uri)
    assert verdict.lost == (
        "two is in the ledger 0 times",
        "three is in the ledger 0 times",
        "1 requests and 1 certificates for 3 sent",
    )
    assert verdict.check_findings and "is lost or was edited" in verdict.divergent[0]


def test_the_judge_sees_a_request_that_was_applied_twice(peace: tuple[Undisturbed, Path], ended: Run) -> None:
    ended.forget(samples=peace[0].deletions[1].samples, key="sent as another")
    ended.unlearn(runner="local")
    assert peace[0].judge.at_end(ended.store.uri).lost == (
        "two is in the ledger 2 times",
        "4 requests and 4 certificates for 3 sent",
    )


def test_the_judge_sees_other_samples_deleted(peace: tuple[Undisturbed, Path], ended: Run) -> None:
    ended.forget(samples=ended.sample_ids(1, 3)[:1])
    ended.unlearn(runner="local")
    assert len(peace[0].judge.at_end(ended.store.uri).divergent) == 5  # the ensemble, two stages and two slices


def test_the_judge_sees_what_is_tainted(peace: tuple[Undisturbed, Path], ended: Run, tmp_path: Path) -> None:
    judge, deletions = peace[0].judge, peace[0].deletions
    config = ended.record.config.model_copy(update={"storage_path": str(tmp_path), "name": "tainted"})
    tainted = Run.create(config)
    tainted.train(runner="local")
    uri = ended.store.uri
    (old,) = [r for r in tainted.stages() if (r.shard, r.slice) == (0, 3)]
    (kept,) = [r for r in tainted.stages() if (r.shard, r.slice) == (0, 1)]
    assert kept.key in {record.key for record in ended.stages()}
    ended.store.put(stage_weights(old.key), tainted.store.get(stage_weights(old.key)))
    ended.store.put(slice_object(old.slice_digest), tainted.store.get(slice_object(old.slice_digest)))
    left = judge.at_end(uri).tainted_left
    assert left == (slice_object(old.slice_digest), stage_weights(old.key))
    assert len(judge.at_rest(uri)) == 2
    served = judge.served_tainted(tainted.store.uri, deletions)
    assert [line.split(":")[0] for line in served] == ["shard 0", "shard 1", "shard 2"]
    assert [line.split(":")[0] for line in judge.served_tainted(tainted.store.uri, deletions[1:2])] == ["shard 1"]
    assert not judge.served_tainted(tainted.store.uri, [])
