"""What attacks made of the victims that are shown, as arrays beside the record: pictures follow from the two alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ray_sisa.errors import DataError
from ray_sisa.inversion_study.results import Faithful, Honest, InversionRecord
from ray_sisa.study.steps import Steps

PICTURES = "pictures.npz"
Pictures = dict[str, np.ndarray]
"""Grey images uint8 [N, H, W] by the `arrays` or `truth` that a record names."""


def write_pictures(steps: Steps, record: InversionRecord, path: Path) -> None:
    """Writes all that a record names."""
    with path.open("wb") as file:
        arrays = {name: steps.arrays(name)["shown"] for name in sorted(set(names(record)))}
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]


def read_pictures(path: Path, record: InversionRecord) -> Pictures:
    """The pictures of a record.

    Raises:
        DataError: the file is absent, or of another record.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            found = dict(content)
    except (OSError, ValueError) as error:
        raise DataError("pictures", path, f"cannot be read: {error}", "Run the study again") from None
    if missing := set(names(record)) - found.keys():
        rule = f"lacks {len(missing)} of the pictures that the record names"
        raise DataError("pictures", path, rule, "Keep a record and its pictures together")
    return found


def names(record: InversionRecord) -> Iterator[str]:
    """Of all pictures of a record."""
    arms: list[Faithful | Honest] = [*record.faithful, record.honest]
    for each in arms:
        yield each.truth
        yield from (baseline.arrays for baseline in each.baselines)
    yield from (attack.arrays for arm in record.faithful for attack in arm.attacks)
    yield from (attack.arrays for seed in record.honest.seeds for attack in seed.attacks)
