"""What `cache` runs, and what is predicted of it: by the production plan, not by a model.

Ours are predicted by `msdata.plan.forecast`, the private caches by replaying their table over the
samples that the production plan deals to each rank; epoch times by `msdata.plan.timing`, from rates
of the same run. Three kinds of epochs give the rates of a node: those that come from its own memory
(ours, locality, all held), those that come from peers as far as can be (plain peer fetch, all
held), and those that come from storage (no cache).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import ratio_spread, spread
from benchmarks.questions.private_cache import LRU, NEVER_EVICTS, PrivateTable
from benchmarks.questions.rank import SEED
from msdata.cache.config import GIB
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
from msdata.plan.timing import Machine, time_epoch
from msdata.topology import Topology

# Of all nodes together; the largest leaves room for shards that do not divide evenly. Each is half
# of the next: nodes of one size hold twice the share when there are twice as many.
SHARES = (0.275, 0.55, 1.1)
QUICK_SHARES = SHARES[1:]
_PEER = 2
Point = dict[str, Any]


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


class Setup(NamedTuple):
    """Nodes of one rank, the share of the data that they hold together, the bytes of each."""

    num_nodes: int
    share: float
    memory_nbytes: int
    batch_size: int


def make_setup(split: Split, num_nodes: int, share: float, batch_size: int) -> Setup:
    """A setup whose nodes are equal."""
    nbytes = share * len(split) * split.schema.sample_nbytes / num_nodes
    # As the service understands it: a number of GiB.
    return Setup(num_nodes, share, int(int(nbytes) / GIB * GIB), batch_size)


def predict(split: Split, setup: Setup, name: str) -> Iterator[EpochForecast]:
    """What each epoch of a contestant reads from where, from epoch 0 on: exact counts.

    Services are full before epoch 0 (a blocking warmup), so it is predicted as a later one.
    """
    contestant = CONTESTANTS[name]
    job = Job(
        topology=Topology(num_nodes=setup.num_nodes),
        nodes=equal_nodes(setup.num_nodes, memory_bytes=setup.memory_nbytes),
        shard_sizes=split.shard_sizes,
        sample_bytes=split.record_nbytes,
        batch_per_rank=setup.batch_size,
        policy=contestant.policy,
        seed=SEED,
        last="short",
    )
    ownership = own_job(job)
    capacity = setup.memory_nbytes // split.schema.sample_nbytes
    tables = [PrivateTable(capacity, contestant.private or LRU) for _ in range(setup.num_nodes)]
    epoch = 0
    while True:
        if contestant.is_served and epoch:
            yield forecast_epoch(job, ownership, epoch)
        else:
            assigned = assign_job(job, ownership, epoch).samples
            if contestant.is_served:
                counts, _ = count_tiers(assigned, job, ownership)
            else:
                counts = _replay(assigned, tables if contestant.private else [])
            yield _forecast(epoch, counts, split.schema.sample_nbytes)
        epoch += 1


def _replay(sample_SRB: NDArray[np.int64], tables: list[PrivateTable]) -> NDArray[np.int64]:
    """int64 (nodes, 4): hits and misses of each rank's table; without tables only misses."""
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
        tier_bytes=counts * sample_bytes,
        is_exact=True,
    )


def _measures(point: Mapping[str, Any]) -> str | None:
    """The part of a node whose rate the point gives, so that its own forecast is worth nothing."""
    if point["storage_bytes_per_s"] is not None:
        return None
    if point["contestant"] == "none":
        return "storage"
    of_whole = {"locality": "memory", "shuffle": "network"}
    return of_whole.get(point["contestant"]) if point["share"] == max(SHARES) else None


def _node_rates(points: Sequence[Point]) -> dict[str, float | None]:
    """Median bytes per second of a node by part, of points of one number of nodes."""
    rates: dict[str, list[float]] = {part: [] for part in ("memory", "network", "storage")}
    for point in points:
        part = _measures(point)
        for epoch in point["epochs"] if part else ():
            nbytes = np.array(epoch["tier_bytes"], np.float64)
            of_nodes = nbytes[:, _PEER] if part == "network" else nbytes.sum(axis=1)
            rates[part].append(float(of_nodes.max()) / epoch["seconds"])
    return {
        part: statistics.median(found) if found and min(found) > 0 else None
        for part, found in rates.items()
    }


def add_forecast_times(points: Sequence[Point], sample_nbytes: int) -> dict[int, Any]:
    """Adds to every point what the plan says of its time, and how that compares.

    Points get `forecast_s`, `bound_by`, `time_over_forecast` (its spread over turns) and
    `is_calibration`; returned are the rates by number of nodes.
    """
    numbers = sorted({point["num_nodes"] for point in points})
    by_nodes = {n: _node_rates([p for p in points if p["num_nodes"] == n]) for n in numbers}
    for point in points:
        known = by_nodes[point["num_nodes"]]
        machine = Machine(storage_total=point["storage_bytes_per_s"], **known)
        topology = Topology(num_nodes=point["num_nodes"])
        times, over = [], []
        for epoch in point["epochs"]:
            samples = np.array(epoch["forecast_tier_samples"], np.int64)
            forecast = _forecast(epoch["epoch"], samples, sample_nbytes)
            times.append(time_epoch(forecast, machine, topology))
            over.append(epoch["seconds"] / times[-1].epoch_s)
        point["forecast_s"] = statistics.median(t.epoch_s for t in times)
        point["bound_by"] = times[0].binds
        point["time_over_forecast"] = spread(over)
        point["is_calibration"] = _measures(point) is not None
    return by_nodes


def ratios_of(points: Sequence[Point]) -> dict[str, dict[str, float]]:
    """For `compare`: what each contestant is of no cache, turn by turn.

    Only where storage is slowed: there a ratio says what the cache is worth, not how two copies
    from memory compare.
    """
    place = ("num_nodes", "share", "storage_bytes_per_s")
    baseline = {tuple(p[k] for k in place): p["rates"] for p in points if p["contestant"] == "none"}
    # Rates differ from run to run; their places in the list do not.
    slowed = sorted({p["storage_bytes_per_s"] for p in points if p["storage_bytes_per_s"]})
    return {
        f"{p['contestant']} over no cache, {p['num_nodes']} nodes hold {p['share']:.0%}, slowed "
        f"storage {len(slowed) - slowed.index(p['storage_bytes_per_s'])}": ratio_spread(
            p["rates"], baseline[tuple(p[k] for k in place)]
        )
        for p in points
        if p["storage_bytes_per_s"] is not None and p["contestant"] != "none"
    }
