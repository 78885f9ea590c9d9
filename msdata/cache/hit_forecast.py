"""The share of a node's reads that should not come from storage, of an epoch that ranks report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.cache.config import Owners
from msdata.plan.forecast import Job, assign_job, count_epoch
from msdata.plan.ownership import Ownership, equal_nodes
from msdata.topology import Topology

# Of what a rank reports: all that decides which samples its node reads, but the weights.
RUN_FIELDS = (
    *("num_nodes", "ranks_per_node", "batch_size", "policy", "seed", "last", "buffer_samples"),
    *("epoch", "first_position", "has_peers"),
)


def forecast_hits(
    run: Mapping[str, Any],
    node: int,
    *,
    shard_sizes: NDArray[np.int64],
    sample_nbytes: int,
    owners: Owners,
    weights: NDArray[np.float64] | None = None,
) -> float | None:
    """Replays an epoch as the plan does: half a second for millions of samples.

    Args:
        run: `RUN_FIELDS` of a rank's report.
        node: whose reads.
        shard_sizes: int64 (num_shards,), samples of each shard.
        sample_nbytes: bytes of a record.
        owners: owner and tier of every shard.
        weights: float64 (num_samples,), with which samples are drawn; None takes each once.

    Returns:
        Hits of what is left of the epoch from `first_position`; None where nothing is.
    """
    num_nodes = run["num_nodes"]
    job = Job(
        topology=Topology(num_nodes=num_nodes, ranks_per_node=run["ranks_per_node"]),
        # Owners are known, whatever memory they came from.
        nodes=equal_nodes(num_nodes, memory_bytes=0),
        shard_sizes=shard_sizes,
        sample_bytes=sample_nbytes,
        batch_per_rank=run["batch_size"],
        policy=run["policy"],
        seed=run["seed"],
        last=run["last"],
        buffer_samples=run["buffer_samples"],
        weights=weights,
    )
    ownership = Ownership(
        owner_of_shard=owners[0],
        tier_of_shard=owners[1],
        node_keys=np.arange(num_nodes, dtype=np.uint64),
    )
    epoch = run["epoch"]
    assignment = assign_job(job, ownership, epoch, first_position=run["first_position"])
    local, ssd, peer, storage = count_epoch(assignment, job, ownership, epoch).tier_samples[node]
    hits = local + ssd + (peer if run["has_peers"] else 0)
    total = local + ssd + peer + storage
    return float(hits / total) if total else None


@dataclass(frozen=True, kw_only=True)
class WeightedForecast:
    """The forecast of a rank that draws by weights, which nobody else knows.

    Attributes:
        shard_sizes: as in `forecast_hits`.
        sample_nbytes: as in `forecast_hits`.
        owners: as in `forecast_hits`.
        weights: float64 (num_samples,).
    """

    shard_sizes: NDArray[np.int64]
    sample_nbytes: int
    owners: Owners
    weights: NDArray[np.float64]

    def of(self, report: Mapping[str, Any]) -> float | None:
        """The hits of the epoch that a rank's report is of, on its node."""
        return forecast_hits(report, report["node"], **vars(self))
