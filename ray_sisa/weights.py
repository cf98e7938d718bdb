"""Weights as tensors and as bytes: files to start from, fitting them to a network, the safetensors of a store.

No code in a file is ever run: pickles are read as plain tensors or refused. Nothing here opens a store or trains.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ray_sisa import models, tensor_names, torch_files, uploads
from ray_sisa.errors import ConfigError, StoreError
from ray_sisa.private_network import STATISTICS, replaced

_FIELD = "recipe.weights"
_NUM_NAMED = 5
# Beside its own error, the parser lets out what unknown types (KeyError) and absurd shapes (the others) raise.
_PARSE_ERRORS = (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, AssertionError, OverflowError)
_MAX_HEADER = 1 << 24
_MAX_TENSORS = 20_000


def read(path: str) -> dict[str, Tensor]:
    """Tensors by name from a file (.safetensors, .pt, .pth, .th), on the CPU.

    The entry that holds them is opened, and a `module.` that all names begin with is taken off.

    Raises:
        ConfigError: a file that is absent, of another kind, without tensors, or that holds more than plain values.
    """
    content = _load(Path(path))
    try:
        tensors = tensor_names.find(content)
    except ValueError as error:
        raise ConfigError(_FIELD, path, str(error), "Save the state_dict of the network alone") from None
    try:
        torch_files.check_sizes(tensors.values(), Path(path).stat().st_size)
    except ValueError as error:
        raise _not_plain(path, error) from None
    # Copied, for the strides of a file may be any where an axis has one element.
    tensors = {name: _copy(tensor) for name, tensor in tensors.items()}
    if all(name.startswith("module.") for name in tensors):
        return {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    return tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class _Comparison:
    """Tensors beside a network."""

    tensors: Mapping[str, Tensor]
    """Those that the network can have."""
    last: set[str]
    """Names of its last layer's tensors, where that layer is of other classes."""
    problems: Sequence[str]


def named_for(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under names that fit a network: without prefixes that all share, where that makes them fit."""
    for named in (tensors, *tensor_names.without_prefixes(tensors)):
        if not _compare(model, named).problems:
            return dict(named)
    return dict(tensors)


def fit(model: nn.Module, tensors: Mapping[str, Tensor], source: str = "") -> list[str]:
    """Copies `tensors` into `model`, all or none; returns the names of those left out.

    Left out is the last layer, where it is for another number of classes: the model's own stays. The file may lack
    `num_batches_tracked`. Of a BatchNorm that is replaced for private training, factor and offset are copied.

    Raises:
        ConfigError: tensors that are missing, unexpected or of another shape; names the `source` of the tensors.
    """
    found = _compare(model, tensors)
    if found.problems:
        more = f"; and {len(found.problems) - _NUM_NAMED} more" if len(found.problems) > _NUM_NAMED else ""
        prefix = tensor_names.common_prefix(tensors)
        lists = (
            f"The file has {tensor_names.beginning(tensors)}{f', all with the prefix {prefix}' if prefix else ''}; "
            f"the network wants {tensor_names.beginning(model.state_dict())}"
        )
        rule = f"does not fit the network: {'; '.join(found.problems[:_NUM_NAMED])}{more}. {lists}"
        raise ConfigError(_FIELD, source, rule, "Give weights of the same network, or change recipe.model")
    model.load_state_dict({n: tensor for n, tensor in found.tensors.items() if n not in found.last}, strict=False)
    return sorted(found.last & found.tensors.keys())


def _compare(model: nn.Module, tensors: Mapping[str, Tensor]) -> _Comparison:
    statistics = {f"{name}.{statistic}" for name in replaced(model) for statistic in STATISTICS}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in statistics}
    state = model.state_dict()
    last = _last_layer_of_other_classes(model, state, tensors)
    return _Comparison(tensors=tensors, last=last, problems=_misfits(state, tensors, last))


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first of these tensors, in their order, that holds a number that float32 has no finite one for."""
    # Of float64 some that are finite there are infinite in the network, whose weights are float32.
    bad = (name for name, t in tensors.items() if t.is_floating_point() and not t.float().isfinite().all())
    return next(bad, None)


def to_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """`tensors` as safetensors, a function of names, dtypes, shapes and values alone; shared memory is stored apart."""
    # No metadata: safetensors writes its keys in random order.
    return safetensors.torch.save({name: _copy(tensors[name]) for name in sorted(tensors)})


def from_bytes(data: bytes) -> dict[str, Tensor]:
    """Tensors by name, on the CPU, from safetensors.

    Raises:
        StoreError: bytes that are not valid safetensors.
    """
    try:
        return _parse(data)
    except _PARSE_ERRORS as error:
        remedy = "The object is damaged; remove its stage and it is made again"
        raise StoreError("weights", f"{len(data)} bytes", _invalid(error), remedy) from None


def _load(path: Path) -> Any:
    readers = {".safetensors": _load_safetensors, ".pt": _load_pickle, ".pth": _load_pickle, ".th": _load_pickle}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        rule = f"has the unknown ending {path.suffix!r}"
        raise ConfigError(_FIELD, str(path), rule, f"Give a file that ends in {', '.join(readers)}")
    try:
        if path.exists() and not path.is_file() and not path.is_dir():  # a device or pipe may never end
            raise ConfigError(_FIELD, str(path), "is no regular file", "Copy it into one")
        return reader(path)
    except OSError as error:
        remedy = uploads.remedy_of_absent(str(path), "Check the path")
        raise ConfigError(_FIELD, str(path), f"cannot be read: {error.strerror or error}", remedy) from None


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return _parse(path.read_bytes())
    except _PARSE_ERRORS as error:
        raise ConfigError(_FIELD, str(path), _invalid(error), "Fetch the file again") from None


def _parse(data: bytes) -> dict[str, Tensor]:
    _check_header(data)
    return safetensors.torch.load(data)


def _check_header(data: bytes) -> None:
    """What the parser does not ask of a header: that it is short, and that no name stands in it twice.

    The parser holds a header many times over, and takes the last of two tensors of one name.
    """
    size = int.from_bytes(data[:8], "little")
    if size > min(_MAX_HEADER, len(data) - 8):
        raise ValueError(f"its header declares {size} bytes of {len(data)}")
    entries = json.loads(data[8 : 8 + size], object_pairs_hook=_without_repetition)
    if len(entries) > _MAX_TENSORS:
        raise ValueError(f"it names {len(entries)} tensors")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name stands twice in its header")
    return entries


def _invalid(error: Exception) -> str:
    reason = str(error).partition("\n")[0][:200]  # torch appends a stack of its own
    return f"is not valid safetensors ({type(error).__name__}: {reason})"


def _load_pickle(path: Path) -> Any:
    try:
        return torch_files.load(path)
    except ValueError as error:
        raise _not_plain(str(path), error) from None


def _not_plain(path: str, error: ValueError) -> ConfigError:
    rule = f"is not a file of plain tensors: {error}"
    return ConfigError(_FIELD, path, rule, "Save model.state_dict() with torch.save, or use .safetensors")


def _last_layer_of_other_classes(
    model: nn.Module, state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]
) -> set[str]:
    """Names of the last layer's tensors where they differ from the file's in the number of classes, else none."""
    differing = [name for name in state.keys() & tensors.keys() if state[name].shape != tensors[name].shape]
    if not differing:
        return set()
    prefix = f"{models.head(model)}.".removeprefix(".")  # a network may be its last layer
    of_last = [name for name in differing if name.startswith(prefix)]
    # Rows are classes. A last layer that differs in its inputs belongs to another network.
    if not of_last or any(state[name].shape[1:] != tensors[name].shape[1:] for name in of_last):
        return set()
    return {name for name in state.keys() | tensors.keys() if name.startswith(prefix)}


def _misfits(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor], ignored: set[str]) -> Sequence[str]:
    missing = [n for n in state if n not in tensors and n not in ignored and not n.endswith("num_batches_tracked")]
    unexpected = [n for n in tensors if n not in state and n not in ignored]
    reshaped = [n for n in state if n in tensors and n not in ignored and state[n].shape != tensors[n].shape]
    return [
        *(f"{n} is {_shape(tensors[n])} in the file and {_shape(state[n])} in the network" for n in reshaped),
        *(f"{n} is missing from the file" for n in missing),
        *(f"{n} is unknown to the network" for n in unexpected),
    ]


def _shape(tensor: Tensor) -> list[int]:
    return list(tensor.shape)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
