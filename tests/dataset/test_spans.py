"""Offsets come out of their short form as they went in, whatever they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msdata.dataset.spans import constant_gaps, make_spans
from msdata.schema import Schema, Survey

sizes_of_shards = st.lists(st.integers(0, 9), min_size=0, max_size=6)
starts = st.integers(0, 2**45)
growths = st.integers(0, 2**21)


def spans_of(offsets: np.ndarray, sizes: list[int]):
    def read(array: int) -> np.ndarray:
        return offsets[:, array].copy()

    return make_spans(np.array(sizes, np.int64), offsets.shape[1], read)


def affine_offsets(data, sizes: list[int], num_arrays: int) -> np.ndarray:
    """Each array of each shard grows by a constant of its own."""
    rows = [
        np.array(
            [
                data.draw(starts) + data.draw(growths) * np.arange(size, dtype=np.int64)
                for _ in range(num_arrays)
            ]
        ).T
        for size in sizes
    ]
    return np.concatenate([np.zeros((0, num_arrays), np.int64), *rows])


def assert_gives(spans, offsets: np.ndarray, sizes: list[int], data) -> None:
    count = len(offsets)
    assert len(spans) == count
    numbers = st.integers(0, max(count - 1, 0))
    samples = np.array(data.draw(st.lists(numbers, max_size=20 if count else 0)), np.int64)
    found = spans.offsets(samples)
    assert found.dtype == np.int64
    assert found.shape == (len(samples), offsets.shape[1])
    np.testing.assert_array_equal(found, offsets[samples])
    of_sample = np.repeat(np.arange(len(sizes)), sizes)
    np.testing.assert_array_equal(spans.shards(samples), of_sample[samples])


@given(data=st.data(), sizes=sizes_of_shards, num_arrays=st.integers(1, 4))
def test_offsets_that_grow_evenly_are_kept_as_two_numbers(data, sizes, num_arrays) -> None:
    offsets = affine_offsets(data, sizes, num_arrays)
    spans = spans_of(offsets, sizes)
    assert spans.first is None
    assert spans.full is None
    assert_gives(spans, offsets, sizes, data)


@given(data=st.data(), sizes=sizes_of_shards, num_arrays=st.integers(1, 4))
def test_records_of_uneven_length_keep_one_offset_a_sample(data, sizes, num_arrays) -> None:
    lengths = data.draw(
        st.lists(st.integers(1, 2**20), min_size=sum(sizes), max_size=sum(sizes)).map(np.array)
    )
    ends = np.cumsum(lengths.astype(np.int64))
    distances = np.cumsum(data.draw(st.lists(starts, min_size=num_arrays, max_size=num_arrays)))
    offsets = (ends - lengths)[:, None] + distances[None, :].astype(np.int64)
    spans = spans_of(offsets.reshape(-1, num_arrays), sizes)
    assert spans.full is None
    assert_gives(spans, offsets, sizes, data)


@given(data=st.data(), sizes=sizes_of_shards, num_arrays=st.integers(1, 4))
def test_any_other_offsets_are_kept_as_they_are(data, sizes, num_arrays) -> None:
    row = st.lists(starts, min_size=num_arrays, max_size=num_arrays)
    rows = data.draw(st.lists(row, min_size=sum(sizes), max_size=sum(sizes)))
    offsets = np.array(rows, np.int64).reshape(-1, num_arrays)
    assert_gives(spans_of(offsets, sizes), offsets, sizes, data)


NUMS_PIXELS = {"a": 50, "b": 20, "c": 10}
SCHEMA = Schema(
    name="three",
    arrays=tuple(Survey(name=n, shape=(size,), dtype="<i2") for n, size in NUMS_PIXELS.items()),
)


@pytest.mark.parametrize("step", [300, [300, 900, 300, 300]])
def test_gaps_between_arrays_are_known_where_all_samples_have_the_same(step) -> None:
    begins = np.cumsum(np.broadcast_to(step, 4))
    offsets = begins[:, None] + np.array([0, 110, 160])
    assert constant_gaps(SCHEMA, spans_of(offsets, [3, 1])) == [10, 10]
    assert constant_gaps(SCHEMA, spans_of(offsets, [4])) == [10, 10]


@pytest.mark.parametrize(
    "distances",
    [
        [[0, 110, 160], [0, 110, 164]],  # differ between shards
        [[0, 90, 160], [0, 90, 160]],  # overlap
        [[200, 0, 50], [200, 0, 50]],  # out of order
    ],
)
def test_there_are_no_gaps_where_one_read_would_not_do(distances) -> None:
    offsets = np.array([1000, 2000])[:, None] + np.array(distances)
    assert constant_gaps(SCHEMA, spans_of(offsets, [1, 1])) is None


def test_there_are_no_gaps_in_arrays_stored_apart() -> None:
    offsets = np.array([0, 10**6, 2 * 10**6]) + np.arange(5)[:, None] * np.array([100, 40, 20])
    spans = spans_of(offsets, [5])
    assert spans.first is None
    assert constant_gaps(SCHEMA, spans) is None


def test_a_split_of_no_samples_has_no_gaps() -> None:
    assert constant_gaps(SCHEMA, spans_of(np.zeros((0, 3), np.int64), [])) is None
