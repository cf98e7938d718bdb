"""What all tests share: Hypothesis without deadlines, real data, processes that tests share, the rule for `gpu`."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# A machine shared with others may stall any example; pytest-timeout bounds each test as a whole.
hypothesis.settings.register_profile("shared-machine", deadline=None)
hypothesis.settings.load_profile("shared-machine")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with cifar100/, omniglot/ (Parquet) and cifar10_resnet*.th; the test is skipped where there is none."""
    folder = os.environ.get("RAY_SISA_DATA")
    if not folder:
        pytest.skip("RAY_SISA_DATA names no folder with cifar100/, omniglot/ and cifar10_resnet*.th")
    return Path(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts files with tests that start Ray clusters first: they take longest."""
    items.sort(key=lambda item: not starts_ray(item.path))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keeps the tests of a file in one process, and all those of files that start Ray clusters in one."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return "ray" if starts_ray(config.rootpath / path) else path

    return ByFile(config, log)


@functools.cache
def starts_ray(path: Path) -> bool:
    return "mark.ray" in path.read_text(encoding="utf-8")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch  # here, so that tests without the marker do not pay for it

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
