"""Epoch time on a machine of known bandwidths, and the part that limits it.

Tiers work at the same time, ahead of the training, so an epoch lasts as long as its slowest part.
Prefetch evens out changes from step to step, which are neglected here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from msdata.errors import UsageError
from msdata.plan.closed_form import expect_epoch, levelled_shares
from msdata.plan.forecast import EpochForecast, Job
from msdata.plan.ownership import equal_nodes
from msdata.topology import Topology


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Bandwidths in bytes per second; None if unknown, and then ignored.

    Attributes:
        memory: copies from memory into batches, per node.
        ssd: reads from the SSD, per node.
        network: bytes received from peers, per node.
        storage: reads from the shared storage, per node.
        storage_total: reads from the shared storage, all nodes together.
        samples_per_s: samples per second that the GPU of one rank trains on.
        decode: bytes that one core decodes records to.
        cores: cores per node that decode, a number.
    """

    memory: float | None = None
    ssd: float | None = None
    network: float | None = None
    storage: float | None = None
    storage_total: float | None = None
    samples_per_s: float | None = None
    decode: float | None = None
    cores: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise UsageError(f"{name} must be > 0, got {value}; omit an unknown rate")


@dataclass(frozen=True, kw_only=True)
class EpochTime:
    """Seconds per epoch.

    Attributes:
        busy_s: seconds for which each known part is busy, by name ("gpu" among them).
        binds: name of the slowest part; None if nothing is known.
        epoch_s: seconds per epoch; None if nothing is known.
        gpu_wait_s: seconds per epoch for which the GPUs wait; None if their rate is unknown.
        decode_cores: cores per node from which decoding no longer binds; None if it does not, or
            nothing else is known.
    """

    busy_s: dict[str, float]
    binds: str | None
    epoch_s: float | None
    gpu_wait_s: float | None
    decode_cores: int | None = None


def time_epoch(forecast: EpochForecast, machine: Machine, topology: Topology) -> EpochTime:
    """The time per epoch and the part that limits it.

    Args:
        forecast: reads of the epoch.
        machine: bandwidths.
        topology: nodes and ranks.

    Returns:
        Seconds; a part that has nothing to do counts 0.
    """
    storage_total = _seconds(forecast.storage_bytes.sum(), machine.storage_total)
    storage_node = _seconds(forecast.storage_bytes, machine.storage)
    per_rank = forecast.tier_samples.sum() / topology.num_ranks
    copied = forecast.tier_bytes.sum(axis=1)
    decoded = forecast.tier_samples.sum(axis=1) * forecast.decoded_bytes
    decoding = None
    if forecast.decoded_bytes:
        # A copy reads and writes as much; decoding writes more than it reads.
        copied = (copied + decoded) / 2
        if machine.decode is not None and machine.cores is not None:
            decoding = _seconds(decoded, machine.decode * machine.cores)
    parts = {
        "memory": _seconds(copied, machine.memory),
        "ssd": _seconds(forecast.ssd_bytes, machine.ssd),
        "network": _seconds(forecast.tier_bytes[:, 2], machine.network),
        "storage": max((s for s in (storage_node, storage_total) if s is not None), default=None),
        "gpu": _seconds(per_rank, machine.samples_per_s),
        "decode": decoding,
    }
    busy = {name: seconds for name, seconds in parts.items() if seconds is not None}
    epoch_s = max(busy.values(), default=None)
    binds = next((name for name, seconds in busy.items() if seconds == epoch_s), None)
    return EpochTime(
        busy_s=busy,
        binds=binds,
        epoch_s=epoch_s,
        gpu_wait_s=None if epoch_s is None or "gpu" not in busy else epoch_s - busy["gpu"],
        decode_cores=_cores_to_lift(busy, machine) if binds == "decode" else None,
    )


def _cores_to_lift(busy_s: dict[str, float], machine: Machine) -> int | None:
    """Cores per node with which decoding takes no longer than the next slowest part."""
    next_s = max((s for name, s in busy_s.items() if name != "decode"), default=0.0)
    if not next_s or machine.cores is None:
        return None
    return math.ceil(machine.cores * busy_s["decode"] / next_s)


def _seconds(amounts: Any, per_s: float | None) -> float | None:
    """Seconds of the node with the largest amount, of bytes or samples."""
    return None if per_s is None else float(np.max(amounts)) / per_s


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One row of the table of what would change.

    Attributes:
        name: what is changed, in words.
        num_nodes: nodes of the changed job.
        forecast: an epoch after the first, by the closed form.
        time: its time.
    """

    name: str
    num_nodes: int
    forecast: EpochForecast
    time: EpochTime


def what_if(job: Job, machine: Machine) -> list[Variant]:
    """Predict the effect of more nodes, memory or SSD, or of samples half as large.

    Args:
        job: the job as asked for.
        machine: bandwidths.

    Returns:
        The job itself first, then one variant per row; batches per rank stay as they are. Variants
        without a step are left out.
    """
    nodes, memory = job.nodes, job.nodes.memory_bytes
    variants = [
        ("as asked", job),
        ("one more node", on_nodes(job, job.topology.num_nodes + 1)),
        ("twice the nodes", on_nodes(job, 2 * job.topology.num_nodes)),
        ("twice the memory", replace(job, nodes=replace(nodes, memory_bytes=2 * memory))),
        (
            "plus SSD as large as the memory",
            replace(job, nodes=replace(nodes, ssd_bytes=nodes.ssd_bytes + memory)),
        ),
        ("half the bytes per sample", _halved(job)),
    ]
    return _variants(variants, machine)


def by_nodes(job: Job, machine: Machine, numbers: Sequence[int]) -> list[Variant]:
    """The same job on other numbers of nodes.

    Args:
        job: the job as asked for.
        machine: bandwidths.
        numbers: numbers of nodes.

    Returns:
        One variant per number; numbers that leave an epoch without a step are left out.
    """
    return _variants([(f"{n} nodes", on_nodes(job, n)) for n in numbers], machine)


def on_nodes(job: Job, num_nodes: int) -> Job:
    """The job on another number of nodes, all with the mean capacity of its present ones."""
    nodes = equal_nodes(
        num_nodes,
        memory_bytes=int(job.nodes.memory_bytes.mean()),
        ssd_bytes=int(job.nodes.ssd_bytes.mean()),
    )
    topology = Topology(num_nodes=num_nodes, ranks_per_node=job.topology.ranks_per_node)
    return replace(job, nodes=nodes, topology=topology)


def _halved(job: Job) -> Job:
    halves = np.maximum(1, np.asarray(job.sample_bytes) // 2)
    return replace(job, sample_bytes=halves if halves.ndim else int(halves))


def _variants(jobs: Sequence[tuple[str, Job]], machine: Machine) -> list[Variant]:
    variants = []
    for name, job in jobs:
        if job.num_steps:
            forecast = expect_epoch(job, 1, levelled_shares(job))
            time = time_epoch(forecast, machine, job.topology)
            nodes = job.topology.num_nodes
            variants.append(Variant(name=name, num_nodes=nodes, forecast=forecast, time=time))
    return variants
