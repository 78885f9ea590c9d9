"""One rank of the jobs that `benchmarks.questions.cache` runs: production loaders, told by lines of JSON.

python -m benchmarks.questions.cache_rank '{"data": ..., "edges": ..., "num_nodes": 2, "rank": 0, ...}'

`open` makes the loader of a contestant, `epoch` runs one of its epochs, `close` closes all. Every
sample that comes is held against the data set: all its bytes in checked epochs, the first and last
four of every array in timed ones. Storage is slowed by a `SampleReader` that takes its time,
which stands in the loader's place for the product's own.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import msdata
import msdata.loader.loader
import msdata.loader.node_cache
from benchmarks.questions.cache_plan import CONTESTANTS, SEED
from benchmarks.questions.private_cache import PrivateCache, PrivateTable
from benchmarks.workloads import edge_bytes
from msdata.cache.config import CacheConfig
from msdata.cache.mpi_service import ServedArena, find_service
from msdata.cache.split import cached_split
from msdata.cache.transport.link import LinkFetcher
from msdata.core.checksum import crc32c_of_parts
from msdata.errors import DataError, MsdataError, StorageError
from msdata.loader.node_cache import open_node_cache
from msdata.loader.read import SampleReader
from msdata.topology import Topology, from_env, job_name

PREFETCH = HOLD = 2
SERVICE_WAIT_S = 60.0
# Pretended nodes share cores: a service that waits for its turn is not a dead one.
PATIENCE_S = 60.0


class Throttle:
    """Gives out bytes at a fixed rate, whoever asks; without a rate at once.

    Attributes:
        bytes_per_s: None for no limit.
    """

    def __init__(self) -> None:
        self.bytes_per_s: float | None = None
        self._lock = threading.Lock()
        self._free_at_s = 0.0

    def take(self, nbytes: int) -> None:
        """Returns when the bytes, and all that were asked for before, would have come."""
        if self.bytes_per_s is None:
            return
        with self._lock:
            self._free_at_s = max(self._free_at_s, time.perf_counter()) + nbytes / self.bytes_per_s
            until_s = self._free_at_s
        time.sleep(max(0.0, until_s - time.perf_counter()))


class SlowedReader(SampleReader):
    """The product's reads of storage, at the throttle's rate where that is slower.

    Args:
        throttle: of all loaders of this process, as they share their node's storage.
        split: see `SampleReader`, as all others.
    """

    def __init__(self, throttle: Throttle, split: msdata.Split, *others: Any) -> None:
        super().__init__(split, *others)
        self._throttle = throttle
        self._nbytes = split.schema.sample_nbytes

    def fill(self, filling: Any, start: int, stop: int) -> None:
        """Reads the samples [start, stop) of a batch."""
        super().fill(filling, start, stop)
        self._throttle.take((stop - start) * self._nbytes)


class Rank:
    """Obeys the commands.

    Args:
        order: `data`, `edges` (file of uint8 (samples, arrays, 8)), `batch_size`, `threads`,
            `is_served`, `shm_dir`.
        topology: this rank's place by its launcher; one rank a node.

    Attributes:
        topology: its place by the services, which number nodes by the names of hosts.

    Raises:
        StorageError: no service answers where there should be one.
    """

    def __init__(self, order: dict[str, Any], topology: Topology) -> None:
        self._order, self.topology = order, topology
        self._split = msdata.open(order["data"]).split("train")
        self._config = CacheConfig(job=job_name(), shm_dir=Path(order["shm_dir"]))
        if order["is_served"]:
            node = self._find_service().service["node"]
            self.topology = Topology(num_nodes=topology.num_nodes, rank=node)
        ids = (self._split.sample_id(n) for n in range(len(self._split)))
        self._number_of = {sample_id: number for number, sample_id in enumerate(ids)}
        self._edges = np.load(order["edges"])
        self._checksums = self._split.numbers("crc32c", np.uint32)
        self._throttle = Throttle()
        self._stack = ExitStack()
        self._loaders: dict[str, msdata.Loader] = {}
        msdata.loader.loader.SampleReader = partial(SlowedReader, self._throttle)  # type: ignore[misc,assignment]

    def open(self, name: str, memory_nbytes: int) -> dict[str, Any]:
        """Makes a contestant's loader.

        Args:
            name: of the contestant.
            memory_nbytes: of its cache on this node.
        """
        contestant = CONTESTANTS[name]
        cache = None
        if contestant.private is not None:
            spare = (PREFETCH + HOLD) * self._order["batch_size"]
            capacity = memory_nbytes // self._split.schema.sample_nbytes
            table = PrivateTable(capacity, contestant.private, spare)
            made = PrivateCache(table=table)
            msdata.loader.loader.open_node_cache = lambda *_, **__: made  # type: ignore[assignment]
        elif contestant.is_served:
            # Without a service a loader would make an arena of its own.
            self._find_service()
            cache = self._config
        try:
            self._loaders[name] = self._stack.enter_context(
                msdata.Loader(
                    self._split,
                    self._order["batch_size"],
                    seed=SEED,
                    policy=contestant.policy,
                    topology=self.topology,
                    cache=cache,
                    threads=self._order["threads"],
                    prefetch=PREFETCH,
                    hold=HOLD,
                    across_epochs=False,
                    columns=[],
                )
            )
        finally:
            msdata.loader.loader.open_node_cache = open_node_cache
        return {}

    def _find_service(self) -> ServedArena:
        deadline_s = time.monotonic() + SERVICE_WAIT_S
        cached = cached_split(self._split)
        while (found := find_service(self._config, cached, self.topology.node)) is None:
            if time.monotonic() > deadline_s:
                raise StorageError(f"node {self.topology.node} finds no service of its cache")
            time.sleep(0.1)
        return found

    def epoch(
        self, name: str, storage_bytes_per_s: float | None, is_checked: bool
    ) -> dict[str, Any]:
        """Runs the next epoch of a contestant.

        Args:
            name: of the contestant.
            storage_bytes_per_s: what this node's storage is slowed to.
            is_checked: compare every byte.

        Returns:
            `epoch`; `seconds` from asking for the first batch to the last; `seen`, a bit a sample
            in hexadecimal; `num_samples`; `tiers` and `tier_bytes`, samples and bytes by tier.

        Raises:
            DataError: a batch holds what it should not.
        """
        loader = self._loaders[name]
        self._throttle.bytes_per_s = storage_bytes_per_s
        seen = np.zeros(len(self._split), bool)
        num_samples = 0
        started_s = time.perf_counter()
        for batch in loader:
            samples = np.array([self._number_of[str(i)] for i in batch["sample_id"]], np.int64)
            self._check(batch, samples, is_checked)
            seen[samples] = True
            num_samples += len(samples)
        seconds = time.perf_counter() - started_s
        stats = loader.stats()
        storage = {"samples": num_samples, "bytes": stats["bytes"]}
        tiers = stats.get("tiers", {"storage": storage})
        nothing = {"samples": 0, "bytes": 0}
        by_tier = [tiers.get(t, nothing) for t in ("local", "ssd", "peer", "storage")]
        return {
            "epoch": stats["epoch"],
            "seconds": seconds,
            "wait_s": stats["wait_s"],
            "num_samples": num_samples,
            "seen": np.packbits(seen).tobytes().hex(),
            "tiers": [tier["samples"] for tier in by_tier],
            "tier_bytes": [tier["bytes"] for tier in by_tier],
        }

    def _check(self, batch: Any, samples: NDArray[np.int64], is_checked: bool) -> None:
        arrays = {name: batch[name] for name in self._split.schema.names}
        if not np.array_equal(edge_bytes(arrays), self._edges[samples]):
            raise DataError("a batch begins or ends otherwise than its samples")
        for row, sample in enumerate(samples.tolist() if is_checked else ()):
            parts = [a[row].reshape(-1).view(np.uint8) for a in arrays.values()]
            if crc32c_of_parts(parts) != self._checksums[sample]:
                raise DataError(f"sample {self._split.sample_id(sample)} came with other bytes")

    def close(self) -> dict[str, Any]:
        """Closes all loaders."""
        self._loaders.clear()
        self._stack.close()
        return {}


def main(order: dict[str, Any], topology: Topology) -> None:
    """Answers lines until stdin ends."""
    if order["share_a_machine"]:
        patient = partial(LinkFetcher, timeout_s=PATIENCE_S)
        msdata.loader.node_cache.LinkFetcher = patient  # type: ignore[misc,assignment]
    try:
        rank = Rank(order, topology)
    except MsdataError as error:
        say(topology, error=str(error))
        return
    topology = rank.topology
    say(topology)
    commands = {"open": rank.open, "epoch": rank.epoch, "close": rank.close}
    for line in sys.stdin:
        command = json.loads(line)
        try:
            say(topology, **commands[command.pop("do")](**command))
        except MsdataError as error:
            say(topology, error=str(error))
    rank.close()


def say(topology: Topology, **fields: Any) -> None:
    """One line; srun passes whole lines on."""
    print(json.dumps({"rank": topology.rank, **fields}), flush=True)


if __name__ == "__main__":
    _order = json.loads(sys.argv[1])
    _rank = from_env().rank if _order["rank"] is None else _order["rank"]
    main(_order, Topology(num_nodes=_order["num_nodes"], rank=_rank))
