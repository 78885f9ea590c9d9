"""How fast could this machine be? Memory, page cache, disk, shared memory, MPI, the GPU's bus.

Reads are of the sample's size at random places, by 1 to T threads, and sequential; cold ones after
the file's pages were dropped and counted (mincore). What cannot be measured here is said.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import msdata
from benchmarks.harness import spread, take_turns, write_result
from benchmarks.question import Chart, Series, Settings, Shown, Table
from benchmarks.workloads import WORKLOADS
from msdata.cluster.probe import drop_from_cache, measure_file, measure_memory_copy, temporary_file
from msdata.errors import StorageError

SHARED_MEMORY = Path("/dev/shm")
MPI_RANKS = 2
_PIECE_NBYTES = 8 << 20


def thread_counts() -> list[int]:
    """1, 2, 4, ... up to twice the cores: cold reads want more threads than there are cores."""
    cores = len(os.sched_getaffinity(0))
    return [n for n in (1 << k for k in range(8)) if n <= 2 * cores]


def read_cached(path: Path, sample_nbytes: int, num_threads: int, budget_s: float) -> float:
    """Bytes per second of `preadv` at random places of a file that is in the page cache."""
    records = np.random.default_rng(0).permutation(path.stat().st_size // sample_nbytes).tolist()
    fd = os.open(path, os.O_RDONLY)
    command = partial(_read_records, fd, sample_nbytes, records, budget_s)
    try:
        return _over_threads(command, num_threads)
    finally:
        os.close(fd)


def _read_records(
    fd: int, nbytes: int, records: list[int], budget_s: float, thread: int, num_threads: int
) -> int:
    buffer, total = bytearray(nbytes), 0
    mine = records[thread::num_threads] or records
    deadline = time.perf_counter() + budget_s
    while time.perf_counter() < deadline:
        for record in mine:
            total += os.preadv(fd, [buffer], record * nbytes)
    return total


def _over_threads(work: Callable[[int, int], int], num_threads: int) -> float:
    from concurrent.futures import ThreadPoolExecutor

    started_s = time.perf_counter()
    with ThreadPoolExecutor(num_threads) as pool:
        total = sum(pool.map(work, range(num_threads), [num_threads] * num_threads))
    return total / (time.perf_counter() - started_s)


def read_cached_sequentially(path: Path) -> float:
    """Bytes per second of reading a cached file front to back, one thread, 8 MiB a read."""
    buffer, total = bytearray(_PIECE_NBYTES), 0
    started_s = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while got := file.readinto(buffer):
            total += got
    return total / (time.perf_counter() - started_s)


def hot_contestants(file: Path, nbytes: int, budget_s: float) -> dict[str, Callable[[], float]]:
    """Measurements that a hot file and memory allow, each giving bytes per second."""
    size = file.stat().st_size
    found: dict[str, Callable[[], float]] = {
        "page cache, sequential, 1 thread": partial(read_cached_sequentially, file)
    }
    for n in thread_counts():
        found[f"memory copy, {_threads(n)}"] = partial(
            measure_memory_copy, nbytes, num_threads=n, buffer_bytes=size, budget_s=budget_s
        )
        found[f"page cache, random samples, {_threads(n)}"] = partial(
            read_cached, file, nbytes, n, budget_s
        )
    return found


def _threads(number: int) -> str:
    return f"{number} thread{'s' if number > 1 else ''}"


def measure_shared_memory(nbytes: int, file_nbytes: int, budget_s: float) -> float:
    """Bytes per second of `preadv` from a file in shared memory, as many threads as cores.

    Raises:
        StorageError: there is no room for it.
    """
    free = os.statvfs(SHARED_MEMORY)
    if free.f_bavail * free.f_frsize < 2 * file_nbytes:
        raise StorageError(f"{SHARED_MEMORY} has less than {2 * file_nbytes:,} bytes free")
    with temporary_file(SHARED_MEMORY, file_nbytes) as (path, _):
        return read_cached(path, nbytes, len(os.sched_getaffinity(0)), budget_s)


def measure_cold(file: Path, nbytes: int, budget_s: float) -> dict[str, float]:
    """Bytes per second of cold reads by what was read.

    Raises:
        StorageError: pages stayed in memory, so it was not cold.
    """
    rates = measure_file(file, nbytes, thread_counts(), budget_s=budget_s)
    if not rates.is_cold:
        raise StorageError(f"{file} stays in the page cache (a tmpfs?): nothing there is cold")
    found = {"cold, sequential, 1 thread": rates.sequential}
    return found | {f"cold, random samples, {_threads(n)}": r for n, r in rates.random.items()}


def measure_mpi_get(nbytes: int) -> float:
    """Bytes per second of one-sided `Get` of samples between two ranks of this node.

    Raises:
        StorageError: MPI is not installed or the ranks failed.
    """
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if not mpiexec.exists():
        raise StorageError("no mpiexec beside Python: pip install 'msdata[mpi]'")
    command = [
        str(mpiexec),
        "-n",
        str(MPI_RANKS),
        sys.executable,
        "-m",
        "benchmarks.questions.limit_mpi",
    ]
    try:
        ended = subprocess.run(
            [*command, str(nbytes)], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise StorageError(f"mpiexec failed: {error}") from error
    return float(json.loads(ended.stdout.strip().splitlines()[-1])["bytes_per_s"])


def measure_host_to_device(nbytes: int) -> float:
    """Bytes per second from pinned memory to the GPU, a sample a copy, on one stream.

    Raises:
        StorageError: there is no GPU or no torch.
    """
    try:
        import torch
    except ImportError as error:
        raise StorageError("torch is not installed: pip install 'msdata[train]'") from error
    if not torch.cuda.is_available():
        raise StorageError("there is no GPU here")
    count = max(1, (1 << 28) // nbytes)
    host = torch.empty((count, nbytes), dtype=torch.uint8, pin_memory=True)
    device = torch.empty((count, nbytes), dtype=torch.uint8, device="cuda")
    for timed in (False, True):
        torch.cuda.synchronize()
        started_s = time.perf_counter()
        for row in range(count):
            device[row].copy_(host[row], non_blocking=True)
        torch.cuda.synchronize()
        elapsed_s = time.perf_counter() - started_s
        if timed:
            return host.nbytes / elapsed_s
    raise AssertionError("unreachable")


def measure(settings: Settings, nbytes: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """All rates, and why those that are missing are.

    Args:
        settings: quick or not, and where files go.
        nbytes: bytes of a sample.

    Returns:
        Bytes per second, one a turn, by name; reasons by name.
    """
    budget_s, repeats = (0.15, 3) if settings.quick else (1.0, 5)
    file_nbytes = (256 if settings.quick else 2048) << 20
    missing: dict[str, str] = {}
    settings.work.mkdir(parents=True, exist_ok=True)
    with temporary_file(settings.work, file_nbytes) as (file, _):
        rates = take_turns(hot_contestants(file, nbytes, budget_s), repeats)
        colds: list[dict[str, float]] = []
        try:
            for _ in range(repeats):
                colds.append(measure_cold(file, nbytes, 3 * budget_s))
                drop_from_cache(file)
        except StorageError as error:
            missing["cold"] = str(error)
        for name in colds[0] if colds else ():
            rates[name] = [cold[name] for cold in colds]
    others: dict[str, Callable[[], float]] = {
        "shared memory, random samples": partial(
            measure_shared_memory, nbytes, file_nbytes // 2, budget_s
        ),
        f"MPI Get between {MPI_RANKS} ranks of one node": partial(measure_mpi_get, nbytes),
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
    names = list(rates)
    spreads = [spread([rate / 1e9 for rate in rates[name]]) for name in names]
    chart = Chart(
        title="Rates that bound any loader",
        kind="bars",
        labels=names,
        x_label="GB/s, median; whiskers: least and greatest over turns",
        series=[
            Series(
                name="GB/s",
                values=[s["median"] for s in spreads],
                least=[s["least"] for s in spreads],
                greatest=[s["greatest"] for s in spreads],
            )
        ],
    )
    rows = [
        [name, s["median"], f"{s['least']:.3g} to {s['greatest']:.3g}", s["median"] * 1e9 / nbytes]
        for name, s in zip(names, spreads, strict=True)
    ]
    table = Table(
        title="Rates",
        columns=("what", "GB/s", "over turns", "samples/s"),
        rows=rows,
        note=f"Samples of {nbytes:,} bytes. Cold: the file's pages were dropped and counted.",
    )
    sentences = [f"Not measured: {name}: {reason}." for name, reason in missing.items()]
    return Shown(
        title="How fast could this machine be?",
        sentences=sentences,
        tables=[table],
        charts=[chart],
    )


def answer(settings: Settings) -> int:
    """Measures, prints, and writes `limit.json`; returns the exit code."""
    if settings.data is not None:
        nbytes = msdata.open(settings.data).schema.sample_nbytes
    else:
        nbytes = WORKLOADS[settings.workload].sample_nbytes
    rates, missing = measure(settings, nbytes)
    shown = show(rates, missing, nbytes)
    for name, median, over_turns, samples in shown.tables[0].rows:
        print(f"  {name:<44}{median:>8.2f} GB/s ({over_turns}){samples:>10,.0f} samples/s")
    for sentence in shown.sentences:
        print(f"  {sentence}")
    result: dict[str, Any] = {
        "workload": str(settings.data or settings.workload),
        "quick": settings.quick,
        "sample_nbytes": nbytes,
        "bytes_per_s": {name: spread(values) for name, values in rates.items()},
        "missing": missing,
        "shown": shown.to_json(),
    }
    print(write_result("limit", result, command=settings.command, folder=settings.out))
    return 0
