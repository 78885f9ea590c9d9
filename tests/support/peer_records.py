"""The records that the contract suite of the transports sends between nodes."""

from __future__ import annotations

import numpy as np

from msdata.cache.config import CachedSplit
from msdata.core.checksum import crc32c

RECORDS = np.random.default_rng(1).integers(0, 256, (20, 5000), dtype=np.uint8)
RECORDS.setflags(write=False)


def cached_records() -> CachedSplit:
    """Them as a split of one shard a sample."""
    return CachedSplit(
        fingerprint="f",
        name="train",
        sample_nbytes=RECORDS.shape[1],
        shard_sizes=np.ones(len(RECORDS), np.int64),
        checksums=np.array([crc32c(record) for record in RECORDS], np.uint32),
    )
