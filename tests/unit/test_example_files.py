"""What lies in examples/ is what the docs say of it: configurations load, and the network of one's own trains."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ray_sisa.config_values import load_config
from ray_sisa.run import Run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["digits", "cluster"])
def test_configurations_load(name: str) -> None:
    config = load_config(ROOT / "examples" / f"{name}.yaml")
    assert (config.name, config.placement.shards) == ("digits", 4)


def test_the_one_for_a_cluster_names_nothing_that_a_job_would_not_have() -> None:
    config = load_config(ROOT / "examples" / "cluster.yaml")
    assert all("://" in str(path) for path in (config.storage_path, config.data.train, config.data.test))
    named = set(re.findall(r"examples/[\w.]+\w", (ROOT / "README.md").read_text() + PAGE))
    assert named == {f"examples/{n}" for n in ("cluster.yaml", "digits.yaml", "network.py", "put_digits.py")}
    assert all((ROOT / path).is_file() for path in named)


@pytest.mark.slow
def test_a_network_of_ones_own_trains_as_the_page_says_and_is_pinned(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    (line,) = re.findall(r"^    PYTHONPATH=\. (ray-sisa .*)$", PAGE, flags=re.MULTILINE)
    environment = {"PYTHONPATH": f".:{ROOT}", "PATH": "", "HOME": str(tmp_path)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(Path(sys.executable).with_name("ray-sisa")), *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    done = run(*shlex.split(line)[1:])
    assert done.returncode == 0, done.stderr
    made = Run.open(str(tmp_path / "runs" / "own"))
    assert made.record.training.recipe.model == "examples.network:network"
    assert made.status().complete

    network = tmp_path / "examples" / "network.py"
    network.write_text(network.read_text().replace("nn.ReLU()", "nn.GELU()"))
    verify = ("verify", "runs/own", "--sample", "1", "--runner", "local")
    changed = run(*verify, "--allow-model", "examples.network:network")
    assert changed.returncode == 1
    assert "recipe.model = examples.network:network: its source changed since the run was created" in changed.stderr
