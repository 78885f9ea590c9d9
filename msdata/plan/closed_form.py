"""Expected reads by tier without drawing an order: at once, and for machines only imagined.

Hits of a cache that is never evicted are plain shares. What `locality` moves is the mean positive
part of a fluctuation: the number of its own samples that a node finds in a batch, beyond the number
it may keep.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from msdata.plan.forecast import EpochForecast, Job
from msdata.plan.order import num_steps
from msdata.plan.ownership import MEMORY, SSD, Ownership
from msdata.plan.placement import level_room

Shares = NDArray[np.float64]

_ROUNDING = 1e-12  # shares below it are what is left of sums that should cancel


def moved_share(num_nodes: int, samples_per_node: float) -> float:
    """Share of samples that cross the network if P equal nodes hold all data and b is large.

    Args:
        num_nodes: P.
        samples_per_node: b, samples of a node and step.

    Returns:
        sqrt((1 - 1/P) / (2 pi b)).

    Source: half the mean absolute deviation of a binomial count of mean b, by the normal
    approximation; per sample.
    """
    return math.sqrt((1 - 1 / num_nodes) / (2 * math.pi * samples_per_node))


def owned_shares(job: Job, ownership: Ownership) -> tuple[Shares, Shares]:
    """Share of an epoch's reads that each node could serve: of the samples, or of their weights.

    Args:
        job: the job.
        ownership: of its shards.

    Returns:
        (memory, SSD), each float64 (num_nodes,).
    """
    share = _share_of_shard(job)
    shares = np.zeros((2, job.topology.num_nodes))
    for row, tier in zip(shares, (MEMORY, SSD), strict=True):
        held = ownership.tier_of_shard == tier
        np.add.at(row, ownership.owner_of_shard[held], share[held])
    return shares[0], shares[1]


def _share_of_shard(job: Job) -> Shares:
    samples = job.shard_sizes.astype(np.float64)
    if job.weights is not None:
        ends = np.cumsum(job.shard_sizes)
        up_to = np.concatenate([[0.0], np.cumsum(job.weights)])
        samples = up_to[ends] - up_to[ends - job.shard_sizes]
    return samples / max(float(samples.sum()), np.finfo(np.float64).tiny)


def levelled_shares(job: Job) -> tuple[Shares, Shares]:
    """What `owned_shares` tends to for many small shards: needs no ownership at all."""
    total = int(job.cached_bytes.sum())
    nobody = np.zeros_like(job.nodes.memory_bytes)
    memory = level_room(nobody, job.nodes.memory_bytes, total)
    ssd = level_room(memory, job.nodes.ssd_bytes, max(0, total - int(memory.sum())))
    return memory / max(1, total), ssd / max(1, total)


def expect_epoch(job: Job, epoch: int, shares: tuple[Shares, Shares]) -> EpochForecast:
    """The reads of an epoch on average over orders.

    Args:
        job: the job.
        epoch: number of the epoch; all after the cold one are alike.
        shares: what `owned_shares` or `levelled_shares` gives.

    Returns:
        Expected counts.
    """
    num_nodes = job.topology.num_nodes
    per_node = job.topology.ranks_per_node * job.batch_per_rank
    steps = num_steps(job.num_samples, num_nodes * per_node, job.last)
    reads = steps * per_node if job.last != "short" else job.num_samples / num_nodes
    memory, ssd = shares
    owned = memory + ssd
    own = _kept_share(job, owned) if job.policy == "locality" else owned
    missed = max(0.0, 1 - float(owned.sum()))
    on_ssd = ssd / np.maximum(owned, np.finfo(np.float64).tiny)
    received = 1 - missed - own
    received[received < _ROUNDING] = 0.0
    tiers = [own * (1 - on_ssd), own * on_ssd, received, np.full(num_nodes, missed)]
    tier_samples = np.stack(tiers, axis=1) * reads
    storage_bytes = tier_samples[:, 3] * job.sample_bytes
    ssd_bytes = ssd * reads * num_nodes * job.sample_bytes
    if epoch == 0:
        storage_bytes = storage_bytes + owned * int(job.cached_bytes.sum())
        tier_samples[:, 3] += tier_samples[:, 0] + tier_samples[:, 1]
        tier_samples[:, :2] = 0
        ssd_bytes = np.zeros_like(ssd_bytes)
    return EpochForecast(
        epoch=epoch,
        tier_samples=tier_samples,
        ssd_bytes=ssd_bytes,
        storage_bytes=storage_bytes,
        sample_bytes=job.sample_bytes,
        is_exact=False,
    )


def _kept_share(job: Job, owned: Shares) -> Shares:
    """Share of its reads that each node serves itself under `locality`.

    With p the share that a node owns and h that of all, a batch of G has c of its samples and C of
    anybody's; the node keeps at most a = b - (G - C)/P of them. c - a is nearly normal: its mean is
    G p - b h, its variance as below, for draws without replacement from N samples. Draws by weights
    are with replacement, and scatter more.
    """
    num_nodes = job.topology.num_nodes
    batch = num_nodes * job.topology.ranks_per_node * job.batch_per_rank
    held = min(1.0, float(owned.sum()))
    samples = max(2, job.num_samples)
    spread = (
        owned * (1 - owned) - 2 * owned * (1 - held) / num_nodes + held * (1 - held) / num_nodes**2
    )
    without_replacement = max(0.0, (samples - batch) / (samples - 1))
    if job.weights is not None:
        without_replacement = 1.0
    sigma = np.sqrt(np.maximum(batch * spread * without_replacement, 0.0))
    excess = batch * (owned - held / num_nodes)
    surplus = _mean_positive_part(excess, sigma)
    return (batch * owned - surplus) * num_nodes / batch


def _mean_positive_part(mean: Shares, sigma: Shares) -> Shares:
    """E[max(0, x)] of a normal x."""
    t = mean / np.maximum(sigma, np.finfo(np.float64).tiny)
    below = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in t])
    density = np.exp(-0.5 * np.minimum(t * t, 1000.0)) / math.sqrt(2 * math.pi)
    positive: Shares = sigma * density + mean * below
    return positive
