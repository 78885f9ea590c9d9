"""What the machine allows: one file of records, read by threads into a small ring of batches.

No product: no format, no ids but positions, no resume. The ring is what keeps the threads busy
across batches and epochs, as in any product, so that the limit is one a product could reach.
"""

from __future__ import annotations

import itertools
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.protocol import Arrays, Batch, Epochs, Reading, read_objects, record_of

RECORDS = "records.bin"
_NUM_AHEAD = 2

# Fills rows of a batch with samples.
Fill = Callable[[Arrays, slice, NDArray[np.int64]], None]


def write_records(objects: Path, out: Path, reading: Reading) -> None:
    """All samples one after the other in one file."""
    out.mkdir()
    with (out / RECORDS).open("wb") as file:
        for _, arrays in read_objects(objects, reading):
            file.write(record_of(arrays, reading).tobytes())


def _run_ring(
    orders: Iterator[NDArray[np.int64]],
    fill: Fill,
    reading: Reading,
    pool: ThreadPoolExecutor,
    threads: int,
) -> Iterator[Batch]:
    """The batches of epochs, each filled by all threads, some ahead of the one handed out."""
    size = reading.batch_size
    ring = deque(reading.empty_batch() for _ in range(_NUM_AHEAD + 1))
    waiting: deque[tuple[NDArray[np.int64], Arrays, list[Future[None]]]] = deque()
    bounds = [size * t // threads for t in range(threads + 1)]
    batches = (
        order[first : first + size] for order in orders for first in range(0, len(order), size)
    )

    def submit() -> None:
        ids, batch = next(batches), ring.popleft()
        rows = [slice(bounds[t], min(bounds[t + 1], len(ids))) for t in range(threads)]
        waiting.append((ids, batch, [pool.submit(fill, batch, r, ids[r]) for r in rows]))

    for _ in range(_NUM_AHEAD):
        submit()
    while True:
        ids, batch, futures = waiting.popleft()
        for future in futures:
            future.result()
        submit()
        yield ids, {name: array[: len(ids)] for name, array in batch.items()}
        ring.append(batch)


@contextmanager
def _epochs(
    order: Callable[[int], NDArray[np.int64]], fill: Fill, reading: Reading, threads: int
) -> Iterator[Epochs]:
    """Epochs that follow each other without a break, from the first that is asked for."""
    num_batches = -(-reading.num_samples // reading.batch_size)
    running: list[Iterator[Batch]] = []
    with ThreadPoolExecutor(threads) as pool:

        def epoch(number: int) -> Iterator[Batch]:
            if not running:
                orders = map(order, itertools.count(number))
                running.append(_run_ring(orders, fill, reading, pool, threads))
            return itertools.islice(running[0], num_batches)

        yield epoch


@contextmanager
def open_map(data: Path, reading: Reading) -> Iterator[Epochs]:
    """Rows copied out of a memory map."""
    with (data / RECORDS).open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    source = np.frombuffer(mapped, reading.dtype())
    # One view per array: indexing a structured array costs more than the copy of a small sample.
    views = {name: source[name] for name in reading.arrays}

    def fill(batch: Arrays, rows: slice, samples: NDArray[np.int64]) -> None:
        for name, target in batch.items():
            view = views[name]
            for row, sample in enumerate(samples.tolist(), rows.start):
                target[row] = view[sample]

    with _epochs(reading.order, fill, reading, reading.num_workers) as epochs:
        yield epochs


@contextmanager
def open_preadv(data: Path, reading: Reading, *, is_in_order: bool = False) -> Iterator[Epochs]:
    """One scattering `preadv` per sample, by two threads per worker, which a disk may want.

    `is_in_order`: by one thread in the order of the file, for what the disk gives at best.
    """
    names, nbytes = list(reading.arrays), reading.dtype().itemsize
    fd = os.open(data / RECORDS, os.O_RDONLY)

    def fill(batch: Arrays, rows: slice, samples: NDArray[np.int64]) -> None:
        for row, sample in enumerate(samples.tolist(), rows.start):
            targets = [batch[name][row].reshape(-1).view(np.uint8) for name in names]
            if os.preadv(fd, targets, sample * nbytes) != nbytes:
                raise OSError(f"sample {sample} was read in part")

    order, threads = reading.order, 2 * reading.num_workers
    if is_in_order:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        order, threads = lambda _: np.arange(reading.num_samples), 1
    try:
        with _epochs(order, fill, reading, threads) as epochs:
            yield epochs
    finally:
        os.close(fd)
