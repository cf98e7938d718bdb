"""Digests are of content in a canonical order: the names of everything hang on them."""

from __future__ import annotations

import math
from hashlib import blake2b
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_sisa.digests import canonical_json, derive_seed, digest_bytes, digest_json, digest_tensors

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(list(value))}
    return [reordered(v) for v in value] if isinstance(value, list) else value


# JSON.


@given(value=json_values)
def test_the_order_of_keys_does_not_matter(value: Any) -> None:
    assert canonical_json(value) == canonical_json(reordered(value))


def test_canonical_json_is_fixed_for_life() -> None:
    value = {"b": [1, 2.5, None, True, 1e-05], "a": 'é\n"', "": {}}
    assert canonical_json(value) == '{"":{},"a":"é\\n\\"","b":[1,2.5,null,true,1e-05]}'.encode()
    assert digest_json(value) == blake2b(canonical_json(value), digest_size=32).hexdigest()


@pytest.mark.parametrize(
    "value",
    [[1, 2], [2, 1], ["1", "2"], [12], "12", 12, [[1], 2], [1, [2]], {"1": 2}, [], {}, None, "", "null"],
    ids=str,
)
def test_other_values_have_other_digests(value: Any) -> None:
    others = [[1, 2], [2, 1], ["1", "2"], [12], "12", 12, [[1], 2], [1, [2]], {"1": 2}, [], {}, None, "", "null"]
    assert [o for o in others if digest_json(o) == digest_json(value)] == [value]


@pytest.mark.parametrize("value", [math.nan, math.inf, [-math.inf], {"a": math.nan}])
def test_what_has_no_json_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(value)


@given(data=st.binary(), cut=st.integers(0, 20))
def test_bytes_in_parts_are_the_bytes(data: bytes, cut: int) -> None:
    assert digest_bytes(data[:cut], memoryview(data)[cut:]) == digest_bytes(data)
    assert digest_bytes(data) == blake2b(data, digest_size=32).hexdigest()


# Tensors.


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "matrix": torch.rand(3, 4, generator=generator),
        "scalar": torch.tensor(3.5),
        "count": torch.tensor(7),
        "empty": torch.empty(0, 5),
        "half": torch.rand(5, generator=generator).bfloat16(),
        "flags": torch.tensor([True, False]),
        "images": torch.rand(2, 3, 4, 5, generator=generator),
    }


def test_the_order_of_tensors_does_not_matter() -> None:
    tensors = some_tensors()
    assert digest_tensors(dict(reversed(tensors.items()))) == digest_tensors(tensors)


def test_the_layout_in_memory_does_not_matter() -> None:
    tensors = some_tensors()
    wide = torch.zeros(3, 8)
    wide[:, ::2] = tensors["matrix"]
    same = tensors | {
        "images": tensors["images"].to(memory_format=torch.channels_last),
        "matrix": wide[:, ::2],
        "half": tensors["half"].clone().requires_grad_(),
    }
    assert digest_tensors(same) == digest_tensors(tensors)


@pytest.mark.parametrize("name", list(some_tensors()))
def test_each_tensor_counts(name: str) -> None:
    tensors = some_tensors()
    tensor = tensors[name]
    less = {n: t for n, t in tensors.items() if n != name}
    changes = [
        less,
        less | {f"{name}2": tensor},
        less | {name: tensor.reshape(1, *tensor.shape)},
        less | {name: tensor.to(torch.float64)},
    ]
    if tensor.numel():
        flipped = tensor.clone().reshape(-1)
        flipped.view(torch.uint8)[-1] ^= 1
        changes.append(less | {name: flipped.reshape(tensor.shape)})
    digests = {digest_tensors(t) for t in [tensors, *changes]}
    assert len(digests) == len(changes) + 1


def test_bits_count_and_not_values() -> None:
    assert digest_tensors({"x": torch.tensor([0.0])}) != digest_tensors({"x": torch.tensor([-0.0])})
    nan = torch.tensor([math.nan])
    assert digest_tensors({"x": nan}) == digest_tensors({"x": nan.clone()})


def test_exchanged_tensors_are_other_tensors() -> None:
    a, b = torch.tensor([1.0]), torch.tensor([2.0])
    assert digest_tensors({"a": a, "b": b}) != digest_tensors({"a": b, "b": a})
    assert digest_tensors({"a": torch.tensor([1.0, 2.0])}) != digest_tensors({"a": a, "b": b})
    assert digest_tensors({}) == digest_bytes()


def test_tensors_of_one_size_and_other_types() -> None:
    kinds = [torch.float32, torch.int32, torch.uint32]
    assert len({digest_tensors({"x": torch.zeros(4, dtype=kind)}) for kind in kinds}) == 3


# Arrays.


# Seeds.


@given(key=st.text(), purpose=st.text(max_size=10))
def test_seeds_are_what_a_generator_takes(key: str, purpose: str) -> None:
    seed = derive_seed(key, purpose)
    assert 0 <= seed < 2**63
    torch.Generator().manual_seed(seed)
    assert derive_seed(key, purpose) == seed


def test_no_two_uses_share_a_stream() -> None:
    purposes = ["initial", *(f"epoch-{i}" for i in range(200)), *(f"network-{i}" for i in range(200))]
    keys = [digest_json(i) for i in range(20)]
    assert len({derive_seed(key, purpose) for key in keys for purpose in purposes}) == len(keys) * len(purposes)


def test_seeds_are_fixed_for_life() -> None:
    # All weights hang on it.
    assert derive_seed("key", "epoch-0") == 818683082446748398
