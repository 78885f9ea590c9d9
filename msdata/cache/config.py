"""What the caller says of the cache, and what the cache is told of the data: two plain values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import UsageError

GIB = 1 << 30
FILL_MODES = ("overlap", "stage")

# Bytes of memory and of SSD that a node may use -> (owner_of_shard int32, tier_of_shard int8).
Owners = tuple[NDArray[np.int32], NDArray[np.int8]]
Own = Callable[[int, int], Owners]
# Sample number -> its record, the arrays one after the other; raises what storage raises.
ReadRecord = Callable[[int], Any]


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """How much of a node the cache may take, and how it fills.

    Attributes:
        memory_gib: of shared memory on each node; None ("auto") uses the arena of `msdata cache
            serve` where that runs, else takes what the first rank finds free, see
            `msdata.cache.budget`. Without services policy `locality` over several nodes needs a
            number, since all ranks have to reckon with the same.
        ssd_dir: folder on a local SSD for the second tier; None has none.
        ssd_gib: of that SSD on each node.
        fill: "overlap": training starts at once, what ranks read goes into the cache and a filler
            follows in storage order; "stage": the first epoch waits until the cache is full.
        job: what separates this job's cache from others of the same user; None takes it from the
            launcher's environment.
        node: names the node among pretended ones on one machine; None takes its number.
        shm_dir: the folder for shared memory.
        metrics_dir: a folder for each rank's counters: `.prom`, for node_exporter's textfile
            collector, and `.jsonl`, a line an epoch; None writes none.
        peers_dir: a folder that all nodes see, where `msdata cache serve --peers-dir` of each node
            is found; None asks no other node, unless services under MPI do.
        listen: IPv4 address or interface at which a service found by `peers_dir` listens; None
            takes the one that other nodes reach, as far as it can be told. Ranks listen nowhere.
        reserved_nbytes: memory of the node that is not for the cache, although it is still free;
            the loader adds what batches and indices of the node's ranks take.
        service_wait_s: how long to wait for this node's service with `memory_gib` None; None means
            20 s where there are several nodes, else not at all.
    """

    memory_gib: float | None = None
    ssd_dir: Path | None = None
    ssd_gib: float = 0.0
    fill: str = "overlap"
    job: str | None = None
    node: str | None = None
    shm_dir: Path = Path("/dev/shm")
    peers_dir: Path | None = None
    metrics_dir: Path | None = None
    listen: str | None = None
    reserved_nbytes: int = 0
    service_wait_s: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "shm_dir", Path(self.shm_dir))
        for name in ("peers_dir", "ssd_dir", "metrics_dir"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))
        if self.fill not in FILL_MODES:
            raise UsageError(f"fill {self.fill!r} is none of {', '.join(FILL_MODES)}")
        if not all(0 <= gib < math.inf for gib in (self.memory_gib or 0, self.ssd_gib)):
            raise UsageError(
                f"a cache of {self.memory_gib} GiB of memory and {self.ssd_gib} GiB of SSD makes "
                "no sense; give numbers from 0 up, or memory_gib=None for what is free"
            )
        if bool(self.ssd_gib) != (self.ssd_dir is not None):
            raise UsageError("an SSD tier needs both, ssd_dir and ssd_gib")

    @property
    def memory_nbytes(self) -> int | None:
        """Shared memory asked for; None for "auto"."""
        return None if self.memory_gib is None else int(self.memory_gib * GIB)

    @property
    def ssd_nbytes(self) -> int:
        """SSD asked for."""
        return int(self.ssd_gib * GIB)


@dataclass(frozen=True, kw_only=True)
class CachedSplit:
    """The split whose samples are cached.

    Attributes:
        fingerprint: of the data set.
        name: of the split.
        sample_nbytes: of a record.
        shard_sizes: int64 (shards,), samples of each shard.
        checksums: uint32 (samples,), CRC32C of each record.
    """

    fingerprint: str
    name: str
    sample_nbytes: int
    shard_sizes: NDArray[np.int64]
    checksums: NDArray[np.uint32]

    def __post_init__(self) -> None:
        if int(self.shard_sizes.sum()) != len(self.checksums):
            raise UsageError(
                f"shards of {int(self.shard_sizes.sum())} samples, {len(self.checksums)} checksums"
            )

    @property
    def label(self) -> str:
        """Names data set and split among others."""
        return f"{self.fingerprint}-{self.name}"

    @property
    def first_samples(self) -> NDArray[np.int64]:
        """int64 (shards,), number of the first sample of each shard."""
        return np.cumsum(self.shard_sizes) - self.shard_sizes
