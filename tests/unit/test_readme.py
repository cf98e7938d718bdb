"""The README and the docs say what is so: the example runs, the configuration loads, what they name is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ray_sisa import omniglot
from ray_sisa.config_values import make_config

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def fenced(language: str, text: str = README) -> str:
    """The one block of a language in the README, or in another text."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    return block


def without_code(page: str) -> str:
    return re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(fenced("python"), encoding="utf-8")
    command = [sys.executable, "-W", "error", "example.py"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    passes, full = map(int, re.fullmatch(r"(\d+) of (\d+) sample passes\n", done.stdout).groups())
    assert 0 <= passes < full
    assert sorted(path.name for path in tmp_path.iterdir()) == ["example.py", "runs"]


def test_the_configuration_loads() -> None:
    config = make_config(yaml.safe_load(fenced("yaml")))
    assert (config.placement.shards, config.placement.slices) == (4, 5)


def test_the_configuration_for_omniglot_loads() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    config = make_config(yaml.safe_load(fenced("yaml", page)))
    assert (config.data.source, config.data.train) == (omniglot.SOURCE, "evaluation")
    assert config.recipe.nopeek is not None and config.recipe.nopeek.layer == "device"


def test_the_alternative_that_the_configuration_names_costs_the_same() -> None:
    content = yaml.safe_load(fenced("yaml"))
    each = content["recipe"].pop("epochs_per_slice")
    total = int(re.search(r"or total_epochs: (\d+)", README).group(1))
    content["recipe"]["total_epochs"] = total
    assert make_config(content).recipe.total_epochs == each * (content["placement"]["slices"] + 1) / 2


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", without_code(page))
    relative = [link.partition("#")[0] for link in links if "://" not in link and not link.startswith("#")]
    assert [link for link in relative if not (ROOT / page).parent.joinpath(link).exists()] == []
    assert relative or page != "README.md"


@pytest.mark.parametrize("page", PAGES)
def test_named_files_of_the_checkout_exist(page: str) -> None:
    named = re.findall(r"`((?:tests|jobs|docs|benchmarks)/[\w./-]+)`", without_code(page))
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_each_guarantee_names_a_proof_that_exists() -> None:
    section = README.partition("\n## What it guarantees\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| \*\*.*\|$", section, flags=re.MULTILINE)
    assert len(rows) == 6
    for row in rows:
        paths = [name for name in re.findall(r"`([^`]+)`", row) if "/" in name]
        assert paths, row
        assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_table_of_modules_names_each_once() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("\n## From data source to vote\n")[2].partition("\n## ")[0]
    named = re.findall(r"`([\w/]+\.py)`", "\n".join(line for line in table.splitlines() if line.startswith("|")))
    package = ROOT / "ray_sisa"
    modules = [path.relative_to(package).as_posix() for path in package.rglob("*.py") if path.name != "__init__.py"]
    assert sorted(named) == sorted(modules)
