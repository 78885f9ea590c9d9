"""What the plan foretells of epochs on some nodes: the code of `msdata plan`, with measured rates.

For the nodes that are measured the loader's own functions are replayed, sample for sample; for
those that nobody has here the closed form answers at once, up to a thousand of them and more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.dataset.dataset import Split
from msdata.plan.closed_form import expect_epoch, levelled_shares
from msdata.plan.forecast import TIERS, Job, forecast_epoch, own_job
from msdata.plan.machine import machine_from
from msdata.plan.order import num_steps
from msdata.plan.ownership import equal_nodes
from msdata.plan.timing import Machine, by_nodes, on_nodes, time_epoch
from msdata.topology import Topology

MOST_NODES = 1024
POLICY, LAST = "locality", "drop"
# The catalogue of Mantis Shrimp (arXiv:2501.09112), in shards of a thousand cutouts.
FULL_SAMPLES, FULL_SHARD_SAMPLES = 4_300_000, 1000
# Of what a node brings to weak scaling, its cache holds so much: all tiers have something to do.
CACHED_SHARE = 0.75


@dataclass(frozen=True, kw_only=True)
class Foretold:
    """Epochs of a job as the plan has them.

    Attributes:
        seconds: of each epoch.
        samples: of an epoch.
        tiers: samples by tier, of all epochs together.
        binds: the part that takes longest.
    """

    seconds: tuple[float, ...]
    samples: int
    tiers: dict[str, int]
    binds: str

    @property
    def samples_per_s(self) -> float:
        """Over all epochs."""
        return self.samples * len(self.seconds) / sum(self.seconds)


def job_of(split: Split, topology: Topology, *, memory_nbytes: int, batch_per_rank: int) -> Job:
    """The job whose epochs are measured, as the plan is told of it."""
    return Job(
        topology=topology,
        nodes=equal_nodes(topology.num_nodes, memory_bytes=memory_nbytes),
        shard_sizes=split.shard_sizes,
        sample_bytes=split.sample_nbytes,
        batch_per_rank=batch_per_rank,
        policy=POLICY,
        last=LAST,
    )


def rates_here(
    fields: Mapping[str, Any], per_machine: int, storage_bytes_per_s: float | None
) -> Machine:
    """The rates of one of several nodes, of which some may share a machine.

    Args:
        fields: of `machine.json`.
        per_machine: nodes that share one machine's memory, cores and network; 1 for real nodes.
        storage_bytes_per_s: what each node's storage was slowed to; None where it was not.

    Returns:
        The rates; without those of GPUs, of which measured epochs have none.
    """
    machine = replace(machine_from(dict(fields)), samples_per_s=None)
    if machine.memory is not None:
        machine = replace(machine, memory=machine.memory / per_machine)
    if machine.network is not None:
        probed = probed_per_machine(fields)
        machine = replace(machine, network=machine.network * probed / per_machine)
    if storage_bytes_per_s is not None:
        machine = replace(machine, storage=storage_bytes_per_s, storage_total=None)
    return machine


def probed_per_machine(fields: Mapping[str, Any]) -> float:
    """How many ranks shared a machine while `msdata probe` measured the network."""
    hosts = fields.get("hosts") or [""]
    return len(hosts) / len(set(hosts))


def foretell(job: Job, machine: Machine, epochs: Sequence[int]) -> Foretold:
    """Replays epochs and times them.

    Args:
        job: as the loader runs it.
        machine: rates of each node.
        epochs: their numbers.
    """
    ownership = own_job(job)
    forecasts = [forecast_epoch(job, ownership, epoch) for epoch in epochs]
    times = [time_epoch(forecast, machine, job.topology) for forecast in forecasts]
    by_tier = sum(forecast.tier_samples.sum(axis=0) for forecast in forecasts)
    return Foretold(
        seconds=tuple(time.epoch_s or 0.0 for time in times),
        samples=int(forecasts[0].tier_samples.sum()),
        tiers=dict(zip(TIERS, np.asarray(by_tier).astype(int).tolist(), strict=True)),
        binds=times[-1].binds or "nothing known",
    )


def full_sizes() -> NDArray[np.int64]:
    """int64 (shards,), samples of each shard of the whole catalogue."""
    return np.full(FULL_SAMPLES // FULL_SHARD_SAMPLES, FULL_SHARD_SAMPLES, np.int64)


def full_job(
    shard_sizes: NDArray[np.int64],
    sample_nbytes: int,
    *,
    node: Topology,
    batch_per_rank: int,
    memory_nbytes: int,
) -> Job:
    """A job on the whole data set, on one node of the kind that is here."""
    return Job(
        topology=Topology(ranks_per_node=node.ranks_per_node),
        nodes=equal_nodes(1, memory_bytes=memory_nbytes),
        shard_sizes=shard_sizes,
        sample_bytes=sample_nbytes,
        batch_per_rank=batch_per_rank,
        policy=POLICY,
        last=LAST,
    )


def numbers_beyond(job: Job) -> list[int]:
    """1, 2, 4, ... nodes, as long as the data make ten steps."""
    powers = [1 << k for k in range(MOST_NODES.bit_length())]
    batch = job.topology.ranks_per_node * job.batch_per_rank
    return [n for n in powers if num_steps(job.num_samples, n * batch, job.last) >= 10]


def strong(job: Job, machine: Machine) -> list[dict[str, Any]]:
    """The same data on more and more nodes, by the closed form."""
    return [
        _described(variant, job.batch_per_rank)
        for variant in by_nodes(job, machine, numbers_beyond(job))
    ]


def weak(job: Job, machine: Machine) -> list[dict[str, Any]]:
    """As much data a node as fills its cache and a third more, on more and more nodes."""
    nbytes = float(job.nodes.memory_bytes[0]) / CACHED_SHARE
    shards = max(1, round(nbytes / job.sample_bytes / FULL_SHARD_SAMPLES))
    found = []
    for number in (1 << k for k in range(MOST_NODES.bit_length())):
        sizes = np.full(number * shards, FULL_SHARD_SAMPLES, np.int64)
        (variant,) = by_nodes(replace(job, shard_sizes=sizes, shard_bytes=None), machine, [number])
        found.append(_described(variant, job.batch_per_rank))
    return found


def _described(variant: Any, batch_per_rank: int) -> dict[str, Any]:
    samples = float(variant.forecast.tier_samples.sum())
    seconds = variant.time.epoch_s
    return {
        "nodes": variant.num_nodes,
        "epoch_s": seconds,
        "samples_per_s": samples / seconds if seconds else None,
        "binds": variant.time.binds,
        "shares": dict(zip(TIERS, variant.forecast.shares.tolist(), strict=True)),
    }


def replay_beside_closed_form(job: Job, num_nodes: int) -> dict[str, Any]:
    """Shares of tiers of one epoch on many nodes: replayed sample for sample, and expected."""
    many = on_nodes(job, num_nodes)
    replayed = forecast_epoch(many, own_job(many), 1).shares
    expected = expect_epoch(many, 1, levelled_shares(many)).shares
    return {
        "nodes": num_nodes,
        "replayed": dict(zip(TIERS, replayed.tolist(), strict=True)),
        "expected": dict(zip(TIERS, expected.tolist(), strict=True)),
    }
