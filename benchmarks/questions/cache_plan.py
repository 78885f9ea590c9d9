"""What `benchmarks.questions.cache` runs, and what is foretold of it: by the production plan, not by a model.

Ours are foretold by `msdata.plan.forecast`, the private caches by replaying their table over the
samples that the production plan deals to each rank; epoch times by `msdata.plan.timing`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.questions.private_cache import LRU, NEVER_EVICTS, PrivateTable
from msdata.dataset.dataset import Split
from msdata.plan.forecast import (
    EpochForecast,
    Job,
    assign_job,
    count_tiers,
    forecast_epoch,
    own_job,
)
from msdata.plan.ownership import equal_nodes
from msdata.topology import Topology

SEED = 0
GIB = 1 << 30
# Of all nodes together; the largest leaves room for shards that do not divide evenly. Each is half
# of the next: nodes of one size hold twice the share when there are twice as many.
SHARES = (0.275, 0.55, 1.1)
QUICK_SHARES = SHARES[1:]


@dataclass(frozen=True, kw_only=True)
class Contestant:
    """A way to cache.

    Attributes:
        title: for tables.
        whose: who wrote it.
        text: what it is.
        policy: of the loader.
        is_served: uses the services' cache.
        private: policy of a cache of the rank's own.
    """

    title: str
    whose: str
    text: str
    policy: str = "shuffle"
    is_served: bool = False
    private: str | None = None


CONTESTANTS = {
    "locality": Contestant(
        title="ours (locality)",
        whose="msdata",
        text="`msdata cache serve` on every node, each sample on one of them; the uniform order's "
        "global batches dealt by owner, the surplus from peers",
        policy="locality",
        is_served=True,
    ),
    "shuffle": Contestant(
        title="ours (plain peer fetch)",
        whose="msdata",
        text="the same services; ranks take their samples by position (policy shuffle) and fetch "
        "from peers what those hold",
        is_served=True,
    ),
    "block": Contestant(
        title="ours (block)",
        whose="msdata",
        text="the same services; shards in random order, shuffled in a buffer only",
        policy="block",
        is_served=True,
    ),
    "never-evict": Contestant(
        title="private (never evicts)",
        whose="this benchmark, after MinIO (CoorDL)",
        text="each rank keeps what it read first, in its own memory of the same bytes; no peers. "
        "In msdata's loader in place of the cache",
        private=NEVER_EVICTS,
    ),
    "lru": Contestant(
        title="private (LRU)",
        whose="this benchmark",
        text="each rank keeps what it read last, in its own memory of the same bytes; no peers. In "
        "msdata's loader in place of the cache",
        private=LRU,
    ),
    "none": Contestant(title="no cache", whose="msdata", text="every sample from storage"),
}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Nodes and what each gives to caches.

    Attributes:
        num_nodes: nodes, one rank each.
        share: of the data, what all nodes' memory holds together.
        memory_nbytes: of each node.
        batch_size: samples of a rank and step.
    """

    num_nodes: int
    share: float
    memory_nbytes: int
    batch_size: int


def make_setup(split: Split, num_nodes: int, share: float, batch_size: int) -> Setup:
    """A setup whose nodes are equal."""
    nbytes = share * len(split) * split.schema.sample_nbytes / num_nodes
    # As the service understands it: a number of GiB.
    memory_nbytes = int(int(nbytes) / GIB * GIB)
    return Setup(
        num_nodes=num_nodes, share=share, memory_nbytes=memory_nbytes, batch_size=batch_size
    )


def job_of(split: Split, setup: Setup, policy: str) -> Job:
    """The job that `msdata plan` would be asked about."""
    return Job(
        topology=Topology(num_nodes=setup.num_nodes),
        nodes=equal_nodes(setup.num_nodes, memory_bytes=setup.memory_nbytes),
        shard_sizes=split.shard_sizes,
        sample_bytes=split.schema.sample_nbytes,
        batch_per_rank=setup.batch_size,
        policy=policy,
        seed=SEED,
        last="short",
    )


def foretell(split: Split, setup: Setup, name: str) -> Iterator[EpochForecast]:
    """What each epoch of a contestant reads from where, from epoch 0 on.

    Args:
        split: the data.
        setup: nodes and memory.
        name: of the contestant.

    Yields:
        Exact counts. Services are full before epoch 0 ("stage"), so it is foretold as a later one.
    """
    contestant = CONTESTANTS[name]
    job = job_of(split, setup, contestant.policy)
    ownership = own_job(job)
    capacity = setup.memory_nbytes // job.sample_bytes
    tables = [PrivateTable(capacity, contestant.private or LRU) for _ in range(setup.num_nodes)]
    epoch = 0
    while True:
        if contestant.is_served and epoch:
            yield forecast_epoch(job, ownership, epoch)
        else:
            assigned = assign_job(job, ownership, epoch).samples
            if contestant.is_served:
                counts = count_tiers(assigned, job, ownership)
            else:
                is_cached = contestant.private is not None
                counts = _replay(assigned, tables if is_cached else [])
            yield _forecast(epoch, counts, job.sample_bytes)
        epoch += 1


def _replay(sample_SRB: NDArray[np.int64], tables: list[PrivateTable]) -> NDArray[np.int64]:
    """int64 (nodes, 4): hits and misses of each rank's table; of no table nothing but misses."""
    counts = np.zeros((sample_SRB.shape[1], 4), np.int64)
    for rank, count in enumerate(counts):
        for batch in sample_SRB[:, rank]:
            samples = batch[batch >= 0].tolist()
            found = tables[rank].take(samples)[0] if tables else [-1] * len(samples)
            hits = sum(slot >= 0 for slot in found)
            count += (hits, 0, 0, len(samples) - hits)
    return counts


def _forecast(epoch: int, counts: NDArray[np.int64], sample_bytes: int) -> EpochForecast:
    return EpochForecast(
        epoch=epoch,
        tier_samples=counts,
        ssd_bytes=np.zeros(len(counts), np.int64),
        storage_bytes=counts[:, 3] * sample_bytes,
        sample_bytes=sample_bytes,
        is_exact=True,
    )
