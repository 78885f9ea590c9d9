"""What does the cache give, does the forecast hold, and what do others give with the same bytes?

On 1, 2, ... nodes (of a Slurm job, or processes of this machine that stand for them), with caches
that hold a part of the data or all of it: ours by three policies, plain peer fetch among them,
private caches of the same size, and none. Everything passes through the production loader and, for
ours, the production services; each epoch's samples by tier stand beside what the plan predicted.

Storage is measured as it is, and slowed to known rates, since over a page cache nothing is gained.
What is slowed is the loader's reads in the ranks; the filling of the caches is not timed.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import msdata
from benchmarks.harness import Settings, spread, take_turns
from benchmarks.questions.cache_plan import (
    CONTESTANTS,
    QUICK_SHARES,
    SHARES,
    Point,
    Setup,
    add_forecast_times,
    make_setup,
    predict,
    ratios_of,
)
from benchmarks.questions.cache_shown import show
from benchmarks.questions.nodes import SHM, Nodes, Ranks, find_nodes, mpiexec, services
from benchmarks.report import write_shown
from benchmarks.workloads import WORKLOADS, make_source, pack_source, size_of
from msdata.cache.budget import memory_budget
from msdata.core.signals import raise_on_signals
from msdata.core.text import bytes_text
from msdata.dataset.dataset import Split
from msdata.errors import DataError, StorageError, UsageError
from msdata.plan.forecast import EpochForecast

# Shards are what the caches are made of: of so many a half can be held to a percent.
NUM_SHARDS = 64
# Of samples: an epoch has at least as many steps, on one node.
FEWEST = 16
MOST_NBYTES, MOST_QUICK_NBYTES = 1 << 30, 192 << 20
# Pretended nodes share the machine: more of them would measure how its cores are shared.
MOST_PRETENDED, MOST_QUICK = 4, 2
REPEATS, QUICK_REPEATS = 4, 2
# Epochs of which every byte is compared; the private caches are as full as they get after them.
CHECKED_EPOCHS = 2
# Storage slowed to this part of the rate that ranks without a cache reach, everywhere; in one setup
# to the others too, to see where what binds changes.
SLOWED = 8
DIVISORS, QUICK_DIVISORS = (2, 4, SLOWED, 16, 32), (2, SLOWED, 32)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all setups have in common.

    Attributes:
        split: the data.
        nodes: those there are.
        order: what ranks are told.
        repeats: timed epochs of each contestant and rate of storage.
        work: for logs.
    """

    split: Split
    nodes: Nodes
    order: dict[str, Any]
    repeats: int
    work: Path


def make_bench(settings: Settings) -> Bench:
    """Data in many small shards, nodes and orders.

    Raises:
        UsageError: mpiexec is missing, there is too little data, or too much for the memory.
    """
    nodes = find_nodes(os.environ, MOST_QUICK if settings.quick else MOST_PRETENDED)
    if not nodes.is_slurm:
        mpiexec()
    count, nbytes = size_of(settings)
    if settings.mock is None:
        # Held once by the services, twice by the private caches.
        most = MOST_QUICK_NBYTES if settings.quick else MOST_NBYTES
        count = min(count, max(1, most // nbytes))
    if count < FEWEST:
        raise UsageError(f"{count} samples are too few to cache a part of; give at least {FEWEST}")
    _check_memory(nodes, count * nbytes)
    source = make_source(settings, count)
    # A record is longer in its shard than its arrays are: by headers, rounded to 512 bytes.
    shard_nbytes = -(-count // min(NUM_SHARDS, count // 2)) * (nbytes + 4096)
    data = pack_source(source, settings.work / "cached" / source.folder.name, shard_nbytes)
    split = msdata.open(data).split("train")
    edges = settings.work / "edges.npy"
    # In the order of the split; ids are the objects' numbers.
    np.save(edges, source.edges[[int(split.sample_id(row)) for row in range(len(split))]])
    order = {
        "data": str(data.resolve()),
        "edges": str(edges.resolve()),
        "batch_size": min(WORKLOADS[settings.workload].batch_size, count // FEWEST),
        "last": "short",
        "is_served": False,
    }
    return Bench(
        split=split,
        nodes=nodes,
        order=order,
        repeats=QUICK_REPEATS if settings.quick else REPEATS,
        work=settings.out.resolve() / "logs",
    )


def _check_memory(nodes: Nodes, nbytes: int) -> None:
    """Refuses what this machine cannot hold, as far as the nodes are pretended."""
    # The services' arenas, and two private caches.
    asked = int(3 * max(SHARES) * nbytes)
    if not nodes.is_slurm and memory_budget(asked, SHM)[1] < asked:
        raise UsageError(
            f"the caches would take {bytes_text(asked)} of memory, which this machine does not "
            "have free; give fewer samples by --mock N"
        )


class Epoch(NamedTuple):
    """One epoch of all ranks, every sample of which came once.

    The seconds are those of the slowest rank; samples and bytes are int64 (nodes, 4), by reading
    node and tier.
    """

    number: int
    seconds: float
    tier_samples: NDArray[np.int64]
    tier_bytes: NDArray[np.int64]


def joined(name: str, answers: Sequence[Mapping[str, Any]], num_samples: int) -> Epoch:
    """What all ranks say of an epoch of a contestant over a split of so many samples.

    Raises:
        DataError: not every sample came exactly once.
    """
    times = np.zeros(num_samples, np.int64)
    for answer in answers:
        bits = np.frombuffer(bytes.fromhex(answer["seen"]), np.uint8)
        times += np.unpackbits(bits, count=num_samples)
    came = sum(answer["num_samples"] for answer in answers)
    if came != num_samples or (times != 1).any():
        raise DataError(
            f"{name}, epoch {answers[0]['epoch']}: of {num_samples} samples "
            f"{int((times == 0).sum())} did not come, and {came} came in all; its figures are void"
        )
    tiers = (np.array([answer[key] for answer in answers]) for key in ("tiers", "tier_bytes"))
    return Epoch(answers[0]["epoch"], max(answer["seconds"] for answer in answers), *tiers)


def run_epoch(
    bench: Bench,
    ranks: Ranks,
    name: str,
    forecasts: Iterator[EpochForecast],
    storage_bytes_per_s: float | None = None,
    *,
    is_checked: bool = False,
) -> dict[str, Any]:
    """The next epoch of a contestant, each node's storage slowed, beside its forecast, for JSON."""
    answers = ranks.ask(
        "epoch", name=name, storage_bytes_per_s=storage_bytes_per_s, is_checked=is_checked
    )
    epoch = joined(CONTESTANTS[name].title, answers, len(bench.split))
    forecast = next(forecasts)
    if forecast.epoch != epoch.number:
        raise StorageError(f"{name}: epoch {epoch.number} came for {forecast.epoch}")
    return {
        "epoch": epoch.number,
        "seconds": epoch.seconds,
        "tier_samples": epoch.tier_samples.tolist(),
        "forecast_tier_samples": forecast.tier_samples.tolist(),
        "tier_bytes": epoch.tier_bytes.tolist(),
        "forecast_tier_bytes": forecast.tier_bytes.astype(np.int64).tolist(),
        # Every node read from every tier what was predicted, in samples and in bytes.
        "is_as_forecast": np.array_equal(epoch.tier_samples, forecast.tier_samples)
        and np.array_equal(epoch.tier_bytes, forecast.tier_bytes),
    }


def point_of(
    setup: Setup,
    name: str,
    storage_bytes_per_s: float | None,
    epochs: Sequence[Mapping[str, Any]],
    num_samples: int,
) -> Point:
    """What is written of a contestant's epochs at one rate of storage."""
    rates = [num_samples / epoch["seconds"] for epoch in epochs]
    measured, forecast = (
        np.mean([np.sum(epoch[key], axis=0) for epoch in epochs], axis=0) / num_samples
        for key in ("tier_samples", "forecast_tier_samples")
    )
    return {
        "contestant": name,
        "num_nodes": setup.num_nodes,
        "share": setup.share,
        "memory_nbytes": setup.memory_nbytes,
        "storage_bytes_per_s": storage_bytes_per_s,
        "samples_per_s": spread(rates),
        "rates": rates,
        "tier_shares": measured.tolist(),
        "forecast_tier_shares": forecast.tolist(),
        "is_as_forecast": all(epoch["is_as_forecast"] for epoch in epochs),
        "epochs": epochs,
    }


def run_setup(bench: Bench, setup: Setup, slowed: Sequence[float]) -> list[Point]:
    """A point for each contestant on some nodes, and each rate of storage beside what it is."""
    place, memory_nbytes = f"{setup.num_nodes}-nodes-{setup.share}", setup.memory_nbytes
    data, logs = bench.split.dataset.path, bench.work / f"services-{place}"
    log, order = bench.work / f"ranks-{place}.log", {**bench.order, "is_served": True}
    points, epochs = [], {}
    with (
        services(bench.nodes, data, memory_nbytes, setup.num_nodes, logs),
        Ranks(bench.nodes, setup.num_nodes, order, log) as ranks,
    ):
        for name, contestant in CONTESTANTS.items():
            told = {key: getattr(contestant, key) for key in ("policy", "is_served", "private")}
            ranks.ask("open", name=name, memory_nbytes=memory_nbytes, **told)
            forecasts = predict(bench.split, setup, name)
            epochs[name] = partial(run_epoch, bench, ranks, name, forecasts)
            for _ in range(CHECKED_EPOCHS):
                epochs[name](is_checked=True)
        for rate in (None, *slowed):
            timed = {n: partial(run, rate and rate / setup.num_nodes) for n, run in epochs.items()}
            for name, turns in take_turns(timed, bench.repeats, warm_ups=0).items():
                points.append(point_of(setup, name, rate, turns, len(bench.split)))
        ranks.ask("close")
    is_good = all(point["is_as_forecast"] for point in points)
    print(
        f"  {setup.num_nodes} nodes that hold {setup.share:.0%}: "
        f"{'as forecast' if is_good else 'NOT AS FORECAST'}",
        flush=True,
    )
    return points


def storage_rate(bench: Bench, setup: Setup) -> float:
    """Bytes per second of ranks without a cache, of storage as it is; the best of some epochs."""
    log = bench.work / "ranks-calibration.log"
    with Ranks(bench.nodes, setup.num_nodes, bench.order, log) as ranks:
        ranks.ask("open", name="none")
        seconds = []
        for _ in range(1 + QUICK_REPEATS):
            answers = ranks.ask("epoch", name="none")
            seconds.append(joined("no cache", answers, len(bench.split)).seconds)
    return len(bench.split) * bench.split.schema.sample_nbytes / min(seconds[1:])


def measure(settings: Settings, bench: Bench) -> tuple[list[Point], list[float]]:
    """All points of all setups, and the rates of slowed storage."""
    numbers = bench.nodes.numbers
    batch_size = bench.order["batch_size"]
    swept = make_setup(bench.split, min(2, max(numbers)), SHARES[1], batch_size)
    rate = storage_rate(bench, swept)
    divisors = QUICK_DIVISORS if settings.quick else DIVISORS
    slowed = [float(f"{rate / divisor:.1e}") for divisor in divisors]
    points = []
    for share in QUICK_SHARES if settings.quick else SHARES:
        for num_nodes in numbers:
            setup = make_setup(bench.split, num_nodes, share, batch_size)
            rates = slowed if setup == swept else [slowed[divisors.index(SLOWED)]]
            points += run_setup(bench, setup, rates)
    return points, slowed


def answer(settings: Settings) -> int:
    """Measures, prints, and writes `cache.json`; returns the exit code."""
    raise_on_signals()
    shutil.rmtree(settings.out / "logs", ignore_errors=True)
    bench = make_bench(settings)
    points, slowed = measure(settings, bench)
    rates = add_forecast_times(points, bench.split.schema.sample_nbytes)
    result: dict[str, Any] = {
        "workload": str(settings.data or settings.workload),
        "quick": settings.quick,
        "num_samples": len(bench.split),
        "sample_nbytes": bench.split.schema.sample_nbytes,
        "batch_size": bench.order["batch_size"],
        "num_shards": len(bench.split.shards),
        "share_a_machine": bench.nodes.per_machine(bench.nodes.most) > 1,
        "slowed_bytes_per_s": slowed,
        "measured_bytes_per_s": rates,
        "ratios": ratios_of(points),
    }
    shown = show({**result, "points": points})
    write_shown("cache", result, shown, settings, raw={"points": points})
    return 0 if all(point["is_as_forecast"] for point in points) else 1
