"""The model-inversion study at its smallest, submitted to a real head: killed, submitted again, and once more.

Real: the head, the job, its workers, Omniglot, DP-SGD, the SIGKILL of the driver.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from real_head import Head, bare_checkout, started_head
from submissions import Finished, submit_thrice

from ray_sisa.inversion_study.job import read_record
from ray_sisa.inversion_study.pictures import PICTURES, read_pictures
from ray_sisa.inversion_study.presets import SMOKE
from ray_sisa.inversion_study.results import InversionRecord

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.smoke, pytest.mark.timeout(1800)]

ENOUGH = 4  # steps done before the driver is killed


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> Iterator[Head]:
    with started_head(bare_checkout(tmp_path_factory.mktemp("checkout"))) as head:
        yield head


@pytest.fixture(scope="module")
def finished(head: Head, real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished[InversionRecord]:
    folder = tmp_path_factory.mktemp("study")
    return submit_thrice(head, "jobs/study_inversion.py", real_data, folder, read_record, ENOUGH)


def test_it_goes_on_where_it_was_killed(finished: Finished[InversionRecord]) -> None:
    assert ENOUGH <= len(finished.before_kill) < len(finished.after)
    assert finished.before_kill.items() <= finished.after.items()  # none was written again


def test_once_done_nothing_is_done_again(finished: Finished[InversionRecord]) -> None:
    assert finished.at_end == finished.after
    assert replace(finished.again, facts=finished.record.facts) == finished.record


def test_all_arms_are_there(finished: Finished[InversionRecord]) -> None:
    (plain, private), honest, sisa = finished.record.faithful, finished.record.honest, finished.record.sisa
    assert (plain.side, private.side) == (105, 35)
    assert {attack.target for attack in plain.attacks} == {"plain", "plain-batch", "random"}
    assert {attack.target for attack in private.attacks} == {"unbounded-0.5", "private-0.5", "random"}
    assert [made.noise_multiplier for made in private.unbounded] == list(SMOKE.noise_multipliers)
    assert [len(arm.accounting) for arm in (plain, private)] == [0, 1]
    assert {baseline.name for baseline in private.baselines} == {"mean", "white", "pca"}
    assert [seed.seed for seed in honest.seeds] == list(SMOKE.seeds)
    attacked = {(a.target, a.attacker, a.noise is not None) for a in honest.seeds[0].attacks}
    names = ["plain", "private-0.5", "stopped-0.5", "nopeek-1", "random"]
    assert attacked == {
        *((name, "kernel", False) for name in names),
        ("plain", "kernel", True),
        *((name, "study", False) for name in names if name != "nopeek-1"),
        *((name, "white-box", False) for name in names[:3]),
    }
    assert {(a.shard, a.state) for a in sisa.attacks} == {(s, t) for s in (0, 1) for t in ("before", "after")}
    assert {(p.one, p.other) for p in honest.pairs} == {
        ("private", "stopped"),
        ("private", "noisy"),
        ("noisy", "stopped"),
    }


def test_the_overlap_of_the_small_sets_is_found(finished: Finished[InversionRecord]) -> None:
    """Few of so few images are in both, but some are; the attacker knows them better than the others."""
    facts = finished.record.facts
    assert 0 < facts.num_seen < facts.num_victims
    for attack in finished.record.faithful[-1].attacks:
        assert attack.quality["seen"].num_images == facts.num_seen
        assert attack.quality["unseen"].num_images == facts.num_victims - facts.num_seen


def test_a_deletion_spends_again(finished: Finished[InversionRecord]) -> None:
    private = finished.record.sisa.private
    before, after = private.before.by_slice[0], private.after.by_slice[0]
    assert before == tuple(sorted(before, reverse=True))  # an early slice is used by more stages
    assert all(later >= earlier for later, earlier in zip(after, before, strict=True))
    assert after[0] > before[0]


def test_private_targets_say_what_they_spent(finished: Finished[InversionRecord]) -> None:
    for seed in finished.record.honest.seeds:
        for made in seed.private:
            assert made.spending is not None
            assert made.spending.epsilon > 0
            assert "Poisson" in made.spending.label
        assert seed.plain.spending is None


def test_the_record_says_nothing_of_where_it_lay(finished: Finished[InversionRecord]) -> None:
    for name in ("result.json", "report.html"):
        assert str(finished.storage.parent) not in (finished.out / name).read_text()
    pictures = read_pictures(finished.out / PICTURES, finished.record)
    assert {images.dtype.name for images in pictures.values()} == {"uint8"}
