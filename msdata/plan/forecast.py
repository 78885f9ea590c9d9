"""What each epoch will read from which tier: exact, by replaying the functions the loader runs.

The closed form (`msdata.plan.closed_form`) answers instantly and for machines that do not exist;
this one answers for a given job, sample by sample, and must agree with the loader's counters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msdata.errors import UsageError
from msdata.plan.assign import Assignment, assign_epoch
from msdata.plan.order import (
    DEFAULT_BUFFER_SAMPLES,
    DEFAULT_LAST,
    DEFAULT_POLICY,
    epoch_order,
    global_positions,
)
from msdata.plan.ownership import MEMORY, SSD, Nodes, Ownership, own_shards
from msdata.topology import Topology

# Where the reading node finds a sample: in its own memory, on its own SSD, at another node
# (memory or SSD), or in storage alone.
TIERS = ("local", "ssd", "peer", "storage")


@dataclass(frozen=True, kw_only=True)
class Job:
    """All that decides who reads what from where.

    Attributes:
        topology: nodes and ranks; its own rank does not matter.
        nodes: capacities of the nodes.
        shard_sizes: int64 (num_shards,), samples of each shard of the split, in index order.
        sample_bytes: bytes per sample, as read and sent.
        batch_per_rank: samples per rank and step.
        policy: one of `msdata.plan.order.POLICIES`.
        seed: seed of the epochs' orders.
        last: one of `msdata.plan.order.LAST`.
        buffer_samples: shuffle buffer of policy `block`.
        shard_bytes: int64 (num_shards,), what each shard occupies in a cache; None means that of
            its samples' records.
        weights: float64 (num_samples,), with which samples are drawn; None takes each once.
    """

    topology: Topology
    nodes: Nodes
    shard_sizes: NDArray[np.int64]
    sample_bytes: int
    batch_per_rank: int
    policy: str = DEFAULT_POLICY
    seed: int = 0
    last: str = DEFAULT_LAST
    buffer_samples: int = DEFAULT_BUFFER_SAMPLES
    shard_bytes: NDArray[np.int64] | None = None
    weights: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        if self.shard_bytes is not None and self.shard_bytes.shape != self.shard_sizes.shape:
            raise UsageError(
                f"{len(self.shard_bytes)} shards have bytes, {len(self.shard_sizes)} have samples"
            )
        if self.nodes.num_nodes != self.topology.num_nodes:
            raise UsageError(
                f"{self.nodes.num_nodes} nodes have capacities, the job runs on "
                f"{self.topology.num_nodes}"
            )
        if self.sample_bytes < 1 or self.batch_per_rank < 1:
            raise UsageError(
                f"sample_bytes and batch_per_rank must be at least 1, got {self.sample_bytes} and "
                f"{self.batch_per_rank}"
            )

    @property
    def num_samples(self) -> int:
        """Samples of the split."""
        return int(self.shard_sizes.sum())

    @property
    def cached_bytes(self) -> NDArray[np.int64]:
        """int64 (num_shards,): what each shard occupies in a cache."""
        if self.shard_bytes is not None:
            return self.shard_bytes
        return self.shard_sizes * self.sample_bytes


@dataclass(frozen=True, kw_only=True)
class EpochForecast:
    """Reads of one epoch.

    Attributes:
        epoch: its number; 0 is the cold one, in which the caches fill.
        tier_samples: (num_nodes, 4), samples by the node that reads them and `TIERS`; int64 where
            replayed, float64 where expected.
        ssd_bytes: (num_nodes,), read from each node's SSD, for itself or for peers.
        storage_bytes: (num_nodes,), read from storage by each node, filling of its cache included.
        sample_bytes: bytes per sample.
        is_exact: True if replayed, False if expected.
    """

    epoch: int
    tier_samples: NDArray[np.int64] | NDArray[np.float64]
    ssd_bytes: NDArray[np.int64] | NDArray[np.float64]
    storage_bytes: NDArray[np.int64] | NDArray[np.float64]
    sample_bytes: int
    is_exact: bool

    def __post_init__(self) -> None:
        if self.tier_samples.shape != (len(self.storage_bytes), len(TIERS)):
            raise UsageError(f"tier counts of shape {self.tier_samples.shape} are not (nodes, 4)")

    @property
    def shares(self) -> NDArray[np.float64]:
        """float64 (4,): share of the epoch's reads by `TIERS`; zeros in an empty epoch."""
        by_tier: NDArray[np.float64] = self.tier_samples.sum(axis=0).astype(np.float64)
        by_tier /= max(1.0, float(by_tier.sum()))
        return by_tier

    def hit_share(self, node: int, *, has_peers: bool = True) -> float | None:
        """Share of one node's reads that do not come from storage; None if it reads nothing.

        Args:
            node: the reading node.
            has_peers: whether nodes send samples to each other; if not, storage serves those reads.
        """
        local, ssd, peer, storage = self.tier_samples[node].tolist()
        total = local + ssd + peer + storage
        return (local + ssd + has_peers * peer) / total if total else None

    @property
    def tier_bytes(self) -> NDArray[np.float64]:
        """float64 (num_nodes, 4): `tier_samples` in bytes."""
        return self.tier_samples.astype(np.float64) * self.sample_bytes


def own_job(job: Job) -> Ownership:
    """The owners of a job's shards: what loader, service and forecast must agree on."""
    return own_shards(job.cached_bytes, job.nodes)


def order_job(job: Job, epoch: int) -> NDArray[np.int64]:
    """The order of a job's epoch, int64 (num_samples,); see `epoch_order`."""
    return epoch_order(
        job.policy,
        seed=job.seed,
        epoch=epoch,
        num_samples=job.num_samples,
        shard_sizes=job.shard_sizes,
        buffer_samples=job.buffer_samples,
        weights=job.weights,
    )


def assign_job(
    job: Job,
    ownership: Ownership,
    epoch: int,
    *,
    first_position: int = 0,
    order: NDArray[np.int64] | None = None,
) -> Assignment:
    """The samples of every rank and step in an epoch, as the loader hands them out.

    Args:
        job: the job.
        ownership: of its shards.
        epoch: number of the epoch.
        first_position: where in the epoch's order the run resumes.
        order: the result of `order_job`, if it is known already.

    Returns:
        The assignment.
    """
    batches = global_positions(
        num_samples=job.num_samples,
        batch_per_rank=job.batch_per_rank,
        num_ranks=job.topology.num_ranks,
        last=job.last,
        first_position=first_position,
    )
    return assign_epoch(
        job.policy,
        order=order_job(job, epoch) if order is None else order,
        batches=batches,
        topology=job.topology,
        owner_of_sample=np.repeat(ownership.owner_of_shard, job.shard_sizes),
    )


def forecast_epoch(
    job: Job, ownership: Ownership, epoch: int, *, first_position: int = 0
) -> EpochForecast:
    """Count an epoch's reads from `first_position` on, exactly: `count_epoch` of `assign_job`."""
    assignment = assign_job(job, ownership, epoch, first_position=first_position)
    return count_epoch(assignment, job, ownership, epoch)


def count_epoch(
    assignment: Assignment, job: Job, ownership: Ownership, epoch: int
) -> EpochForecast:
    """Count the reads of an assigned epoch.

    In epoch 0 nothing is cached yet. A shard is read from storage once, by its owner, whether its
    ranks come first or its filler; what others need of it they get from the owner. So what later
    comes from a node's own tiers counts as storage in epoch 0, and `storage_bytes` are those of the
    whole cache and of the misses. If samples are drawn by weights, a second draw of a sample may
    be a hit, which epoch 0 does not count: it depends on when the owner has read it.

    Args:
        assignment: what the ranks read.
        job: the job.
        ownership: of its shards.
        epoch: number of the epoch.

    Returns:
        Counts of all reads, padding included.
    """
    counts = count_tiers(assignment.samples, job, ownership)
    ssd_samples = _ssd_reads(assignment.samples, job, ownership)
    storage_bytes = counts[:, 3] * job.sample_bytes
    if epoch == 0:
        storage_bytes = storage_bytes + ownership.held(job.cached_bytes)
        counts[:, 3] += counts[:, 0] + counts[:, 1]
        counts[:, :2] = 0
        ssd_samples[:] = 0
    return EpochForecast(
        epoch=epoch,
        tier_samples=counts,
        ssd_bytes=ssd_samples * job.sample_bytes,
        storage_bytes=storage_bytes,
        sample_bytes=job.sample_bytes,
        is_exact=True,
    )


def count_tiers(sample_SRB: NDArray[np.int64], job: Job, ownership: Ownership) -> NDArray[np.int64]:
    """Where the reading nodes find their samples once the caches are full.

    Args:
        sample_SRB: int64 (num_steps, num_ranks, batch_per_rank), -1 for none.
        job: the job.
        ownership: of its shards.

    Returns:
        int64 (num_nodes, 4), by reading node and `TIERS`.
    """
    place_of_sample = _place_of_sample(job, ownership)
    counts = np.zeros((job.topology.num_nodes, len(TIERS)), dtype=np.int64)
    per_node = job.topology.ranks_per_node * sample_SRB.shape[2]
    by_node = sample_SRB.reshape(len(sample_SRB), job.topology.num_nodes, per_node)
    # Node by node, so that no temporary is larger than one node's share of the epoch.
    for node, count in enumerate(counts):
        place = place_of_sample[by_node[:, node]]
        count[0] = np.count_nonzero(place == 2 * node + MEMORY)
        count[1] = np.count_nonzero(place == 2 * node + SSD)
        count[3] = np.count_nonzero(place == _IN_STORAGE)
        count[2] = np.count_nonzero(place >= 0) - count[0] - count[1]
    return counts


_IN_STORAGE, _ABSENT = -1, -2


def _place_of_sample(job: Job, ownership: Ownership) -> NDArray[np.int32]:
    """2 * owner + tier, with an entry more at the end, which sample -1 finds."""
    place = np.where(
        ownership.owner_of_shard < 0,
        _IN_STORAGE,
        2 * ownership.owner_of_shard + ownership.tier_of_shard,
    )
    by_sample = np.repeat(place, job.shard_sizes)
    return np.concatenate([by_sample, [_ABSENT]]).astype(np.int32)


def _ssd_reads(sample_SRB: NDArray[np.int64], job: Job, ownership: Ownership) -> NDArray[np.int64]:
    """Samples read from each node's SSD, for whichever node."""
    reads = np.zeros(job.topology.num_nodes, dtype=np.int64)
    if not (ownership.tier_of_shard == SSD).any():
        return reads
    place = _place_of_sample(job, ownership)[sample_SRB.ravel()]
    owners = place[(place >= 0) & (place % 2 == SSD)] // 2
    return reads + np.bincount(owners, minlength=job.topology.num_nodes)
