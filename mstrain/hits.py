"""Where samples came from, over all ranks, beside what the plan forecast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from msdata.dataset import Split
from msdata.plan.forecast import TIERS, Job, forecast_epoch, own_job
from msdata.plan.ownership import equal_nodes
from mstrain.config import TrainConfig
from mstrain.data import batch_per_rank, cache_of
from mstrain.ranks import Ranks

Counts = dict[str, int]


def count_hits(stats: Mapping[str, Any], ranks: Ranks) -> Counts | None:
    """Samples of an epoch by tier, over all ranks.

    Args:
        stats: of this rank's loader.
        ranks: all of them have to ask.

    Returns:
        By "local", "ssd", "peer" and "storage"; None without a cache.
    """
    tiers = stats.get("tiers")
    # A rank whose cache could not be had counts all its samples as read from storage.
    mine = [0, 0, 0, stats["samples"]] if tiers is None else [tiers[t]["samples"] for t in TIERS]
    total = ranks.sum_counts(np.array([*mine, tiers is not None], np.int64)).tolist()
    return dict(zip(TIERS, total, strict=False)) if total[-1] else None


def forecast_hits(
    split: Split, config: TrainConfig, ranks: Ranks, stats: Mapping[str, Any], epoch: int
) -> Counts | None:
    """The same counts as the plan forecasts them for a whole epoch.

    Args:
        split: that is trained on.
        config: of the run.
        ranks: its topology counts.
        stats: of this rank's loader: where the settings leave the memory to be found out, a single
            node's is known from it.
        epoch: number of the epoch.

    Returns:
        By tier; None without a cache, and where what each of several nodes has is not known.
    """
    cache = cache_of(config.data)
    if cache is None:
        return None
    memory_nbytes = cache.memory_nbytes
    if memory_nbytes is None:
        if ranks.topology.num_nodes > 1 or "cache" not in stats:
            return None
        memory_nbytes = stats["cache"]["local"]["slots"] * split.sample_nbytes
    job = Job(
        topology=ranks.topology,
        nodes=equal_nodes(
            ranks.topology.num_nodes, memory_bytes=memory_nbytes, ssd_bytes=cache.ssd_nbytes
        ),
        shard_sizes=split.shard_sizes,
        sample_bytes=split.sample_nbytes,
        batch_per_rank=batch_per_rank(config, ranks.count),
        policy=config.data.policy,
        seed=config.seed,
        last="short",
        buffer_samples=config.data.buffer_samples,
    )
    by_tier = forecast_epoch(job, own_job(job), epoch).tier_samples.sum(axis=0)
    return dict(zip(TIERS, map(int, by_tier), strict=True))


def hit_rate(counts: Counts | None) -> float | None:
    """Share of the samples that did not come from storage; None where nothing was counted."""
    total = 0 if counts is None else sum(counts.values())
    return 1 - counts["storage"] / total if counts and total else None
