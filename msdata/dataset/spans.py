"""Compact places of all samples' arrays: those of 4.3 million samples must fit beside the ring.

The offset of an array grows by a constant from sample to sample in a contiguous HDF5 shard, and in
a tar whose JSON members take equally many blocks, as they nearly always do. So `Spans` keeps two
numbers per shard and array; if the records of a tar differ in length, also one offset per sample;
and all offsets if even that does not describe them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msdata.schema import Schema


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Places of the samples of one split.

    Attributes:
        num_samples: samples.
        start: int64 (shards,), first sample of each shard.
        distance: int64 (shards, arrays), offset of each array in the shard's sample 0; less the
            first array's where `first` is kept.
        growth: int64 (shards, arrays), growth of that offset from sample to sample.
        first: int64 (samples,), offset of the first array, unless its growth is constant.
        full: int64 (samples, arrays), all offsets, unless the growth within samples is constant.
    """

    num_samples: int
    start: NDArray[np.int64]
    distance: NDArray[np.int64]
    growth: NDArray[np.int64]
    first: NDArray[np.int64] | None = None
    full: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return self.num_samples

    def shards(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the position of each sample's shard in the split's list, int64 (n,)."""
        return np.searchsorted(self.start, samples, side="right") - 1

    def offsets(
        self, samples: NDArray[np.int64], shards: NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """Returns the offsets of the arrays of some samples.

        Args:
            samples: int64 (n,), numbers within the split.
            shards: result of `shards` for them, if known.

        Returns:
            int64 (n, arrays).
        """
        if self.full is not None:
            return self.full[samples]
        shard = self.shards(samples) if shards is None else shards
        position = (samples - self.start[shard])[:, None]
        offsets = self.distance[shard] + self.growth[shard] * position
        if self.first is not None:
            offsets += self.first[samples][:, None]
        return offsets


def make_spans(
    shard_sizes: NDArray[np.int64], num_arrays: int, read: Callable[[int], NDArray[np.int64]]
) -> Spans:
    """Makes spans from the index's columns, read one by one to keep memory low.

    Args:
        shard_sizes: int64 (shards,), samples of each shard.
        num_arrays: arrays of a sample.
        read: returns the int64 (samples,) offsets of array number a.
    """
    start = np.cumsum(shard_sizes) - shard_sizes
    num_samples = int(shard_sizes.sum())
    distance = np.zeros((len(shard_sizes), num_arrays), np.int64)
    growth = np.zeros_like(distance)
    first = read(0) if num_arrays else np.zeros(num_samples, np.int64)
    is_first_affine = _fit(first, start, shard_sizes, (distance[:, 0], growth[:, 0]))
    if not is_first_affine:
        distance[:, 0] = growth[:, 0] = 0
    is_affine = True
    for a in range(1, num_arrays):
        column = read(a)
        if not is_first_affine:
            column -= first
        is_affine = is_affine and _fit(column, start, shard_sizes, (distance[:, a], growth[:, a]))
    full = None if is_affine else np.stack([read(a) for a in range(num_arrays)], axis=1)
    kept = None if is_first_affine or full is not None else first
    return Spans(
        num_samples=num_samples,
        start=start,
        distance=distance,
        growth=growth,
        first=kept,
        full=full,
    )


def outside(
    offsets: NDArray[np.int64],
    shard_sizes: NDArray[np.int64],
    shard_nbytes: NDArray[np.int64],
    nbytes: int | NDArray[np.int64],
) -> tuple[int, int] | None:
    """Finds the first shard that an array exceeds, and an offset that shows so.

    Args:
        offsets: int64 (samples,), offset of the array, shard by shard.
        shard_sizes: int64 (shards,), samples of each.
        shard_nbytes: int64 (shards,), bytes of each.
        nbytes: bytes of the array; int64 (samples,) if they differ.

    Returns:
        (shard, offset); None if all arrays lie inside.
    """
    most = np.repeat(shard_nbytes, shard_sizes) - nbytes
    bad = np.flatnonzero((offsets < 0) | (offsets > most))
    if not len(bad):
        return None
    row = int(bad[0])
    return int(np.searchsorted(np.cumsum(shard_sizes), row, side="right")), int(offsets[row])


def _fit(
    column: NDArray[np.int64],
    start: NDArray[np.int64],
    sizes: NDArray[np.int64],
    out: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> bool:
    """Writes each shard's first value and growth; returns whether they describe all values."""
    distance, growth = out
    for shard, (begin, size) in enumerate(zip(start.tolist(), sizes.tolist(), strict=True)):
        values = column[begin : begin + size]
        distance[shard] = values[0] if size else 0
        growth[shard] = values[1] - values[0] if size > 1 else 0
        expected = distance[shard] + growth[shard] * np.arange(size)
        if not np.array_equal(expected, values):
            return False
    return True


def constant_gaps(schema: Schema, spans: Spans) -> list[int] | None:
    """Returns the bytes between a sample's arrays, if they are equal for all samples.

    Returns:
        int (arrays - 1,); None if they differ, or if the arrays of a sample are not in order.
    """
    if spans.full is not None or not len(spans):
        return None
    if bool((spans.growth != spans.growth[:, :1]).any()):
        return None
    sizes = np.array([a.nbytes for a in schema.arrays], np.int64)
    gaps = spans.distance[:, 1:] - (spans.distance[:, :-1] + sizes[:-1])
    if bool((gaps < 0).any()) or bool((gaps != gaps[:1]).any()):
        return None
    return [int(gap) for gap in gaps[0]]
