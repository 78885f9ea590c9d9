"""What each epoch will read from which tier: exact, by replaying the functions the loader runs.

The closed form (`msdata.plan.closed_form`) answers instantly and for machines that do not exist;
this one answers for a given job, sample by sample, and must agree with the loader's counters.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

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
    num_steps,
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
        sample_bytes: bytes of a record, as cached, read and sent: one number, or int64
            (num_samples,), which becomes one number where all are equal.
        batch_per_rank: samples per rank and step.
        policy: one of `msdata.plan.order.POLICIES`.
        seed: seed of the epochs' orders.
        last: one of `msdata.plan.order.LAST`.
        buffer_samples: shuffle buffer of policy `block`.
        weights: float64 (num_samples,), with which samples are drawn; None takes each once.
        decoded_bytes: bytes that a record decodes to; 0 for data that are not coded.
    """

    topology: Topology
    nodes: Nodes
    shard_sizes: NDArray[np.int64]
    sample_bytes: int | NDArray[np.int64]
    batch_per_rank: int
    policy: str = DEFAULT_POLICY
    seed: int = 0
    last: str = DEFAULT_LAST
    buffer_samples: int = DEFAULT_BUFFER_SAMPLES
    weights: NDArray[np.float64] | None = None
    decoded_bytes: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "sample_bytes", self._checked_bytes())
        if self.nodes.num_nodes != self.topology.num_nodes:
            raise UsageError(
                f"{self.nodes.num_nodes} nodes have capacities, the job runs on "
                f"{self.topology.num_nodes}"
            )
        smallest = int(np.min(self.sample_bytes))
        if smallest < 1 or self.batch_per_rank < 1:
            raise UsageError(
                f"sample_bytes and batch_per_rank must be at least 1, got {smallest} and "
                f"{self.batch_per_rank}"
            )

    def _checked_bytes(self) -> int | NDArray[np.int64]:
        nbytes = self.sample_bytes
        if isinstance(nbytes, int):
            return nbytes
        if nbytes.shape != (self.num_samples,):
            raise UsageError(
                f"sample_bytes must have one entry per sample ({self.num_samples}), got shape "
                f"{nbytes.shape}"
            )
        first = int(nbytes[0]) if len(nbytes) else 1
        is_same = nbytes.strides == (0,) or not len(nbytes) or bool((nbytes == first).all())
        return first if is_same else nbytes

    @property
    def num_samples(self) -> int:
        """Samples of the split."""
        return int(self.shard_sizes.sum())

    @property
    def batch_per_node(self) -> int:
        """Samples per step on one node."""
        return self.topology.ranks_per_node * self.batch_per_rank

    @property
    def global_batch(self) -> int:
        """Samples per step over all ranks."""
        return self.topology.num_ranks * self.batch_per_rank

    @property
    def num_steps(self) -> int:
        """Steps per epoch; 0 if `last` is "drop" and the data do not fill a global batch."""
        return num_steps(self.num_samples, self.global_batch, self.last)

    @cached_property
    def cached_bytes(self) -> NDArray[np.int64]:
        """int64 (num_shards,): what each shard occupies in a cache."""
        if isinstance(self.sample_bytes, int):
            return self.shard_sizes * self.sample_bytes
        before = np.append(0, np.cumsum(self.sample_bytes))
        nbytes: NDArray[np.int64] = np.diff(before[np.append(0, np.cumsum(self.shard_sizes))])
        return nbytes

    @cached_property
    def mean_bytes(self) -> float:
        """Mean bytes of the records that an epoch reads."""
        weights = None if isinstance(self.sample_bytes, int) else self.weights
        return float(np.average(self.sample_bytes, weights=weights))


@dataclass(frozen=True, kw_only=True)
class EpochForecast:
    """Reads of one epoch.

    Attributes:
        epoch: its number; 0 is the cold one, in which the caches fill.
        tier_samples: (num_nodes, 4), samples by the node that reads them and `TIERS`; int64 where
            replayed, float64 where expected.
        ssd_bytes: (num_nodes,), read from each node's SSD, for itself or for peers.
        storage_bytes: (num_nodes,), read from storage by each node, filling of its cache included.
        tier_bytes: (num_nodes, 4), `tier_samples` in bytes.
        is_exact: True if replayed, False if expected.
        decoded_bytes: bytes that each sample decodes to; 0 for data that are not coded.
    """

    epoch: int
    tier_samples: NDArray[np.int64] | NDArray[np.float64]
    ssd_bytes: NDArray[np.int64] | NDArray[np.float64]
    storage_bytes: NDArray[np.int64] | NDArray[np.float64]
    tier_bytes: NDArray[np.int64] | NDArray[np.float64]
    is_exact: bool
    decoded_bytes: int = 0

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
        layout=(job.topology.num_ranks, job.batch_per_rank),
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
    counts, nbytes = count_tiers(assignment.samples, job, ownership)
    ssd_bytes = _ssd_reads(assignment.samples, job, ownership)
    storage_bytes = nbytes[:, 3].copy()
    if epoch == 0:
        storage_bytes += ownership.held(job.cached_bytes)
        for by_tier in (counts, nbytes):
            by_tier[:, 3] += by_tier[:, 0] + by_tier[:, 1]
            by_tier[:, :2] = 0
        ssd_bytes[:] = 0
    return EpochForecast(
        epoch=epoch,
        tier_samples=counts,
        ssd_bytes=ssd_bytes,
        storage_bytes=storage_bytes,
        tier_bytes=nbytes,
        is_exact=True,
        decoded_bytes=job.decoded_bytes,
    )


def count_tiers(
    sample_SRB: NDArray[np.int64], job: Job, ownership: Ownership
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the reading nodes find their samples once the caches are full.

    Args:
        sample_SRB: int64 (num_steps, num_ranks, batch_per_rank), -1 for none.
        job: the job.
        ownership: of its shards.

    Returns:
        (samples, bytes), each int64 (num_nodes, 4), by reading node and `TIERS`.
    """
    place_of_sample = _place_of_sample(job, ownership)
    counts = np.zeros((job.topology.num_nodes, len(TIERS)), dtype=np.int64)
    nbytes = np.zeros_like(counts)
    per_node = job.topology.ranks_per_node * sample_SRB.shape[2]
    by_node = sample_SRB.reshape(len(sample_SRB), job.topology.num_nodes, per_node)
    # Node by node, so that no temporary is larger than one node's share of the epoch.
    for node, count in enumerate(counts):
        place = place_of_sample[by_node[:, node]]
        is_in = [place == 2 * node + MEMORY, place == 2 * node + SSD, place >= 0]
        is_in.append(place == _IN_STORAGE)
        count[:] = [np.count_nonzero(mask) for mask in is_in]
        if not isinstance(job.sample_bytes, int):
            # Samples -1 are in no tier.
            each = job.sample_bytes[by_node[:, node]]
            nbytes[node] = [each.sum(where=mask) for mask in is_in]
    for by_tier in (counts, nbytes):
        by_tier[:, 2] -= by_tier[:, 0] + by_tier[:, 1]
    if isinstance(job.sample_bytes, int):
        nbytes = counts * job.sample_bytes
    return counts, nbytes


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
    """Bytes read from each node's SSD, for whichever node."""
    reads = np.zeros(job.topology.num_nodes, dtype=np.int64)
    if not (ownership.tier_of_shard == SSD).any():
        return reads
    samples = sample_SRB.ravel()
    place = _place_of_sample(job, ownership)[samples]
    is_read = (place >= 0) & (place % 2 == SSD)
    each = np.broadcast_to(job.sample_bytes, job.num_samples)[samples[is_read]]
    np.add.at(reads, place[is_read] // 2, each)
    return reads
