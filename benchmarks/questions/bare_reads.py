"""The limit: the same samples in the same order through nothing but `preadv` or a memory map.

Threads run freely, each filling its rows of one preallocated batch and checking them: no queue, no
buffers to hand over, no waiting for each other. A product has to do more than that.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.workloads import edge_bytes
from msdata.dataset.dataset import Split

_PIECE_NBYTES = 8 << 20

# Fills row `row` of the batch with sample `sample`.
FillRow = Callable[[int, int], None]


class Batch:
    """One preallocated batch, and what its rows must hold; `edges` are from `edges_of`."""

    def __init__(self, split: Split, size: int, edges: NDArray[np.uint8]) -> None:
        self.size = size
        self.arrays: dict[str, NDArray[Any]] = {
            a.name: np.zeros((size, *a.shape), a.numpy_dtype) for a in split.schema.arrays
        }
        self.rows = [
            [memoryview(array[row].reshape(-1).view(np.uint8)) for array in self.arrays.values()]
            for row in range(size)
        ]
        self.edges = edges

    def targets(self) -> list[list[NDArray[np.uint8]]]:
        """The rows as arrays."""
        return [[np.frombuffer(row, np.uint8) for row in rows] for rows in self.rows]


def check_edges(
    arrays: Mapping[str, NDArray[Any]], samples: NDArray[np.int64], edges: NDArray[np.uint8]
) -> None:
    """Refuses rows whose arrays do not begin and end as those of the samples."""
    if not np.array_equal(edge_bytes(arrays), edges[samples]):
        raise SystemExit("a batch holds other values than the index promises: no result")


def edges_of(split: Split) -> NDArray[np.uint8]:
    """First and last four bytes of every array of every sample: uint8 (samples, arrays, 8)."""
    edges = np.zeros((len(split), len(split.schema.arrays), 8), np.uint8)
    with open_shards(split) as shards:
        for sample in range(len(split)):
            for a, (fd, place, nbytes) in enumerate(shards.places(sample)):
                ends = os.pread(fd, 4, place) + os.pread(fd, 4, place + nbytes - 4)
                edges[sample, a] = np.frombuffer(ends, np.uint8)
    return edges


class OpenShards:
    """Shards as plain file descriptors; made by `open_shards`."""

    def __init__(self, split: Split, fds: Sequence[int]) -> None:
        samples = np.arange(len(split))
        self._fd = [fds[shard] for shard in split.spans.shards(samples).tolist()]
        self._offsets = split.spans.offsets(samples).tolist()
        self._sizes = [a.nbytes for a in split.schema.arrays]

    def places(self, sample: int) -> list[tuple[int, int, int]]:
        """(file descriptor, offset, bytes) of each array of a sample."""
        fd = self._fd[sample]
        return [(fd, o, n) for o, n in zip(self._offsets[sample], self._sizes, strict=True)]

    def gaps(self) -> list[int] | None:
        """Bytes between the arrays of a sample; None where they stand far apart."""
        found = {
            tuple(b - a - n for a, b, n in zip(o, o[1:], self._sizes, strict=False))
            for o in self._offsets
        }
        gaps = found.pop()
        return list(gaps) if not found and all(0 <= g <= 1 << 16 for g in gaps) else None


@contextmanager
def open_shards(split: Split) -> Iterator[OpenShards]:
    """Opens all shards of a split for as long as the block runs."""
    fds = [os.open(path, os.O_RDONLY) for path in split.shard_paths]
    try:
        yield OpenShards(split, fds)
    finally:
        for fd in fds:
            os.close(fd)


def fill_by_preadv(shards: OpenShards, batch: Batch) -> FillRow:
    """Rows by one scattering `preadv` per sample where its arrays stand together, else one each."""
    gaps = shards.gaps()

    def fill_apart(row: int, sample: int) -> None:
        for target, (fd, place, _) in zip(batch.rows[row], shards.places(sample), strict=True):
            os.preadv(fd, [target], place)

    if gaps is None:
        return fill_apart
    buffers: list[list[Any]] = []
    for targets in batch.rows:
        buffers.append([targets[0]])
        for gap, target in zip(gaps, targets[1:], strict=True):
            buffers[-1] += ([bytearray(gap)] if gap else []) + [target]

    def fill(row: int, sample: int) -> None:
        fd, place, _ = shards.places(sample)[0]
        os.preadv(fd, buffers[row], place)

    return fill


@contextmanager
def fill_from_map(split: Split, batch: Batch) -> Iterator[FillRow]:
    """Rows by copies out of memory maps of the shards, every page of them mapped beforehand."""
    maps = [_map(path) for path in split.shard_paths]
    samples = np.arange(len(split))
    sources = [maps[shard] for shard in split.spans.shards(samples).tolist()]
    offsets = split.spans.offsets(samples).tolist()
    targets = batch.targets()

    def fill(row: int, sample: int) -> None:
        source = sources[sample]
        for target, place in zip(targets[row], offsets[sample], strict=True):
            np.copyto(target, source[place : place + len(target)])

    try:
        yield fill
    finally:
        # Mapped pages cannot be dropped from the page cache: let go of them.
        sources.clear()
        maps.clear()


def _map(path: Path) -> NDArray[np.uint8]:
    with path.open("rb") as file:
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        mapped = mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ)
    return np.frombuffer(mapped, np.uint8)


def read_samples(
    order: NDArray[np.int64], batch: Batch, fill_row: FillRow, num_threads: int
) -> float:
    """Fills batches in an order, int64 (samples,), checks every row, and returns samples/s.

    Each thread takes an equal stretch of every batch's rows.
    """
    # The same rows in every batch: as threads do not wait, others may still be a batch behind.
    bounds = [batch.size * t // num_threads for t in range(num_threads + 1)]

    def work(thread: int) -> None:
        start, stop = bounds[thread], bounds[thread + 1]
        for first in range(0, len(order), batch.size):
            mine = order[first + start : first + stop]
            if not len(mine):
                continue
            for row, sample in enumerate(mine.tolist(), start):
                fill_row(row, sample)
            rows = slice(start, start + len(mine))
            check_edges({n: a[rows] for n, a in batch.arrays.items()}, mine, batch.edges)

    return len(order) / run_threads(work, num_threads)


def read_sequentially(paths: Sequence[Path], num_samples: int, num_threads: int) -> float:
    """Reads whole files front to back, 8 MiB per read, threads taking the pieces in turn.

    Returns:
        Samples per second, headers between them included in the time.
    """
    fds = [os.open(path, os.O_RDONLY) for path in paths]
    pieces = iter([(fd, at) for fd in fds for at in range(0, os.fstat(fd).st_size, _PIECE_NBYTES)])
    lock = threading.Lock()

    def work(_thread: int) -> None:
        buffer = bytearray(_PIECE_NBYTES)
        while True:
            with lock:
                piece = next(pieces, None)
            if piece is None:
                return
            os.preadv(piece[0], [buffer], piece[1])

    try:
        return num_samples / run_threads(work, num_threads)
    finally:
        for fd in fds:
            os.close(fd)


def run_threads(work: Callable[[int], object], num_threads: int) -> float:
    """Runs `work(0)` to `work(num_threads - 1)` at once; returns the seconds until all are done."""
    started_s = time.perf_counter()
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(work, range(num_threads)))
    return time.perf_counter() - started_s
