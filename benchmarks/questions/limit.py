"""How fast could this machine be? Memory, page cache, disk, shared memory, MPI, the GPU's bus.

Reads are of the sample's size at random places, by 1 to T threads, and sequential; cold ones after
the file's pages were dropped and counted (mincore). What cannot be measured here is said.

As a program (`mpiexec -n 2 python -m benchmarks.questions.limit NBYTES`) it is the two ranks whose
one-sided reads are measured: rank 0 reads samples out of rank 1's window, as a cache service does.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.harness import Settings, interval_text, spread, take_turns
from benchmarks.report import Shown, Table, bars_of, write_shown
from benchmarks.workloads import size_of
from msdata.cache.config import GIB
from msdata.cluster.probe import (
    drop_from_cache,
    measure_file,
    measure_memory_copy,
    read_at_random,
    read_sequentially,
    temporary_file,
)
from msdata.errors import StorageError

SHARED_MEMORY = Path("/dev/shm")
_NUM_READS, _NUM_SLOTS = 300, 64


def thread_counts() -> list[int]:
    """1, 2, 4, ... up to twice the cores: cold reads want more threads than there are cores."""
    cores = len(os.sched_getaffinity(0))
    return [n for n in (1 << k for k in range(8)) if n <= 2 * cores]


def hot_contestants(file: Path, nbytes: int, budget_s: float) -> dict[str, Callable[[], float]]:
    """Measurements that a hot file and memory allow, each giving bytes per second."""
    size = file.stat().st_size
    # The whole file, however long that takes.
    sequential = partial(read_sequentially, file, math.inf)
    found: dict[str, Callable[[], float]] = {"page cache, sequential, 1 thread": sequential}
    for n in thread_counts():
        found[f"memory copy, {_threads(n)}"] = partial(
            measure_memory_copy, nbytes, num_threads=n, buffer_bytes=size, budget_s=budget_s
        )
        found[f"page cache, random samples, {_threads(n)}"] = partial(
            read_at_random, file, nbytes, n, budget_s
        )
    return found


def _threads(number: int) -> str:
    return f"{number} thread{'s' if number > 1 else ''}"


def measure_shared_memory(nbytes: int, file_nbytes: int, budget_s: float) -> float:
    """Bytes per second of `preadv` from shared memory; StorageError where it has no room."""
    free = os.statvfs(SHARED_MEMORY)
    if free.f_bavail * free.f_frsize < 2 * file_nbytes:
        raise StorageError(f"{SHARED_MEMORY} has less than {2 * file_nbytes:,} bytes free")
    with temporary_file(SHARED_MEMORY, file_nbytes) as (path, _):
        return read_at_random(path, nbytes, len(os.sched_getaffinity(0)), budget_s)


def measure_cold(file: Path, nbytes: int, budget_s: float) -> dict[str, float]:
    """Bytes per second of cold reads by what was read; StorageError where nothing is cold."""
    rates = measure_file(file, nbytes, thread_counts(), budget_s=budget_s)
    if not rates.is_cold:
        raise StorageError(f"{file} stays in the page cache (a tmpfs?): nothing there is cold")
    found = {"cold, sequential, 1 thread": rates.sequential}
    return found | {f"cold, random samples, {_threads(n)}": r for n, r in rates.random.items()}


def measure_mpi_get(nbytes: int) -> float:
    """Bytes per second of one-sided `Get` of samples of two ranks; StorageError without MPI."""
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if not mpiexec.exists():
        raise StorageError("no mpiexec beside Python: pip install 'msdata[mpi]'")
    command = [str(mpiexec), "-n", "2", sys.executable, "-m", __name__, str(nbytes)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise StorageError(f"mpiexec failed: {error}") from error
    return float(json.loads(ended.stdout.strip().splitlines()[-1]))


def run_mpi_rank(nbytes: int) -> None:
    """One of the two ranks; rank 0 prints its rate."""
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    held = np.full((_NUM_SLOTS, nbytes), world.rank, np.uint8)
    window = MPI.Win.Create(held, disp_unit=1, comm=world)
    got = np.zeros(nbytes, np.uint8)
    world.Barrier()
    if world.rank == 0:
        window.Lock(1, MPI.LOCK_SHARED)
        for read in range(-10, _NUM_READS):
            if read == 0:
                started_s = time.perf_counter()
            window.Get(got, 1, target=(read % _NUM_SLOTS * nbytes, nbytes, MPI.BYTE))
            window.Flush(1)
        rate = _NUM_READS * nbytes / (time.perf_counter() - started_s)
        window.Unlock(1)
        if not (got == 1).all():
            raise SystemExit("rank 0 read other bytes than rank 1 holds")
        print(json.dumps(rate))
    world.Barrier()
    window.Free()


def measure_host_to_device(nbytes: int) -> float:
    """Bytes per second from pinned memory to the GPU, a copy per sample, on one stream.

    Raises:
        StorageError: there is neither a GPU nor torch.
    """
    try:
        import torch
    except ImportError as error:
        raise StorageError("torch is not installed: pip install 'msdata[train]'") from error
    if not torch.cuda.is_available():
        raise StorageError("no GPU found here")
    count = max(1, (1 << 28) // nbytes)
    host = torch.empty((count, nbytes), dtype=torch.uint8, pin_memory=True)
    device = torch.empty((count, nbytes), dtype=torch.uint8, device="cuda")
    # The first of the two warms up.
    for _ in range(2):
        torch.cuda.synchronize()
        started_s = time.perf_counter()
        for row in range(count):
            device[row].copy_(host[row], non_blocking=True)
        torch.cuda.synchronize()
        elapsed_s = time.perf_counter() - started_s
    return host.nbytes / elapsed_s


def measure(settings: Settings, nbytes: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Bytes per second by name, one per turn, and reasons by name why others are missing."""
    budget_s, repeats = (0.15, 3) if settings.quick else (1.0, 5)
    file_nbytes = (256 if settings.quick else 2048) << 20
    missing: dict[str, str] = {}
    settings.work.mkdir(parents=True, exist_ok=True)
    with temporary_file(settings.work, file_nbytes) as (file, _):
        rates = take_turns(hot_contestants(file, nbytes, budget_s), repeats)
        try:
            for _ in range(repeats):
                for name, rate in measure_cold(file, nbytes, 3 * budget_s).items():
                    rates.setdefault(name, []).append(rate)
                drop_from_cache(file)
        except StorageError as error:
            missing["cold"] = str(error)
    others: dict[str, Callable[[], float]] = {
        "shared memory, random samples": partial(
            measure_shared_memory, nbytes, file_nbytes // 2, budget_s
        ),
        "MPI Get between 2 ranks of one node": partial(measure_mpi_get, nbytes),
        "host to device, pinned": partial(measure_host_to_device, nbytes),
    }
    for name, contestant in others.items():
        try:
            rates[name] = [contestant() for _ in range(repeats)]
        except StorageError as error:
            missing[name] = str(error)
    return rates, missing


def show(rates: dict[str, list[float]], missing: dict[str, str], nbytes: int) -> Shown:
    """What the report shows."""
    spreads = {name: spread([rate / GIB for rate in values]) for name, values in rates.items()}
    chart = bars_of(
        "Rates that bound any loader",
        "GiB/s, median; whiskers: least and greatest over turns",
        list(spreads),
        {"GiB/s": list(spreads.values())},
    )
    table = Table(
        title="Rates",
        columns=("what", "GiB/s over turns", "samples/s"),
        rows=[
            [name, interval_text(found), found["median"] * GIB / nbytes]
            for name, found in spreads.items()
        ],
        note=f"Samples of {nbytes:,} bytes. Cold: the file's pages were dropped and counted.",
    )
    found = [f"{name}: {interval_text(rate)} GiB/s." for name, rate in spreads.items()]
    found += [f"Not measured: {name}: {reason}." for name, reason in missing.items()]
    return Shown(
        title="How fast could this machine be?", sentences=found, tables=[table], charts=[chart]
    )


def answer(settings: Settings) -> int:
    """Measures, prints, and writes `limit.json`; returns the exit code."""
    _, nbytes = size_of(settings)
    rates, missing = measure(settings, nbytes)
    result = {
        "workload": str(settings.data or settings.workload),
        "quick": settings.quick,
        "sample_nbytes": nbytes,
        "bytes_per_s": {name: spread(values) for name, values in rates.items()},
        "missing": missing,
    }
    write_shown("limit", result, show(rates, missing, nbytes), settings)
    return 0


if __name__ == "__main__":
    run_mpi_rank(int(sys.argv[1]))
