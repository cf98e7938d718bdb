"""The light imports are light: proven in a fresh interpreter each, since this one may have loaded anything."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"matplotlib", "ray", "sklearn", "torch", "torchvision"}


def _loaded_by(code: str) -> set[str]:
    """Top-level modules loaded in a new interpreter once `code` has run."""
    report = "import atexit, json, sys\natexit.register(lambda: print('\\n' + json.dumps(sorted(sys.modules))))\n"
    done = subprocess.run([sys.executable, "-c", report + code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in json.loads(done.stdout.splitlines()[-1])}


@pytest.mark.parametrize("module", ["ray_sisa", "ray_sisa.config", "ray_sisa.errors"])
def test_import_loads_neither_torch_nor_ray(module: str) -> None:
    assert _loaded_by(f"import {module}") & HEAVY == set()


def test_help_loads_neither_torch_nor_ray() -> None:
    loaded = _loaded_by(
        "import runpy; sys.argv = ['ray-sisa', '--help']; runpy.run_module('ray_sisa.cli', run_name='__main__')"
    )
    assert "typer" in loaded
    assert loaded & HEAVY == set()
