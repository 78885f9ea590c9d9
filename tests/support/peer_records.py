"""The records that the contract suite of the transports sends between nodes."""

from __future__ import annotations

from typing import Any

import numpy as np

from msdata.cache.config import CachedSplit
from msdata.core.checksum import crc32c

# Some are shorter, as coded ones are.
NBYTES = np.where(np.isin(np.arange(20), [3, 8, 11, 17]), np.arange(20) * 200 + 1, 5000)
RECORDS = [
    np.random.default_rng(i).integers(0, 256, n, dtype=np.uint8) for i, n in enumerate(NBYTES)
]
# So large that one of them does not fit into the kernel's buffers at once.
LARGE_RECORDS = np.random.default_rng(3).integers(0, 256, (20, 100_000), dtype=np.uint8)


def cached_records() -> CachedSplit:
    """`RECORDS` as a split with one sample per shard."""
    return CachedSplit(
        fingerprint="f",
        name="train",
        record_nbytes=NBYTES,
        shard_sizes=np.ones(len(RECORDS), np.int64),
        checksums=np.array([crc32c(record) for record in RECORDS], np.uint32),
    )


def large_records(samples: Any) -> list[Any]:
    """A lookup over all of `LARGE_RECORDS`."""
    return [LARGE_RECORDS[s] for s in samples.tolist()]
