"""Configurations: what loads, and that what cannot run is refused by name."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_sisa.config import Recipe, RunConfig, TrainingRecipe, epochs_by_slice
from ray_sisa.config_values import load_config, make_config
from ray_sisa.errors import ConfigError

WHOLE = """
name: cifar100
storage_path: ./runs
data:
  source: parquet
  train: cifar100/train.parquet
  test: cifar100/test.parquet
  columns: {id: id, subject: id, image: img, label: fine_label}
  num_classes: 100
  mean: [0.5071, 0.4865, 0.4409]
  std: [0.2673, 0.2564, 0.2762]
placement: {strategy: hash, shards: 4, slices: 5, key: generated-if-absent}
recipe:
  model: resnet20
  weights: cifar10_resnet20.th
  optimizer: {name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 5.0e-4, nesterov: true}
  schedule: cosine
  epochs_per_slice: 10
  batch_size: 128
  label_smoothing: 0.1
  augment: [crop, flip]
  precision: bfloat16
  threads: 2
  seed: 0
scaling:
  resources_per_worker: {CPU: 2, GPU: 0.25}
  max_failures: 3
  label_selector: {market: spot}
evaluation: {test_during_training: epoch}
"""
SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"source": "digits"},
    "placement": {"shards": 2, "slices": 3},
    "recipe": {"model": "mlp", "epochs_per_slice": 1},
}


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "config.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def changed(**sections: Any) -> dict[str, Any]:
    """SMALL with these keys in its sections, `section__key=value`, or whole values, `name=value`."""
    content = {key: dict(value) if isinstance(value, dict) else value for key, value in SMALL.items()}
    for path, value in sections.items():
        section, _, key = path.partition("__")
        if key:
            content.setdefault(section, {})[key] = value
        else:
            content[section] = value
    return content


def refusal(content: dict[str, Any]) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        make_config(content)
    return caught.value


def test_a_whole_configuration_loads(write) -> None:
    config = load_config(write(WHOLE))
    assert (config.name, config.storage_path) == ("cifar100", "./runs")
    assert config.data.columns.label == "fine_label"
    assert config.data.mean == (0.5071, 0.4865, 0.4409)
    assert (config.placement.shards, config.placement.slices, config.placement.key) == (4, 5, "generated-if-absent")
    assert config.recipe.optimizer.weight_decay == 5e-4
    assert config.recipe.augment == ("crop", "flip")
    assert (config.recipe.schedule, config.recipe.precision) == ("cosine", "bfloat16")
    assert config.scaling.num_gpus == 0.25
    assert config.scaling.label_selector == {"market": "spot"}


def test_a_small_configuration_has_defaults() -> None:
    config = make_config(SMALL)
    assert config.storage_path == "./runs"
    assert (config.placement.strategy, config.placement.key) == ("hash", None)
    assert config.placement.slice_order == "shuffled"
    assert (config.recipe.threads, config.recipe.seed, config.recipe.precision) == (1, 0, "float32")
    assert config.scaling.num_gpus == 0


def test_it_is_frozen_and_survives_json(write) -> None:
    config = load_config(write(WHOLE))
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    with pytest.raises(ValueError, match="frozen"):
        config.recipe.seed = 2  # type: ignore[misc]


# What is refused.


@pytest.mark.parametrize(
    ("change", "says"),
    [
        # Keys
        ({"placment": {}}, "placment: unknown key"),
        ({"recipe__epochs": 3}, "recipe.epochs: unknown key"),
        ({"recipe__optimizer": {"rate": 1}}, "recipe.optimizer.rate: unknown key"),
        ({"data__columns": {"labels": "y"}}, "data.columns.labels: unknown key"),
        ({"recipe": {"epochs_per_slice": 1}}, "recipe.model: missing"),
        # Values
        ({"placement__shards": 0}, "placement.shards: 0"),
        ({"placement__shards": 2.5}, "placement.shards: 2.5"),
        ({"placement__slices": -1}, "placement.slices: -1"),
        ({"placement__strategy": "random"}, "placement.strategy: 'random'"),
        ({"placement__slice_order": "random"}, "placement.slice_order: 'random'"),
        ({"placement__key": ""}, "placement.key: ''"),
        ({"recipe__batch_size": 0}, "recipe.batch_size: 0"),
        ({"recipe__threads": 0}, "recipe.threads: 0"),
        ({"recipe__label_smoothing": 1.0}, "recipe.label_smoothing: 1.0"),
        ({"recipe__precision": "float16"}, "recipe.precision: 'float16'"),
        ({"recipe__schedule": "linear"}, "recipe.schedule: 'linear'"),
        ({"recipe__augment": ["rotate"]}, "recipe.augment.0: 'rotate'"),
        ({"recipe__augment": "crop"}, "recipe.augment: 'crop'"),
        ({"recipe__seed": "abc"}, "recipe.seed: 'abc'"),
        ({"recipe__epochs_per_slice": 0}, "recipe.epochs_per_slice: 0"),
        ({"recipe__optimizer": {"lr": 0}}, "recipe.optimizer.lr: 0"),
        ({"recipe__optimizer": {"lr": math.nan}}, "recipe.optimizer.lr: nan"),
        ({"recipe__optimizer": {"momentum": 1}}, "recipe.optimizer.momentum: 1"),
        ({"recipe__optimizer": {"weight_decay": -1e-4}}, "recipe.optimizer.weight_decay: -0.0001"),
        ({"recipe__optimizer": {"name": "lion"}}, "recipe.optimizer.name: 'lion'"),
        ({"data__num_classes": 0}, "data.num_classes: 0"),
        ({"data__mean": [0.5], "data__std": [0.0]}, "data.std.0: 0.0"),
        ({"data__source": "csv"}, "data.source: 'csv' must be digits, parquet or torchvision:NAME"),
        ({"data__source": "torchvision"}, "data.source: 'torchvision' must be"),
        ({"data__source": "digits:8"}, "data.source: 'digits:8' must be"),
        ({"scaling__max_failures": -2}, "scaling.max_failures: -2"),
        ({"scaling__max_concurrent_shards": 0}, "scaling.max_concurrent_shards: 0"),
        ({"scaling__no_progress_timeout_s": 0}, "scaling.no_progress_timeout_s: 0"),
        ({"scaling__resources_per_worker": {"CPU": -1}}, "scaling.resources_per_worker.CPU: -1"),
        ({"evaluation__test_during_training": "always"}, "evaluation.test_during_training: 'always'"),
        ({"placement": None}, "placement: None"),
        ({"placement": [4, 5]}, "placement: [4, 5]"),
        # Contradictions
        ({"recipe__total_epochs": 10}, "recipe.epochs_per_slice, total_epochs: exactly one"),
        ({"recipe": {"model": "mlp"}}, "recipe.epochs_per_slice, total_epochs: exactly one"),
        ({"recipe__optimizer": {"name": "adam", "nesterov": True}}, "recipe.optimizer.nesterov: true needs"),
        ({"recipe__optimizer": {"momentum": 0, "nesterov": True}}, "recipe.optimizer.nesterov: true needs"),
        ({"data__mean": [0.5]}, "data.mean, std: one without the other"),
        ({"data": {"source": "parquet", "num_classes": 2}}, "data.train: missing"),
        (
            {"data": {"source": "torchvision:MNIST", "train": "a.parquet"}},
            "data.train: 'a.parquet' must be left out; torchvision:MNIST has its own",
        ),
        ({"data": {"source": "torchvision:KMNIST", "test": ["a", "b"]}}, "data.test: ('a', 'b') must be left out"),
        ({"data": {"source": "digits", "test": "a.parquet"}}, "data.test: 'a.parquet' must be left out; digits has"),
        ({"data": {"source": "parquet", "train": "a.parquet"}}, "data.num_classes: missing"),
        ({"data__columns": {"features": ["x"], "image": "pixels"}}, "data.columns.image: 'pixels' must not be given"),
        ({"recipe__backbone": "frozen"}, "recipe.weights: missing; with backbone: frozen"),
        ({"recipe__backbone": "half"}, "recipe.backbone: 'half'"),
        (
            {"recipe__backbone": "frozen", "recipe__weights": "a.th", "recipe__augment": ["flip"]},
            "recipe.augment: ('flip',) must be left out with backbone: frozen",
        ),
        (
            {"recipe__backbone": "frozen", "recipe__weights": "a.th", "recipe__optimizer": {"backbone_lr": 0.1}},
            "recipe.optimizer.backbone_lr: 0.1 must be left out with backbone: frozen",
        ),
        (
            {"data__columns": {"features": ["x"]}, "recipe__backbone": "frozen", "recipe__weights": "a.th"},
            "recipe.backbone: frozen must be left out with data.columns.features",
        ),
        ({"recipe__upsampling": "bilinear"}, "recipe.upsampling: bilinear must be given with input_size"),
        ({"data__columns": {"features": ["x"]}, "recipe__augment": ["flip"]}, "recipe.augment: ('flip',) must be left"),
        ({"data__columns": {"features": ["x"]}, "recipe__input_size": 16}, "recipe.input_size: 16 must be left out"),
        ({"recipe__threads": 2}, "recipe.threads: 2 must be at most scaling.resources_per_worker.CPU = 1"),
        (
            {"recipe__threads": 4, "scaling__resources_per_worker": {"CPU": 3.5, "GPU": 1}},
            "recipe.threads: 4 must be at most scaling.resources_per_worker.CPU = 3.5",
        ),
    ],
    ids=str,
)
def test_what_cannot_run_is_refused(change: dict[str, Any], says: str) -> None:
    error = refusal(changed(**change))
    assert error.field == "configuration"
    assert says in error.value
    assert error.rule.endswith("problem(s)")
    assert error.remedy
    assert says in str(error)


def test_all_problems_are_named_at_once() -> None:
    error = refusal(changed(placement__shards=0, recipe__batch_size=-1, oops=1))
    assert error.rule == "3 problem(s)"
    for name in ("placement.shards", "recipe.batch_size", "oops"):
        assert name in error.value


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", "/a", "..", ".", ".hidden", "-rf", "a\nb", "a\n", "a b", "a\\b", "é", "x" * 129, "a\0"]
)
def test_names_that_could_leave_the_storage_path(name: str) -> None:
    assert "name: " in refusal(changed(name=name)).value


@pytest.mark.parametrize("name", ["a", "cifar100", "2026-01-01_run.2", "x" * 128, "a..b"])
def test_names_that_stay_in_it(name: str) -> None:
    assert make_config(changed(name=name)).name == name


@pytest.mark.parametrize(
    "change",
    [
        {"recipe__optimizer": {"lr": math.inf}},
        {"recipe__optimizer": {"weight_decay": math.inf}},
        {"data__mean": [math.nan], "data__std": [1.0]},
        {"data__mean": [0.0], "data__std": [math.inf]},
        {"scaling__no_progress_timeout_s": math.inf},
        {"scaling__resources_per_worker": {"CPU": math.inf}},
        {"scaling__resources_per_worker": {"GPU": math.inf}},
    ],
    ids=str,
)
def test_what_is_not_finite_is_refused(change: dict[str, Any]) -> None:
    refusal(changed(**change))


@pytest.mark.parametrize(
    "change",
    [
        {"data__columns": {"features": ["x"], "image": "img"}},  # as a configuration that was written out has it
        {"recipe__upsampling": "nearest"},
        {"recipe__upsampling": "bilinear", "recipe__input_size": 16},
        {"recipe__threads": 4, "scaling__resources_per_worker": {"CPU": 4}},
        {"recipe__threads": 2, "scaling__resources_per_worker": {"CPU": 0.5}},
        {"recipe__threads": 2, "scaling__resources_per_worker": {"CPU": 0, "GPU": 1}},
        {"recipe__threads": 2, "scaling__resources_per_worker": {"GPU": 1}},
    ],
    ids=str,
)
def test_what_is_no_contradiction_loads_and_survives_json(change: dict[str, Any]) -> None:
    config = make_config(changed(**change))
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("gpus", [0, 1, 0.5, 0.25, 0.2, 0.125, 1 / 3, 0.1])
def test_gpus_that_pack(gpus: float) -> None:
    assert make_config(changed(scaling__resources_per_worker={"CPU": 1, "GPU": gpus})).scaling.num_gpus == gpus


@pytest.mark.parametrize("gpus", [0.4, 0.6, 0.75, 0.99])
def test_gpus_that_never_pack(gpus: float) -> None:
    error = refusal(changed(scaling__resources_per_worker={"CPU": 1, "GPU": gpus}))
    assert f"scaling.resources_per_worker.GPU: {gpus} must be 1 or 1/k; other fractions never pack" in error.value


@pytest.mark.parametrize("gpus", [1.5, 2, 2.25, 8])
def test_a_worker_has_no_use_for_a_second_gpu(gpus: float) -> None:
    error = refusal(changed(scaling__resources_per_worker={"CPU": 1, "GPU": gpus}))
    assert f"scaling.resources_per_worker.GPU: {gpus} must be 1 or 1/k; a shard trains on one device" in error.value


# Epochs.


@given(num_slices=st.integers(1, 30), total=st.floats(0.5, 300) | st.integers(1, 300))
def test_slicing_costs_what_was_asked_for(num_slices: int, total: float) -> None:
    epochs = epochs_by_slice(Recipe(model="mlp", total_epochs=total), num_slices)
    assert len(epochs) == num_slices
    # In epochs over all data: stage i passes over i/R of them. Flooring shifts at most one such epoch.
    cost = sum(e * i / num_slices for i, e in enumerate(epochs, 1))
    assert abs(cost - total) <= 1
    assert sum(epochs) == math.floor(num_slices * 2 * total / (num_slices + 1))
    assert max(epochs) - min(epochs) <= 1


@pytest.mark.parametrize(
    ("num_slices", "total", "epochs"),
    [
        (1, 20, (20,)),
        (5, 30, (10,) * 5),
        (5, 20, (6, 7, 7, 6, 7)),
        (2, 10, (6, 7)),
        (3, 2, (1, 1, 1)),
        (3, 3, (1, 2, 1)),
    ],
)
def test_epochs_by_floors(num_slices: int, total: float, epochs: tuple[int, ...]) -> None:
    assert epochs_by_slice(Recipe(model="mlp", total_epochs=total), num_slices) == epochs


@given(num_slices=st.integers(1, 30), each=st.integers(1, 50))
def test_epochs_given_by_slice(num_slices: int, each: int) -> None:
    assert epochs_by_slice(Recipe(model="mlp", epochs_per_slice=each), num_slices) == (each,) * num_slices


@pytest.mark.parametrize(("total", "fits"), [(3.0, True), (2.99, False), (1, False), (30, True)])
def test_every_slice_gets_an_epoch(total: float, fits: bool) -> None:
    content = changed(placement__slices=5, recipe={"model": "mlp", "total_epochs": total})
    if fits:
        assert min(epochs_by_slice(make_config(content).recipe, 5)) >= 1
    else:
        assert "recipe.total_epochs: " in refusal(content).value
        assert "at least (slices + 1) / 2 = 3" in refusal(content).value


@pytest.mark.parametrize("total", [math.inf, math.nan, 0, -3])
def test_epochs_that_are_no_number_of_epochs(total: float) -> None:
    refusal(changed(recipe={"model": "mlp", "total_epochs": total}))


# Files and overrides.


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("recipe.seed=7", "recipe.seed", 7),
        ("recipe.optimizer.lr=1.0e-3", "recipe.optimizer.lr", 1e-3),
        ("scaling.max_failures=-1", "scaling.max_failures", -1),
        ("name=other", "name", "other"),
        ("recipe.augment=[flip]", "recipe.augment", ("flip",)),
        ("placement.key=a=b", "placement.key", "a=b"),
        ("placement.key=123", "placement.key", "123"),
        ("scaling.resources_per_worker={CPU: 4}", "scaling.resources_per_worker", {"CPU": 4}),
        ("recipe.weights=null", "recipe.weights", None),
    ],
)
def test_overrides(write, override: str, path: str, value: object) -> None:
    found: Any = load_config(write(WHOLE), [override])
    for part in path.split("."):
        found = getattr(found, part)
    assert found == value


def test_overrides_make_sections_and_the_last_counts(write) -> None:
    text = "name: a\ndata: {source: digits}\nplacement: {shards: 2, slices: 3}\nrecipe: {model: mlp, total_epochs: 9}\n"
    overrides = ["scaling.max_failures=1", "scaling.max_failures=2", "recipe.total_epochs=null"]
    config = load_config(write(text), [*overrides, "recipe.epochs_per_slice=4"])
    assert config.scaling.max_failures == 2
    assert (config.recipe.total_epochs, config.recipe.epochs_per_slice) == (None, 4)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("recipe.seed", "must read key.path=value"),
        ("=3", "must read key.path=value"),
        ("name.first=3", "name is not a section"),
        ("recipe.seed=[", "not valid YAML"),
        ("recipe.sead=3", "recipe.sead: unknown key"),
        ("recipe..seed=3", "unknown key"),
        ("recipe.batch_size=0", "recipe.batch_size: 0"),
        ("name=", "name: None"),
        ("name=!!python/name:os.system", "not valid YAML"),
    ],
)
def test_overrides_that_are_refused(write, override: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(WHOLE), [override])
    assert says in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml.*cannot be read: .*No such file"):
        load_config(tmp_path / "nothing.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("name: [a", "is not valid YAML at line"),
        ("name: a\n\tdata: b", "is not valid YAML at line 2"),
        ("{" * 20, "is not valid YAML"),
        (b"name: \xff\xfe\x00", "cannot be read"),
        ("name: a\0b", "is not valid YAML"),
        ("name: *nobody", "undefined alias"),
        ("", "must be a YAML mapping"),
        ("just text", "must be a YAML mapping"),
        ("- a\n- b", "must be a YAML mapping"),
        ("name: a\n---\nname: b", "is not valid YAML"),
    ],
)
def test_what_is_no_configuration(write, content: str | bytes, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(write(content))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system [touch {}]",
        "!!python/object/new:os.system [touch {}]",
        "!!python/name:os.system ''",
        "!!python/module:os ''",
        "!custom {}",
    ],
)
def test_tags_are_never_run(write, tmp_path: Path, tag: str) -> None:
    mark = tmp_path / "mark"
    with pytest.raises(ConfigError, match="could not determine a constructor"):
        load_config(write(f"name: {tag.format(mark)}\n"))
    assert not mark.exists()


@pytest.mark.parametrize(
    "value",
    ["2001-13-45", "!!int x", "!!float x", "!!timestamp x", "!!bool maybe", "[" * 3000],
    ids=lambda value: value[:20],
)
def test_values_that_yaml_cannot_make(write, value: str) -> None:
    with pytest.raises(ConfigError):
        load_config(write(WHOLE.replace("seed: 0", f"seed: {value}")))


@given(text=st.text("ab01:[]{}&*!-#'\"\n |>%@,.", max_size=30))
def test_any_text_is_refused_or_parsed(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError):
        load_config(path)


def test_the_cause_of_weights_has_no_paths() -> None:
    recipe = Recipe(model="mlp", epochs_per_slice=1, weights="/somewhere/a.th")
    training = TrainingRecipe(
        recipe=recipe,
        model_code=None,
        initial_weights="d1gest",
        num_classes=2,
        image_shape=(8, 8, 1),
        mean=(0.5,),
        std=(0.5,),
        epochs=(1, 1),
    )
    cause = training.cause()
    assert not {"weights", "epochs_per_slice", "total_epochs"} & cause["recipe"].keys()
    assert "somewhere" not in str(cause)
    assert cause["initial_weights"] == "d1gest"
    assert training.recipe.weights == "/somewhere/a.th"  # taken out of a copy


@pytest.mark.parametrize(
    ("number", "read"),
    [
        ("017", "15, in base 8"),
        ("-0_7", "-7, in base 8"),
        ("00", "0, in base 8"),
        ("1:30", "90, in base 60"),
        ("1:30.5", "90.5, in base 60"),
        ("190:20:30", "685230, in base 60"),
    ],
)
def test_numbers_of_base_8_and_60_are_refused_wherever_they_stand(write, number: str, read: str) -> None:
    says = rf"{re.escape(number)} would be read as {re.escape(read)}: put it in quotes, or write"
    for content in (f"recipe: {{seed: {number}}}", f"- [{number}]", f"? {number}\n: a"):
        with pytest.raises(ConfigError, match=says):
            load_config(write(content))
    for override in (f"recipe.seed={number}", f"placement.key={number}"):
        with pytest.raises(ConfigError, match=says):
            load_config(write(WHOLE), [override])


@pytest.mark.parametrize(
    ("text", "seed"), [("0", 0), ("17", 17), ("1_000", 1000), ("0x11", 17), ("0b11", 3), ("-3", -3), ("'017'", 17)]
)
def test_other_numbers_are_what_they_look_like(write, text: str, seed: int) -> None:
    assert load_config(write(WHOLE), [f"recipe.seed={text}"]).recipe.seed == seed


@pytest.mark.parametrize("field", ["name", "storage_path", "placement.key", "recipe.model", "data.columns.id"])
@pytest.mark.parametrize(
    ("word", "made"),
    [
        ("no", "the truth value false"),
        ("on", "the truth value true"),
        ("yes", "the truth value true"),
        ("2024-01-31", "the date 2024-01-31"),
        ("2024-01-31 10:20:30", "the date 2024-01-31 10:20:30"),
        ("1.50", "a number"),
    ],
)
def test_words_that_yaml_takes_for_something_else_are_told_to_be_quoted(
    write, field: str, word: str, made: str
) -> None:
    says = rf"{field}: .*: text is expected, and without quotes this is {made}.*; put it in quotes"
    with pytest.raises(ConfigError, match=says):
        load_config(write(WHOLE), [f"{field}={word}"])
    assert load_config(write(WHOLE), [f"{field}='{word.replace(' ', '-').replace(':', '-')}'"])


def test_choices_and_keys_that_yaml_takes_for_something_else_are_told_to_be_quoted(write) -> None:
    with pytest.raises(ConfigError, match=r"recipe\.precision: False: text is expected, .* put it in quotes"):
        load_config(write(WHOLE), ["recipe.precision=off"])
    with pytest.raises(
        ConfigError, match=r"scaling\.label_selector\.spot: True: text is expected, .* put it in quotes"
    ):
        load_config(write(WHOLE), ["scaling.label_selector={spot: yes}"])
    with pytest.raises(ConfigError, match=r"True: text is expected, .* put it in quotes"):
        load_config(write(WHOLE), ["scaling.label_selector={yes: spot}"])


@pytest.mark.parametrize(
    "override",
    [
        "recipe.seed=yes",
        "placement.shards=on",
        "recipe.optimizer.lr=true",
        "data.mean=[yes]",
        "scaling.resources_per_worker={CPU: yes}",
        "scaling.checkpoint_every={minutes: on}",
        "recipe.input_size=no",
    ],
)
def test_a_truth_value_is_no_number(write, override: str) -> None:
    with pytest.raises(ConfigError, match="should be a number, and yes, on, no and off are none"):
        load_config(write(WHOLE), [override])
    assert load_config(write(WHOLE), ["recipe.optimizer.nesterov=no"]).recipe.optimizer.nesterov is False
