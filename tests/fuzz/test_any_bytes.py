"""Arbitrary bytes, and valid objects flipped, cut and spliced: only errors raised on purpose come out of any parser."""

from __future__ import annotations

import functools

import pytest
import targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

NAMES = list(targets.TARGETS)


@functools.cache
def examples(target: str) -> list[bytes]:
    return targets.examples(target)


@pytest.mark.parametrize("target", NAMES)
def test_valid_bytes_are_taken(target: str) -> None:
    """So that the tests below start from what a parser does read."""
    for example in examples(target):
        targets.TARGETS[target](example)


@pytest.mark.parametrize("target", NAMES)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.binary(max_size=2000))
def test_any_bytes(target: str, data: bytes) -> None:
    targets.survives(target, data)


@pytest.mark.parametrize("target", NAMES)
@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_damaged_objects(target: str, data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(examples(target))))
    for _ in range(data.draw(st.integers(1, 4))):
        where = data.draw(st.integers(0, len(content)))
        change = data.draw(st.sampled_from(["flip", "cut", "repeat", "insert", "splice", "number"]))
        if change == "flip" and where < len(content):
            content[where] ^= 1 << data.draw(st.integers(0, 7))
        elif change == "cut":
            del content[where : where + data.draw(st.integers(1, 100))]
        elif change == "repeat":
            content[where:where] = content[where : where + data.draw(st.integers(1, 100))]
        elif change == "insert":
            content[where:where] = data.draw(st.binary(min_size=1, max_size=20))
        elif change == "splice":
            other = data.draw(st.sampled_from(examples(target)))
            content[where:] = other[data.draw(st.integers(0, len(other))) :]
        elif change == "number":
            size = data.draw(st.sampled_from([1, 2, 4, 8]))
            content[where : where + size] = data.draw(st.sampled_from([b"\xff", b"\x7f", b"\x00", b"\x80"])) * size
    targets.survives(target, bytes(content))
