"""Where each sample's arrays lie, kept small: a 4.3-million-row index must fit beside the ring.

In a tar the arrays of a record stand at fixed distances, in a contiguous HDF5 shard at distances
that grow by a constant from sample to sample. So one offset a sample and two numbers a shard and
array say it all; where they do not, all offsets are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msdata.schema import Schema


@dataclass(frozen=True, kw_only=True)
class Spans:
    """Places of the samples of one split.

    Attributes:
        shard: int32 (samples,), position of each sample's shard in the split's list.
        first: int64 (samples,), offset of the first array.
        start: int64 (shards,), first sample of each shard.
        distance: int64 (shards, arrays), offset of each array less the first's, in sample 0.
        growth: int64 (shards, arrays), by how much that changes from sample to sample.
        full: int64 (samples, arrays) where `distance` and `growth` do not describe the offsets.
    """

    shard: NDArray[np.int32]
    first: NDArray[np.int64]
    start: NDArray[np.int64]
    distance: NDArray[np.int64]
    growth: NDArray[np.int64]
    full: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.shard)

    def offsets(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """Offsets of the arrays of some samples.

        Args:
            samples: int64 (n,), numbers within the split.

        Returns:
            int64 (n, arrays).
        """
        if self.full is not None:
            return self.full[samples]
        shard = self.shard[samples]
        position = (samples - self.start[shard])[:, None]
        return self.first[samples][:, None] + self.distance[shard] + self.growth[shard] * position


def make_spans(
    shard: NDArray[np.int32], offsets: list[NDArray[np.int64]], num_shards: int
) -> Spans:
    """Spans from the index's columns.

    Args:
        shard: int32 (samples,), ascending.
        offsets: one int64 (samples,) an array, in the schema's order.
        num_shards: shards of the split.
    """
    sizes = np.bincount(shard, minlength=num_shards)
    start = np.cumsum(sizes) - sizes
    first = offsets[0]
    distance = np.zeros((num_shards, len(offsets)), np.int64)
    growth = np.zeros_like(distance)
    filled = np.flatnonzero(sizes)
    second = start[filled] + (sizes[filled] > 1)
    is_affine = True
    for a, column in enumerate(offsets):
        relative = column - first
        distance[filled, a] = relative[start[filled]]
        growth[filled, a] = relative[second] - relative[start[filled]]
        expected = np.repeat(distance[:, a], sizes)
        position = np.arange(len(shard)) - np.repeat(start, sizes)
        expected += position * np.repeat(growth[:, a], sizes)
        is_affine = is_affine and bool(np.array_equal(expected, relative))
    return Spans(
        shard=shard,
        first=first,
        start=start,
        distance=distance,
        growth=growth,
        full=None if is_affine else np.stack(offsets, axis=1),
    )


def is_one_piece(schema: Schema, spans: Spans, max_gap_nbytes: int) -> bool:
    """Whether every sample's arrays follow each other with constant small gaps."""
    if spans.full is not None or not len(spans) or bool(spans.growth.any()):
        return False
    sizes = np.array([a.nbytes for a in schema.arrays], np.int64)
    gaps = spans.distance[:, 1:] - (spans.distance[:, :-1] + sizes[:-1])
    return bool(((gaps >= 0) & (gaps <= max_gap_nbytes) & (gaps == gaps[:1])).all())
