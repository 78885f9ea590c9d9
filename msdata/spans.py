"""Where each sample's arrays lie, kept small: a 4.3-million-row index must fit beside the ring.

In a tar the arrays of a record stand at fixed distances, in a contiguous HDF5 shard at distances
that grow by a constant from sample to sample. So one offset a sample and two numbers a shard and
array say it all; where they do not, all offsets are kept.
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
        first: int64 (samples,), offset of the first array.
        start: int64 (shards,), first sample of each shard.
        distance: int64 (shards, arrays), offset of each array less the first's, in sample 0.
        growth: int64 (shards, arrays), by how much that changes from sample to sample.
        full: int64 (samples, arrays) where `distance` and `growth` do not describe the offsets.
    """

    first: NDArray[np.int64]
    start: NDArray[np.int64]
    distance: NDArray[np.int64]
    growth: NDArray[np.int64]
    full: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.first)

    def shards(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Position in the split's list of the shard of each sample, int64 (n,)."""
        return np.searchsorted(self.start, samples, side="right") - 1

    def offsets(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Offsets of the arrays of some samples.

        Args:
            samples: int64 (n,), numbers within the split.

        Returns:
            int64 (n, arrays).
        """
        if self.full is not None:
            return self.full[samples]
        shard = self.shards(samples)
        position = (samples - self.start[shard])[:, None]
        return self.first[samples][:, None] + self.distance[shard] + self.growth[shard] * position


def make_spans(
    shard_sizes: NDArray[np.int64], num_arrays: int, read: Callable[[int], NDArray[np.int64]]
) -> Spans:
    """Spans from the index's columns, read one at a time to keep memory low.

    Args:
        shard_sizes: int64 (shards,), samples of each shard, none of them empty.
        num_arrays: arrays of a sample.
        read: gives the int64 (samples,) offsets of array number a.
    """
    start = np.cumsum(shard_sizes) - shard_sizes
    first = read(0)
    distance = np.zeros((len(shard_sizes), num_arrays), np.int64)
    growth = np.zeros_like(distance)
    is_affine = True
    for a in range(1, num_arrays):
        column = read(a)
        for shard, (begin, size) in enumerate(zip(start, shard_sizes, strict=True)):
            relative = column[begin : begin + size] - first[begin : begin + size]
            distance[shard, a] = relative[0]
            growth[shard, a] = relative[1] - relative[0] if size > 1 else 0
            expected = distance[shard, a] + growth[shard, a] * np.arange(size)
            is_affine = is_affine and bool(np.array_equal(expected, relative))
    full = None if is_affine else np.stack([read(a) for a in range(num_arrays)], axis=1)
    return Spans(first=first, start=start, distance=distance, growth=growth, full=full)


def constant_gaps(schema: Schema, spans: Spans) -> list[int] | None:
    """Bytes between one array of a sample and the next, where they are the same for all samples.

    Returns:
        int (arrays - 1,); None where they differ, or where an array does not follow the one before.
    """
    if spans.full is not None or not len(spans) or bool(spans.growth.any()):
        return None
    sizes = np.array([a.nbytes for a in schema.arrays], np.int64)
    gaps = spans.distance[:, 1:] - (spans.distance[:, :-1] + sizes[:-1])
    if bool((gaps < 0).any()) or bool((gaps != gaps[:1]).any()):
        return None
    return [int(gap) for gap in gaps[0]]
