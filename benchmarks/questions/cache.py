"""What does the cache give, does the forecast hold, and what do others give with the same bytes?

On 1, 2, ... nodes (of a Slurm job, or processes of this machine that stand for them), with caches
that hold a part of the data or all of it: ours by three policies, plain peer fetch among them,
private caches of the same size, and none. Everything goes through the production loader and, for
ours, the production services; each epoch's samples by tier stand beside what the plan foretold.

Storage is measured as it is, and slowed to known rates, since over a page cache nothing is gained.
What is slowed is the loader's reads in the ranks; the filling of the caches is not timed.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import msdata
from benchmarks.questions.bare_reads import edge_words
from benchmarks.questions.cache_plan import (
    CONTESTANTS,
    QUICK_SHARES,
    SHARES,
    Setup,
    foretell,
    make_setup,
)
from benchmarks.questions.cache_ranks import CacheRanks, Epoch, joined
from benchmarks.questions.cache_shown import show
from benchmarks.questions.cache_timing import add_forecast_times, ratios_of
from benchmarks.harness import spread, take_turns, write_result
from benchmarks.questions.node_steps import Nodes, find_nodes, mpiexec, services
from benchmarks.question import Settings
from benchmarks.workloads import (
    WORKLOADS,
    dataset_objects,
    mock_objects,
    run_msdata,
    write_source,
)
from msdata.cache.budget import memory_budget
from msdata.core.signals import raise_on_signals
from msdata.dataset.dataset import Split
from msdata.errors import StorageError, UsageError
from msdata.plan.forecast import EpochForecast

SHM = Path("/dev/shm")
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

    @property
    def nbytes(self) -> int:
        """Bytes of all records."""
        return len(self.split) * self.split.schema.sample_nbytes


def size_of(settings: Settings) -> tuple[int, int]:
    """How many samples are run on, and bytes of each.

    Raises:
        UsageError: there are too few.
    """
    workload = WORKLOADS[settings.workload]
    count = settings.mock or (workload.num_quick if settings.quick else workload.num_samples)
    nbytes = workload.sample_nbytes
    if settings.data is not None:
        split = msdata.open(settings.data).split("train")
        count, nbytes = min(count, len(split)), split.schema.sample_nbytes
    if settings.mock is None:
        # Held once by the services, twice by the private caches.
        most = MOST_QUICK_NBYTES if settings.quick else MOST_NBYTES
        count = min(count, max(1, most // nbytes))
    if count < FEWEST:
        raise UsageError(f"{count} samples are too few to cache a part of; give at least {FEWEST}")
    return count, nbytes


def make_data(settings: Settings, count: int, nbytes: int) -> Path:
    """Packs mock samples, or the first of the data set given, into many small shards.

    Args:
        settings: whose.
        count: samples.
        nbytes: bytes of each.

    Returns:
        The data set.
    """
    if settings.data is None:
        workload = WORKLOADS[settings.workload]
        name, objects = f"{workload.name}-{count}", mock_objects(workload, count)
    else:
        fingerprint = msdata.open(settings.data).manifest.fingerprint
        name, objects = f"data-{fingerprint[:12]}-{count}", dataset_objects(settings.data, count)
    source = write_source(settings.work / name, objects)
    out = settings.work / "cached" / name
    if not (out / "dataset.json").is_file():
        options = ("--split", "1,0,0", "--max-nan-fraction", "1", "--quiet", "--resume")
        # A record is longer in its shard than its arrays are: by headers, rounded to 512 bytes.
        shard_kib = -(-count // min(NUM_SHARDS, count // 2)) * (nbytes + 4096) >> 10
        catalog = source.objects / "catalog.csv"
        sizes = ("--shard-size", f"{max(1, shard_kib)}KiB")
        run_msdata("pack", source.objects, out, "--catalog", catalog, *options, *sizes)
    return out


def make_bench(settings: Settings) -> Bench:
    """Data, nodes and orders.

    Raises:
        UsageError: there is no mpiexec, too little data, or too much for this machine's memory.
    """
    nodes = find_nodes(os.environ, MOST_QUICK if settings.quick else MOST_PRETENDED)
    if not nodes.is_slurm:
        mpiexec()
    count, nbytes = size_of(settings)
    _check_memory(nodes, count * nbytes)
    data = make_data(settings, count, nbytes)
    split = msdata.open(data).split("train")
    edges = settings.work / "edges.npy"
    words = edge_words(split)
    np.save(edges, words.view(np.uint8).reshape(*words.shape[:2], 8))
    order = {
        "data": str(data.resolve()),
        "edges": str(edges.resolve()),
        "batch_size": min(WORKLOADS[settings.workload].batch_size, count // FEWEST),
        "threads": None,
        "shm_dir": str(SHM),
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
            f"the caches would take {asked / 1e9:.1f} GB of memory, which this machine does not "
            "have free; give fewer samples by --mock N"
        )


@dataclass
class Runs:
    """The epochs of one setup, each beside its forecast.

    Attributes:
        bench: what all setups have in common.
        setup: nodes and memory.
        ranks: of this setup.
        epochs: by contestant and rate of storage, those that were timed.
    """

    bench: Bench
    setup: Setup
    ranks: CacheRanks
    epochs: dict[tuple[str, float | None], list[tuple[Epoch, EpochForecast]]] = field(
        default_factory=dict
    )
    _foretold: dict[str, Iterator[EpochForecast]] = field(default_factory=dict)

    def open(self) -> None:
        """Makes all contestants' loaders, and runs the epochs that are not timed."""
        for name in CONTESTANTS:
            self.ranks.ask("open", name=name, memory_nbytes=self.setup.memory_nbytes)
            self._foretold[name] = foretell(self.bench.split, self.setup, name)
            for _ in range(CHECKED_EPOCHS):
                self._epoch(name, None, is_checked=True)

    def measure(self, storage_bytes_per_s: float | None) -> None:
        """Times epochs of all contestants in turns.

        Args:
            storage_bytes_per_s: what the storage of all nodes together is slowed to.
        """
        contestants = {n: partial(self._timed, n, storage_bytes_per_s) for n in CONTESTANTS}
        take_turns(contestants, self.bench.repeats, warm_ups=0)

    def _timed(self, name: str, storage_bytes_per_s: float | None) -> float:
        found = self._epoch(name, storage_bytes_per_s, is_checked=False)
        self.epochs.setdefault((name, storage_bytes_per_s), []).append(found)
        return len(self.bench.split) / found[0].seconds

    def _epoch(
        self, name: str, storage_bytes_per_s: float | None, *, is_checked: bool
    ) -> tuple[Epoch, EpochForecast]:
        per_node = storage_bytes_per_s and storage_bytes_per_s / self.setup.num_nodes
        answers = self.ranks.ask(
            "epoch", name=name, storage_bytes_per_s=per_node, is_checked=is_checked
        )
        epoch = joined(CONTESTANTS[name].title, answers, len(self.bench.split))
        foretold = next(self._foretold[name])
        if foretold.epoch != epoch.number:
            raise StorageError(f"{name}: epoch {epoch.number} came for {foretold.epoch}")
        return epoch, foretold


def point_of(runs: Runs, name: str, storage_bytes_per_s: float | None) -> dict[str, Any]:
    """What is written of a contestant's epochs at one rate of storage."""
    epochs = runs.epochs[name, storage_bytes_per_s]
    num_samples = len(runs.bench.split)
    rates = [num_samples / epoch.seconds for epoch, _ in epochs]
    measured = sum(epoch.tier_samples.sum(axis=0) for epoch, _ in epochs) / len(epochs)
    foretold = sum(forecast.tier_samples.sum(axis=0) for _, forecast in epochs) / len(epochs)
    return {
        "contestant": name,
        "num_nodes": runs.setup.num_nodes,
        "share": runs.setup.share,
        "memory_nbytes": runs.setup.memory_nbytes,
        "storage_bytes_per_s": storage_bytes_per_s,
        "samples_per_s": spread(rates),
        "rates": rates,
        "tier_shares": (np.asarray(measured) / num_samples).tolist(),
        "forecast_tier_shares": (np.asarray(foretold) / num_samples).tolist(),
        "is_as_forecast": all(_is_as_forecast(*pair) for pair in epochs),
        "epochs": [_epoch_fields(*pair) for pair in epochs],
    }


def _is_as_forecast(epoch: Epoch, forecast: EpochForecast) -> bool:
    """Whether every node read from every tier what was foretold, in samples and in bytes."""
    are_samples = np.array_equal(epoch.tier_samples, forecast.tier_samples)
    return are_samples and np.array_equal(epoch.tier_bytes, forecast.tier_bytes)


def _epoch_fields(epoch: Epoch, forecast: EpochForecast) -> dict[str, Any]:
    return {
        "epoch": epoch.number,
        "seconds": epoch.seconds,
        "tier_samples": epoch.tier_samples.tolist(),
        "forecast_tier_samples": forecast.tier_samples.tolist(),
        "tier_bytes": epoch.tier_bytes.tolist(),
        "forecast_tier_bytes": forecast.tier_bytes.astype(np.int64).tolist(),
    }


def run_setup(bench: Bench, setup: Setup, slowed: Sequence[float]) -> list[dict[str, Any]]:
    """All contestants on some nodes with some memory.

    Args:
        bench: what all setups have in common.
        setup: nodes and memory.
        slowed: rates of storage, for all nodes together, beside what it is.

    Returns:
        A point for each contestant and rate.
    """
    name = f"{setup.num_nodes}-nodes-{setup.share}"
    data = bench.split.dataset.path
    logs = bench.work / f"services-{name}"
    order = {**bench.order, "is_served": True}
    with (
        services(bench.nodes, data, setup.memory_nbytes, setup.num_nodes, logs),
        CacheRanks(bench.nodes, setup.num_nodes, order, bench.work / f"ranks-{name}.log") as ranks,
    ):
        runs = Runs(bench=bench, setup=setup, ranks=ranks)
        runs.open()
        for rate in (None, *slowed):
            runs.measure(rate)
        ranks.ask("close")
    points = [point_of(runs, c, rate) for rate in (None, *slowed) for c in CONTESTANTS]
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
    with CacheRanks(bench.nodes, setup.num_nodes, bench.order, log) as ranks:
        ranks.ask("open", name="none", memory_nbytes=0)
        seconds = []
        for _ in range(1 + QUICK_REPEATS):
            answers = ranks.ask("epoch", name="none", storage_bytes_per_s=None, is_checked=False)
            seconds.append(joined("no cache", answers, len(bench.split)).seconds)
    return bench.nbytes / min(seconds[1:])


def rounded(value: float) -> float:
    """The value to two digits."""
    return round(value, 1 - math.floor(math.log10(value)))


def measure(settings: Settings, bench: Bench) -> tuple[list[dict[str, Any]], list[float]]:
    """All points of all setups, and the rates of slowed storage."""
    numbers = bench.nodes.numbers
    batch_size = bench.order["batch_size"]
    swept = make_setup(bench.split, min(2, max(numbers)), SHARES[1], batch_size)
    rate = storage_rate(bench, swept)
    divisors = QUICK_DIVISORS if settings.quick else DIVISORS
    slowed = [rounded(rate / divisor) for divisor in divisors]
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
        "points": points,
        "ratios": ratios_of(points),
    }
    shown = show(result)
    for sentence in shown.sentences:
        print(f"  {sentence}")
    result["shown"] = shown.to_json()
    print(write_result("cache", result, command=settings.command, folder=settings.out))
    return 0 if all(point["is_as_forecast"] for point in points) else 1
