"""`ray-sisa attack inversion` on a small run of digits: numbers, pictures, what is left out, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from small_runs import COLUMNS, dataset, digits, frozen_recipe, small_config, write_parquet
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from ray_sisa.cli import app
from ray_sisa.config import RunConfig
from ray_sisa.errors import ConfigError, DataError
from ray_sisa.inversion.attack import AttackEpoch, DecoderConfig
from ray_sisa.inversion.kernel import KernelConfig
from ray_sisa.inverting import check
from ray_sisa.progress import attack_progress
from ray_sisa.run import Run
from ray_sisa.samples import Samples, concatenate
from ray_sisa.splitting import ActivationNoise

PUBLIC, VICTIMS = digits(400, 200), digits(702, 60)
RECIPE = {"model": "mlp", "optimizer": {"name": "adam", "lr": 0.01}, "epochs_per_slice": 3, "batch_size": 32}
QUICK = DecoderConfig(style="study", epochs=8, lr=3e-3)


def make_run(folder: Path, **changes: Any) -> RunConfig:
    return small_config(folder, recipe=RECIPE, placement={"shards": 2, "slices": 1}, **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Trained, of two shards; tests attack it and delete nothing."""
    made = Run.create(make_run(tmp_path_factory.mktemp("runs")), dataset(digits(0, 240)))
    made.train(runner="local")
    return made


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("data")
    overlapping = concatenate([VICTIMS, renamed(PUBLIC.take(np.arange(7)))])
    return write_parquet(folder / "public.parquet", PUBLIC), write_parquet(folder / "victims.parquet", overlapping)


def renamed(samples: Samples) -> Samples:
    return Samples(
        ids=digits(1000, len(samples)).ids, subjects=samples.subjects, images=samples.images, labels=samples.labels
    )


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["attack", "inversion", *[str(a) for a in arguments]])


def refusal(*arguments: object) -> dict[str, str]:
    result = invoke(*arguments, "--runner", "local", "--quiet", "--json")
    assert result.exit_code == 1, result.output
    error: dict[str, str] = json.loads(result.stdout)["error"]
    return error


def test_the_command_attacks_measures_reports_and_draws(run: Run, files: tuple[str, str], tmp_path: Path) -> None:
    public, victims = files
    result = invoke(
        *(run.store.uri, "--layer", "hidden1", "--public", public, "--victims", victims, "--cluster", "person"),
        *(
            "--decoder",
            "study",
            "--epochs",
            "8",
            "--white-box",
            "--out",
            tmp_path / "pictures",
            "--runner",
            "local",
            "--json",
        ),
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["num_public"], told["num_victims"], told["num_left_out"]) == (200, 60, 7)
    assert [target["target"]["name"] for target in told["targets"]] == ["shard 0", "shard 1"]
    for target in told["targets"]:
        assert target["activation_shape"] == [64]
        assert target["black_box"]["num_clusters"] == 20  # three digits a person
        assert target["black_box"]["mse"]["value"] < told["mean_image"]["mse"]["value"]
        assert target["black_box"]["top1"]["value"] > 5 * target["black_box"]["top1_chance"]
        assert target["white_box"]["mse"]["value"] < told["mean_image"]["mse"]["value"]
        assert target["accuracy"] == target["accuracy_without_noise"] > 0.5
    assert told["random_weights"]["white_box"] is None
    assert told["random_weights"]["accuracy"] is None
    assert told["mean_image"]["r2"]["value"] == pytest.approx(0, abs=1e-6)
    assert told["linear_code"]["r2"]["value"] > 0.99  # 64 numbers of 64 pixels
    drawn = sorted((tmp_path / "pictures").iterdir())
    assert [path.name for path in drawn] == ["inversion-shard-0.png", "inversion-shard-1.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn)
    assert "shard 1: attacker's epoch 8/8, mse 0." in result.stderr

    kept = [path for path in run.store.sizes("reports") if "inversion" in path]
    assert len(kept) == 1
    assert json.loads(run.store.get(kept[0]))["targets"] == told["targets"]
    assert run.check().ok


def test_the_text_names_what_to_compare_with(run: Run, files: tuple[str, str]) -> None:
    public, victims = files
    result = invoke(
        *(run.store.uri, "--layer", "hidden2", "--public", public, "--victims", victims, "--targets", "ensemble"),
        *("--noise", "laplace:2", "--decoder", "study", "--epochs", "1", "--runner", "local", "--quiet"),
    )
    assert result.exit_code == 0, result.output
    lines = [line.split("  ")[0] for line in result.stdout.splitlines()]
    assert {"layer", "noise", "public", "victims", "ensemble", "random weights", "linear code", "mean image"} <= {
        *lines
    }
    assert "hidden2, 128 numbers an image" in result.stdout  # two constituents of 64 each
    assert "7 left out: identical to public images" in result.stdout
    assert "without noise" in result.stdout
    assert "epoch" not in result.stderr


def test_noise_costs_accuracy_and_takes_the_picture_away(run: Run) -> None:
    noise = ActivationNoise(kind="laplace", scale=1000.0)
    clean = run.attack_inversion("hidden1", PUBLIC, VICTIMS, decoder=QUICK, runner="local")
    noisy = run.attack_inversion("hidden1", PUBLIC, VICTIMS, noise=noise, decoder=QUICK, runner="local")
    assert noisy.noise == "laplace:1000"
    for before, after in zip(clean.targets, noisy.targets, strict=True):
        assert after.accuracy_without_noise == before.accuracy
        assert after.accuracy is not None
        assert after.accuracy < 0.4 < 0.5 < (before.accuracy or 0)
        assert after.black_box.r2.value < 0.1 < before.black_box.r2.value
    assert clean.mean_image == noisy.mean_image


def test_the_same_attack_gives_the_same_numbers(run: Run) -> None:
    one, same = (
        run.attack_inversion("linear", PUBLIC, VICTIMS, decoder=DecoderConfig(epochs=2), runner="local")
        for _ in range(2)
    )
    assert [target.black_box for target in one.targets] == [target.black_box for target in same.targets]
    assert one.random_weights.black_box == same.random_weights.black_box


def test_the_kernel_attacker_takes_the_place_of_a_decoder(run: Run, files: tuple[str, str]) -> None:
    public, victims = files
    where = (run.store.uri, "--layer", "hidden1", "--public", public, "--victims", victims, "--cluster", "person")
    result = invoke(*where, "--decoder", "kernel", "--runner", "local", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["decoder"] == {"style": "kernel", "seed": 0}
    assert [target["target"]["name"] for target in told["targets"]] == ["shard 0", "shard 1"]
    for target in told["targets"]:
        assert target["activation_shape"] == [64]
        assert target["black_box"]["num_clusters"] == 20
        assert target["black_box"]["r2"]["value"] > 0.5
        assert target["black_box"]["top1"]["value"] > 5 * target["black_box"]["top1_chance"]
        # Of public images that were left out, so near that of victims; those learned by heart would have almost none.
        assert target["training_mse"] == pytest.approx(target["black_box"]["mse"]["value"], rel=0.5)
    assert "shard 1: attacker's epoch 1/1, mse 0." in result.stderr

    people = PUBLIC.subjects.to_pylist()
    same = run.attack_inversion(
        "hidden1", PUBLIC, VICTIMS, public_clusters=people, decoder=KernelConfig(), runner="local"
    )
    assert [one.training_mse for one in same.targets] == [one["training_mse"] for one in told["targets"]]
    by_label = run.attack_inversion("hidden1", PUBLIC, VICTIMS, decoder=KernelConfig(), runner="local")
    # A digit that was never seen is harder than a person who was not.
    assert all(one.training_mse > of.training_mse for one, of in zip(by_label.targets, same.targets, strict=True))


def test_the_text_says_what_the_error_of_an_attacker_is_of(run: Run, files: tuple[str, str], tmp_path: Path) -> None:
    _, victims = files
    where = (run.store.uri, "--layer", "linear", "--victims", victims, "--runner", "local", "--quiet")
    unnamed = write_parquet(tmp_path / "public.parquet", PUBLIC)
    table = pq.read_table(unnamed)
    pq.write_table(table.rename_columns({"person": "someone"}), tmp_path / "unnamed.parquet")
    own = tmp_path / "own.yaml"
    columns = json.dumps(COLUMNS | {"subject": "someone"})
    own.write_text(
        f"{{name: x, data: {{source: parquet, train: {tmp_path / 'unnamed.parquet'}, num_classes: 10, "
        f"columns: {columns}}}, placement: {{shards: 1, slices: 1}}, recipe: {{model: mlp, total_epochs: 1}}}}"
    )
    kernel = invoke(*where, "--public", own, "--cluster", "person", "--decoder", "kernel")  # a column of victims alone
    assert kernel.exit_code == 0, kernel.output
    assert "attacker        kernel ridge regression" in kernel.stdout
    assert "of public images that were left out" in kernel.stdout
    study = invoke(*where, "--public", unnamed, "--decoder", "study", "--epochs", "1")
    assert study.exit_code == 0, study.output
    assert "attacker        study decoder, 1 epochs" in study.stdout
    assert "of the public images" in study.stdout


def test_the_kernel_attacker_loses_the_picture_to_noise(run: Run) -> None:
    noise = ActivationNoise(kind="gaussian", scale=1000.0)
    clean, noisy = (
        run.attack_inversion("hidden1", PUBLIC, VICTIMS, noise=kind, decoder=KernelConfig(), runner="local")
        for kind in (None, noise)
    )
    for before, after in zip(clean.targets, noisy.targets, strict=True):
        assert after.black_box.r2.value < 0.1 < 0.4 < before.black_box.r2.value
        assert after.accuracy is not None
        assert after.accuracy < 0.4 < 0.5 < (before.accuracy or 0)


def test_what_the_kernel_attacker_cannot_do_is_refused(run: Run, files: tuple[str, str], tmp_path: Path) -> None:
    public, victims = files
    where = (run.store.uri, "--layer", "hidden1", "--victims", victims, "--decoder", "kernel")
    epochs = refusal(*where, "--public", public, "--epochs", 100)
    assert (epochs["kind"], epochs["field"]) == ("ConfigError", "--epochs")
    alike = write_parquet(tmp_path / "alike.parquet", PUBLIC.take(np.flatnonzero(PUBLIC.labels == 3)))
    one = refusal(*where, "--public", alike)
    assert (one["kind"], one["field"], one["value"]) == ("DataError", "public clusters", "1")
    with pytest.raises(DataError, match="one for each public image"):
        run.attack_inversion("hidden1", PUBLIC, VICTIMS, public_clusters=["a"], decoder=KernelConfig(), runner="local")


def test_what_cannot_be_attacked_is_refused(run: Run, files: tuple[str, str], tmp_path: Path) -> None:
    public, victims = files
    data = ["--public", public, "--victims", victims]
    wrong = refusal(run.store.uri, "--layer", "hidden9", *data)
    assert (wrong["kind"], wrong["field"]) == ("ConfigError", "layer")
    assert "hidden1, hidden2, linear" in wrong["remedy"]
    assert refusal(run.store.uri, "--layer", "hidden1", *data, "--noise", "salt:1")["field"] == "noise"
    alike = refusal(run.store.uri, "--layer", "hidden1", "--public", victims, "--victims", victims)
    assert (alike["kind"], alike["field"]) == ("DataError", "victims")
    config = tmp_path / "digits.yaml"
    config.write_text(
        "{name: x, data: {source: digits}, placement: {shards: 1, slices: 1}, recipe: {model: mlp, total_epochs: 1}}"
    )
    no_column = refusal(
        run.store.uri, "--layer", "hidden1", "--public", public, "--victims", config, "--cluster", "person"
    )
    assert no_column["field"] == "--cluster"
    (tmp_path / "file").touch()
    out = refusal(run.store.uri, "--layer", "linear", *data, "--epochs", 1, "--out", tmp_path / "file" / "x")
    assert (out["kind"], out["field"]) == ("StoreError", "--out")


def test_images_of_another_shape_and_clusters_of_another_number_are_refused(run: Run) -> None:
    large = Samples(
        ids=VICTIMS.ids, subjects=VICTIMS.subjects, images=np.zeros((60, 9, 9, 1), np.uint8), labels=VICTIMS.labels
    )
    with pytest.raises(DataError, match=r"victims = \[9, 9, 1\]"):
        run.attack_inversion("hidden1", PUBLIC, large, runner="local")
    with pytest.raises(DataError, match=r"public = \[9, 9, 1\]"):
        run.attack_inversion("hidden1", large, VICTIMS, runner="local")
    with pytest.raises(DataError, match="clusters"):
        run.attack_inversion("hidden1", PUBLIC, VICTIMS, clusters=["a"], runner="local")


def test_a_configuration_names_data_too_and_labels_may_be_others(run: Run, tmp_path: Path) -> None:
    strange = Samples(ids=VICTIMS.ids, subjects=VICTIMS.subjects, images=VICTIMS.images, labels=VICTIMS.labels + 500)
    columns = json.dumps(COLUMNS)
    where = write_parquet(tmp_path / "strange.parquet", strange)
    config = tmp_path / "strange.yaml"
    config.write_text(
        f"{{name: x, data: {{source: parquet, train: {where}, num_classes: 10, columns: {columns}}}, "
        "placement: {shards: 1, slices: 1}, recipe: {model: mlp, total_epochs: 1}}"
    )
    public = write_parquet(tmp_path / "public.parquet", PUBLIC)
    result = invoke(
        *(run.store.uri, "--layer", "linear", "--public", public, "--victims", config, "--epochs", "1"),
        *("--runner", "local", "--quiet", "--json"),
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["targets"][0]["black_box"]["num_clusters"] == 10


def test_networks_on_features_are_refused(tmp_path: Path) -> None:
    recipe = frozen_recipe(tmp_path / "backbone.safetensors")
    frozen = Run.create(small_config(tmp_path, recipe=recipe), dataset(digits(0, 60)))
    frozen.train(runner="local")
    public = write_parquet(tmp_path / "public.parquet", PUBLIC)
    error = refusal(frozen.store.uri, "--layer", "linear", "--public", public, "--victims", public)
    assert (error["kind"], error["field"]) == ("ConfigError", "inversion")


class Aliasing(nn.Module):
    """Writes through a view, which no trace of it shows."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body, self.linear = nn.Linear(64, 16), nn.Linear(16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.body(images.flatten(1))
        hidden.view(-1).clamp_(min=0)
        logits: Tensor = self.linear(hidden)
        return logits


def aliasing(num_classes: int, image_shape: tuple[int, ...]) -> nn.Module:
    return Aliasing(num_classes)


def test_a_network_that_is_another_in_two_parts_is_refused(tmp_path: Path) -> None:
    config = small_config(tmp_path, recipe=RECIPE | {"model": f"{__name__}:aliasing", "epochs_per_slice": 1})
    made = Run.create(config, dataset(digits(0, 60)))
    with pytest.raises(ConfigError, match=r"layer = body: cuts .* give something else than the whole"):
        check(made.record.training, "body")


@pytest.mark.ray
@pytest.mark.slow
def test_on_ray_the_numbers_are_the_same_and_progress_arrives(run: Run) -> None:
    import ray

    told: list[tuple[str, AttackEpoch]] = []
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        there = run.attack_inversion(
            "hidden1", PUBLIC, VICTIMS, decoder=QUICK, runner="ray", tell=lambda *heard: told.append(heard)
        )
    finally:
        ray.shutdown()
    here = run.attack_inversion("hidden1", PUBLIC, VICTIMS, decoder=QUICK, runner="local")
    assert [target.black_box for target in there.targets] == [target.black_box for target in here.targets]
    for name in ("shard 0", "shard 1", "random weights"):
        assert [epoch.epoch for target, epoch in told if target == name] == list(range(1, 9))


def test_progress_is_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    now = iter([0.0, 0.5, 2.5, 3.0])
    tell = attack_progress(quiet=False, clock=lambda: next(now, math.inf))
    for number in range(1, 5):
        tell("shard 0", AttackEpoch(epoch=number, epochs=4, mse=0.05))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "shard 0: attacker's epoch 1/4, mse 0.0500"
    assert lines[-1] == "shard 0: attacker's epoch 4/4, mse 0.0500"
    attack_progress(quiet=True)("shard 0", AttackEpoch(epoch=4, epochs=4, mse=0.05))
    assert capsys.readouterr().err == ""
