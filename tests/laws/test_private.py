"""Laws of private runs: noise that is reproducible keeps all the others; noise that is secure gives up replay alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_runs import PRIVATE, assert_same_models, dataset, folder_of, frozen_recipe, small_config, without
from typer.testing import CliRunner

from ray_sisa import printing
from ray_sisa.cli import app
from ray_sisa.engine.work import Event, StageUnderway
from ray_sisa.layout import charges, stage_record, stage_weights
from ray_sisa.lineage import Chain
from ray_sisa.report import write_report
from ray_sisa.run import Run
from ray_sisa.samples import Samples
from ray_sisa.stages import commit_stage, load_stage
from ray_sisa.verify import SECURE

SECURELY: dict[str, Any] = PRIVATE | {"dp": {"noise_multiplier": 0.7, "noise": "secure"}}
PLACES = {"shards": 1, "slices": 2}


def made(folder: Path, samples: Samples, recipe: dict[str, Any], name: str = "run", **options: Any) -> Run:
    run = Run.create(small_config(folder, name=name, recipe=recipe, **options), dataset=dataset(samples))
    run.train(runner="local")
    return run


def digests(run: Run) -> list[str]:
    return [record.weights_digest for record in run.stages()]


def test_a_head_on_a_frozen_backbone_is_unlearned_exactly(samples: Samples, tmp_path: Path) -> None:
    recipe = frozen_recipe(tmp_path / "backbone.safetensors") | {"batch_size": 12, "dp": {"noise_multiplier": 0.7}}
    run = made(tmp_path, samples, recipe)
    ids = [*run.sample_ids(0, 2)[:3], *run.sample_ids(1, 1)[:2]]
    run.forget(samples=ids)
    run.unlearn(runner="local")
    assert_same_models(run, made(tmp_path, without(samples, ids), recipe, "scratch"))
    assert run.verify(runner="local").ok


def test_a_stage_of_fewer_samples_than_a_batch_still_trains(samples: Samples, tmp_path: Path) -> None:
    run = made(tmp_path, samples, PRIVATE)
    run.forget(samples=run.sample_ids(0, 1)[2:])
    run.unlearn(runner="local")
    first = run.stages()[0]
    assert (first.num_samples, run.status().complete) == (2, True)
    assert run.verify(runner="local").ok


def test_what_a_deletion_leaves_has_the_noise_that_was_solved_for(samples: Samples, tmp_path: Path) -> None:
    run = made(tmp_path, samples, PRIVATE)
    before = run.record.training.noise_multiplier
    run.forget(samples=run.sample_ids(0, 1)[:5])
    run.unlearn(runner="local")
    assert Run.open(run.store.uri).record.training.noise_multiplier == before == 0.7


# Secure noise.


@pytest.fixture
def secure(samples: Samples, tmp_path: Path) -> Run:
    return made(tmp_path, samples, SECURELY, placement=PLACES)


def test_secure_runs_differ_under_the_same_names(secure: Run, samples: Samples, tmp_path: Path) -> None:
    other = made(tmp_path, samples, SECURELY, "other", placement=PLACES)
    assert [r.key for r in secure.stages()] == [r.key for r in other.stages()]
    assert not set(digests(secure)) & set(digests(other))


def test_verification_checks_all_but_the_training(secure: Run) -> None:
    for sample in (None, 2):
        found = secure.verify(sample=sample, runner="local")
        assert found.ok
        assert [(c.actual, c.ok, c.problem, c.note) for c in found.stages] == [("", True, "", SECURE)] * 2
        assert printing.verified(found).text == f"2 of 2 stages were not trained again: {SECURE}"


@pytest.mark.parametrize("spoilt", ["weights", "slice"])
def test_verification_notices_what_was_changed(spoilt: str, secure: Run) -> None:
    record = secure.stages()[0]
    name = stage_weights(record.key) if spoilt == "weights" else f"slices/{record.slice_digest}.arrow"
    path = folder_of(secure) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = secure.verify(runner="local")
    assert [check.ok for check in found.stages] == [False, spoilt == "weights"]
    assert not found.ok


def test_unlearning_goes_on_as_ever(secure: Run) -> None:
    kept = digests(secure)
    secure.forget(samples=secure.sample_ids(0, 2)[:2])
    secure.unlearn(runner="local")
    assert digests(secure)[0] == kept[0] and digests(secure)[1] != kept[1]
    assert secure.status().complete and secure.verify(runner="local").ok


def test_nobody_claims_equal_bits_of_secure_noise(secure: Run, samples: Samples, tmp_path: Path) -> None:
    replayed = made(tmp_path, samples, PRIVATE, "replayed", placement=PLACES)
    for run, is_repeatable in ((secure, False), (replayed, True)):
        run.forget(samples=run.sample_ids(0, 2)[:2])
        run.unlearn(runner="local")
        (certificate,) = run.certificates()
        told = CliRunner().invoke(app, ["evaluate", run.store.uri, "--runner", "local"]).stdout
        write_report(run, tmp_path / "page.html")
        page = (tmp_path / "page.html").read_text(encoding="utf-8")
        assert ("trains it again and compares every bit" in certificate.claim) == is_repeatable
        assert ("training again gives other bits" in certificate.claim) != is_repeatable
        assert ("trains again bit for bit" in told) == is_repeatable
        assert ("never saw what was deleted" in told) != is_repeatable
        assert ("Training again does prove it" in page) == is_repeatable
        assert ("Training again cannot prove it here" in page) != is_repeatable


def _chain(run: Run) -> Chain:
    return run.live.chain(0, set())


@pytest.mark.parametrize("torn", [False, True])
def test_of_two_writers_the_first_stands_and_never_half_of_each(torn: bool, secure: Run) -> None:
    chain, record = _chain(secure), secure.stages()[1]
    other = {name: tensor + 1e-3 for name, tensor in load_stage(secure.store, record.key).items()}
    arguments = (secure.store, chain, chain.stages[-1], other, record.metrics, 1.0, record.environment)
    if torn:  # the first writer's record beside what the second one wrote: the stage is lost, and made whole
        secure.store.delete([stage_record(record.key)])
        create = secure.store.create

        def late(path: str, data: bytes) -> bool:
            object.__setattr__(secure.store, "create", create)
            create(path, record.to_bytes())
            return create(path, data)

        object.__setattr__(secure.store, "create", late)
    assert (commit_stage(*arguments, repeatable=False).weights_digest == record.weights_digest) is not torn
    load_stage(secure.store, record.key)  # whichever it is, it is whole


def test_a_writer_who_comes_after_the_first_look_changes_no_weights(
    secure: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain, record = _chain(secure), secure.stages()[1]
    before = secure.store.get(stage_weights(record.key))
    looks = iter([None])  # at the first look nothing was there yet
    find = secure.store.find_record
    monkeypatch.setattr(secure.store, "find_record", lambda *asked: next(looks, find(*asked)))
    other = {name: tensor + 1e-3 for name, tensor in load_stage(secure.store, record.key).items()}
    arguments = (secure.store, chain, chain.stages[-1], other, record.metrics, 1.0, record.environment)
    assert commit_stage(*arguments, repeatable=False) == record
    assert secure.store.get(stage_weights(record.key)) == before


def test_a_saved_state_is_gone_on_from(samples: Samples, tmp_path: Path) -> None:
    scaling = {"checkpoint_every": {"minutes": 1e-9}}
    settings = small_config(tmp_path, recipe=SECURELY, placement=PLACES, scaling=scaling)
    run = Run.create(settings, dataset=dataset(samples))

    def stop(event: Event) -> None:
        if isinstance(event, StageUnderway) and event.what == "saved":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.train(runner="local", tell=stop)
    events: list[Event] = []
    run.train(runner="local", tell=events.append)
    assert [e.batch for e in events if isinstance(e, StageUnderway) and e.what == "resumed"] == [1]
    assert run.status().complete and run.verify(runner="local").ok
    charged = [len(run.store.numbers(charges(record.key))) for record in run.stages()]
    assert charged == [2, 1]  # nobody can tell that the state was not gone on from before, elsewhere
