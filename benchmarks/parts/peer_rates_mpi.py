"""How near records fetched through MPI services come to a bare one-sided read.

python -m benchmarks peer_rates_mpi --realtime --samples 480 --repeats 41

Two services under mpiexec, a rank beside them: this process. Records of 580 KiB that the second
node keeps are asked for 16 at a time, received into the rows of a batch, and held against their
CRC32C as the loader does it. The limit is a bare `MPI_Get` of the same records into rows of a
batch, in the first service's process, 16 between flushes, unchecked. All processes share this
machine's cores: ratios of one run mean something, rates do not.
"""

from __future__ import annotations

import mmap
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import compare, print_comparison, take_turns, write_part
from benchmarks.harness import run_threads as in_threads
from benchmarks.parts.peer_rates import (
    BATCH_SIZE,
    NUM_RECORDS,
    REQUEST_SIZE,
    SAMPLE_NBYTES,
    Receive,
    make_records,
    parse,
    receive_ours,
    run,
)
from msdata.cache.config import GIB, CacheConfig, CachedSplit, Owners
from msdata.cache.service import Service
from msdata.cache.slot_places import slots_at_owners
from msdata.cache.transport.group import ending_together
from msdata.cache.transport.link import LinkFetcher, link_address
from msdata.cache.transport.mpi_group import open_group
from msdata.core.checksum import crc32c
from msdata.topology import from_env

BARE = "bare MPI_Get"
SHARD_SIZE = 16
NUM_SHARDS = NUM_RECORDS // SHARD_SIZE
KEEPER = 1


def own(memory_nbytes: Any = None, ssd_nbytes: Any = None) -> Owners:
    """All shards are the second node's."""
    return np.full(NUM_SHARDS, KEEPER, np.int32), np.zeros(NUM_SHARDS, np.int8)


def cached_records(records: NDArray[np.uint8]) -> CachedSplit:
    """The records as a split."""
    return CachedSplit(
        fingerprint="bench",
        name="train",
        record_nbytes=np.broadcast_to(SAMPLE_NBYTES, len(records)),
        shard_sizes=np.full(NUM_SHARDS, SHARD_SIZE, np.int64),
        checksums=np.array([crc32c(record) for record in records], np.uint32),
    )


def serve(shm_dir: Path) -> None:
    """One of the services; the first also reads barely, as many records as a line on stdin says."""
    records = make_records()
    split = cached_records(records)
    config = CacheConfig(memory_gib=records.nbytes * 1.01 / GIB, job="bench", shm_dir=shm_dir)
    group = open_group(from_env())
    with (
        ending_together(group),
        Service(group, config, split, own, lambda: lambda s: records[s]) as service,
    ):
        service.open("host")
        with service.path.open("r+b") as file:
            window = group.window(mmap.mmap(file.fileno(), 0)).bare
        places = slots_at_owners(own(), split, group.size)
        first_at = int(places.records_at[0])
        rows = np.ones((BATCH_SIZE, SAMPLE_NBYTES), np.uint8)
        is_said = False
        while service.turn():
            if group.rank == 0 and not is_said and service.describe()["is_full"]:
                print("full", service.path, flush=True)
                is_said = True
            if group.rank == 0 and select.select([sys.stdin], [], [], 0)[0]:
                line = sys.stdin.readline()
                if not line:
                    return
                print(run(partial(get_barely, window, first_at), int(line), rows), flush=True)


def get_barely(
    window: Any, first_at: int, samples: NDArray[np.int64], rows: NDArray[np.uint8]
) -> None:
    """Reads records by `MPI_Get` of mpi4py's window, and nothing else."""
    for row, sample in zip(rows, samples.tolist(), strict=True):
        window.Get(row, KEEPER, first_at + sample * SAMPLE_NBYTES)
    window.Flush(KEEPER)


@contextmanager
def services() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Two of them under mpiexec; gives the launcher, and the first one's arena."""
    launcher = Path(sys.executable).with_name("mpiexec")
    with tempfile.TemporaryDirectory(prefix="msdata-bench-", dir="/dev/shm") as folder:
        words = [str(launcher), "-n", "2", sys.executable, "-m", "benchmarks", "peer_rates_mpi"]
        with subprocess.Popen(
            [*words, "--serve", folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            word, _, path = process.stdout.readline().strip().partition(" ")
            if word != "full":
                raise SystemExit("the services did not start: no result")
            yield process, Path(path)
            process.stdin.close()


def ask_for_bare(process: subprocess.Popen[str], num_samples: int) -> float:
    """Rate of bare reads in the first service; samples per second."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{num_samples}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def run_threads(receive: Receive, num_samples: int, rows: NDArray[np.uint8]) -> float:
    """Threads that fetch at the same time, as a loader's do; samples per second.

    The rows, uint8 (threads, BATCH_SIZE, SAMPLE_NBYTES), were used before, as a loader's are: pages
    met for the first time would cost more than the records.
    """
    share = -(-num_samples // len(rows))
    return share * len(rows) / in_threads(lambda n: run(receive, share, rows[n]), len(rows))


def measure(num_samples: int, repeats: int) -> dict[str, Any]:
    """Bare reads and fetched records, in turns; see `compare` for what is returned."""
    checksums = [int(c) for c in cached_records(make_records()).checksums]
    with services() as (process, path):
        fetcher = LinkFetcher(link_address(path), SAMPLE_NBYTES, timeout_s=60)
        rows = np.ones((2, BATCH_SIZE, SAMPLE_NBYTES), np.uint8)
        receive = partial(receive_ours, fetcher, checksums, node=KEEPER)
        contestants = {
            BARE: partial(ask_for_bare, process, num_samples),
            "LinkFetcher": partial(run, receive, num_samples, rows[0]),
            "LinkFetcher, 2 threads": partial(run_threads, receive, num_samples, rows),
        }
        found = compare(take_turns(contestants, repeats), [BARE])
        fetcher.close()
    return found


def main(words: list[str]) -> int:
    """Runs the benchmark; writes `results/peer_rates_mpi.json`; `--serve FOLDER` is a service."""
    args = parse("peer_rates_mpi", "Records from another node over MPI beside MPI_Get.", words)
    if args.serve is not None:
        serve(args.serve)
        return 0
    found = measure(args.samples, args.repeats)
    print_comparison("records from another node over MPI", found, SAMPLE_NBYTES)
    result = {"sample_nbytes": SAMPLE_NBYTES, "request_size": REQUEST_SIZE, "peer": found}
    write_part("peer_rates_mpi", result, words, args.out)
    return 0
