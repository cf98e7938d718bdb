"""The index of a shard: slice digests without samples, and bytes that may be damaged."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_sisa.errors import StoreError
from ray_sisa.index import (
    ShardIndex,
    SliceSummary,
    digest_rows,
    index_from_bytes,
    index_to_bytes,
    slice_digest,
    table_from_bytes,
)
from ray_sisa.samples import Samples, make_samples
from ray_sisa.slices import digest_of_slice, index_shard, sort_by_id

MakeSamples = Callable[..., Samples]
NUM_SLICES = 4
SHAPES = [(8, 8, 1), (2, 3, 3), (5,)]


@pytest.fixture(params=SHAPES, ids=str)
def shard(request: pytest.FixtureRequest, random_samples: MakeSamples) -> tuple[Samples, np.ndarray]:
    """20 samples and the slice of each; slice 3 is empty."""
    slices = np.random.default_rng(1).choice([1, 2, 4], 20).astype(np.int32)
    return random_samples(20, request.param), slices


def test_the_index_is_sorted_by_slice_then_id(shard: tuple[Samples, np.ndarray]) -> None:
    samples, slices = shard
    index, ordered = index_shard(samples, slices)
    given_slices = dict(zip(samples.ids.to_pylist(), slices.tolist(), strict=True))
    rows = [*zip(index.slices.tolist(), index.ids.to_pylist(), strict=True)]
    assert rows == sorted((r, i) for i, r in given_slices.items())
    assert ordered.ids.equals(index.ids)
    assert (index.row_digests == digest_rows(ordered)).all()
    for number in range(1, NUM_SLICES + 1):
        assert index.sample_ids(number) == sorted(i for i, r in given_slices.items() if r == number)


def test_ids_sort_as_text_and_not_by_locale_or_number() -> None:
    ids = ["b", "a10", "a2", "B", "é", "", "漢", "a"]
    samples = make_samples(ids=ids, images=np.zeros((8, 1), np.float32), labels=[0] * 8)
    index, _ = index_shard(samples, np.ones(8, np.int32))
    assert index.ids.to_pylist() == sort_by_id(samples).ids.to_pylist() == sorted(ids)


def test_summaries_are_the_digests_of_the_slices(shard: tuple[Samples, np.ndarray]) -> None:
    samples, slices = shard
    index, _ = index_shard(samples, slices)
    for number, summary in enumerate(index.summaries(NUM_SLICES, samples.shape), 1):
        rows = np.flatnonzero(slices == number)
        alone = digest_of_slice(sort_by_id(samples.take(rows)))
        assert summary == SliceSummary(digest=alone, num_samples=len(rows))
        assert (summary.digest is None) == (number == 3)


@given(order=st.permutations(range(20)))
def test_the_order_of_input_does_not_matter(random_samples: MakeSamples, order: list[int]) -> None:
    samples, slices = random_samples(20), np.arange(20, dtype=np.int32) % NUM_SLICES + 1
    rows = np.array(order)
    index, shuffled = index_shard(samples, slices)[0], index_shard(samples.take(rows), slices[rows])[0]
    assert index_to_bytes(index) == index_to_bytes(shuffled)


# Without the deleted.


@given(deleted=st.sets(st.integers(0, 30)))
def test_without_is_as_if_they_had_never_been(random_samples: MakeSamples, deleted: set[int]) -> None:
    samples, slices = random_samples(20), np.arange(20, dtype=np.int32) % NUM_SLICES + 1
    index, _ = index_shard(samples, slices)
    left = np.array([i for i in range(20) if i not in deleted], dtype=np.int64)
    never, _ = index_shard(samples.take(left), slices[left])
    smaller = index.without({f"sample-{i}" for i in deleted})
    assert index_to_bytes(smaller) == index_to_bytes(never)
    assert smaller.summaries(NUM_SLICES, samples.shape) == never.summaries(NUM_SLICES, samples.shape)
    touched = {i % NUM_SLICES for i in deleted if i < 20}
    before, after = (x.summaries(NUM_SLICES, samples.shape) for x in (index, smaller))
    assert {n for n in range(NUM_SLICES) if before[n] != after[n]} == touched


def test_without_all_is_empty(shard: tuple[Samples, np.ndarray]) -> None:
    samples, slices = shard
    index, _ = index_shard(samples, slices)
    empty = index.without(set(samples.ids.to_pylist()))
    assert empty.summaries(NUM_SLICES, samples.shape) == (SliceSummary(digest=None, num_samples=0),) * NUM_SLICES
    again = index_from_bytes(index_to_bytes(empty), "empty")
    assert (len(again.ids), again.row_digests.shape) == (0, (0, 32))
    assert index.without(set()) is index


# Rows.


def test_a_row_is_its_id_label_and_pixels(shard: tuple[Samples, np.ndarray]) -> None:
    samples, _ = shard
    rows = digest_rows(samples)
    assert rows.shape == (20, 32)
    assert len(np.unique(rows, axis=0)) == 20
    assert (digest_rows(samples.take(np.arange(20)[::-1])) == rows[::-1]).all()
    others = make_samples(ids=samples.ids, images=samples.images, labels=samples.labels, subjects=["somebody"] * 20)
    assert (digest_rows(others) == rows).all()


def test_a_row_does_not_hang_on_memory_layout(shard: tuple[Samples, np.ndarray]) -> None:
    samples, _ = shard
    fortran = make_samples(ids=samples.ids, images=np.asfortranarray(samples.images), labels=samples.labels)
    assert (digest_rows(fortran) == digest_rows(samples)).all()


def test_a_slice_digest_knows_shape_and_number() -> None:
    rows = np.arange(64, dtype=np.uint8).reshape(2, 32)
    digests = [slice_digest(rows, shape) for shape in [(8, 8, 1), (8, 1, 8), (64,)]]
    digests += [slice_digest(rows[:1], (8, 8, 1)), slice_digest(rows[::-1], (8, 8, 1))]
    assert len(set(digests)) == 5
    assert slice_digest(rows[:0], (8, 8, 1)) is None


# Bytes.


def test_round_trip(shard: tuple[Samples, np.ndarray]) -> None:
    index, _ = index_shard(*shard)
    data = index_to_bytes(index)
    again = index_from_bytes(data, "index")
    assert (again.slices == index.slices).all()
    assert again.ids.equals(index.ids)
    assert again.subjects.equals(index.subjects)
    assert (again.row_digests == index.row_digests).all()
    assert index_to_bytes(again) == data


@pytest.fixture
def stored(random_samples: MakeSamples) -> bytes:
    index, _ = index_shard(random_samples(6), np.array([1, 2, 1, 2, 3, 3], np.int32))
    return index_to_bytes(index)


def test_truncation_is_found(stored: bytes) -> None:
    for size in range(len(stored)):
        with pytest.raises(StoreError, match="is not a valid Arrow file"):
            index_from_bytes(stored[:size], "there")


@pytest.mark.parametrize(
    "data", [b"", b"garbage", b"ARROW1\0\0", b"\0" * 4096, b"ARROW1\0\0" + b"\xff" * 512 + b"ARROW1"]
)
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(StoreError, match="is not a valid Arrow file") as caught:
        table_from_bytes(data, "s3://bucket/there")
    assert caught.value.field == "s3://bucket/there"
    assert "backup" in caught.value.remedy


def test_another_table_is_no_index(random_samples: MakeSamples) -> None:
    from ray_sisa.slices import slice_to_bytes

    with pytest.raises(StoreError, match="is not the index of a shard"):
        index_from_bytes(slice_to_bytes(random_samples(3)), "there")


FLIP_EVERY_BYTE = """
import sys
from ray_sisa.errors import StoreError
from ray_sisa.index import index_from_bytes

data = sys.stdin.buffer.read()
for position in range(len(data)):
    damaged = bytearray(data)
    damaged[position] ^= 0x80
    try:
        index = index_from_bytes(bytes(damaged), "there")
        index.without({"sample-1"}).summaries(3, (8, 8, 1))
        index.ids.to_pylist(), index.subjects.to_pylist()
    except StoreError:
        pass
print("survived")
"""


def test_a_flipped_byte_never_crashes(stored: bytes) -> None:
    """In a process of its own: what is read past the end of a buffer may end it."""
    done = subprocess.run([sys.executable, "-c", FLIP_EVERY_BYTE], input=stored, capture_output=True)
    assert done.stdout == b"survived\n", done.stderr[-2000:].decode()


def test_an_index_is_of_plain_values(stored: bytes) -> None:
    index = index_from_bytes(stored, "there")
    assert isinstance(index, ShardIndex)
    assert (index.slices.dtype, index.row_digests.dtype) == (np.int32, np.uint8)
