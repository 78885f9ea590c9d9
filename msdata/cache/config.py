"""Two plain values: the caller's settings of the cache, and the cache's description of the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import InitVar, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.options import renamed
from msdata.errors import UsageError

GIB = 1 << 30
WARMUPS = ("background", "blocking")
# Former values of CacheConfig(fill=) and --fill.
FORMER_FILLS = {"overlap": "background", "stage": "blocking"}

# Owner and tier of every shard, int32 (shards,) and int8 (shards,).
Owners = tuple[NDArray[np.int32], NDArray[np.int8]]
# Bytes of memory and of SSD that a node may use -> owners.
Own = Callable[[int, int], Owners]
# Sample number -> its record, the arrays one after the other; raises what storage raises.
ReadRecord = Callable[[int], Any]


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """How much of a node the cache may take, and how it fills.

    Attributes:
        memory_gib: shared memory per node in GiB; None ("auto") uses the arena of `msdata cache
            serve` if that runs, else takes what the first rank finds free, see
            `msdata.cache.budget`. Without services, policy `locality` over several nodes needs a
            number, since all ranks must compute with the same size. A service's size is its own.
        ssd_dir: folder on a local SSD for the second tier; None disables this tier.
        ssd_gib: space on that SSD per node in GiB.
        warmup: "background" starts training at once: ranks cache what they read, and a thread
            caches the rest in storage order; "blocking" delays the first epoch until the cache is
            full.
        job: separates this job's cache from other caches of the same user; None takes it from the
            launcher's environment.
        node: names a simulated node on a shared machine; None takes the node's number.
        shm_dir: the folder for shared memory.
        metrics_dir: a folder for each rank's counters: `.prom` for node_exporter's textfile
            collector, `.jsonl` with one line per epoch; None writes neither.
        peers_dir: a folder that all nodes see, in which the nodes' `msdata cache serve --peers-dir`
            find each other. Ranks learn it from their node's service; one that is given it looks
            for a service also if `memory_gib` is a number, and can do while its service is gone.
        listen: IPv4 address or interface at which a service found by `peers_dir` listens; None
            chooses the one that other nodes can reach. Ranks never listen.
        reserved_nbytes: free memory of the node that the cache must leave alone; the loader adds
            the size of the batches and indices of the node's ranks.
        service_wait_s: seconds to wait for this node's service if `memory_gib` is None or
            `peers_dir` is set; None waits 20 s on several nodes and not at all on one.
    """

    memory_gib: float | None = None
    ssd_dir: Path | None = None
    ssd_gib: float = 0.0
    warmup: str = "background"
    job: str | None = None
    node: str | None = None
    shm_dir: Path = Path("/dev/shm")
    peers_dir: Path | None = None
    metrics_dir: Path | None = None
    listen: str | None = None
    reserved_nbytes: int = 0
    service_wait_s: float | None = None
    fill: InitVar[str | None] = None

    def __post_init__(self, fill: str | None) -> None:
        if fill is not None:
            renamed({"fill": fill}, {"fill": "warmup"}, "CacheConfig")
            object.__setattr__(self, "warmup", FORMER_FILLS.get(fill, fill))
        object.__setattr__(self, "shm_dir", Path(self.shm_dir))
        for name in ("peers_dir", "ssd_dir", "metrics_dir"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, Path(getattr(self, name)))
        if self.warmup not in WARMUPS:
            raise UsageError(f"warmup must be one of {', '.join(WARMUPS)}, got {self.warmup!r}")
        if not all(0 <= gib < math.inf for gib in (self.memory_gib or 0, self.ssd_gib)):
            raise UsageError(
                f"memory_gib and ssd_gib must be finite and >= 0, got {self.memory_gib} and "
                f"{self.ssd_gib}; memory_gib=None takes what is free"
            )
        if bool(self.ssd_gib) != (self.ssd_dir is not None):
            raise UsageError(
                f"an SSD tier needs both ssd_dir and ssd_gib, got {self.ssd_dir} and {self.ssd_gib}"
            )

    @property
    def memory_nbytes(self) -> int | None:
        """Requested shared memory in bytes; None for "auto"."""
        return None if self.memory_gib is None else int(self.memory_gib * GIB)

    @property
    def ssd_nbytes(self) -> int:
        """Requested SSD space in bytes."""
        return int(self.ssd_gib * GIB)


class RecordStarts:
    """Where records begin if all of a split stand one after the other.

    Records of one length, as those of every plain data set, need no table.

    Args:
        record_nbytes: int64 (samples,).
    """

    def __init__(self, record_nbytes: NDArray[np.int64]) -> None:
        self._each = int(record_nbytes[0]) if len(record_nbytes) else 0
        self._starts: NDArray[np.int64] | None = None
        if record_nbytes.strides != (0,) and bool((record_nbytes != self._each).any()):
            self._starts = np.concatenate([[0], np.cumsum(record_nbytes)])

    def of(self, samples: Any) -> Any:
        """Bytes of all records before each of some samples, int64 (n,), or before one.

        Args:
            samples: int64 (n,), numbers within the split, or one; the number of samples gives the
                sum.
        """
        return samples * self._each if self._starts is None else self._starts[samples]


@dataclass(frozen=True, kw_only=True)
class CachedSplit:
    """The split whose samples are cached.

    Attributes:
        fingerprint: the data set's fingerprint.
        name: the split's name.
        record_nbytes: int64 (samples,), bytes of each record; of stride 0 if all are equal.
        shard_sizes: int64 (shards,), samples per shard.
        checksums: uint32 (samples,), CRC32C of each record.
    """

    fingerprint: str
    name: str
    record_nbytes: NDArray[np.int64]
    shard_sizes: NDArray[np.int64]
    checksums: NDArray[np.uint32]

    def __post_init__(self) -> None:
        num_samples = int(self.shard_sizes.sum())
        for name in ("checksums", "record_nbytes"):
            if len(getattr(self, name)) != num_samples:
                raise UsageError(
                    f"{name} must have one entry per sample ({num_samples}), got "
                    f"{len(getattr(self, name))}"
                )

    @cached_property
    def first_samples(self) -> NDArray[np.int64]:
        """Number of each shard's first sample, int64 (shards,)."""
        return np.cumsum(self.shard_sizes) - self.shard_sizes

    @property
    def nbytes(self) -> int:
        """Bytes of all records."""
        return int(self.starts.of(np.int64(len(self.record_nbytes))))

    @cached_property
    def starts(self) -> RecordStarts:
        """Where records begin if all stand one after the other."""
        return RecordStarts(self.record_nbytes)

    @cached_property
    def shard_nbytes(self) -> NDArray[np.int64]:
        """Bytes of each shard's records, int64 (shards,)."""
        first = self.first_samples
        nbytes: NDArray[np.int64] = self.starts.of(first + self.shard_sizes) - self.starts.of(first)
        return nbytes

    @cached_property
    def max_record_nbytes(self) -> int:
        """Bytes of the longest record."""
        return int(self.record_nbytes.max(initial=0))
