"""Tensors by name in what a file of weights holds: the mapping that is meant, and prefixes that its names share.

Training programs save a network's `state_dict` under names of their own, beside an optimiser, and within wrappers that
put a prefix before each name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

Tensors = dict[str, Tensor]

_FIRST = ("state_dict", "model")  # opened before all else: the names of runs depend on it
_USUAL = ("model_state_dict", "net", "network", "params")
_NUM_SHOWN = 5


def find(content: Any) -> Tensors:
    """The one mapping of tensors in plain values, wherever it lies: of several the usual one, nearest to the top.

    Raises:
        ValueError: there is none, or nothing says which of several is meant.
    """
    top, unnamed = _of(content), isinstance(content, Tensor)
    found: dict[str, Tensors] = {}
    for level in _levels(content):
        unnamed |= any(isinstance(part, Tensor) for entry in level.values() for part in _parts(entry).values())
        if found := {path: tensors for path, entry in level.items() if path and (tensors := _of(entry))}:
            break
    for name in (name for name in _FIRST if name in found):
        return found[name]
    if top and len(top) >= max(map(len, found.values()), default=0):
        return top
    usual = [tensors for path, tensors in found.items() if path.rpartition(".")[2] in (*_FIRST, *_USUAL)]
    if len(usual) == 1 or len(found) == 1:
        return usual[0] if usual else next(iter(found.values()))
    if found:
        raise ValueError(f"holds tensors under several names: {beginning(found)}")
    if unnamed:
        raise ValueError("holds tensors, but without names")
    raise ValueError("holds no tensors")


def without_prefixes(tensors: Mapping[str, Tensor]) -> Iterator[Tensors]:
    """The same tensors without what all their names begin with, up to a dot: once, twice, and so on."""
    named = dict(tensors)
    while prefix := common_prefix(named):
        named = {name.removeprefix(prefix): tensor for name, tensor in named.items()}
        yield named


def common_prefix(names: Mapping[str, object]) -> str:
    """What all names begin with, up to their first dot; empty where they differ, or where nothing would be left."""
    firsts = {name.partition(".")[:2] for name in names}
    prefix = "".join(firsts.pop()) if len(firsts) == 1 else ""
    return prefix if prefix.endswith(".") and prefix not in names else ""


def beginning(names: Mapping[str, object]) -> str:
    """The first few names, and how many there are."""
    more = f", ... ({len(names)} in all)" if len(names) > _NUM_SHOWN else ""
    return ", ".join([name[:100] for name in names][:_NUM_SHOWN]) + more


def _of(entry: Any) -> Tensors:
    """The tensors that an entry holds itself, if it is a mapping."""
    if not isinstance(entry, Mapping):
        return {}
    return {str(name): value for name, value in entry.items() if isinstance(value, Tensor)}


def _parts(entry: Any) -> dict[str, Any]:
    """What an entry holds, by name or by number."""
    if isinstance(entry, list | tuple):
        entry = dict(enumerate(entry))
    return {str(name): part for name, part in entry.items()} if isinstance(entry, Mapping) else {}


def _levels(content: Any) -> Iterator[dict[str, Any]]:
    """Mappings and lists within each other by their path, level by level, each once."""
    level, seen = {"": content}, {id(content)}
    while level:
        yield level
        below: dict[str, Any] = {}
        for path, entry in level.items():
            for name, part in _parts(entry).items():
                if isinstance(part, Mapping | list | tuple) and id(part) not in seen:
                    seen.add(id(part))
                    below[f"{path}.{name}" if path else name] = part
        level = below
