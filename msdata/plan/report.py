"""The numbers of `msdata plan` as one plain dict: `--json` prints it, `rendering` lays it out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import UsageError
from msdata.plan import quality, timing
from msdata.plan.closed_form import expect_epoch, levelled_shares, moved_share, owned_shares
from msdata.plan.forecast import (
    TIERS,
    EpochForecast,
    Job,
    assign_job,
    count_epoch,
    order_job,
    own_job,
)
from msdata.plan.ownership import MEMORY, SSD, Ownership
from msdata.plan.timing import EpochTime, Machine, time_epoch, what_if
from msdata.plan.weights import describe_weights

# An epoch of 4.3 M samples is replayed in 0.3 s: three of them leave `msdata plan` of a hundred
# epochs well within three seconds. Smaller sets are replayed whole.
_REPLAYED_SAMPLES = 15_000_000
# Shuffle quality is that of the first of these, and of the change to the second.
_COMPARED_EPOCHS = (1, 2)
# Label drift sorts what it looks at: some batches tell as much as all.
_DRIFT_SAMPLES = 500_000


def build_report(
    job: Job,
    machine: Machine,
    *,
    num_epochs: int,
    replay_epochs: int | None = None,
    redshift: NDArray[np.float64] | None = None,
    by_nodes: Sequence[int] = (),
    num_trials: int = 1,
) -> dict[str, Any]:
    """Everything `msdata plan` has to say about a job.

    Args:
        job: the job.
        machine: bandwidths.
        num_epochs: epochs of the job, the cold one included.
        replay_epochs: how many of them are replayed exactly; None means 15 M samples' worth.
        redshift: float64 (num_samples,), NaN where unknown; None where there are none.
        by_nodes: numbers of nodes to compare.
        num_trials: trainings of as many epochs that share one node's cache.

    Returns:
        Plain numbers, strings, lists and dicts; None for what cannot be known.
    """
    ownership = own_job(job)
    if replay_epochs is None:
        replay_epochs = max(2, _REPLAYED_SAMPLES // job.num_samples)
    shares = owned_shares(job, ownership)
    num_replayed = min(replay_epochs, num_epochs)
    orders = {epoch: order_job(job, epoch) for epoch in _COMPARED_EPOCHS}
    forecasts, seen = _forecast(job, ownership, orders, num_epochs, num_replayed)
    times = [time_epoch(f, machine, job.topology) for f in forecasts]
    expected = expect_epoch(job, 1, shares)
    return {
        "data": {
            "samples": job.num_samples,
            "sample_bytes": job.mean_bytes,
            "decoded_bytes": job.decoded_bytes,
            "bytes": int(job.cached_bytes.sum()),
            "shards": len(job.shard_sizes),
        },
        "job": _describe_job(job, num_epochs),
        "caches": _describe_caches(job, ownership),
        "kinds_of_nodes": _describe_kinds(job, ownership, [*forecasts[1:2], expected][0]),
        "epochs": [_describe_epoch(f, t) for f, t in zip(forecasts, times, strict=True)],
        "whole_job": _sum_up(forecasts, times),
        "trials": _describe_trials(forecasts, expected, num_trials),
        "closed_form": _describe_closed_form(job, expected),
        "what_if": [_describe_variant(v) for v in what_if(job, machine)],
        "by_nodes": [_describe_variant(v) for v in timing.by_nodes(job, machine, by_nodes)],
        "quality": _measure_quality(job, orders, redshift, seen, num_replayed),
        "machine": asdict(machine),
    }


def _describe_variant(variant: timing.Variant) -> dict[str, Any]:
    described = _describe_epoch(variant.forecast, variant.time)
    return {"name": variant.name, "nodes": variant.num_nodes, **described}


_Orders = dict[int, NDArray[np.int64]]


def _forecast(
    job: Job, ownership: Ownership, orders: _Orders, num_epochs: int, replay_epochs: int
) -> tuple[list[EpochForecast], quality.Measured]:
    """Forecast every epoch, and measure how much of the data rank 0 sees in the replayed ones."""
    forecasts, read_by_rank_0 = [], []
    for epoch in range(replay_epochs):
        assignment = assign_job(job, ownership, epoch, order=orders.get(epoch))
        forecasts.append(count_epoch(assignment, job, ownership, epoch))
        read_by_rank_0.append(assignment.samples[:, 0])
    shares = owned_shares(job, ownership)
    forecasts += [expect_epoch(job, e, shares) for e in range(replay_epochs, num_epochs)]
    return forecasts, _measure_seen(read_by_rank_0, job)


def _measure_seen(epochs: Sequence[NDArray[np.int64]], job: Job) -> quality.Measured:
    seen = quality.seen_share(epochs, job.num_samples)
    uniform = quality.uniform_seen_share(job.topology.num_ranks, len(epochs))
    if job.weights is not None:
        num_draws = sum(int(np.count_nonzero(samples >= 0)) for samples in epochs)
        uniform = quality.drawn_share(job.weights, num_draws)
    return quality.Measured(value=float(seen[-1]) if len(seen) else 0.0, uniform=uniform)


def _describe_job(job: Job, num_epochs: int) -> dict[str, Any]:
    return {
        "nodes": job.topology.num_nodes,
        "ranks_per_node": job.topology.ranks_per_node,
        "batch_per_rank": job.batch_per_rank,
        "global_batch": job.global_batch,
        "steps_per_epoch": job.num_steps,
        "epochs": num_epochs,
        "policy": job.policy,
        "last": job.last,
        "seed": job.seed,
        "buffer_samples": job.buffer_samples if job.policy == "block" else None,
        "weights": describe_weights(job.weights),
    }


def _describe_kinds(
    job: Job, ownership: Ownership, forecast: EpochForecast
) -> list[dict[str, Any]]:
    """What nodes of equal capacities hold and read per epoch, the largest first."""
    capacities = np.stack([job.nodes.memory_bytes, job.nodes.ssd_bytes], axis=1)
    kinds, kind_of_node = np.unique(capacities, axis=0, return_inverse=True)
    described = []
    for number, (memory, ssd) in enumerate(kinds.tolist()):
        mine = kind_of_node.ravel() == number
        samples = forecast.tier_samples[mine].sum(axis=0)
        described.append(
            {
                "nodes": int(mine.sum()),
                "memory_capacity_bytes": memory,
                "ssd_capacity_bytes": ssd,
                "held_bytes_a_node": float(ownership.held(job.cached_bytes)[mine].mean()),
                "epoch": forecast.epoch,
                "shares": _by_tier(samples / max(1, samples.sum())),
                "storage_bytes_a_node": float(forecast.storage_bytes[mine].mean()),
            }
        )
    return described[::-1]


def _by_tier(values: NDArray[Any]) -> dict[str, Any]:
    return dict(zip(TIERS, values.tolist(), strict=True))


def _describe_caches(job: Job, ownership: Ownership) -> dict[str, Any]:
    owner = ownership.owner_of_shard
    shards = np.bincount(owner[owner >= 0], minlength=job.topology.num_nodes)
    return {
        "memory_capacity_bytes": int(job.nodes.memory_bytes.sum()),
        "ssd_capacity_bytes": int(job.nodes.ssd_bytes.sum()),
        "memory_held_bytes": int(ownership.held(job.cached_bytes, MEMORY).sum()),
        "ssd_held_bytes": int(ownership.held(job.cached_bytes, SSD).sum()),
        "cached_share": float(ownership.held(job.shard_sizes).sum() / job.num_samples),
        "fewest_shards_of_a_node": int(shards.min()),
        "most_shards_of_a_node": int(shards.max()),
    }


def _describe_epoch(forecast: EpochForecast, time: EpochTime) -> dict[str, Any]:
    described: dict[str, Any] = {
        "epoch": forecast.epoch,
        "exact": forecast.is_exact,
        "shares": _by_tier(forecast.shares),
        "samples": _by_tier(forecast.tier_samples.sum(axis=0)),
        "bytes": _by_tier(forecast.tier_bytes.sum(axis=0)),
        "storage_bytes": float(forecast.storage_bytes.sum()),
        "busiest_node_storage_bytes": float(forecast.storage_bytes.max()),
        "ssd_bytes": float(forecast.ssd_bytes.sum()),
        "time": asdict(time),
    }
    if forecast.is_exact:
        described["samples_by_node"] = forecast.tier_samples.tolist()
    return described


def _sum_up(forecasts: list[EpochForecast], times: list[EpochTime]) -> dict[str, Any]:
    known = [t.epoch_s for t in times if t.epoch_s is not None]
    return {
        "storage_bytes": float(sum(f.storage_bytes.sum() for f in forecasts)),
        "seconds": sum(known) if len(known) == len(times) else None,
    }


def _describe_trials(
    forecasts: list[EpochForecast], expected: EpochForecast, num_trials: int
) -> dict[str, Any]:
    """Reads of trainings that share a node's cache: only the first one finds it empty."""
    num_nodes = len(expected.storage_bytes)
    if num_trials < 1 or (num_trials > 1 and num_nodes > 1):
        raise UsageError(
            f"--trials must be at least 1, and more on one node only, as each node reads by "
            f"itself, got {num_trials:,} on {num_nodes:,}; plan the trials of one node"
        )
    one = sum(float(f.storage_bytes.sum()) for f in forecasts)
    warm = [float(f.storage_bytes.sum()) for f in forecasts[1:] or [expected]]
    # Epochs of other trainings have other orders, which read as much on average.
    later = len(forecasts) * sum(warm) / len(warm)
    return {
        "trials": num_trials,
        "storage_bytes_one": one,
        "storage_bytes_shared": one + (num_trials - 1) * later,
        "storage_bytes_apart": num_trials * one,
    }


def _describe_closed_form(job: Job, expected: EpochForecast) -> dict[str, Any]:
    many_shards = expect_epoch(job, 1, levelled_shares(job))
    capacity = int(job.nodes.memory_bytes.sum() + job.nodes.ssd_bytes.sum())
    return {
        "shares": _by_tier(expected.shares),
        "shares_for_many_shards": _by_tier(many_shards.shares),
        "hit_share": min(1.0, capacity / int(job.cached_bytes.sum())),
        "moved_share_all_cached": moved_share(job.topology.num_nodes, job.batch_per_node),
    }


def _measure_quality(
    job: Job,
    orders: _Orders,
    redshift: NDArray[np.float64] | None,
    seen: quality.Measured,
    num_replayed: int,
) -> dict[str, Any] | None:
    """Shuffle quality of epoch 1 and of its change to epoch 2; None if no batch is complete."""
    if job.num_samples < max(2, job.global_batch):
        return None
    one, other = (orders[epoch] for epoch in _COMPARED_EPOCHS)
    shard_of_sample = np.repeat(np.arange(len(job.shard_sizes), dtype=np.int32), job.shard_sizes)
    batches = quality.batches_of(one, job.global_batch)
    measured = {
        "same_shard_pairs_per_batch": quality.same_shard_pairs(
            batches, shard_of_sample, job.weights
        ),
        **_measure_change(job, one, other),
        "seen_by_one_rank": seen,
    }
    if redshift is not None:
        measured |= _measure_drift(one, redshift, job)
    described: dict[str, Any] = {name: _describe(m) for name, m in measured.items()}
    described["seen_after_epochs"] = num_replayed
    return described


def _measure_change(
    job: Job, one: NDArray[np.int64], other: NDArray[np.int64]
) -> dict[str, quality.Measured]:
    """How two epochs differ; for draws by weights, the number of samples per epoch."""
    if job.weights is None:
        return {
            "repeated_pairs_per_batch": quality.repeated_pairs(one, other, job.global_batch),
            "displacement": quality.displacement(one, other),
        }
    drawn = quality.Measured(
        value=len(np.unique(one)) / len(one), uniform=quality.drawn_share(job.weights, len(one))
    )
    return {"drawn_in_an_epoch": drawn}


def _measure_drift(
    order: NDArray[np.int64], redshift: NDArray[np.float64], job: Job
) -> dict[str, quality.Measured]:
    known = np.isfinite(redshift)
    order = order[known[order]]
    if len(order) < job.global_batch:
        return {}
    # Samples without a redshift are left out, and the others renumbered.
    number = np.cumsum(known) - 1
    batches = quality.batches_of(number[order], job.global_batch)
    some = batches[:: max(1, batches.size // _DRIFT_SAMPLES)]
    weights = None if job.weights is None else job.weights[known]
    drift = quality.label_drift(some, redshift[known], weights)
    return {
        "redshift_mean_scatter": drift.mean,
        "redshift_distribution_distance": drift.distribution,
    }


def _describe(measured: quality.Measured) -> dict[str, Any]:
    ratio = measured.ratio
    return {**asdict(measured), "ratio": None if math.isnan(ratio) else ratio}
