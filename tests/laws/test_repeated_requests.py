"""Requests that repeat deletions which are done, however many and however fast: they keep nothing from ending."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from small_runs import all_samples, assert_same_models, without

from ray_sisa import ledger, reconcile
from ray_sisa.ledger import EMPTY, Ledger, append
from ray_sisa.run import Run
from ray_sisa.samples import Samples
from ray_sisa.store import Store

MOST = 60  # repeated requests, far more than an honest `unlearn` looks at the ledger


def test_requests_that_come_faster_than_the_ledger_is_read_keep_no_other_pending(
    copied: Callable[..., Run],
    from_scratch: Callable[[Samples, str], Run],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One more comes before each look at the ledger, as from somebody who sends them without end."""
    run = copied()
    done, pending = run.sample_ids(0, 3)[0], run.sample_ids(1, 3)[0]
    run.forget(samples=[done])
    run.unlearn(runner="local")
    run.forget(samples=[pending])
    sent: list[int] = []

    def after_one_more(store: Store, known: Ledger = EMPTY) -> Ledger:
        assert len(sent) < MOST, "does not end"
        sent.append(append(store, {(0, 3): [done]}, "", f"again {len(sent)}").number)
        return ledger.read_ledger(store, known)

    with monkeypatch.context() as patched:
        patched.setattr(reconcile, "read_ledger", after_one_more)
        ended = run.unlearn(runner="local")
    assert 2 in ended.requests
    assert set(ended.requests) <= {2, *sent}
    assert ended.stages_trained == 1
    assert run.status().complete
    assert_same_models(run, from_scratch(without(all_samples(), [done, pending]), "mlp"))
    assert run.check().ok


def test_requests_that_touch_nothing_cost_one_head_together(copied: Callable[..., Run]) -> None:
    run = copied()
    done = run.sample_ids(0, 3)[0]
    run.forget(samples=[done])
    run.unlearn(runner="local")
    before, numbers = run.status().head, range(5)
    for number in numbers:
        run.forget(samples=[done], key=f"again {number}")
    ended = run.unlearn(runner="local")
    assert (ended.head, ended.stages_trained, ended.requests) == (before + 1, 0, (2, 3, 4, 5, 6))
    assert [c.affected_shards for c in run.certificates()[1:]] == [()] * len(numbers)
    assert run.check().ok
