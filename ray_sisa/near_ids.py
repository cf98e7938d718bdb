"""Ids that are nearly those of a run: in another Unicode form, with other spaces around them, or in another case.

They stay different ids, and none stands for another. Somebody who is refused is told which of them the run has.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from ray_sisa import ids


def find(names: Sequence[str], among: Iterable[pa.StringArray]) -> tuple[str, ...]:
    """What a run has in place of these names, a phrase for each that is nearly there.

    Args:
        names: ids that the run does not have.
        among: those that it has.
    """
    wanted = pa.array(names, pa.string())
    folded = _folded(wanted)
    found: dict[str, str] = {}
    for known in among:
        of_known = _folded(known)
        is_near = pc.is_in(of_known, folded)
        for name, key in zip(known.filter(is_near).to_pylist(), of_known.filter(is_near).to_pylist(), strict=True):
            found.setdefault(key, name)
    pairs = [(name, found[key]) for name, key in zip(names, folded.to_pylist(), strict=True) if key in found]
    return tuple(f"{ids.shown(known)} ({_difference(name, known)})" for name, known in pairs)


def _folded(names: pa.StringArray) -> pa.StringArray:
    return pc.utf8_lower(pc.utf8_trim_whitespace(pc.utf8_normalize(names, form="NFKC")))


def _difference(name: str, known: str) -> str:
    """How two ids differ that are one once they are folded."""
    if name == known:
        return "a sample where a subject is named, or the other way about"
    one, other = pc.utf8_normalize(pa.array([name, known]), form="NFKC").to_pylist()
    if one == other:
        return "the same text in another Unicode form"
    return "with other spaces around it" if one.strip() == other.strip() else "in another case"
