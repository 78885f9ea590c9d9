"""Expected reads by tier without drawing an order: instant, and for machines that do not exist.

Hits of a cache without eviction are plain shares. `locality` moves the mean positive part of a
fluctuation: the number of its own samples that a node finds in a batch, beyond the number it may
keep.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from msdata.errors import UsageError
from msdata.plan.forecast import EpochForecast, Job
from msdata.plan.ownership import MEMORY, SSD, Ownership, level_room

Shares = NDArray[np.float64]

_ROUNDING = 1e-12  # shares below it are what is left of sums that should cancel


def moved_share(num_nodes: int, samples_per_node: float) -> float:
    """Share of samples that cross the network if P equal nodes hold all data and b is large.

    Args:
        num_nodes: P.
        samples_per_node: b, samples per node and step.

    Returns:
        sqrt((1 - 1/P) / (2 pi b)).

    Source: half the mean absolute deviation of a binomial count of mean b, by the normal
    approximation; per sample.
    """
    return math.sqrt((1 - 1 / num_nodes) / (2 * math.pi * samples_per_node))


def owned_shares(job: Job, ownership: Ownership) -> tuple[Shares, Shares]:
    """Share of an epoch's reads that each node could serve, by samples or by their weights.

    Args:
        job: the job.
        ownership: of its shards.

    Returns:
        (memory, SSD), each float64 (num_nodes,).
    """
    samples = job.shard_sizes.astype(np.float64)
    if job.weights is not None:
        ends = np.cumsum(job.shard_sizes)
        up_to = np.concatenate([[0.0], np.cumsum(job.weights)])
        samples = up_to[ends] - up_to[ends - job.shard_sizes]
    share = samples / max(float(samples.sum()), np.finfo(np.float64).tiny)
    return ownership.held(share, MEMORY), ownership.held(share, SSD)


def levelled_shares(job: Job) -> tuple[Shares, Shares]:
    """The limit of `owned_shares` for many small shards; needs no ownership."""
    total = int(job.cached_bytes.sum())
    no_load = np.zeros_like(job.nodes.memory_bytes)
    memory = level_room(no_load, job.nodes.memory_bytes, total)
    ssd = level_room(memory, job.nodes.ssd_bytes, max(0, total - int(memory.sum())))
    return memory / max(1, total), ssd / max(1, total)


def expect_epoch(job: Job, epoch: int, shares: tuple[Shares, Shares]) -> EpochForecast:
    """The reads per epoch, averaged over orders.

    Args:
        job: the job.
        epoch: number of the epoch; all after the cold one are alike.
        shares: what `owned_shares` or `levelled_shares` gives.

    Returns:
        Expected counts.

    Raises:
        UsageError: policy "sequential", whose epochs are not drawn.
    """
    if job.policy == "sequential":
        raise UsageError(
            "cannot predict policy 'sequential': which node owns a sample is bound to its place in "
            "the order, and no epoch differs; plan with policy 'shuffle'"
        )
    num_nodes = job.topology.num_nodes
    reads: float = job.num_steps * job.batch_per_node
    if job.last == "short":
        reads = job.num_samples / num_nodes
    memory, ssd = shares
    owned = memory + ssd
    own = _kept_share(job, owned) if job.policy == "locality" else owned
    missed = max(0.0, 1 - float(owned.sum()))
    on_ssd = ssd / np.maximum(owned, np.finfo(np.float64).tiny)
    received = 1 - missed - own
    received[received < _ROUNDING] = 0.0
    tiers = [own * (1 - on_ssd), own * on_ssd, received, np.full(num_nodes, missed)]
    tier_samples = np.stack(tiers, axis=1) * reads
    storage_bytes = tier_samples[:, 3] * job.mean_bytes
    ssd_bytes = ssd * reads * num_nodes * job.mean_bytes
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
        tier_bytes=tier_samples * job.mean_bytes,
        is_exact=False,
        decoded_bytes=job.decoded_bytes,
    )


def _kept_share(job: Job, owned: Shares) -> Shares:
    """Share of its reads that each node serves itself under `locality`.

    A node owns the share p of the data, all nodes together h. A batch of G has c samples that this
    node owns and C that any node owns; the node keeps at most a = b - (G - C)/P of them. c - a is
    nearly normal: its mean is G p - b h, its variance is below, for draws without replacement from
    N samples. Draws by weights are with replacement and scatter more.
    """
    num_nodes = job.topology.num_nodes
    batch = job.global_batch
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
    # Samples fewer than a batch do not scatter at all; beyond 30 sigma nothing is left of a tail.
    t = np.clip(mean / np.maximum(sigma, _ROUNDING), -30, 30)
    below = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in t])
    density = np.exp(-0.5 * t * t) / math.sqrt(2 * math.pi)
    positive: Shares = sigma * density + mean * below
    return positive
