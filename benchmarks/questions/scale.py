"""What will N nodes do? Weak and strong scaling on those there are, and predicted beyond them.

Measured: the production loader beside the cache's services on 1, 2, 4, ... nodes of a Slurm job;
elsewhere on processes of this machine that stand for nodes. Predicted: the code of `msdata plan`
with the rates of `msdata probe`, for the measured points, which shows what it is worth, and up to
1,024 nodes. Strong scaling shares out the same data; in weak scaling each node brings as much
again.

Where nodes share a machine they share its cores, its memory and its disk, so that more of them
cannot be faster. There each node's storage is slowed to a known rate, far below the machine's: what
is compared is then whether the plan knows who reads what from where, and what that takes.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import msdata
from benchmarks.harness import Settings, spread
from benchmarks.questions.nodes import SHM, Nodes, Ranks, find_nodes, services
from benchmarks.questions.scale_model import (
    CACHED_SHARE,
    LAST,
    POLICY,
    by_tier,
    full_sizes,
    make_job,
    make_part,
    predict,
    probed_per_machine,
    rates_here,
    replay_beside_closed_form,
    strong,
    weak,
)
from benchmarks.questions.scale_shown import ratios_of, show
from benchmarks.report import write_shown
from benchmarks.workloads import WORKLOADS, make_source, pack_source
from msdata.cache.budget import memory_budget
from msdata.core.signals import raise_on_signals
from msdata.errors import StorageError, UsageError
from msdata.plan.machine import load_machine, machine_from
from msdata.topology import Topology

SHARDS_PER_NODE = 8
# Pretended nodes share the machine's cores: more would measure how they are shared.
MOST_PRETENDED = 4
MAX_NODE_NBYTES, MAX_QUICK_NBYTES = 8 << 30, 256 << 20


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is measured on some of the nodes.

    Attributes:
        data: all of it; parts are its first shards.
        shards_per_node: in weak scaling.
        memory_nbytes: of each node's cache.
        batch_per_rank: samples of a rank and step.
        ranks_per_node: ranks.
        epochs: that are timed, after the first.
        storage_bytes_per_s: what each node's storage is slowed to; None where it is not.
        work: folder for parts and logs.
    """

    data: Path
    shards_per_node: int
    memory_nbytes: int
    batch_per_rank: int
    ranks_per_node: int
    epochs: int
    storage_bytes_per_s: float | None
    work: Path


def make_data(settings: Settings, num_nodes: int, is_shared: bool) -> Path:
    """The data set given, or mock samples in shards of which each node gets some."""
    if settings.data is not None:
        return settings.data
    workload = WORKLOADS[settings.workload]
    count = workload.num_quick if settings.quick else workload.num_samples
    if not settings.quick and not is_shared:
        count *= num_nodes
    count = settings.mock or count
    if count < num_nodes * SHARDS_PER_NODE:
        raise UsageError(
            f"{count} samples are too few for {num_nodes} nodes; at least "
            f"{num_nodes * SHARDS_PER_NODE} are needed"
        )
    nbytes = count * workload.sample_nbytes // (num_nodes * SHARDS_PER_NODE)
    out = settings.work / f"scale-{workload.name}-{count}-{nbytes}"
    return pack_source(make_source(settings, count), out, nbytes)


def design(settings: Settings, nodes: Nodes, environ: Mapping[str, str]) -> Experiment:
    """What to measure: the data of each node, its cache, its storage.

    Raises:
        UsageError: there is less than a shard for each node.
    """
    is_shared = nodes.per_machine(nodes.most) > 1
    data = make_data(settings, nodes.most, is_shared)
    split = msdata.open(data).split("train")
    largest = int(split.shard_record_nbytes.max())
    most = (MAX_QUICK_NBYTES if settings.quick else MAX_NODE_NBYTES) // largest
    shards = min(len(split.shards) // nodes.most, max(1, most))
    if shards < 1:
        raise UsageError(
            f"{data}, split train, has {len(split.shards)} shards, and {nodes.most} nodes need one "
            "each; pack it with a smaller --shard-size, or give --mock N"
        )
    memory_nbytes = largest * int(np.ceil(CACHED_SHARE * shards))
    ranks_per_node = ranks_of(environ)
    samples = int(split.shard_sizes[:shards].sum())
    # Ten steps of a node's own samples, at the workload's batch size if they are enough.
    batch = min(WORKLOADS[settings.workload].batch_size, max(1, samples // ranks_per_node // 10))
    seconds = 2.0 if settings.quick else 10.0
    missed = int(split.shard_record_nbytes[: shards * nodes.most].sum()) - memory_nbytes
    return Experiment(
        data=data,
        shards_per_node=shards,
        memory_nbytes=memory_nbytes,
        batch_per_rank=batch,
        ranks_per_node=ranks_per_node,
        epochs=3 if settings.quick else 5,
        storage_bytes_per_s=max(1, missed) / seconds if is_shared else None,
        work=settings.work,
    )


def ranks_of(environ: Mapping[str, str]) -> int:
    """Ranks of each node, by `RANKS_PER_NODE`.

    Raises:
        UsageError: that is not a number.
    """
    text = environ.get("RANKS_PER_NODE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"RANKS_PER_NODE must be an integer of at least 1, got {text}")
    return int(text)


def probe(settings: Settings, nodes: Nodes, experiment: Experiment) -> dict[str, Any]:
    """The rates of these nodes by `msdata probe`; `machine.json` among the results.

    Raises:
        StorageError: it failed.
    """
    out = settings.out / "machine.json"
    split = msdata.open(experiment.data).split("train")
    words = [sys.executable, "-m", "msdata", "probe", "--storage", str(settings.work)]
    words += ["--sample-bytes", str(split.sample_nbytes), "--out", str(out)]
    if settings.quick or experiment.storage_bytes_per_s is not None:
        # Of nodes that share a disk, each would write its own large file to it.
        words += ["--file-gib", "0.25", "--memory-gib", "0.25", "--seconds", "0.5"]
        words += ["--threads", "1,2,4"]
    if nodes.most > 1:
        words = nodes.per_node(nodes.most, [*words, "--network"], is_mpi=True)
    # Twice, see `services`.
    for timeout_s in (120, 600):
        try:
            subprocess.run(
                words,
                env=dict(nodes.environ),
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=True,
                stdin=subprocess.DEVNULL,
            )
            return load_machine(out)
        except subprocess.TimeoutExpired:
            print(f"  msdata probe gave no answer in {timeout_s} s", flush=True)
        except subprocess.CalledProcessError as error:
            said = (error.stderr or error.stdout).strip().splitlines()
            raise StorageError(f"msdata probe failed: {' | '.join(said[-3:])}") from error
        finally:
            # A launcher that is ended kills its ranks, which then leave what they wrote.
            for path in settings.work.glob(".msdata-probe-*"):
                path.unlink(missing_ok=True)
    raise StorageError("msdata probe gave no answer twice; give --machine machine.json")


def measure(
    experiment: Experiment, nodes: Nodes, data: Path, num_nodes: int, logs: Path
) -> dict[str, Any]:
    """Epochs of the production loader and caches over a data set on some nodes.

    Returns:
        `seconds` of each epoch after the first, by the slowest rank; `first_s`; `samples` of an
        epoch; `tiers` of all epochs; the share of pages that `stayed` where they were dropped.
    """
    per_node, rate = experiment.ranks_per_node, experiment.storage_bytes_per_s
    order = {
        "data": str(data.resolve()),
        "edges": None,
        "batch_size": experiment.batch_per_rank,
        "last": LAST,
        "is_served": True,
    }
    told = {"name": "ours", "storage_bytes_per_s": rate and rate / per_node}
    stayed: list[float | None] = []
    with (
        services(nodes, data, experiment.memory_nbytes, num_nodes, logs),
        Ranks(nodes, num_nodes, order, logs / "ranks.log", per_node) as ranks,
    ):
        ranks.ask("open", name="ours", policy=POLICY, is_served=True)
        epochs = [ranks.ask("epoch", **told)]
        for _ in range(experiment.epochs):
            if rate is None:
                stayed += [answer["stayed"] for answer in ranks.ask("drop")]
            epochs.append(ranks.ask("epoch", **told))
    first_s, *seconds = [max(a["seconds"] for a in answers) for answers in epochs]
    return {
        "seconds": seconds,
        "first_s": first_s,
        "samples": sum(a["num_samples"] for a in epochs[1]),
        "tiers": by_tier(np.sum([a["tiers"] for answers in epochs[1:] for a in answers], axis=0)),
        "stayed": None if None in stayed else max(filter(None, stayed), default=0.0),
    }


def measure_point(
    experiment: Experiment,
    nodes: Nodes,
    fields: Mapping[str, Any],
    num_nodes: int,
    num_shards: int,
) -> dict[str, Any]:
    """One point, measured and predicted."""
    started_s = time.monotonic()
    name, work = f"{num_nodes}-nodes-{num_shards}-shards", experiment.work
    data = make_part(experiment.data, num_shards, work / "parts" / name)
    found = measure(experiment, nodes, data, num_nodes, work / "logs" / name)
    split = msdata.open(data).split("train")
    job = make_job(
        Topology(num_nodes=num_nodes, ranks_per_node=experiment.ranks_per_node),
        split.shard_sizes,
        sample_nbytes=split.sample_nbytes,
        memory_nbytes=experiment.memory_nbytes,
        batch_per_rank=experiment.batch_per_rank,
    )
    machine = rates_here(fields, nodes.per_machine(num_nodes), experiment.storage_bytes_per_s)
    predicted = predict(job, machine, range(1, 1 + experiment.epochs))
    rates = spread([found["samples"] / seconds for seconds in found["seconds"]])
    print(
        f"  {num_nodes} nodes, {job.num_samples:,} samples: {rates['median']:,.0f} samples/s, "
        f"predicted {predicted['predicted_samples_per_s']:,.0f} "
        f"({time.monotonic() - started_s:.0f} s)",
        flush=True,
    )
    return {
        **found,
        "nodes": num_nodes,
        "num_samples": job.num_samples,
        "samples_per_s": rates,
        **predicted,
        "error": predicted["predicted_samples_per_s"] / rates["median"] - 1,
    }


def measure_all(
    experiment: Experiment, nodes: Nodes, fields: Mapping[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Both kinds of scaling; the largest point belongs to both and is measured once."""
    point = partial(measure_point, experiment, nodes, fields)
    shards, most = experiment.shards_per_node, nodes.most
    largest = point(most, most * shards)
    fewer = nodes.numbers[:-1]
    return {
        "strong": [*(point(n, most * shards) for n in fewer), largest],
        "weak": [*(point(n, n * shards) for n in fewer), largest],
    }


def predict_beyond(
    settings: Settings, experiment: Experiment, fields: dict[str, Any]
) -> dict[str, Any]:
    """Up to 1,024 nodes like those that were probed, and a real data set.

    What the storage gives to all nodes together is known for those that were probed only: rates are
    predicted as if it gave no more, and as if it grew with the nodes. The truth lies between.
    """
    data = msdata.open(experiment.data).split("train")
    memory_nbytes, _ = memory_budget(None, SHM)
    job = make_job(
        Topology(ranks_per_node=experiment.ranks_per_node),
        full_sizes() if settings.data is None else data.shard_sizes,
        sample_nbytes=data.sample_nbytes,
        batch_per_rank=64 if settings.data is None else experiment.batch_per_rank,
        memory_nbytes=memory_nbytes,
    )
    # Between processes of one machine no network was measured.
    known = dict(fields)
    if probed_per_machine(fields) > 1:
        known["network_bytes_per_s"] = None
    machines = {
        "fixed storage": machine_from(known),
        "growing storage": machine_from({**known, "storage_total_bytes_per_s": None}),
    }
    curves = {
        f"{kind}, {name}": curve(job, machine)
        for kind, curve in (("strong", strong), ("weak", weak))
        for name, machine in machines.items()
    }
    many = curves["strong, fixed storage"][-1]["nodes"]
    return {
        "num_samples": job.num_samples,
        "sample_nbytes": data.sample_nbytes,
        "memory_nbytes": memory_nbytes,
        "has_network": known.get("network_bytes_per_s") is not None,
        "curves": curves,
        "replay": replay_beside_closed_form(job, many),
    }


def answer(settings: Settings) -> int:
    """Measures, predicts, and writes `scale.json`.

    Returns:
        0; 1 where the tiers that were measured are not those that were predicted.
    """
    raise_on_signals()
    nodes = find_nodes(os.environ, 2 if settings.quick else MOST_PRETENDED)
    fields = None if settings.machine is None else load_machine(settings.machine)
    settings.work.mkdir(parents=True, exist_ok=True)
    experiment = design(settings, nodes, os.environ)
    if fields is None:
        fields = probe(settings, nodes, experiment)
    split = msdata.open(experiment.data).split("train")
    result: dict[str, Any] = {
        "workload": str(settings.data or settings.workload),
        "quick": settings.quick,
        "sample_nbytes": split.sample_nbytes,
        "is_slurm": nodes.is_slurm,
        "nodes_per_machine": nodes.per_machine(nodes.most),
        "ranks_per_node": experiment.ranks_per_node,
        "batch_per_rank": experiment.batch_per_rank,
        "memory_nbytes": experiment.memory_nbytes,
        "storage_bytes_per_s": experiment.storage_bytes_per_s,
        "machine": {name: rate for name, rate in fields.items() if "bytes_per_s" in name},
    }
    points = measure_all(experiment, nodes, fields)
    beyond = predict_beyond(settings, experiment, fields)
    whole = {**result, "points": points, "beyond": beyond}
    result["ratios"] = ratios_of(whole)
    raw = {"points": points, "beyond": beyond}
    write_shown("scale", result, show(whole), settings, raw=raw)
    every = [point for kind in points.values() for point in kind]
    return int(any(point["tiers"] != point["predicted_tiers"] for point in every))
