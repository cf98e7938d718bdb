"""Files of weights whose headers lie, grow or would run code: refused by name, in little memory, and nothing is run."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from measured import raised_by

from ray_sisa import weights
from ray_sisa.digests import digest_tensors
from ray_sisa.errors import ConfigError, StoreError

LEGACY = {"_use_new_zipfile_serialization": False}


class Opens:
    """An object whose unpickling creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.open, (str(self.path), os.O_CREAT)


class Calls:
    """An object whose unpickling calls a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


def file_of(header: str | bytes, body: bytes = b"") -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text)) + text + body


def entry(first: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [first, end]}


def entries(**named: dict[str, object]) -> str:
    return json.dumps(named)


SAFETENSORS = {
    "header beyond the file": struct.pack("<Q", 1000) + b"{}",
    "header of 16 exabytes": b"\xff" * 8 + b"{}",
    "header that is huge": file_of(b" " * ((1 << 24) + 1) + b"{}"),
    "header without end": file_of("{" * 100_000),
    "header of lists": file_of("[" * 100_000 + "]" * 100_000),
    "header of numbers": file_of('{"a": ' + "9" * 5000 + "}"),
    "header that is no text": file_of(b"\xff\xfe{}"),
    "header that is null": file_of("null"),
    "header of many names": file_of(json.dumps({f"{i}": entry(0, 0, [0]) for i in range(20_001)})),
    "name that stands twice": file_of(
        f'{{"a": {json.dumps(entry(0, 4, [1]))}, "a": {json.dumps(entry(0, 4, [1]))}}}', bytes(4)
    ),
    "offsets that overlap": file_of(entries(a=entry(0, 4, [1]), b=entry(0, 4, [1])), bytes(4)),
    "offsets that overlap in part": file_of(entries(a=entry(0, 8, [2]), b=entry(4, 12, [2])), bytes(12)),
    "offsets with a gap": file_of(entries(a=entry(0, 4, [1]), b=entry(8, 12, [1])), bytes(12)),
    "offsets beyond the file": file_of(entries(a=entry(0, 400, [100])), bytes(4)),
    "offsets backwards": file_of(entries(a=entry(4, 0, [1])), bytes(4)),
    "offsets below zero": file_of(entries(a=entry(-4, 0, [1])), bytes(4)),
    "offsets of 64 bits": file_of(entries(a=entry(0, 2**64 - 1, [2**62])), bytes(4)),
    "shape larger than the data": file_of(entries(a=entry(0, 4, [10**12])), bytes(4)),
    "shape that overflows": file_of(entries(a=entry(0, 0, [2**32, 2**32, 2**32])), b""),
    "shape that is no list": file_of('{"a": {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]}}', bytes(4)),
    "shape below zero": file_of(entries(a=entry(0, 4, [-1, -1])), bytes(4)),
    "type that is unknown": file_of(entries(a=entry(0, 4, [1], "F999")), bytes(4)),
    "bytes behind the data": file_of(entries(a=entry(0, 4, [1])), bytes(400)),
    "a pickle": pickle.dumps({"a": 1}),
    "nothing": b"",
}


@pytest.mark.parametrize("what", SAFETENSORS)
def test_safetensors(tmp_path: Path, what: str) -> None:
    data = SAFETENSORS[what]
    with pytest.raises(StoreError, match="is not valid safetensors") as error:
        weights.from_bytes(data)
    assert len(str(error.value)) < 1000
    (tmp_path / "a.safetensors").write_bytes(data)
    with pytest.raises(ConfigError, match=r"a\.safetensors.*is not valid safetensors"):
        weights.read(str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("what", ["header of 16 exabytes", "offsets of 64 bits", "shape larger than the data"])
def test_safetensors_take_no_memory(tmp_path: Path, what: str) -> None:
    (tmp_path / "a").write_bytes(SAFETENSORS[what])
    call = f"weights.from_bytes(open({str(tmp_path / 'a')!r}, 'rb').read())"
    kind, message = raised_by(call, imports="from ray_sisa import weights", megabytes=64)
    assert kind == "StoreError", message


# --- torch.save


def refused(path: Path) -> str:
    with pytest.raises(ConfigError, match="is not a file of plain tensors") as error:
        weights.read(str(path))
    assert len(str(error.value)) < 1000
    return str(error.value)


def rewrite(
    source: Path, target: Path, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED
) -> None:
    """A zip archive with its entries changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.save({"a": torch.arange(4.0)}, tmp_path / "saved.pt")
    return tmp_path / "saved.pt"


def test_a_compressed_archive(saved: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(10_000_000)}, saved)
    rewrite(saved, tmp_path / "bomb.pt", lambda name, data: data, zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pt").stat().st_size < 100_000
    assert "compressed" in refused(tmp_path / "bomb.pt")


def test_entries_that_share_their_bytes(saved: Path, tmp_path: Path) -> None:
    """Each entry of the directory is honest for itself; together they claim the file many times over."""
    torch.save({"a": torch.ones(10_000)}, saved)
    rewrite(saved, tmp_path / "plain.pt", lambda name, data: data)
    data = bytearray((tmp_path / "plain.pt").read_bytes())
    end = data.rindex(b"PK\x05\x06")
    size, start = struct.unpack_from("<II", data, end + 12)
    directory = bytes(data[start : start + size]) * 100
    struct.pack_into("<HHII", data, end + 8, *[data.count(b"PK\x01\x02") * 100] * 2, len(directory), start)
    (tmp_path / "many.pt").write_bytes(bytes(data[:start]) + directory + bytes(data[end:]))
    assert "declare more bytes than the file has" in refused(tmp_path / "many.pt")


def test_a_directory_that_lies(saved: Path, tmp_path: Path) -> None:
    data = bytearray(saved.read_bytes())
    where = data.rindex(b"PK\x01\x02")
    struct.pack_into("<II", data, where + 20, 2**31, 2**31)
    (tmp_path / "lie.pt").write_bytes(data)
    assert "declare more bytes than the file has" in refused(tmp_path / "lie.pt")
    struct.pack_into("<II", data, where + 20, 2**31, 16)
    (tmp_path / "lie.pt").write_bytes(data)
    assert refused(tmp_path / "lie.pt")


def test_a_storage_that_declares_more_than_it_has(saved: Path, tmp_path: Path) -> None:
    rewrite(saved, tmp_path / "lie.pt", lambda name, data: data.replace(b"K\x04tq", b"M\x00\x40tq"))
    assert refused(tmp_path / "lie.pt")


@pytest.mark.parametrize("options", [{}, LEGACY])
@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(10**6, 10**6), torch.zeros(1).expand(10**12), torch.zeros(2)[:, None].expand(2, 10**9)],
)
def test_a_tensor_larger_than_its_file(tmp_path: Path, tensor: torch.Tensor, options: dict[str, bool]) -> None:
    torch.save({"a": tensor}, tmp_path / "a.pt", **options)
    assert "declare" in refused(tmp_path / "a.pt")


def test_tied_tensors_are_no_lie(tmp_path: Path) -> None:
    base = torch.randn(100)
    torch.save({"a": base, "b": base, "c": base[:50]}, tmp_path / "a.pt")
    assert weights.read(str(tmp_path / "a.pt")).keys() == {"a", "b", "c"}


@pytest.mark.parametrize("options", [{}, LEGACY])
@pytest.mark.parametrize(
    "tensor",
    [
        torch.eye(3).to_sparse(),
        torch.zeros(3, device="meta"),
    ],
    ids=["sparse", "meta"],
)
def test_tensors_that_are_not_plain(tmp_path: Path, tensor: torch.Tensor, options: dict[str, bool]) -> None:
    torch.save({"a": tensor}, tmp_path / "a.pt", **options)
    assert refused(tmp_path / "a.pt")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("wrap", ["zip", "legacy", "pickle"])
def test_code(tmp_path: Path, wrap: str, protocol: int) -> None:
    path, mark = tmp_path / "a.pt", tmp_path / "mark"
    content = {"state_dict": {"a": torch.ones(1), "b": Opens(mark)}}
    if wrap == "pickle":
        path.write_bytes(pickle.dumps(content, protocol))
    else:
        torch.save(content, path, pickle_protocol=protocol, **(LEGACY if wrap == "legacy" else {}))
    refused(path)
    assert not mark.exists()
    if wrap == "pickle":
        pickle.loads(path.read_bytes())
        assert mark.exists(), "the file does run where it is let"


@pytest.mark.parametrize("options", [{}, LEGACY])
@pytest.mark.parametrize(
    "call",
    [Calls(bytearray, 10**10), Calls(torch.Tensor, 10**10), Calls(set, ("a",))],
    ids=["bytearray", "tensor", "set"],
)
def test_functions_that_plain_tensors_do_not_need(tmp_path: Path, call: Calls, options: dict[str, bool]) -> None:
    torch.save({"a": torch.ones(1), "b": call}, tmp_path / "a.pt", **options)
    call_, imports = f"weights.read({str(tmp_path / 'a.pt')!r})", "from ray_sisa import weights"
    kind, message = raised_by(call_, imports=imports, megabytes=512)
    assert (kind, "no part of plain tensors" in message) == ("ConfigError", True), message


def test_the_oldest_format_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with tarfile.open(tmp_path / "a.pt", "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            data = pickle.dumps(Opens(mark), 2)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    refused(tmp_path / "a.pt")
    assert not mark.exists()


@pytest.mark.parametrize("options", [{}, LEGACY])
def test_what_checkpoints_hold_beside_tensors(tmp_path: Path, options: dict[str, bool]) -> None:
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    content = {
        "epoch": 3,
        "state_dict": OrderedDict(network.state_dict()) | {"half": torch.ones(2, dtype=torch.bfloat16)},
        "optimizer": optimizer.state_dict(),
        "schedule": {"milestones": schedule.state_dict()["milestones"]},
        "kind": torch.float16,
        "size": torch.Size([1, 2]),
        "parameter": torch.nn.Parameter(torch.ones(1)),
    }
    torch.save(content, tmp_path / "a.pt", **options)
    assert weights.read(str(tmp_path / "a.pt")).keys() == {"weight", "bias", "half"}


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_devices(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"a{ending}").symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="is no regular file"):
        weights.read(str(tmp_path / f"a{ending}"))


@pytest.mark.parametrize("cut", [1, 10, 100, 500])
@pytest.mark.parametrize("options", [{}, LEGACY])
def test_truncated_files(tmp_path: Path, cut: int, options: dict[str, bool]) -> None:
    torch.save({"a": torch.arange(100.0)}, tmp_path / "a.pt", **options)
    (tmp_path / "a.pt").write_bytes((tmp_path / "a.pt").read_bytes()[:-cut])
    refused(tmp_path / "a.pt")


@pytest.mark.parametrize("options", [{}, LEGACY])
def test_strides_that_mean_nothing(tmp_path: Path, options: dict[str, bool]) -> None:
    """An axis of one element may have any stride: found by fuzzing."""
    torch.save({"a": torch.arange(80.0)[::40][:1]}, tmp_path / "a.pt", **options)
    (tensor,) = weights.read(str(tmp_path / "a.pt")).values()
    assert digest_tensors({"a": tensor}) == digest_tensors({"a": torch.zeros(1)})
