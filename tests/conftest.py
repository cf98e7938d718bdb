"""What all tests share: Hypothesis without deadlines, the folder of real data, and the rule for `gpu` tests."""

from __future__ import annotations

import os
from pathlib import Path

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


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu"):
        import torch  # here, so that tests without the marker do not pay for it

        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
