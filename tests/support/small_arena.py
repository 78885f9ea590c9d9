"""A split of twelve records, of which a node keeps two shards: enough for an arena."""

from __future__ import annotations

import numpy as np

from msdata.cache.config import CachedSplit, Owners
from msdata.core.checksum import crc32c

NBYTES = 100
SIZES = np.array([3, 4, 5])
RECORDS = np.random.default_rng(0).integers(0, 256, (12, NBYTES), dtype=np.uint8)
SPLIT = CachedSplit(
    fingerprint="f" * 16,
    name="train",
    record_nbytes=np.full(12, NBYTES),
    shard_sizes=SIZES,
    checksums=np.array([crc32c(record) for record in RECORDS], np.uint32),
)


def own(memory_nbytes: int, ssd_nbytes: int) -> Owners:
    """The first shard is another node's, the others are ours."""
    return np.array([1, 0, 0], np.int32), np.zeros(3, np.int8)
