"""`ray-sisa approximate`, and what `evaluate` and the report say of what it makes: text, JSON, refusals."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from ray_sisa.approximate.methods import make_method
from ray_sisa.cli import app
from ray_sisa.printing_measures import evaluated
from ray_sisa.report import make_page, render
from ray_sisa.run import Run

CONTENT = {
    "name": "one",
    "data": {"source": "digits"},
    "placement": {"shards": 1, "slices": 1, "key": "a"},
    "recipe": {"model": "mlp", "epochs_per_slice": 2, "optimizer": {"lr": 0.05}},
}
PLAIN = "no exactness certificate; the run's own `unlearn` gives one"


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def answer(*arguments: object, code: int = 0) -> dict[str, Any]:
    result = invoke(*arguments, "--json")
    assert result.exit_code == code, result.output
    fields: dict[str, Any] = json.loads(result.stdout)
    return fields


def refusal(*arguments: object) -> dict[str, str]:
    error: dict[str, str] = answer(*arguments, code=1)["error"]
    return error


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Trained; tests add approximations, and delete nothing."""
    folder = tmp_path_factory.mktemp("one")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONTENT | {"storage_path": str(folder)}))
    answer("train", folder / "config.yaml", "--runner", "local")
    return str(folder / "one")


@pytest.fixture(scope="module")
def ids_file(run: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty samples, one a line."""
    path = tmp_path_factory.mktemp("ids") / "ids.txt"
    path.write_text("\n".join(Run.open(run).sample_ids(0, 1)[:40]))
    return path


def test_make_find_measure_and_report(run: str, ids_file: Path) -> None:
    command = ["approximate", run, "--method", "neg_grad", "--set", "epochs=2", "--from", ids_file, "--runner", "local"]
    made = answer(*command)
    assert (made["method"]["name"], made["method"]["epochs"], made["num_forget"]) == ("neg_grad", 2, 40)
    assert (made["was_there"], made["exact"]) == (False, False)
    assert answer(*command) == made | {"was_there": True}
    text = invoke(*command).stdout
    assert f"approximate (NegGrad+): {PLAIN}" in text
    assert "there already" in text

    measured = answer("evaluate", run, "--approximation", made["key"][:8], "--forget", ids_file, "--runner", "local")
    assert not measured["exact"]
    assert measured["approximation"]["key"] == made["key"]
    assert measured["forget"]["num_samples"] == 40
    exact = answer("evaluate", run, "--forget", ids_file, "--runner", "local")
    assert exact["exact"]
    assert exact["approximation"] is None
    assert exact["ensemble_digest"] == Run.open(run).status().ensemble_digest != measured["ensemble_digest"]
    assert exact["test"]["top1"] != measured["test"]["top1"]

    opened = Run.open(run)
    texts = [evaluated(evaluation, with_roc=False, is_repeatable=True).text for evaluation in opened.evaluations()]
    assert f"approximate (NegGrad+): {PLAIN}" in texts[0]
    assert f"the approximate model {made['key'][:12]} alone" in texts[0]
    assert "model       exact:" in texts[1]
    assert "approximate" not in texts[1]

    page = make_page(opened)
    assert [state.evaluation.approximation for state in page.states] == [None]
    assert [e.approximation.key for e in page.approximate if e.approximation] == [made["key"]]
    html = render(page)
    assert "Approximate models" in html
    assert "approximate (NegGrad+): no exactness certificate" in html
    assert invoke("check", run).exit_code == 0


def test_progress_goes_to_the_log_and_quiet_silences_it(
    run: str, ids_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ray_sisa")
    command = ["approximate", run, "--method", "sparse", "--from", ids_file, "--runner", "local"]
    answer(*command, "--set", "epochs=2")
    assert [r.message for r in caplog.records if "epoch 2/2" in r.message]
    assert [r.message for r in caplog.records if "is made to forget 40" in r.message]
    caplog.clear()
    answer(*command, "--set", "epochs=3", "--quiet")
    assert not caplog.records
    assert logging.getLogger("ray_sisa").level == logging.INFO


def test_of_several_the_one_made_for_the_forget_set_is_measured(run: str, ids_file: Path, tmp_path: Path) -> None:
    opened = Run.open(run)
    method = make_method("random_labels", ["epochs=1"])
    ids = ids_file.read_text().split()
    few, many = (opened.approximate(method, forget=forget, runner="local") for forget in (ids[:3], ids))
    found = opened.evaluate(approximation="random_labels", forget=iter(ids[:3]), runner="local")
    assert found.approximation == few != many
    error = refusal("evaluate", run, "--approximation", "random_labels", "--runner", "local")
    assert "could be any of" in error["rule"]
    assert few.key[:12] in error["rule"]
    (tmp_path / "others").write_text("\n".join(ids[:7]))
    error = refusal("evaluate", run, "--approximation", few.key, "--forget", tmp_path / "others", "--runner", "local")
    assert "made to forget other samples" in error["rule"]


def test_scaling_is_set_beside_the_dials(run: str, ids_file: Path) -> None:
    settings = ["--set", "scaling.max_failures=0", "--set", "epochs=1"]
    made = answer("approximate", run, "--method", "fine_tune", *settings, "--from", ids_file, "--runner", "local")
    assert made["method"]["epochs"] == 1


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--method", "nonsense", "--samples", "digits/0000"], "--method"),
        (["--method", "scrub", "--samples", "digits/0000", "--set", "epochs=2"], "method"),
        (["--method", "scrub", "--samples", "digits/0000", "--set", "nonsense"], "--set"),
        (["--method", "scrub", "--samples", "nobody"], "forget"),
        (["--method", "scrub"], "request"),
        (["--method", "scrub", "--samples", "a", "--subjects", "b"], "request"),
    ],
)
def test_what_cannot_be_is_refused(run: str, options: list[str], field: str) -> None:
    assert refusal("approximate", run, *options, "--runner", "local")["field"] == field


def test_an_approximation_that_is_not_there_is_refused(run: str) -> None:
    for name in ("dampening", "0123abcd", "x"):
        error = refusal("evaluate", run, "--approximation", name, "--runner", "local")
        assert (error["kind"], error["field"]) == ("RequestError", "--approximation")


def test_a_run_of_shards_is_refused(tmp_path: Path) -> None:
    content = CONTENT | {"storage_path": str(tmp_path), "placement": {"shards": 2, "slices": 1, "key": "a"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    answer("train", tmp_path / "config.yaml", "--runner", "local")
    ids = Run.open(str(tmp_path / "one")).sample_ids(0, 1)[:1]
    error = refusal("approximate", tmp_path / "one", "--method", "scrub", "--samples", ids[0], "--runner", "local")
    assert (error["field"], error["kind"]) == ("run", "RequestError")
    assert "placement.shards=1" in error["remedy"]
    error = refusal("evaluate", tmp_path / "one", "--approximation", "scrub", "--runner", "local")
    assert error["field"] == "run"
