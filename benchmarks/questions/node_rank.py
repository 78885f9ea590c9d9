"""One rank of a job whose epochs are timed: the production loader, told by lines on stdin.

python -m benchmarks.questions.node_rank '{"data": ..., "num_nodes": 2, "ranks_per_node": 1, ...}'

`drop` empties the page cache of the shards, `epoch` runs one; each is answered by a line of JSON.
srun hands a line to every rank at once, so that ranks of real nodes start together.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msdata
from msdata.cluster.probe import drop_from_cache
from msdata.errors import StorageError
from msdata.topology import Topology, from_env

SEED = 0


class SlowStorage:
    """Reads of storage that are given out at a fixed rate, whatever the disk could do.

    Args:
        read: fills the samples [start, stop) of a batch.
        nbytes_per_s: what this rank gets.
        sample_nbytes: of a record.
    """

    def __init__(
        self, read: Callable[[Any, int, int], None], nbytes_per_s: float, sample_nbytes: int
    ) -> None:
        self._read = read
        self._seconds_each = sample_nbytes / nbytes_per_s
        self._lock = threading.Lock()
        self._free_at_s = 0.0

    def fill(self, filling: Any, start: int, stop: int) -> None:
        """Reads, and returns when the slow storage would have."""
        with self._lock:
            begin_s = max(self._free_at_s, time.perf_counter())
            self._free_at_s = done_s = begin_s + (stop - start) * self._seconds_each
        self._read(filling, start, stop)
        time.sleep(max(0.0, done_s - time.perf_counter()))


def open_loader(order: dict[str, Any], topology: Topology) -> msdata.Loader:
    """The loader as a training would make it, its storage slowed where the order says so."""
    split = msdata.open(order["data"]).split("train")
    loader = msdata.Loader(
        split,
        order["batch_per_rank"],
        seed=SEED,
        policy=order["policy"],
        topology=topology,
        cache=msdata.CacheConfig(service_wait_s=60.0),
        last="drop",
    )
    if order["storage_bytes_per_s"] is not None:
        rate = order["storage_bytes_per_s"] / topology.ranks_per_node
        slow = SlowStorage(loader._storage.fill, rate, split.schema.sample_nbytes)
        loader._storage.fill = slow.fill  # type: ignore[method-assign]
    return loader


def drop_shards(data: Path) -> float | None:
    """Drops a data set's shards from this node's page cache.

    Returns:
        The greatest share of a shard that stayed; None where the system does not tell.
    """
    shares = [drop_from_cache(path) for path in msdata.open(data).split("train").shard_paths]
    known = [share for share in shares if share is not None]
    return max(known) if len(known) == len(shares) else None


def run_epoch(loader: msdata.Loader) -> dict[str, Any]:
    """One epoch; its seconds by this rank's clock, its samples by tier."""
    started_s = time.perf_counter()
    samples = 0
    for batch in loader:
        samples += len(batch["sample_id"])
    seconds = time.perf_counter() - started_s
    tiers = loader.stats().get("tiers")
    if tiers is None:
        raise StorageError("this rank found no cache, so there is nothing to compare")
    return {
        "seconds": seconds,
        "samples": samples,
        "tiers": {name: tier["samples"] for name, tier in tiers.items()},
    }


def main(order: dict[str, Any], topology: Topology) -> None:
    """Answers lines until stdin ends."""
    with open_loader(order, topology) as loader:
        say(topology, is_ready=True)
        for line in sys.stdin:
            if line.strip() == "drop":
                # All ranks of a node share its page cache.
                is_first = topology.local_rank == 0
                say(topology, stayed=drop_shards(Path(order["data"])) if is_first else 0.0)
            elif line.strip() == "epoch":
                say(topology, **run_epoch(loader))


def say(topology: Topology, **fields: Any) -> None:
    """One line; srun and mpiexec pass whole lines on."""
    print(json.dumps({"rank": topology.rank, **fields}), flush=True)


def topology_of(order: dict[str, Any], started: Topology) -> Topology:
    """This rank among the nodes that the order pretends or that the launcher started."""
    rank = started.rank if order.get("rank") is None else order["rank"]
    return Topology(num_nodes=order["num_nodes"], ranks_per_node=order["ranks_per_node"], rank=rank)


if __name__ == "__main__":
    _order = json.loads(sys.argv[1])
    main(_order, topology_of(_order, from_env()))
