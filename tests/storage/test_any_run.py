"""A run from its creation to its last report, on each kind of storage: the same models, to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import programs
import pytest
from places import config_in
from small_runs import all_samples, block_over_two_shards, dataset, digits

from ray_sisa.config_values import load_config
from ray_sisa.errors import ConfigError, StoreError
from ray_sisa.location import join_run
from ray_sisa.run import Run


def test_a_run_by_calls(storage_path: str, expected: tuple[str, str]) -> None:
    run = Run.create(config_in(storage_path), dataset=dataset(all_samples()))
    assert run.train(runner="local").ensemble_digest == expected[0]
    assert run.train(runner="local").stages_trained == 0
    ensemble = run.ensemble()
    images = digits(240, 60).images
    ensemble.predict(images)
    forgotten = block_over_two_shards(run)
    run.forget(samples=forgotten)
    # At once, in readers that have long been open, and in a new one.
    ensemble.predict(images)
    served = {c.shard: c.slice for c in ensemble.constituents}
    assert served == {0: 2, 2: 3}
    assert {c.shard: c.slice for c in Run.open(run.store.uri).ensemble().constituents} == served
    assert run.status().pending_requests == (1,)
    assert run.unlearn(runner="local").ensemble_digest == expected[1]
    status, checked = run.status(), run.check()
    assert (status.complete, status.live_samples) == (True, len(all_samples()) - len(forgotten))
    assert checked.findings == ()
    assert [note for note in checked.notes if "could not be found out" not in note] == []  # of retention, on clouds
    assert run.verify(runner="local").ok
    evaluation = run.evaluate(runner="local")
    assert run.evaluations() == [evaluation]
    assert [certificate.request for certificate in run.certificates()] == [1]
    again = Run.create(config_in(storage_path), dataset=dataset(all_samples()))
    assert again.status() == status


def test_a_run_by_the_program(storage_path: str, config_file: Callable[..., str], expected: tuple[str, str]) -> None:
    config, uri = config_file(storage_path), join_run(storage_path, "run")
    ids = ",".join(block_over_two_shards(Run.create(load_config(config))))
    local = ("--runner", "local")

    def answer(*arguments: str) -> dict[str, object]:
        ended = programs.ray_sisa(*arguments, "--json").wait()
        assert ended.code == 0, ended.err
        return ended.answer

    assert answer("train", config, *local)["ensemble_digest"] == expected[0]
    assert answer("forget", uri, "--samples", ids)["request"] == 1
    assert answer("unlearn", uri, *local)["ensemble_digest"] == expected[1]
    assert answer("status", uri)["ensemble_digest"] == expected[1]
    assert answer("check", uri)["ok"] is True


def test_what_is_no_run(storage_path: str) -> None:
    with pytest.raises(StoreError, match="has no run"):
        Run.open(join_run(storage_path, "run"))


def test_another_configuration_is_refused(storage_path: str) -> None:
    Run.create(config_in(storage_path), dataset=dataset(all_samples()))
    other = config_in(storage_path, {"num_classes": 11})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match=r"data\.num_classes"):
        Run.create(other, dataset=dataset(all_samples()))


def test_nothing_in_a_store_names_the_place_where_it_lies(storage_path: str) -> None:
    """But for `storage_path` in run.json, which the user wrote: so a run can be copied from one place to another."""
    run = Run.create(config_in(storage_path), dataset=dataset(all_samples()))
    run.train(runner="local")
    for path in run.store.sizes("").keys() - {"run.json"}:
        assert storage_path.encode() not in run.store.get(path), path
