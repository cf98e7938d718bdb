"""Ids that a run nearly has: refused still, and told which of them it has, wherever ids are asked for."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from small_runs import dataset, digits, small_config

from ray_sisa import ids, near_ids
from ray_sisa.errors import RequestError
from ray_sisa.members import shards_to_forget
from ray_sisa.planning import plan_forgetting
from ray_sisa.run import Run
from ray_sisa.samples import make_samples

COMPOSED = "Ärzte_003"
STORED = unicodedata.normalize("NFD", COMPOSED)
NEAR = {
    COMPOSED: (STORED, "the same text in another Unicode form"),
    "Müller": (unicodedata.normalize("NFD", "Müller"), "the same text in another Unicode form"),
    "plain": (" plain", "with other spaces around it"),
    "plain ": (" plain", "with other spaces around it"),
    "IMG_7.JPG": ("img_7.jpg", "in another case"),
    "img_7.jpg ": ("img_7.jpg", "with other spaces around it"),
    "\uff11\uff12": ("12", "the same text in another Unicode form"),
}


@pytest.fixture(scope="module", params=["hash", "permutation"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Not trained: whom a request names is known from the index."""
    plain = digits(0, 60)
    known = list(dict.fromkeys(stored for stored, _ in NEAR.values()))
    names = known + plain.ids.to_pylist()[len(known) :]
    samples = make_samples(ids=names, subjects=[f"{name}+" for name in names], images=plain.images, labels=plain.labels)
    placement = {"shards": 2, "slices": 2, "key": "k", "strategy": request.param}
    return Run.create(small_config(tmp_path_factory.mktemp("near"), placement=placement), dataset(samples))


@pytest.mark.parametrize("asked", NEAR)
def test_what_the_run_has_instead_is_told(run: Run, asked: str) -> None:
    stored, difference = NEAR[asked]
    with pytest.raises(RequestError) as caught:
        run.forget(samples=["digit-0040", asked])
    assert caught.value.rule == f"1 not in this run; it has {ids.shown(stored)} ({difference})"
    assert run.ledger().position == 0


WAYS: list[Callable[[Run, list[str]], object]] = [
    lambda run, names: run.forget(samples=names),
    lambda run, names: run.forget(subjects=[f"{name}+" for name in names]),
    lambda run, names: plan_forgetting(run, samples=names),
    lambda run, names: plan_forgetting(run, subjects=[f"{name}+" for name in names]),
    lambda run, names: shards_to_forget(run, run.ledger(), names),
]


@pytest.mark.parametrize("ask", WAYS, ids=["forget", "subjects", "plan", "plan subjects", "evaluate"])
def test_whoever_asks(run: Run, ask: Callable[[Run, list[str]], object]) -> None:
    with pytest.raises(RequestError, match=r"it has 'A\\u0308rzte_003\+?' \(the same text in another Unicode form\)"):
        ask(run, [COMPOSED])


def test_a_subject_that_is_named_as_a_sample_is_told(run: Run) -> None:
    with pytest.raises(RequestError, match=r"it has digit-0040\+ \(a sample where a subject is named, or the other"):
        run.forget(samples=["digit-0040+"])


def test_only_what_is_near_is_told(run: Run) -> None:
    with pytest.raises(RequestError, match=r"3 not in this run; it has [^,]*\. Correct"):
        run.forget(samples=["nobody", COMPOSED, "x" * 10_000])
    with pytest.raises(RequestError, match=r"1 not in this run\. Correct"):
        run.forget(samples=["nobody"])


def test_a_few_are_told(tmp_path: Path) -> None:
    known = pa.array([f"ID-{i}" for i in range(50)])
    assert len(near_ids.find([f"id-{i}" for i in range(20)], [known])) == 20
    assert near_ids.find(["id-60"], [known]) == ()
