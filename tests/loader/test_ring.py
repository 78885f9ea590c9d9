"""Batch buffers: aligned, apart from each other, and as many as the promise to the user takes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from msdata.loader.options import RingSize
from msdata.loader.ring import (
    BatchBuffer,
    array_starts,
    make_ring,
)
from msdata.schema import MANTIS_SHRIMP, Schema, Survey

shapes = st.lists(st.integers(1, 9), max_size=3).map(tuple)
dtypes = st.sampled_from(["<f4", "<f8", "<i2", "|u1", "<c8", "|b1"])
schemas = st.lists(st.tuples(shapes, dtypes), min_size=1, max_size=4).map(
    lambda arrays: Schema(
        name="any",
        arrays=tuple(
            Survey(name=f"array{i}", shape=shape, dtype=dtype)
            for i, (shape, dtype) in enumerate(arrays)
        ),
    )
)


@given(schema=schemas, batch_size=st.integers(1, 40))
def test_arrays_begin_on_pages_and_do_not_overlap(schema, batch_size) -> None:
    starts = array_starts(schema, batch_size)
    assert all(start % 4096 == 0 for start in starts)
    ends = [s + batch_size * a.nbytes for s, a in zip(starts, schema.arrays, strict=False)]
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=True))
    assert starts[-1] % (2 << 20) == 0
    assert starts[-1] - ends[-1] < (2 << 20) + 4096
    size = RingSize(schema=schema, num_rows=batch_size, num_buffers=3)
    assert size.nbytes == 3 * starts[-1]


@given(schema=schemas, batch_size=st.integers(1, 20), gap=st.sampled_from([None, 0, 3, 512]))
def test_a_read_fills_one_sample_of_every_array(schema, batch_size, gap) -> None:
    gaps = None if gap is None else [gap] * (len(schema.arrays) - 1)
    buffer = BatchBuffer(schema, batch_size, gaps)
    per_sample = len(schema.arrays) if gaps is None else 1
    assert len(buffer.targets) == batch_size * per_sample
    for i in range(batch_size):
        for target in buffer.targets[i * per_sample : (i + 1) * per_sample]:
            for part in target:
                if isinstance(part, np.ndarray):
                    part[:] = i % 2
    for survey, addresses in zip(schema.arrays, buffer.addresses.T, strict=True):
        array = buffer.arrays[survey.name]
        assert array.shape == (batch_size, *survey.shape)
        assert array.dtype == survey.numpy_dtype
        assert array.flags.c_contiguous
        assert [row.ctypes.data for row in np.atleast_2d(array.reshape(batch_size, -1))] == (
            addresses.tolist()
        )
        raw = array.reshape(batch_size, -1).view(np.uint8)
        assert (raw == (np.arange(batch_size) % 2)[:, None]).all()


def test_a_ring_is_handed_out_by_the_kernel_before_the_first_batch() -> None:
    ring = make_ring(MANTIS_SHRIMP, 4, 3, None)
    addresses = {b.arrays["panstarrs"].ctypes.data for b in ring}
    assert len(addresses) == len(ring) == 3
    assert sum(b.nbytes for b in ring) == 3 * array_starts(MANTIS_SHRIMP, 4)[-1]
    for buffer in ring:
        assert all(not array.any() for array in buffer.arrays.values())


def test_a_short_batch_is_the_beginning_of_its_buffer() -> None:
    buffer = BatchBuffer(MANTIS_SHRIMP, 4)
    arrays = buffer.lend(3)
    assert arrays["galex"].shape == (3, 2, 32, 32)
    assert np.shares_memory(arrays["galex"], buffer.arrays["galex"])


def test_arrays_outlive_their_buffer() -> None:
    arrays = BatchBuffer(MANTIS_SHRIMP, 4).lend(4)
    arrays["unwise"][:] = 7
    assert (arrays["unwise"] == 7).all()


def test_pages_that_a_gpu_may_have_locked_are_not_shared_with_a_forked_process() -> None:
    buffer = BatchBuffer(MANTIS_SHRIMP, 4)
    start, is_inside, flags = buffer.arrays["galex"].ctypes.data, False, []
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if (found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)) is not None:
            is_inside = int(found[1], 16) <= start < int(found[2], 16)
        elif is_inside and line.startswith("VmFlags:"):
            flags = line.split()[1:]
    assert "dc" in flags, flags
