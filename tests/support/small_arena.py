"""A split of twelve records of several lengths, of which a node keeps two shards."""

from __future__ import annotations

import numpy as np

from msdata.cache.config import CachedSplit, Owners
from msdata.core.checksum import crc32c

SIZES = np.array([3, 4, 5])
NBYTES = np.array([100, 7, 64, 31, 100, 1, 9, 100, 55, 4096, 2, 100])
RECORDS = [
    np.random.default_rng(n).integers(0, 256, nbytes, dtype=np.uint8)
    for n, nbytes in enumerate(NBYTES)
]
SPLIT = CachedSplit(
    fingerprint="f" * 16,
    name="train",
    record_nbytes=NBYTES,
    shard_sizes=SIZES,
    checksums=np.array([crc32c(record) for record in RECORDS], np.uint32),
)


def own(memory_nbytes: int, ssd_nbytes: int) -> Owners:
    """The first shard is another node's, the others are ours."""
    return np.array([1, 0, 0], np.int32), np.zeros(3, np.int8)
