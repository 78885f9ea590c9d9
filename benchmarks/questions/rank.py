"""One rank of a job on nodes: production loaders, told by lines of JSON; see `benchmarks.told`.

python -m benchmarks.questions.rank '{"data": ..., "num_nodes": 2, "ranks_per_node": 1, ...}'

`open` makes a loader, `epoch` runs one of its epochs, `drop` empties the page cache of the shards,
`close` closes all. Every sample that comes is compared with the data set: all its bytes in checked
epochs, the first and last four of every array in timed ones. Storage is slowed by a `SampleReader`
that takes its time, which stands in the loader's place for the product's own. srun hands a line to
every rank at once, so that ranks of real nodes start together.
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
from benchmarks.questions.private_cache import PrivateCache, PrivateTable
from benchmarks.told import claim_stdout, obey
from benchmarks.workloads import edge_bytes
from msdata.cache.config import CacheConfig
from msdata.cache.served import ServedArena, find_service
from msdata.cache.split import cached_split
from msdata.cache.transport.link import LinkFetcher
from msdata.cluster.probe import drop_from_cache
from msdata.core.checksum import crc32c_of_parts
from msdata.errors import DataError, MsdataError, StorageError
from msdata.loader.node_cache import open_node_cache
from msdata.loader.read import SampleReader
from msdata.topology import Topology, from_env, job_name

SEED = 0
SHM = Path("/dev/shm")
TIERS = ("local", "ssd", "peer", "storage")
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

    def take(self, nbytes: int) -> float:
        """When the bytes, and all that were asked for before, will have come."""
        now_s = time.perf_counter()
        if self.bytes_per_s is None:
            return now_s
        with self._lock:
            self._free_at_s = max(self._free_at_s, now_s) + nbytes / self.bytes_per_s
            return self._free_at_s


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
        """Reads the samples [start, stop) of a batch, and returns when slow storage would have."""
        until_s = self._throttle.take((stop - start) * self._nbytes)
        super().fill(filling, start, stop)
        time.sleep(max(0.0, until_s - time.perf_counter()))


class Rank:
    """Obeys the commands.

    Args:
        order: `data`, `edges` (file of uint8 (samples, arrays, 8), or None), `batch_size`,
            `is_served`, and `last`, what becomes of an incomplete batch.
        topology: this rank's place by its launcher.

    Attributes:
        topology: its place by the services, which number nodes by the names of hosts.

    Raises:
        StorageError: no service answers where there should be one.
    """

    def __init__(self, order: dict[str, Any], topology: Topology) -> None:
        self._order, self.topology = order, topology
        self._split = msdata.open(order["data"]).split("train")
        self._config = CacheConfig(job=job_name(), shm_dir=SHM)
        if order["is_served"]:
            node = self._find_service().service["node"]
            per_node = topology.ranks_per_node
            self.topology = Topology(
                num_nodes=topology.num_nodes,
                ranks_per_node=per_node,
                rank=node * per_node + topology.local_rank,
            )
        ids = (self._split.sample_id(n) for n in range(len(self._split)))
        self._number_of = {sample_id: number for number, sample_id in enumerate(ids)}
        self._edges = None if order["edges"] is None else np.load(order["edges"])
        self._checksums = self._split.numbers("crc32c", np.uint32)
        self._throttle = Throttle()
        self._stack = ExitStack()
        self._loaders: dict[str, msdata.Loader] = {}
        msdata.loader.loader.SampleReader = partial(SlowedReader, self._throttle)  # type: ignore[misc,assignment]

    def open(
        self,
        name: str,
        policy: str = "shuffle",
        is_served: bool = False,
        private: str | None = None,
        memory_nbytes: int = 0,
    ) -> dict[str, Any]:
        """Makes a loader: without a cache, with the services', or with a private one."""
        cache = None
        if private is not None:
            spare = (PREFETCH + HOLD) * self._order["batch_size"]
            table = PrivateTable(memory_nbytes // self._split.schema.sample_nbytes, private, spare)
            made = PrivateCache(table=table)
            msdata.loader.loader.open_node_cache = lambda *_, **__: made  # type: ignore[assignment]
        elif is_served:
            # Without a service a loader would make an arena of its own.
            self._find_service()
            cache = self._config
        try:
            self._loaders[name] = self._stack.enter_context(
                msdata.Loader(
                    self._split,
                    self._order["batch_size"],
                    seed=SEED,
                    policy=policy,
                    topology=self.topology,
                    cache=cache,
                    prefetch=PREFETCH,
                    num_valid_batches=HOLD,
                    remainder=self._order["last"],
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
        self, name: str, storage_bytes_per_s: float | None = None, is_checked: bool = False
    ) -> dict[str, Any]:
        """Runs the next epoch of a loader, this rank's storage slowed; may compare every byte.

        Returns:
            `epoch`; `seconds` from asking for the first batch to the last; `seen`, a bit per sample
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
        tiers, nothing = stats.get("tiers", {"storage": storage}), {"samples": 0, "bytes": 0}
        return {
            "epoch": stats["epoch"],
            "seconds": seconds,
            "num_samples": num_samples,
            "seen": np.packbits(seen).tobytes().hex(),
            "tiers": [tiers.get(tier, nothing)["samples"] for tier in TIERS],
            "tier_bytes": [tiers.get(tier, nothing)["bytes"] for tier in TIERS],
        }

    def _check(self, batch: Any, samples: NDArray[np.int64], is_checked: bool) -> None:
        arrays = {name: batch[name] for name in self._split.schema.names}
        edges = None if self._edges is None else self._edges[samples]
        if edges is not None and not np.array_equal(edge_bytes(arrays), edges):
            raise DataError("a batch begins or ends with other bytes than its samples")
        for row, sample in enumerate(samples.tolist() if is_checked else ()):
            parts = [a[row].reshape(-1).view(np.uint8) for a in arrays.values()]
            if crc32c_of_parts(parts) != self._checksums[sample]:
                raise DataError(f"sample {self._split.sample_id(sample)} came with other bytes")

    def drop(self) -> dict[str, Any]:
        """Drops the shards from this node's page cache.

        Returns:
            `stayed`, the greatest share of a shard; None where the system does not tell.
        """
        # All ranks of a node share its page cache.
        paths = self._split.shard_paths if self.topology.local_rank == 0 else []
        shares = [drop_from_cache(path) for path in paths]
        known = [share for share in shares if share is not None]
        return {"stayed": max(known, default=0.0) if len(known) == len(shares) else None}

    def close(self) -> dict[str, Any]:
        """Closes all loaders."""
        self._loaders.clear()
        self._stack.close()
        return {}


def main(order: dict[str, Any]) -> None:
    """Answers lines until stdin ends."""
    answers = claim_stdout()
    rank = from_env().rank if order["rank"] is None else order["rank"]
    topology = Topology(
        num_nodes=order["num_nodes"], ranks_per_node=order["ranks_per_node"], rank=rank
    )
    if order["share_a_machine"]:
        patient = partial(LinkFetcher, timeout_s=PATIENCE_S)
        msdata.loader.node_cache.LinkFetcher = patient  # type: ignore[misc,assignment]
    try:
        made = Rank(order, topology)
    except MsdataError as error:
        failed = {"rank": rank, "error": str(error), "is_wrong": False}
        print(json.dumps(failed), file=answers)
        return
    about = {"rank": made.topology.rank}
    print(json.dumps(about), file=answers)
    obey(answers, made, wrong=DataError, about=about)
    made.close()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
