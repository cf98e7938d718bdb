"""Every command of `ray-sisa` on a small run of digits with the local runner: JSON fields, exit codes, refusals.

Commands run in this process through typer's runner, which separates the two streams; what depends on a process of its
own (that nothing else reaches standard output, Ray's start included) is run as one.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner, Result

from ray_sisa.cli import app
from ray_sisa.run import Run

ROOT = Path(__file__).parents[2]

CONTENT = {
    "name": "small",
    "data": {"source": "digits"},
    "placement": {"shards": 2, "slices": 2, "key": "a"},
    "recipe": {"model": "mlp", "epochs_per_slice": 1, "optimizer": {"lr": 0.05}},
}


def write_config(folder: Path, **changes: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(CONTENT | {"storage_path": str(folder / "runs")} | changes))
    return path


def invoke(*arguments: object, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments], input=stdin)


def answer(*arguments: object, code: int = 0, stdin: str | bytes | None = None) -> dict[str, Any]:
    """The one JSON object that a command prints."""
    result = invoke(*arguments, "--json", stdin=stdin)
    assert result.exit_code == code, result.output
    assert result.stdout.count("\n") == 1
    fields: dict[str, Any] = json.loads(result.stdout)
    return fields


def refusal(*arguments: object) -> dict[str, str]:
    """The error that a command reports, with nothing else on standard output."""
    error: dict[str, str] = answer(*arguments, code=1)["error"]
    assert error.keys() == {"kind", "field", "value", "rule", "remedy"}
    return error


def in_a_process(*arguments: object, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ray_sisa.cli", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | variables
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


def objects(run: Path) -> dict[str, int]:
    return {str(path.relative_to(run)): path.stat().st_size for path in run.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    fields = answer("train", write_config(folder), "--runner", "local")
    assert fields["stages_trained"] == 4
    return folder / "runs" / "small"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A run that this test may change; its configuration lies in `tmp_path`."""
    write_config(tmp_path)
    return Path(shutil.copytree(trained, tmp_path / "runs" / "small"))


def ids(run: Path, shard: int, slice_number: int) -> list[str]:
    return Run.open(str(run)).sample_ids(shard, slice_number)


# --- train


def test_train_and_train_again(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    first = invoke("train", config, "--runner", "local", "--json")
    fields = json.loads(first.stdout)
    assert fields["stages_trained"] == 4
    assert fields["stages_reused"] == 0
    assert fields["sample_passes"] == fields["full_training_sample_passes"] > 0
    assert fields["head"] == 1
    assert fields["seconds"] > 0
    assert first.stderr.count("committed") == 4
    assert "shard 0 slice 2/2 committed" in first.stderr
    again = answer("train", config, "--runner", "local", "--quiet")
    assert (again["stages_trained"], again["stages_reused"], again["sample_passes"]) == (0, 4, 0)
    assert again["ensemble_digest"] == fields["ensemble_digest"]


def test_quiet_says_nothing(tmp_path: Path) -> None:
    result = invoke("train", write_config(tmp_path), "--runner", "local", "--quiet")
    assert result.exit_code == 0
    assert result.stderr == ""
    assert "4 trained, 0 reused" in result.stdout


def test_set_overrides_the_file(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    answer("train", config, "--set", "name=other", "--set", "placement.slices=1", "--runner", "local")
    record = Run.open(str(tmp_path / "runs" / "other")).record
    assert record.config.placement.slices == 1


def test_another_configuration_is_refused_with_the_fields_that_differ(run: Path, tmp_path: Path) -> None:
    before = objects(run)
    error = refusal("train", tmp_path / "config.yaml", "--set", "recipe.seed=1", "--runner", "local")
    assert error["kind"] == "ConfigError"
    assert "recipe.seed" in error["rule"]
    assert objects(run) == before


@pytest.mark.parametrize("text", ["name: [", "- a\n- b", "", "\x00", "name: small\nnonsense: 1"])
def test_a_corrupt_configuration_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert refusal("train", path)["kind"] == "ConfigError"


@pytest.mark.parametrize("override", ["nonsense", "=1", "recipe.seed=[", "name.x=1", "scaling.foo=1", "recipe.seed=x"])
def test_a_nonsense_override_is_refused(tmp_path: Path, override: str) -> None:
    assert refusal("train", write_config(tmp_path), "--set", override)["kind"] == "ConfigError"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("storage_path", ["runs", "./runs", "../runs"])
def test_in_a_submitted_job_a_relative_place_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage_path: str
) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    error = refusal("train", write_config(folder, storage_path=storage_path), "--runner", "local")
    assert (error["kind"], error["field"], error["value"]) == ("ConfigError", "storage_path", storage_path)
    assert "Ray deletes" in error["rule"]
    assert objects(tmp_path).keys() == {"job/config.yaml"}


def test_in_a_submitted_job_a_full_path_or_uri_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    for storage_path in (str(tmp_path / "path"), f"file://{tmp_path}/uri"):
        config = write_config(tmp_path, storage_path=storage_path)
        answer("train", config, "--runner", "local", "--quiet", "--set", "placement.slices=1")
        assert Run.open(f"{storage_path}/small").status().complete


def test_a_configuration_that_is_not_there(tmp_path: Path) -> None:
    assert "cannot be read" in refusal("train", tmp_path / "none.yaml")["rule"]


# --- forget, status, unlearn


def test_forget_status_unlearn(run: Path) -> None:
    samples = ids(run, 1, 2)[:2]
    fields = answer("forget", run, "--samples", ",".join(samples), "--reason", "asked", "--key", "k")
    told = {"request": 1, "samples": 2, "already_forgotten": 0, "unknown": 0, "unknown_examples": []}
    assert fields == told | {"copies": 0, "copies_deleted": False}

    pending = answer("status", run)
    assert (pending["complete"], pending["requests"], pending["pending_requests"]) == (False, 1, [1])
    assert pending["live_samples"] == 1436
    assert [(s["shard"], s["depth"], s["clean"]) for s in pending["shards"]] == [(0, 2, True), (1, 1, False)]
    assert pending["shards"][0].keys() == {"shard", "depth", "stage", "clean", "samples", "committed", "diverged"}

    done = answer("unlearn", run, "--runner", "local")
    assert (done["requests"], done["affected_shards"]) == ([1], [1])
    assert (done["stages_retrained"], done["stages_purged"], done["stages_reused"]) == (1, 1, 3)
    assert 0 < done["sample_passes"] < done["full_training_sample_passes"]
    assert 0 <= done["seconds_to_effective"] <= done["seconds_to_complete"]

    complete = answer("status", run)
    assert (complete["complete"], complete["head"], complete["pending_requests"]) == (True, done["head"], [])
    assert complete["ensemble_digest"] == done["ensemble_digest"]
    assert answer("unlearn", run, "--runner", "local")["requests"] == []


def test_a_request_sent_again_is_the_same(run: Path) -> None:
    samples = ids(run, 0, 1)[:1]
    first = answer("forget", run, "--samples", samples[0], "--key", "k")
    again = answer("forget", run, "--samples", samples[0], "--key", "k")
    assert (again["request"], again["samples"], again["already_forgotten"]) == (first["request"], 0, 1)
    assert "used for other samples" in refusal("forget", run, "--samples", ids(run, 0, 1)[1], "--key", "k")["rule"]


@pytest.mark.parametrize("text", ["{0}\n\n  {1} \r\n", "\ufeff{0}\n{1}", "\r\n{1}\r\n{0}\r\n\r\n", "{0}\n{1}\n{0}"])
def test_ids_from_a_file_and_from_standard_input(run: Path, tmp_path: Path, text: str) -> None:
    two = text.format(*ids(run, 0, 1)[:2])
    path = tmp_path / "ids.txt"
    path.write_bytes(two.encode())
    assert answer("forget", run, "--from", path)["samples"] == 2
    assert answer("plan", run, "--from", path)["stages"] == 0
    assert answer("forget", run, "--from", "-", stdin=two.encode())["already_forgotten"] == 2
    assert answer("forget", run, "--subjects-from", path, "--key", "s")["already_forgotten"] == 2


def test_subjects(run: Path) -> None:
    assert answer("forget", run, "--subjects", ",".join(ids(run, 0, 1)[:3]))["samples"] == 3


def test_unknown_samples_are_listed_and_nothing_is_written(run: Path) -> None:
    before = objects(run)
    error = refusal("forget", run, "--samples", f"nobody,{ids(run, 0, 1)[0]},no-one")
    assert (error["kind"], error["value"]) == ("RequestError", "nobody, no-one")
    assert "--ignore-unknown" in error["remedy"]
    assert objects(run) == before
    fields = answer("forget", run, "--samples", f"nobody,{ids(run, 0, 1)[0]}", "--ignore-unknown")
    assert (fields["samples"], fields["unknown"], fields["unknown_examples"]) == (1, 1, ["nobody"])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--samples", ""],
        ["--samples", " , "],
        ["--from", os.devnull],
        ["--from", "no-such-file"],
        ["--samples", "digits/0000", "--subjects", "digits/0000"],
        ["--samples", "nobody", "--ignore-unknown"],
    ],
)
def test_a_request_that_names_nothing_or_too_much_is_refused(run: Path, arguments: list[str]) -> None:
    before = objects(run)
    assert refusal("forget", run, *arguments)["kind"] == "RequestError"
    assert objects(run) == before


def test_ids_that_are_no_text_are_refused(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "ids.txt"
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal("forget", run, "--from", path)["rule"]


# --- verify, evaluate, predict


def test_verify(run: Path) -> None:
    fields = answer("verify", run, "--runner", "local", "--from-scratch")
    assert fields["ok"] is True
    assert len(fields["stages"]) == 4
    assert fields["stages"][0].keys() >= {"shard", "slice", "key", "expected", "actual", "ok"}
    assert all(stage["expected"] == stage["actual"] for stage in fields["stages"])
    some = answer("verify", run, "--runner", "local", "--shards", "1", "--sample", "1")
    assert [stage["shard"] for stage in some["stages"]] == [1]


def test_verify_of_a_damaged_run_fails_and_says_where(run: Path) -> None:
    stage = answer("status", run)["shards"][0]["stage"]
    weights = run / "stages" / stage / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    fields = answer("verify", run, "--runner", "local", code=1)
    assert fields["ok"] is False
    assert [(s["shard"], s["slice"]) for s in fields["stages"] if not s["ok"]] == [(0, 2)]
    result = invoke("verify", run, "--runner", "local")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0].startswith(f"shard 0 slice 2 ({stage[:12]})")
    assert result.stdout.splitlines()[-1].startswith("3 of 4 stages")


@pytest.mark.parametrize("arguments", [["--shards", "0,x"], ["--shards", "7"], ["--sample", "1", "--from-scratch"]])
def test_verify_refuses_what_makes_no_sense(run: Path, arguments: list[str]) -> None:
    assert refusal("verify", run, "--runner", "local", *arguments)["kind"] == "RequestError"


@pytest.mark.slow
def test_evaluate_a_trained_run(run: Path) -> None:
    fields = answer("evaluate", run, "--runner", "local", "--aggregation", "weighted")
    assert fields["test"].keys() >= {"top1", "top5"}
    assert [shard.keys() for shard in fields["shards"]] == [{"shard", "slice", "top1", "top5"}] * 2
    assert fields["aggregation"] == "weighted"
    for attack in [fields["membership"]["ensemble"], *fields["membership"]["shards"]]:
        assert 0 <= attack["ci_low"] <= attack["accuracy"] <= attack["ci_high"] <= 1
        assert attack["null_mean"] == pytest.approx(0.5, abs=0.1)
        assert attack["null_sd"] > 0
        assert "roc" not in attack
    assert "forget" not in fields
    assert "roc" in answer("evaluate", run, "--runner", "local", "--roc")["membership"]["ensemble"]


@pytest.mark.slow
def test_evaluate_a_forget_set(run: Path, tmp_path: Path) -> None:
    samples = ids(run, 0, 1)[:30]
    path = tmp_path / "ids.txt"
    path.write_text("\n".join(samples))
    answer("forget", run, "--from", path)
    answer("unlearn", run, "--runner", "local")
    by_number = answer("evaluate", run, "--runner", "local", "--forget", "1")
    by_file = answer("evaluate", run, "--runner", "local", "--forget", path, "--source", tmp_path / "config.yaml")
    for fields in (by_number, by_file):
        assert fields["forget"]["num_samples"] == 30
        assert fields["retain"]["num_samples"] == 1408
        first, second = fields["membership"]["shards"]
        assert (first["samples"], second["samples"]) == (30, 0)
        assert first["accuracy"] == first["whole"]["accuracy"]
        assert second["accuracy"] is None
        assert second["null_sd"] is None
        assert second["whole"]["null_sd"] > 0
    assert by_number["forget"] == by_file["forget"]
    assert (by_number["forget_request"], by_file["forget_request"]) == (1, None)


@pytest.mark.parametrize("arguments", [["--forget", "9"], ["--forget", "no-file"], ["--source", "x", "--forget", "1"]])
def test_evaluate_refuses_what_is_not_there(run: Path, arguments: list[str]) -> None:
    assert refusal("evaluate", run, "--runner", "local", *arguments)["kind"] == "RequestError"


def test_predict(run: Path, tmp_path: Path) -> None:
    path = tmp_path / "inputs.npy"
    np.save(path, np.random.default_rng(0).integers(0, 255, (3, 8, 8, 1), dtype=np.uint8))
    fields = answer("predict", run, path, path)
    assert fields["head"] == 1
    assert len(fields["predictions"]) == 6
    first = fields["predictions"][0]
    assert first["name"] == f"{path}#0"
    assert first["top5"][0] == {"label": first["label"], "probability": first["probability"]}
    assert len(first["top5"]) == 5
    text = invoke("predict", run, path, "--aggregation", "majority").stdout.splitlines()
    assert text[0].split() == ["input", "label", "probability"]
    assert len(text) == 4
    assert refusal("predict", run, tmp_path / "none.png")["kind"] == "DataError"


# --- plan


def test_plan_writes_nothing(run: Path, tmp_path: Path) -> None:
    before = objects(tmp_path)
    names = {"sample_passes", "full_training_sample_passes", "fraction", "stages", "storage_bytes"}
    path = tmp_path / "config.yaml"
    sample = ids(run, 0, 2)[0]
    plans = [
        answer("plan", path),
        answer("plan", path, "--requests", 2, "--set", "placement.shards=4"),
        answer("plan", run),
        answer("plan", run, "--requests", 2),
        answer("plan", run, "--samples", sample),
        answer("plan", run, "--from", "-", stdin=sample),
    ]
    assert [plan.keys() for plan in plans] == [names] * 6
    assert [plan["fraction"] == 0 for plan in plans] == [False, False, True, False, False, False]
    assert plans[0]["fraction"] == 1
    assert plans[4] == plans[5]
    assert plans[4]["stages"] == 1
    assert objects(tmp_path) == before


@pytest.mark.parametrize("arguments", [["--requests", "0"], ["--requests", "1", "--samples", "a"], ["--samples", "a"]])
def test_plan_refuses_what_makes_no_sense(run: Path, tmp_path: Path, arguments: list[str]) -> None:
    assert refusal("plan", run, *arguments)["kind"] == "RequestError"
    assert refusal("plan", tmp_path / "config.yaml", *arguments)["kind"] == "RequestError"


# --- all commands


@pytest.mark.parametrize(
    "arguments",
    [
        ["forget", "--samples", "a"],
        ["unlearn"],
        ["status"],
        ["evaluate"],
        ["verify"],
        ["plan"],
        ["predict", "x.npy"],
        ["report"],
    ],
)
def test_a_run_that_does_not_exist(tmp_path: Path, arguments: list[str]) -> None:
    command, *others = arguments
    path = tmp_path / "none"
    if command == "predict":
        np.save(tmp_path / "x.npy", np.zeros((1, 8, 8, 1), np.uint8))
        others = [str(tmp_path / "x.npy")]
    error = refusal(command, path, *others)
    assert (error["kind"], error["field"]) == ("StoreError", "run")
    assert list(tmp_path.glob("none*")) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["verify", "RUN", "--runner", "slurm"],
        ["evaluate", "RUN", "--aggregation", "median"],
        ["verify", "RUN", "--sample", "0"],
        ["unlearn", "RUN", "--wait", "-1"],
        ["predict", "RUN"],
        ["status"],
    ],
)
def test_unknown_commands_and_values_are_usage_errors(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


@pytest.mark.parametrize("command", ["unlearn", "evaluate", "verify"])
def test_set_on_a_run_changes_scaling_alone(run: Path, command: str) -> None:
    answer(command, run, "--runner", "local", "--set", "scaling.max_concurrent_shards=1")
    assert "only change scaling" in refusal(command, run, "--set", "recipe.seed=1")["rule"]
    assert "must be 1 or 1/k" in refusal(command, run, "--set", "scaling.resources_per_worker.GPU=0.3")["value"]


def test_a_run_that_another_process_holds(run: Path) -> None:
    from ray_sisa.lease import hold_lease
    from ray_sisa.store import Store

    with hold_lease(Store(str(run))):
        error = refusal("unlearn", run, "--runner", "local", "--wait", "0.1")
    assert error["kind"] == "BusyError"
    assert "--wait SECONDS" in error["remedy"]


def test_an_error_is_one_line_for_a_person(run: Path) -> None:
    result = invoke("forget", run, "--samples", "nobody")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: unknown ids = nobody: 1 not in this run")


def test_report_is_written(run: Path, tmp_path: Path) -> None:
    where = answer("report", run, "--output", tmp_path / "report.html")["report"]
    assert Path(where).read_text().lstrip().lower().startswith("<!doctype html")
    assert (run / "reports").is_dir() == bool(list(run.glob("reports/*")))
    inside = answer("report", run)["report"]
    assert inside.endswith("reports/report.html")


# --- as a process


@pytest.mark.slow
def test_what_a_model_prints_stays_off_standard_output(tmp_path: Path) -> None:
    source = "import torch\ndef build(num_classes, image_shape):\n    print('noise')\n"
    source += "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))\n"
    (tmp_path / "noisy.py").write_text(source)
    config = write_config(tmp_path, recipe=CONTENT["recipe"] | {"model": "noisy:build"})
    done = in_a_process("train", config, "--runner", "local", "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stages_trained"] == 4
    assert "noise" in done.stderr


def test_an_unexpected_error_keeps_its_traceback(tmp_path: Path) -> None:
    code = (
        "from ray_sisa import cli\n"
        "def broken(*_): raise ZeroDivisionError('a bug')\n"
        "cli._open = broken\n"
        "cli.main(['status', 'RUN', '--json'])\n"
    )
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[0].startswith("Traceback")
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: a bug"


def test_an_interrupted_command_says_how_to_continue(tmp_path: Path) -> None:
    code = (
        "import signal\n"
        "from ray_sisa import cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background shell has it ignored
        "cli._open = lambda *_: signal.raise_signal(signal.SIGINT)\n"
        "cli.main(['status', 'RUN', '--json'])\n"
    )
    command = [sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "interrupted: run the same command again to continue\n"


@pytest.mark.ray
@pytest.mark.slow
def test_with_ray_standard_output_is_the_answer_alone(run: Path, tmp_path: Path) -> None:
    answer("forget", run, "--samples", ids(run, 0, 1)[0])
    done = in_a_process("unlearn", run, "--json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["requests"] == [1]
    assert done.stdout.count("\n") == 1


@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_of_its_own_says_nothing_of_its_token(run: Path, tmp_path: Path) -> None:
    """In a home without one, where it is made."""
    answer("forget", run, "--samples", ids(run, 0, 1)[0])
    done = in_a_process("unlearn", run, "--json", "--quiet", folder=tmp_path, HOME=str(tmp_path), RAY_ADDRESS="local")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["requests"] == [1]
    assert (tmp_path / ".ray" / "auth_token").is_file()


@pytest.mark.ray
@pytest.mark.slow
def test_what_no_node_holds_is_refused_with_numbers(tmp_path: Path) -> None:
    config = write_config(tmp_path)
    done = in_a_process("train", config, "--json", "--set", "scaling.resources_per_worker.CPU=1000", folder=tmp_path)
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert error["kind"] == "ResourcesError"
    assert "1000" in error["value"]
    assert "'CPU': " in error["rule"]
