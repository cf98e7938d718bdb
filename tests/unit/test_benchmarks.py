"""Every benchmark runs from a bare checkout and writes what it measured; never how fast: that is for `results/`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KEYS = {"benchmark", "question", "command", "quick", "commit", "machine", "settings", "findings", "raw"}
MACHINE_KEYS = {"processor", "cores", "system", "python", "device", "libraries", "load_average", "load_average_after"}
FINDING_KEYS = {"name", "value", "unit", "spread", "at_least", "at_most", "met"}
ANSWERS = {
    "training_step": {"float32: stage", "bfloat16: stage / bare fused"},
    "engine_overhead": {"Ray / bare", "stage's end to next start"},
    "free_cpu": {"a cluster of one CPU", "one free CPU of two", "one free of two / one"},
    "planning": {"all", "stage keys and plan", "peak memory of the process"},
    "ledger": {"append, 8 processes: median"},
    "time_to_effective": {"one sample: effective, p50", "one sample: effective, p99", "20 shards: effective, p50"},
}


@pytest.mark.slow
@pytest.mark.smoke
@pytest.mark.parametrize(
    "name",
    [
        "training_step",
        pytest.param("engine_overhead", marks=pytest.mark.ray),
        pytest.param("free_cpu", marks=pytest.mark.ray),
        "planning",
        "ledger",
        "time_to_effective",
    ],
)
def test_benchmark_writes_its_findings(name: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command = [sys.executable, str(ROOT / "benchmarks" / f"{name}.py"), "--quick", "--json", str(report)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    content = json.loads(report.read_text(encoding="utf-8"))
    assert content.keys() == KEYS
    assert (content["benchmark"], content["quick"]) == (name, True)
    assert content["machine"].keys() == MACHINE_KEYS
    assert all(finding.keys() == FINDING_KEYS for finding in content["findings"])
    assert ANSWERS[name] <= {finding["name"] for finding in content["findings"]}
    assert all(finding["name"] in done.stdout for finding in content["findings"])
    assert str(tmp_path) not in json.dumps(content["command"])
