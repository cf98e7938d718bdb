"""What attacks made of the victims that are shown, as arrays beside the record: pictures follow from the two alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ray_sisa.errors import DataError
from ray_sisa.inversion_study.results import WHITE_BOX, Attacked, Faithful, Honest, InversionRecord
from ray_sisa.study.steps import Steps

PICTURES = "pictures.npz"
Pictures = dict[str, np.ndarray]
"""Grey images uint8 [N, H, W] by the `arrays` or `truth` that a record names, or by what `truth_of` says."""


def write_pictures(steps: Steps, record: InversionRecord, path: Path) -> None:
    """Writes all that a record names."""
    with path.open("wb") as file:
        arrays = {name: steps.arrays(name)["shown"] for name in sorted(set(_kept(record)))}
        arrays |= {truth_of(found): steps.arrays(found.arrays)["truth"] for found in _of_other_victims(record)}
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
    yield from _kept(record)
    yield from map(truth_of, _of_other_victims(record))


def truth_of(attack: Attacked) -> str:
    """Under which the victims of an attack are found that has other victims than most."""
    return f"{attack.arrays}-truth"


def _kept(record: InversionRecord) -> Iterator[str]:
    arms: list[Faithful | Honest] = [*record.faithful, record.honest]
    for each in arms:
        yield each.truth
        yield from (baseline.arrays for baseline in each.baselines)
    yield from (attack.arrays for arm in record.faithful for attack in arm.attacks)
    yield from (attack.arrays for seed in record.honest.seeds for attack in seed.attacks)


def _of_other_victims(record: InversionRecord) -> Iterator[Attacked]:
    return (attack for seed in record.honest.seeds for attack in seed.attacks if attack.attacker == WHITE_BOX)
