"""Describes a split to the cache: checksums, owners of its shards, a reader of its records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.cache.config import CachedSplit, Own, Owners
from msdata.dataset.dataset import Split
from msdata.plan.ownership import Nodes, own_shards
from msdata.topology import Topology


def cached_split(split: Split) -> CachedSplit:
    """The cache's description of a split."""
    return CachedSplit(
        fingerprint=split.dataset.manifest.fingerprint,
        name=split.name,
        record_nbytes=split.record_nbytes,
        shard_sizes=split.shard_sizes,
        checksums=split.numbers("crc32c", np.uint32),
    )


def owners_by_capacity(cached: CachedSplit, topology: Topology) -> Own:
    """A function that computes the owners of all shards if every node has the same capacities.

    Args:
        cached: the data.
        topology: the number of nodes.
    """

    def own(memory_nbytes: int, ssd_nbytes: int) -> Owners:
        memory, ssd = (
            np.full(topology.num_nodes, nbytes, np.int64) for nbytes in (memory_nbytes, ssd_nbytes)
        )
        return owners_of_nodes(cached, memory, ssd)

    return own


def owners_of_nodes(
    cached: CachedSplit, memory_nbytes: NDArray[np.int64], ssd_nbytes: NDArray[np.int64]
) -> Owners:
    """The owners of all shards for each node's capacities.

    Args:
        cached: the data.
        memory_nbytes: int64 (nodes,), memory that each node gives.
        ssd_nbytes: int64 (nodes,), SSD space that each node gives.
    """
    keys = np.arange(len(memory_nbytes), dtype=np.uint64)
    nodes = Nodes(memory_bytes=memory_nbytes, ssd_bytes=ssd_nbytes, keys=keys)
    found = own_shards(cached.shard_nbytes, nodes)
    return found.owner_of_shard, found.tier_of_shard


def record_reader(split: Split) -> Callable[[int], Any]:
    """A function that reads one sample's record, which is valid until the next call.

    Args:
        split: the data.
    """
    room = np.empty(int(split.record_nbytes.max(initial=0)), np.uint8)
    spans, files = split.spans, split.files

    def read(sample: int) -> NDArray[np.uint8]:
        number = np.array([sample])
        file = files.open(int(spans.shards(number)[0]))
        start = 0
        sizes, offsets = split.array_nbytes[sample].tolist(), spans.offsets(number)[0].tolist()
        for nbytes, offset in zip(sizes, offsets, strict=True):
            file.read_into([room[start : start + nbytes].data], offset)
            start += nbytes
        return room[:start]

    return read
