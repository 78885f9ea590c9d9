"""What the plan predicts of epochs on some nodes: the code of `msdata plan`, with measured rates.

For the nodes that are measured the loader's own functions are replayed, sample for sample; for
more than there are here the closed form answers at once, up to a thousand of them and more.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import msdata
from benchmarks.questions.rank import TIERS
from msdata.dataset.index import write_index
from msdata.dataset.manifest import Manifest
from msdata.errors import UsageError
from msdata.plan.closed_form import expect_epoch, levelled_shares
from msdata.plan.forecast import Job, forecast_epoch, own_job
from msdata.plan.machine import machine_from
from msdata.plan.order import num_steps
from msdata.plan.ownership import equal_nodes
from msdata.plan.timing import Machine, by_nodes, on_nodes, time_epoch
from msdata.topology import Topology

MOST_NODES = 1024
POLICY, LAST = "locality", "drop"
# The catalog of Mantis Shrimp (arXiv:2501.09112), in shards of a thousand cutouts.
FULL_SAMPLES, FULL_SHARD_SAMPLES = 4_300_000, 1000
# Of what a node brings to weak scaling, its cache holds so much: all tiers have something to do.
CACHED_SHARE = 0.75


def make_part(data: Path, num_shards: int, out: Path, *, split: str = "train") -> Path:
    """Makes a data set of the first shards of a split, by links to them, without copying a sample.

    Shards are fair draws of their split, so the first of them are a smaller data set of the same
    kind; weak scaling needs one for each number of nodes. What stands at `out` is replaced.

    Raises:
        UsageError: the split has fewer shards.
    """
    whole = msdata.open(data).split(split)
    if not 1 <= num_shards <= len(whole.shards):
        raise UsageError(f"{data}, split {split}, has {len(whole.shards)} shards, not {num_shards}")
    shards = whole.shards[:num_shards]
    shutil.rmtree(out, ignore_errors=True)
    (out / split).mkdir(parents=True)
    for path in whole.shard_paths[:num_shards]:
        # Beside a tar shard lies DALI's index of it.
        for file in path.parent.glob(f"{path.stem}.*"):
            (out / split / file.name).symlink_to(file.resolve())
    rows = whole.table(None).slice(0, sum(shard.num_samples for shard in shards))
    source = whole.dataset.manifest
    Manifest(
        container=source.container,
        schema=source.schema,
        shards=shards,
        seed=source.seed,
        index_sha256=write_index(out, rows, source.schema),
        provenance={"part_of": source.fingerprint, "shards": num_shards},
    ).write(out)
    return out


def make_job(
    topology: Topology,
    shard_sizes: NDArray[np.int64],
    *,
    sample_nbytes: int,
    batch_per_rank: int,
    memory_nbytes: int,
) -> Job:
    """A job as the plan is told of it, with so much memory on each node."""
    return Job(
        topology=topology,
        nodes=equal_nodes(topology.num_nodes, memory_bytes=memory_nbytes),
        shard_sizes=shard_sizes,
        sample_bytes=sample_nbytes,
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


def by_tier(counts: Any) -> dict[str, Any]:
    """Four numbers by the names of tiers."""
    return dict(zip(TIERS, np.asarray(counts).tolist(), strict=True))


def predict(job: Job, machine: Machine, epochs: Sequence[int]) -> dict[str, Any]:
    """Replays the epochs of these numbers and times them by the rates of each node.

    Returns:
        `predicted_s` of each epoch; over all of them `predicted_samples_per_s` and
        `predicted_tiers`, samples by tier; `binds`, the part that takes longest.
    """
    ownership = own_job(job)
    forecasts = [forecast_epoch(job, ownership, epoch) for epoch in epochs]
    times = [time_epoch(forecast, machine, job.topology) for forecast in forecasts]
    seconds = [time.epoch_s or 0.0 for time in times]
    tiers = np.sum([forecast.tier_samples.sum(axis=0) for forecast in forecasts], axis=0)
    return {
        "predicted_s": seconds,
        "predicted_samples_per_s": float(tiers.sum()) / sum(seconds),
        "predicted_tiers": by_tier(tiers.astype(int)),
        "binds": times[-1].binds or "nothing known",
    }


def full_sizes() -> NDArray[np.int64]:
    """int64 (shards,), samples of each shard of the whole catalog."""
    return np.full(FULL_SAMPLES // FULL_SHARD_SAMPLES, FULL_SHARD_SAMPLES, np.int64)


def strong(job: Job, machine: Machine) -> list[dict[str, Any]]:
    """The same data on 1, 2, 4, ... nodes by the closed form, as long as they make ten steps."""
    powers = [1 << k for k in range(MOST_NODES.bit_length())]
    batch = job.topology.ranks_per_node * job.batch_per_rank
    numbers = [n for n in powers if num_steps(job.num_samples, n * batch, job.last) >= 10]
    return [_described(variant) for variant in by_nodes(job, machine, numbers)]


def weak(job: Job, machine: Machine) -> list[dict[str, Any]]:
    """As much data per node as fills its cache and a third more, on more and more nodes."""
    nbytes = float(job.nodes.memory_bytes[0]) / CACHED_SHARE
    shards = max(1, round(nbytes / job.mean_bytes / FULL_SHARD_SAMPLES))
    found = []
    for number in (1 << k for k in range(MOST_NODES.bit_length())):
        sizes = np.full(number * shards, FULL_SHARD_SAMPLES, np.int64)
        (variant,) = by_nodes(replace(job, shard_sizes=sizes), machine, [number])
        found.append(_described(variant))
    return found


def _described(variant: Any) -> dict[str, Any]:
    samples = float(variant.forecast.tier_samples.sum())
    seconds = variant.time.epoch_s
    return {
        "nodes": variant.num_nodes,
        "epoch_s": seconds,
        "samples_per_s": samples / seconds if seconds else None,
        "binds": variant.time.binds,
        "shares": by_tier(variant.forecast.shares),
    }


def replay_beside_closed_form(job: Job, num_nodes: int) -> dict[str, Any]:
    """Shares of tiers of one epoch on many nodes: replayed sample for sample, and expected."""
    many = on_nodes(job, num_nodes)
    return {
        "nodes": num_nodes,
        "replayed": by_tier(forecast_epoch(many, own_job(many), 1).shares),
        "expected": by_tier(expect_epoch(many, 1, levelled_shares(many)).shares),
    }
