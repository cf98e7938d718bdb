"""BLAKE2b-256 digests of JSON values and tensors: the names of everything in a store.

Digests are of content in a canonical order, never of container files. A seal is the digest of a record's own bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

END = b"\n}"
SEAL = b',\n "checksum": "%s"'


def canonical_json(value: Any) -> bytes:
    """`value` as JSON with sorted keys and no spaces, in UTF-8; NaN and infinities are refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_bytes(*parts: bytes | memoryview) -> str:
    """BLAKE2b-256 of the concatenation of `parts`, in hexadecimal."""
    state = blake2b(digest_size=32)
    for part in parts:
        state.update(part)
    return state.hexdigest()


def digest_json(value: Any) -> str:
    """BLAKE2b-256 of the canonical JSON of `value`, in hexadecimal."""
    return digest_bytes(canonical_json(value))


def digest_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Digest of named tensors, in the order of their names: name, dtype, shape and bytes of each."""
    return digest_bytes(*_tensor_parts(tensors))


def _tensor_parts(tensors: Mapping[str, torch.Tensor]) -> Iterable[bytes | memoryview]:
    import torch

    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        yield canonical_json([name, str(tensor.dtype), list(tensor.shape)])
        # One element may have any stride and be contiguous, but not be viewed as bytes.
        flat = tensor.reshape(-1)
        flat = flat.clone(memory_format=torch.contiguous_format) if len(flat) == 1 else flat
        yield flat.view(torch.uint8).numpy().data


def seal(record: bytes) -> bytes:
    """A JSON object over several lines, with the digest of its bytes as one more field: no byte changes unnoticed."""
    return record.removesuffix(END) + SEAL % digest_bytes(record).encode() + END


def unseal(sealed: bytes) -> bytes:
    """The record that was sealed.

    Raises:
        ValueError: it is not what was sealed.
    """
    record = sealed[: -len(SEAL % bytes(64)) - len(END)] + END
    if seal(record) != sealed:
        raise ValueError("its bytes are not those that its checksum was taken of")
    return record


def derive_seed(key: str, purpose: str) -> int:
    """A 63-bit seed for one `purpose` of the stage named `key`, so that no two uses share a random stream."""
    return int.from_bytes(blake2b(f"{key}/{purpose}".encode(), digest_size=8).digest(), "big") >> 1
