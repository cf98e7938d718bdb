"""Runs that an earlier version wrote open, forget, unlearn, verify and check clean; their names are what they were.

`old_runs/2026-11-22-digits` was written by the code of 22 November 2026: trained on digits (2 shards of 2 slices), one
request completed, one acknowledged, two evaluations. Bits of its weights are only compared with what is trained here
from them, as other processors may round otherwise.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ray_sisa.run import Run

OLD_RUNS = sorted(path for path in (Path(__file__).parents[1] / "old_runs").iterdir() if path.is_dir())


@pytest.fixture(params=OLD_RUNS, ids=lambda path: path.name)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    """A copy of an old run."""
    return Run.open(str(shutil.copytree(request.param, tmp_path / "runs" / "digits")))


def test_it_opens_and_checks_clean(old: Run) -> None:
    status = old.status()
    assert (status.head, status.complete, status.pending_requests, status.stages_missing) == (3, False, (2,), 2)
    assert [shard.depth for shard in status.shards] == [2, 0]
    assert [certificate.request for certificate in old.certificates()] == [1]
    # Both are of models that saw what the pending request deletes: nobody is told of them, and `unlearn` removes them.
    assert old.evaluations() == []
    assert old.check().findings == ()
    assert len(old.ensemble().constituents) == 1


def test_it_goes_on_with_the_names_that_it_has(old: Run) -> None:
    """What the pending request touches is made anew, and nothing else, since no name has moved."""
    kept = {record.key: record.weights_digest for record in old.stages() if record.shard == 0}
    done = old.unlearn(runner="local")
    assert (done.stages_trained, done.stages_reused) == (2, 2)
    after = {record.key: record.weights_digest for record in old.stages()}
    assert {key: after[key] for key in kept} == kept
    new_keys = {
        "4e70cd475c1c63bf8a5341f99316493865aeb11861b2242630a086801bba0f35",
        "d92b4de8f162badf8451a4289a8740fd7d0d8f52bfdbbe571c74be7e347512d5",
    }
    assert after.keys() - kept.keys() == new_keys
    assert old.status().complete
    assert (old.check().findings, old.check().notes) == ((), ())
    kept = sorted(path.removeprefix("reports/") for path in old.store.sizes("reports"))
    assert [name.split("-")[:2] for name in kept] == [["removed", "evaluation"]] * 2
    assert old.verify(runner="local", shards=[1]).ok


def test_it_takes_new_requests(old: Run) -> None:
    ids = old.sample_ids(0, 1)[:2]
    old.forget(samples=ids)
    old.unlearn(runner="local")
    assert old.status().complete
    assert old.evaluate(forget=3, runner="local").test.num_samples == 359
    assert old.verify(runner="local").ok
