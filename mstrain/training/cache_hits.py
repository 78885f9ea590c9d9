"""Where samples came from, over all ranks, beside what the plan forecast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from msdata.cache.config import Owners
from msdata.dataset.dataset import Split
from msdata.plan.forecast import TIERS, Job, assign_job, count_epoch
from msdata.plan.order import DEFAULT_LAST
from msdata.plan.ownership import Ownership, equal_nodes
from mstrain.config import TrainConfig, batch_per_rank
from mstrain.data.columns import split_weights
from mstrain.distributed import Ranks

Counts = dict[str, int]


@dataclass(frozen=True, kw_only=True)
class HitCounter:
    """Counts an epoch's samples by tier.

    Attributes:
        split: the training split.
        config: settings of the run.
        ranks: all of them count together.
        owners: owner of every shard, from `msdata.Loader.cache_owners`; None without a cache.
    """

    split: Split
    config: TrainConfig
    ranks: Ranks
    owners: Owners | None

    def count(self, stats: Mapping[str, Any], epoch: int) -> tuple[Counts | None, Counts | None]:
        """Samples by tier over all ranks in an epoch of this rank's loader, and those forecast.

        Returns:
            (hits, forecast); None without a cache, and for the forecast of part of an epoch, as it
            is after a resume.
        """
        hits = count_hits(stats, self.ranks)
        is_whole = hits is not None and sum(hits.values()) == len(self.split)
        has_peers = bool(stats.get("has_peers"))
        return hits, self.forecast(epoch, has_peers=has_peers) if is_whole else None

    def forecast(self, epoch: int, *, has_peers: bool) -> Counts | None:
        """What the plan forecasts for a whole epoch; `has_peers` if other nodes are asked."""
        if self.owners is None:
            return None
        num_nodes = self.ranks.topology.num_nodes
        job = Job(
            topology=self.ranks.topology,
            # Owners are known, whatever memory they came from.
            nodes=equal_nodes(num_nodes, memory_bytes=0),
            shard_sizes=self.split.shard_sizes,
            sample_bytes=self.split.record_nbytes,
            batch_per_rank=batch_per_rank(self.config, self.ranks.count),
            policy=self.config.data.policy,
            seed=self.config.seed,
            last=DEFAULT_LAST,
            buffer_samples=self.config.data.buffer_samples,
            weights=split_weights(self.split, self.config),
        )
        ownership = Ownership.numbered(*self.owners, num_nodes)
        assignment = assign_job(job, ownership, epoch)
        # Caches that are filled first are never cold.
        is_full = self.config.data.cache_warmup == "blocking"
        counted = count_epoch(assignment, job, ownership, max(epoch, 1) if is_full else epoch)
        found = dict(zip(TIERS, counted.tier_samples.sum(axis=0).tolist(), strict=True))
        if not has_peers:
            found["storage"] += found["peer"]
            found["peer"] = 0
        return found


def count_hits(stats: Mapping[str, Any], ranks: Ranks) -> Counts | None:
    """Samples of an epoch by tier, over all ranks, which all have to ask; None without a cache."""
    tiers = stats.get("tiers")
    # A rank whose cache could not be had counts all its samples as read from storage.
    mine = [0, 0, 0, stats["samples"]] if tiers is None else [tiers[t]["samples"] for t in TIERS]
    total = ranks.sum_counts(np.array([*mine, tiers is not None], np.int64)).tolist()
    return dict(zip(TIERS, total, strict=False)) if total[-1] else None


def hit_rate(counts: Counts | None) -> float | None:
    """Share of the samples that did not come from storage; None where nothing was counted."""
    total = 0 if counts is None else sum(counts.values())
    return 1 - counts["storage"] / total if counts and total else None
