"""Law: a network that diverged never passes for a model. Its stage ends with an error, or is passed over, on record.

Real trainings that diverge: a feature of 1e30 in one sample, or a learning rate that no network survives.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
from small_runs import MLP, PRIVATE_MLP, assert_same_models, dataset, files_of, folder_of, small_config, without
from typer.testing import CliRunner

from ray_sisa import weights
from ray_sisa.cli import app
from ray_sisa.data import Dataset
from ray_sisa.digests import digest_bytes, digest_tensors, seal, unseal
from ray_sisa.engine.work import Event, StageDiverged
from ray_sisa.errors import ConfigError, StoreError, TrainingError
from ray_sisa.exclusions import DivergenceRecord
from ray_sisa.layout import divergence_record, initial_weights, stage_record, stage_weights
from ray_sisa.lineage import recipe_digest
from ray_sisa.records import Head, StageRecord
from ray_sisa.report import make_page, render
from ray_sisa.run import Run
from ray_sisa.samples import Samples, make_samples

HOPELESS = MLP | {"optimizer": {"name": "sgd", "lr": 1e30}}
SENSITIVE = MLP | {"optimizer": {"lr": 0.05}, "batch_size": 12}
FEATURES = {"columns": {"id": "id", "features": [f"f{i}" for i in range(8)]}, "mean": [0.0], "std": [1.0]}
EXCLUDE = {"on_divergence": "exclude"}


def vectors(first: int, count: int) -> Samples:
    """Feature vectors of four classes."""
    random = np.random.default_rng(first)
    features = random.normal(size=(count, 8)).astype(np.float32)
    labels = (features[:, 0] > 0) + 2 * (features[:, 1] > 0)
    return make_samples(ids=[f"v{first + i:04d}" for i in range(count)], images=features, labels=labels)


def spoilt(samples: Samples, ids: list[str]) -> Samples:
    """The same samples, with a finite number that no network survives in some."""
    features = samples.images.copy()
    features[[i in ids for i in samples.ids.to_pylist()], 3] = 1e30
    return make_samples(ids=samples.ids, images=features, labels=samples.labels)


def make(folder: Path, train: Samples, name: str = "run", **recipe: Any) -> Run:
    source = Dataset(train=train, test=vectors(1000, 60), num_classes=4, mean=(0.0,), std=(1.0,))
    config = small_config(folder, name=name, recipe=SENSITIVE | recipe, data=FEATURES | {"num_classes": 4})
    return Run.create(config, dataset=source)


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run in which nothing diverges: it tells where its samples lie. Never to be changed."""
    run = make(tmp_path_factory.mktemp("plain"), vectors(0, 180))
    run.train(runner="local")
    return run


@pytest.fixture(scope="session")
def trained_to_diverge(tmp_path_factory: pytest.TempPathFactory, plain: Run) -> Run:
    run = make(tmp_path_factory.mktemp("diverged"), spoilt(vectors(0, 180), culprits(plain)), **EXCLUDE)
    run.train(runner="local")
    return run


@pytest.fixture
def diverged(tmp_path: Path, trained_to_diverge: Run) -> Run:
    """A run whose shard 0 diverges in slice 2, and shard 1 in slice 1; passed over."""
    shutil.copytree(trained_to_diverge.store.uri, tmp_path / "run")
    return Run.open(str(tmp_path / "run"))


def culprits(run: Run) -> list[str]:
    return [run.sample_ids(0, 2)[0], run.sample_ids(1, 1)[0]]


def keys(run: Run, shard: int) -> tuple[str, ...]:
    return run.live.chains(run.ledger())[shard].keys


# With `fail`, the default.


def test_one_value_ends_its_stage_with_an_error_that_says_where(tmp_path: Path, plain: Run) -> None:
    culprit = plain.sample_ids(0, 2)[0]
    run = make(tmp_path, spoilt(vectors(0, 180), [culprit]))
    with pytest.raises(TrainingError) as caught:
        run.train(runner="local")
    told = str(caught.value)
    assert "shard 0, slice 2: diverged: the loss is not a finite number at step" in told
    assert (
        re.search(r"at step \d+ of the stage, in epoch [12]", told)
        and "recipe.on_divergence" in told
        and "Traceback" not in told
    )
    assert run.status().head == 0 and not run.store.diverged_stages()
    run.forget(samples=[culprit])
    run.unlearn(runner="local")
    scratch = make(tmp_path, without(vectors(0, 180), [culprit]), "scratch")
    scratch.train(runner="local")
    assert_same_models(run, scratch)


def test_a_deletion_is_effective_although_a_shard_fails(diverged: Run) -> None:
    gone = [diverged.sample_ids(0, 1)[0], diverged.sample_ids(2, 2)[0]]
    tainted = {*keys(diverged, 0), *keys(diverged, 2)[1:]}
    run = Run.open(diverged.store.uri, on_divergence="fail")
    run.forget(samples=gone)
    with pytest.raises(TrainingError, match=r"shard \d, slice \d: diverged"):
        run.unlearn(runner="local")
    status = run.status()
    head = run.store.read(f"heads/{status.head:08d}.json", Head)
    assert head.ledger == 1 and not head.complete and not status.complete
    assert not tainted & {*run.store.stage_files(), *(c.key for c in head.constituents)}  # rolled back, and purged
    assert not any(name in str(run.store.sizes("slices")) for name in gone)
    assert run.check().ok and len(run.ensemble().predict(vectors(1000, 5).images)) == 5


# With `exclude`.


def test_what_diverged_is_passed_over_on_record_and_told_everywhere(diverged: Run, plain: Run) -> None:
    assert [(c.shard, c.slice) for c in diverged.in_force()] == [(0, 1), (2, 3)]
    assert diverged.in_force()[1] == plain.in_force()[2]  # bits of what was right are the same
    assert keys(diverged, 0)[0] == keys(plain, 0)[0]
    records = [
        diverged.store.read(divergence_record(keys(diverged, s)[r]), DivergenceRecord) for s, r in ((0, 1), (1, 0))
    ]
    assert [(r.shard, r.slice, r.what) for r in records] == [(0, 2, "the loss"), (1, 1, "the loss")]
    status = diverged.status()
    assert [(s.depth, s.diverged) for s in status.shards] == [(1, 2), (0, 1), (3, None)]
    assert status.complete and status.stages_missing == 0
    head = diverged.store.read("heads/00000001.json", Head)
    assert [(e.shard, e.slice, e.key) for e in head.excluded] == [(r.shard, r.slice, r.key) for r in records]
    measured = diverged.evaluate(runner="local")
    assert measured.excluded == head.excluded and [s.shard for s in measured.shards] == [0, 2]
    assert measured.test.top1 > 0.4  # four classes
    assert "Training diverged in shard 0 at slice 2, shard 1 at slice 1" in render(make_page(diverged))


def test_it_is_not_trained_again(diverged: Run) -> None:
    before = files_of(folder_of(diverged))
    told: list[Event] = []
    done = diverged.train(runner="local", tell=told.append)
    assert (done.stages_trained, told) == (0, [])
    assert files_of(folder_of(diverged)) == before


def test_it_is_verified_and_checked_as_what_it_is(diverged: Run) -> None:
    found = diverged.verify(runner="local")
    assert found.ok and [(s.shard, s.slice) for s in found.stages if s.diverged] == [(0, 2), (1, 1)]
    assert len(found.stages) == 1 + 1 + 1 + 3
    assert diverged.verify(runner="local", sample=2).ok
    checked = diverged.check()
    assert checked.ok and not checked.notes


def test_a_stage_that_is_passed_over_without_reason_is_found(diverged: Run, plain: Run) -> None:
    record = diverged.store.read(divergence_record(keys(diverged, 1)[0]), DivergenceRecord)
    key = keys(plain, 2)[2]
    stage = plain.store.read(stage_record(key), StageRecord)
    same = {n: getattr(stage, n) for n in ("key", "shard", "slice", "parent", "slice_digest", "num_samples", "epochs")}
    forged = record.model_copy(update=same)
    diverged.store.delete([stage_record(key), stage_weights(key)])
    diverged.store.create(forged.path, forged.to_bytes())
    found = diverged.verify(runner="local")
    assert [s.problem for s in found.stages if not s.ok] == [
        "it is passed over, and training it again does not diverge"
    ]


def test_a_damaged_or_lost_record_is_found_and_made_again(diverged: Run) -> None:
    path = divergence_record(keys(diverged, 0)[1])
    known = diverged.store.get(path)
    diverged.store.put(path, known.replace(b'"step": ', b'"step": 1'))
    (finding,) = diverged.check().findings
    assert finding.path == path and finding.repairable
    diverged.repair(diverged.check(), runner="local")
    assert diverged.check().ok
    again = diverged.store.read(path, DivergenceRecord)
    assert again.step == DivergenceRecord.model_validate_json(unseal(known)).step


@pytest.mark.parametrize("who", ["the culprit", "another of its shard", "one of another shard"])
def test_a_deletion_ends_as_if_the_sample_had_never_been_there(
    tmp_path: Path, diverged: Run, plain: Run, who: str
) -> None:
    ids = {
        "the culprit": [culprits(plain)[0]],
        "another of its shard": [plain.sample_ids(0, 1)[0]],
        "one of another shard": [plain.sample_ids(2, 3)[0]],
    }[who]
    old = set(keys(diverged, 0)) | set(keys(diverged, 2))
    diverged.forget(samples=ids)
    diverged.unlearn(runner="local")
    scratch = make(tmp_path, without(spoilt(vectors(0, 180), culprits(plain)), ids), "scratch", **EXCLUDE)
    scratch.train(runner="local")
    assert_same_models(diverged, scratch)
    assert diverged.store.diverged_stages() == scratch.store.diverged_stages()
    assert (
        not (old - {key for shard in range(3) for key in keys(diverged, shard)}) & diverged.store.stage_files().keys()
    )
    (certificate,) = diverged.certificates()
    of_shard = {"the culprit": [], "another of its shard": [(0, 2)], "one of another shard": []}[who]
    assert [(e.shard, e.slice) for e in certificate.excluded] == of_shard
    left = "shard 0 from slice 2 on, shard 1" if who != "the culprit" else "without shard 1 from slice 1 on"
    assert left in certificate.claim
    assert diverged.check().ok and diverged.verify(runner="local").ok and diverged.status().complete


def test_where_a_divergence_is_an_error_what_was_passed_over_is_tried_again(diverged: Run) -> None:
    run = Run.open(diverged.store.uri, on_divergence="fail")
    with pytest.raises(TrainingError, match="diverged"):
        run.train(runner="local")
    assert run.status().complete  # what was in force stays


def test_the_policy_may_change_and_names_do_not_depend_on_it(tmp_path: Path, plain: Run) -> None:
    again = make(tmp_path, vectors(0, 180), **EXCLUDE)
    assert [keys(again, s) for s in range(3)] == [keys(plain, s) for s in range(3)]
    assert recipe_digest(again.record.training) == recipe_digest(plain.record.training)
    assert "on_divergence" not in plain.store.get("run.json").decode()
    assert make(tmp_path, vectors(0, 180)).record.config.recipe.on_divergence == "fail"  # opens it


def test_when_all_diverges_nobody_votes(tmp_path: Path, samples: Samples) -> None:
    run = Run.create(small_config(tmp_path, recipe=HOPELESS | EXCLUDE), dataset=dataset(samples))
    told: list[Event] = []
    run.train(runner="local", tell=told.append)
    assert sum(isinstance(event, StageDiverged) for event in told) == 3
    assert run.in_force() == () and run.check().ok and run.verify(runner="local").ok
    gone = run.sample_ids(0, 2)[:1]
    run.forget(samples=gone)
    run.unlearn(runner="local")
    assert run.status().complete and run.certificates()[0].excluded and run.check().ok


@pytest.mark.parametrize("name", ["private", "frozen"])
def test_private_training_and_a_frozen_backbone_are_passed_over_too(
    tmp_path: Path, samples: Samples, recipes: dict[str, dict[str, Any]], name: str
) -> None:
    recipe = PRIVATE_MLP | {"batch_size": 12} if name == "private" else recipes[name]
    hopeless = recipe | EXCLUDE | {"optimizer": {"name": "sgd", "lr": 1e39}}  # clipped gradients survive 1e30
    run = Run.create(small_config(tmp_path, recipe=hopeless), dataset=dataset(samples))
    run.train(runner="local")
    assert run.in_force() == () and run.check().ok and run.verify(runner="local").ok
    status = run.status()
    assert status.complete and [shard.diverged for shard in status.shards] == [1, 1, 1]
    spent = run.privacy()
    charged = [(stage.shard, stage.slice) for stage in spent.stages] if spent else []
    assert charged == ([(0, 1), (1, 1), (2, 1)] if name == "private" else [])


# Runs from before, and weights to start from.


def test_a_run_that_kept_its_diverged_stages_is_read_and_undone(tmp_path: Path, plain: Run) -> None:
    """As runs were: the last stage of shard 2 holds NaN, its record too, and the head names it."""
    run = make(tmp_path, vectors(0, 180))
    run.train(runner="local")
    key = keys(run, 2)[2]
    tensors = {
        name: torch.full_like(t, math.nan) for name, t in weights.from_bytes(run.store.get(stage_weights(key))).items()
    }
    data = weights.to_bytes(tensors)
    record = json.loads(unseal(run.store.get(stage_record(key))))
    record |= {"weights_digest": digest_tensors(tensors), "weights_file_digest": digest_bytes(data)}
    record["metrics"][-1]["loss"] = math.nan
    run.store.put(stage_weights(key), data)
    run.store.put(stage_record(key), seal(json.dumps(record, indent=1).encode()))
    run.store.delete(["heads/00000001.json"])
    run.train(runner="local")
    assert run.check().ok
    found = run.verify(runner="local")  # here it does not diverge: its weights were only put there
    assert [s.problem.partition(" (")[0] for s in found.stages if not s.ok] == ["training it again gives other weights"]
    measured = run.evaluate(runner="local")
    assert [(s.shard, s.num_records) for s in measured.silent if s.shard == 2] and measured.test.top1 > 0.5
    assert measured.shards[2].test.top1 == 0.0
    sound = [c for c in run.in_force() if c.shard != 2]
    assert len(sound) == 2 and np.isfinite(run.ensemble().predict_proba(vectors(1000, 5).images)).all()
    run.forget(samples=run.sample_ids(2, 3)[:1])
    run.unlearn(runner="local")
    assert run.check().ok and run.verify(runner="local").ok and not run.evaluate(runner="local").silent


def test_initial_weights_that_are_not_finite_are_refused_when_a_run_is_made_and_when_they_are_read(
    tmp_path: Path, plain: Run
) -> None:
    tensors = weights.from_bytes(plain.store.get(stage_weights(keys(plain, 0)[0])))
    path = tmp_path / "weights.safetensors"
    path.write_bytes(weights.to_bytes(tensors))
    run = make(tmp_path, vectors(0, 180), "fine", weights=str(path))
    broken = {name: tensor.clone() for name, tensor in tensors.items()}
    next(iter(broken.values()))[0] = math.nan
    path.write_bytes(weights.to_bytes(broken))
    with pytest.raises(ConfigError, match="not finite"):
        make(tmp_path, vectors(0, 180), "refused", weights=str(path))
    assert not {"run.json", "initial", "slices"} & {path.name for path in (tmp_path / "refused").glob("*")}
    digest = digest_tensors(broken)  # a run made before that was refused
    run.store.put(initial_weights(digest), weights.to_bytes(broken))
    old = Run(
        run.store,
        run.record.model_copy(update={"training": run.record.training.model_copy(update={"initial_weights": digest})}),
    )
    with pytest.raises(StoreError, match="no network trains from them"):
        from ray_sisa.stages import load_initial

        load_initial(old.store, digest)


# What the program says.


def strictly(text: str) -> Any:
    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


COMMANDS: dict[str, Callable[[Run, Path], list[str]]] = {
    "status": lambda run, folder: ["status", run.store.uri],
    "evaluate": lambda run, folder: ["evaluate", run.store.uri, "--runner", "local", "--roc"],
    "majority": lambda run, folder: ["evaluate", run.store.uri, "--runner", "local", "--aggregation", "majority"],
    "weighted": lambda run, folder: ["evaluate", run.store.uri, "--runner", "local", "--aggregation", "weighted"],
    "verify": lambda run, folder: ["verify", run.store.uri, "--runner", "local"],
    "check": lambda run, folder: ["check", run.store.uri],
    "plan": lambda run, folder: ["plan", run.store.uri],
    "predict": lambda run, folder: ["predict", run.store.uri, str(folder / "x.npy")],
    "predict what is no number": lambda run, folder: ["predict", run.store.uri, str(folder / "nan.npy")],
    "report": lambda run, folder: ["report", run.store.uri],
    "forget": lambda run, folder: ["forget", run.store.uri, "--samples", run.sample_ids(0, 1)[0]],
    "unlearn": lambda run, folder: ["unlearn", run.store.uri, "--runner", "local"],
    "unlearn with fail": lambda run, folder: [
        *("unlearn", run.store.uri, "--runner", "local", "--set", "recipe.on_divergence=fail")
    ],
    "attack": lambda run, folder: [
        *("attack", "inversion", run.store.uri, "--layer", "hidden1", "--runner", "local"),
        *("--public", str(folder / "x.npy"), "--victims", str(folder / "x.npy")),
    ],
    "approximate": lambda run, folder: [
        *("approximate", run.store.uri, "--method", "fine_tune", "--samples", run.sample_ids(0, 1)[1]),
        *("--runner", "local"),
    ],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_strict_json(tmp_path: Path, diverged: Run, command: str) -> None:
    asked = vectors(1000, 3).images
    np.save(tmp_path / "x.npy", asked)
    asked[1, 2] = np.nan
    np.save(tmp_path / "nan.npy", asked)
    result = CliRunner().invoke(app, [*COMMANDS[command](diverged, tmp_path), "--json"])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    said = strictly(result.stdout)
    fails = command in ("predict what is no number", "unlearn with fail", "approximate", "attack")
    assert (result.exit_code, "error" in said) == (int(fails), fails)
    if command == "predict what is no number":
        assert "nan.npy#1" in said["error"]["value"]
    if command == "status":
        assert [shard["diverged"] for shard in said["shards"]] == [2, 1, None]


def test_train_says_in_strict_json_that_it_diverged(tmp_path: Path, plain: Run) -> None:
    samples = spoilt(vectors(0, 180), culprits(plain))
    names = FEATURES["columns"]["features"]
    columns = {"id": samples.ids, "label": samples.labels} | {n: samples.images[:, i] for i, n in enumerate(names)}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    source = FEATURES | {"train": str(tmp_path / "train.parquet"), "num_classes": 4}
    config = small_config(tmp_path, recipe=SENSITIVE, data=source)
    (tmp_path / "run.yaml").write_text(config.model_dump_json())  # JSON is YAML
    train = ["train", str(tmp_path / "run.yaml"), "--runner", "local", "--json"]
    failed = CliRunner().invoke(app, train)
    assert failed.exit_code == 1 and "diverged" in strictly(failed.stdout)["error"]["rule"]
    passed = CliRunner().invoke(app, [*train, "--set", "recipe.on_divergence=exclude"])
    said = strictly(passed.stdout)
    assert passed.exit_code == 0 and [(e["shard"], e["slice"]) for e in said["excluded"]] == [(0, 2), (1, 1)]


def test_every_object_of_a_store_is_strict_json(diverged: Run) -> None:
    diverged.evaluate(runner="local")
    diverged.forget(samples=diverged.sample_ids(0, 1)[:1])
    diverged.unlearn(runner="local")
    records = [path for path in diverged.store.sizes("") if path.endswith(".json")]
    assert any("diverged" in path for path in records) and any("reports" in path for path in records)
    for path in records:
        strictly(diverged.store.get(path).decode())


def test_the_tests_know_all_commands() -> None:
    known = {*typer.main.get_command(app).commands} - {"train", "demo"}  # type: ignore[attr-defined]
    assert known <= {command.split()[0] for command in COMMANDS}
