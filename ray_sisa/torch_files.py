"""Files of `torch.save`, looked through before torch opens them: a file may neither run code nor grow.

torch's own reader of plain tensors runs no code either, but it believes a file that says how much memory it wants.
"""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any, cast

import torch

MAX_PICKLE = 1 << 26  # bytes of the pickle beside the tensors of a zip archive
MAX_ENTRIES = 100_000
NUM_PICKLES = 5  # of the format before zip: magic number, protocol, system, content, keys of the storages

_ZIP = b"PK\x03\x04"
_ALLOWED = {
    "collections.OrderedDict",
    "collections.Counter",  # of learning rate schedules
    "torch.Size",
    "torch.device",
    "torch.serialization._get_layout",
    "torch.nn.parameter.Parameter",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch.storage.TypedStorage",
    "torch.storage.UntypedStorage",
}


def load(path: Path) -> Any:
    """What `torch.save` wrote: tensors on the CPU, numbers and text, in dictionaries and lists.

    Raises:
        OSError: the file cannot be opened.
        ValueError: it is of another kind, holds more than that, or says that it is larger than it is.
    """
    num_bytes = path.stat().st_size
    with path.open("rb") as file:
        if file.read(len(_ZIP)) == _ZIP:
            _check_archive(file, num_bytes)
        else:
            file.seek(0)
            _check_pickles(_Bounded(file, num_bytes), NUM_PICKLES)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # damaged pickles raise errors of a dozen kinds
        # torch's own message is left out: it advises loading with code execution allowed.
        raise ValueError(f"torch raised {type(error).__name__}") from None


def check_sizes(tensors: Iterable[torch.Tensor], num_bytes: int) -> None:
    """Refuses tensors that a file of so many bytes cannot hold: they would grow once they are copied.

    Raises:
        ValueError: sparse, quantised or without content; or in all larger than the file, shared memory allowed for.
    """
    total = 0
    for tensor in tensors:
        if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError("it holds a tensor that is sparse, quantised or without content")
        total += tensor.numel() * tensor.element_size()
    if total > 4 * num_bytes:
        raise ValueError(f"its tensors declare {total} bytes, and the file has {num_bytes}")


def _check_archive(file: IO[bytes], num_bytes: int) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_ENTRIES:
                raise ValueError(f"it has {len(entries)} entries")
            # torch compresses nothing; what is stored takes the room that it declares.
            if any(e.compress_type != zipfile.ZIP_STORED or e.compress_size != e.file_size for e in entries):
                raise ValueError("an entry is compressed, which torch.save never does")
            if sum(entry.file_size for entry in entries) > num_bytes:
                raise ValueError("its entries declare more bytes than the file has")
            for entry in entries:
                if entry.filename.endswith(".pkl"):
                    if entry.file_size > MAX_PICKLE:
                        raise ValueError(f"its pickle has {entry.file_size} bytes")
                    with archive.open(entry) as pickle:
                        _check_pickles(_Bounded(pickle, entry.file_size), 1)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"it is no zip archive: {error}") from None


class _Bounded:
    """A file from which nobody reads more than there is: what is asked for is allocated before it is read."""

    def __init__(self, file: IO[bytes], num_bytes: int) -> None:
        self.readline, self.tell = file.readline, file.tell
        self._file, self._num_bytes = file, num_bytes

    def read(self, count: int) -> bytes:
        if count > self._num_bytes:
            raise ValueError(f"it declares a text or number of {count} bytes")
        return self._file.read(count)


def _check_pickles(file: _Bounded, count: int) -> None:
    """Reads the instructions of pickles without following them."""
    for _ in range(count):
        for instruction, argument, _ in pickletools.genops(cast("IO[bytes]", file)):
            if instruction.name == "GLOBAL" and not _is_allowed(str(argument).replace(" ", ".")):
                raise ValueError(f"it names {str(argument)[:100]!r}, which is no part of plain tensors")
            if instruction.name in {"STACK_GLOBAL", "INST", "OBJ", "EXT1", "EXT2", "EXT4"}:
                raise ValueError(f"it holds the instruction {instruction.name}, which plain tensors do not need")


def _is_allowed(name: str) -> bool:
    kind = name.removeprefix("torch.")
    # Such as torch.FloatStorage and torch.float32.
    return name in _ALLOWED or (kind != name and (kind.endswith("Storage") or isinstance(_of_torch(kind), torch.dtype)))


def _of_torch(name: str) -> object:
    return vars(torch).get(name)
