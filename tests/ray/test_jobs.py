"""jobs/*.py submitted to a real head with the very command line that they open with, from a bare copy of the checkout.

The head is a process of this test with ports, token and folder of its own, so it meets no other Ray of the machine.
That workers run the copy, installed package or not, shows in the version that they record: the copy has another one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from real_head import ROOT, Head, answer_of, bare_checkout, started_head
from small_runs import digits, write_parquet

from ray_sisa.run import Run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

VERSION = "0.0.0+bare"
CONTENT = {
    "name": "job",
    "data": {"source": "digits"},
    "placement": {"shards": 2, "slices": 2},
    "recipe": {"model": "mlp", "epochs_per_slice": 1},
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = bare_checkout(tmp_path_factory.mktemp("checkout"))
    init = folder / "ray_sisa" / "__init__.py"
    init.write_text(init.read_text() + f'__version__ = "{VERSION}"\n')
    return folder


@pytest.fixture(scope="module")
def head(checkout: Path) -> Iterator[Head]:
    with started_head(checkout) as head:
        yield head


def test_the_checkout_is_bare(checkout: Path) -> None:
    assert sorted(path.name for path in checkout.iterdir()) == ["jobs", "ray_sisa"]


def test_train_again_unlearn_evaluate(head: Head, tmp_path: Path) -> None:
    content = CONTENT | {"storage_path": str(tmp_path / "runs")}
    (head.checkout / "config.yaml").write_text(yaml.safe_dump(content))
    uri = str(tmp_path / "runs" / "job")

    first = answer_of(head.submit("jobs/train.py", "--config", "config.yaml", "--json"))
    assert (first["stages_trained"], first["stages_reused"]) == (4, 0)
    again = answer_of(head.submit("jobs/train.py", "--config", "config.yaml", "--json"))
    assert (again["stages_trained"], again["stages_reused"]) == (0, 4)
    assert again["ensemble_digest"] == first["ensemble_digest"]

    run = Run.open(uri)
    assert {stage.environment.ray_sisa for stage in run.stages()} == {VERSION}
    run.forget(samples=run.sample_ids(0, 2)[:1])
    done = answer_of(head.submit("jobs/unlearn.py", "--run", uri, "--json"))
    assert (done["requests"], done["stages_retrained"]) == ([1], 1)
    assert run.status().complete

    logs = head.submit("jobs/evaluate.py", "--run", uri, "--forget", "1")
    assert "forget" in logs
    assert len(run.evaluations()) == 1

    public, victims = (write_parquet(tmp_path / f"{first}.parquet", digits(first, 60)) for first in (400, 702))
    data = ("--layer", "hidden1", "--public", public, "--victims", victims)
    told = answer_of(head.submit("jobs/inversion.py", "--run", uri, *data, "--decoder", "kernel", "--json"))
    assert (told["num_public"], told["num_victims"]) == (60, 60)
    assert isinstance(told["targets"], list)
    assert len(told["targets"]) == 2


@pytest.mark.parametrize("job", ["train", "unlearn", "evaluate", "inversion"])
def test_a_job_is_thin_and_opens_with_its_command_lines(job: str) -> None:
    lines = (ROOT / "jobs" / f"{job}.py").read_text().splitlines()
    assert len(lines) < 40
    option = "--config CONFIG.yaml" if job == "train" else "--run RUN"
    submit = "ray job submit --address http://HEAD:8265 --working-dir . --"
    first_line = f"    {submit} python jobs/{job}.py {option}"
    assert {first_line, f"{first_line} \\"} & {*lines}  # one that needs more options goes on below
    assert any(line.startswith(f"    python jobs/{job}.py {option} --runner local") for line in lines)


def test_on_a_laptop_from_a_bare_checkout_and_any_folder(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONTENT))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for job, arguments in (
        ("train", ["--config", "config.yaml"]),
        ("unlearn", ["--run", "runs/job", "--runner", "local"]),
        ("evaluate", ["--run", "runs/job", "--runner", "local"]),
    ):
        command = [sys.executable, str(checkout / "jobs" / f"{job}.py"), *arguments, "--json"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["head"] == 1
    assert {stage.environment.ray_sisa for stage in Run.open(str(tmp_path / "runs" / "job")).stages()} == {VERSION}
