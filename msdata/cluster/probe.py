"""Measures this node's memory, disks and network at the size of a sample.

The probe drops the pages of a file (posix_fadvise) before each cold measurement, and mincore counts
the pages that stayed. It cannot drop the caches of a network file system's servers: a file just
written may be read back faster than an old one, so probe an existing large file where that matters.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from msdata.dataset.coding import (
    KIND,
    NBYTES,
    SOURCE,
    STEPS,
    TARGET,
    ArrayCoding,
    RecordDecoder,
    encode,
    kind_number,
)
from msdata.errors import StorageError, UsageError

_SEQUENTIAL_BYTES = 8 << 20  # one read; parallel file systems want megabytes at a time
_WRITTEN_BYTES = 64 << 20
_BATCH_ROWS = 64  # of each thread: 38 MB of cutouts, more than a core's caches
_CODED_RECORDS = 64  # 6 MB of coded cutouts
_CACHED_IS_COLD = 0.02  # pages that may stay: readahead and metadata, not the file


@dataclass(frozen=True, kw_only=True)
class FileRates:
    """Read rates of one file, in bytes per second.

    Attributes:
        sequential: one thread, from start to end.
        random: records of the sample's size at random places, by number of threads.
        cached_share: greatest share of the file's pages still in memory before a measurement;
            None if the system does not tell.
    """

    sequential: float
    random: dict[int, float]
    cached_share: float | None

    def __post_init__(self) -> None:
        if not self.random:
            raise UsageError("the numbers of threads must not be empty")

    @property
    def is_cold(self) -> bool | None:
        """Whether the rates are those of the device; None if unknown."""
        return None if self.cached_share is None else self.cached_share <= _CACHED_IS_COLD

    @property
    def best_random(self) -> float:
        """The rate with the best number of threads: what a loader gets."""
        return max(self.random.values())


def measure_memory_copy(
    sample_bytes: int, *, num_threads: int, buffer_bytes: int, budget_s: float = 1.0
) -> float:
    """Rate of copying samples at random places of a large buffer into batch rows.

    Args:
        sample_bytes: bytes of a sample.
        num_threads: threads that copy at the same time.
        buffer_bytes: size of the buffer; larger than the last-level cache.
        budget_s: seconds to measure for.

    Returns:
        Bytes per second over all threads.
    """
    rows = max(num_threads, buffer_bytes // sample_bytes)
    source = np.ones((rows, sample_bytes), dtype=np.uint8)
    target = np.ones((num_threads * _BATCH_ROWS, sample_bytes), dtype=np.uint8)
    order = np.random.default_rng(0).permutation(rows)

    def copy(thread: int, deadline: float) -> int:
        copied = 0
        while time.perf_counter() < deadline:
            row = order[(thread + copied * num_threads) % rows]
            target[thread * _BATCH_ROWS + copied % _BATCH_ROWS] = source[row]
            copied += 1
        return copied * sample_bytes

    return _rate_over_threads(copy, num_threads, budget_s)


def measure_decoding(
    sample_bytes: int, *, num_threads: int, budget_s: float = 1.0, compress: str = "lz4"
) -> float:
    """Rate of decoding coded samples of noise, 4 steps per sigma, into batch rows.

    Args:
        sample_bytes: bytes of a decoded sample.
        num_threads: threads that decode at the same time.
        budget_s: seconds to measure for.
        compress: as in `msdata pack --compress`.

    Returns:
        Decoded bytes per second over all threads.

    Raises:
        MissingPackageError: the package that decompresses is not installed.
    """
    pixels = max(1, sample_bytes // 4)
    coding = ArrayCoding("noise", (pixels,), quantize=4.0, compress=compress)
    generator = np.random.default_rng(0)
    records = [
        encode(generator.standard_normal(pixels, np.float32), coding) for _ in range(_CODED_RECORDS)
    ]
    stored = [np.frombuffer(record.data, np.uint8) for record in records]
    target = np.ones((num_threads * _BATCH_ROWS, pixels), np.float32)
    table = np.empty((len(target), 5), np.int64)
    for row, into in zip(table, target, strict=True):
        n = generator.integers(_CODED_RECORDS)
        row[[SOURCE, NBYTES, TARGET]] = stored[n].ctypes.data, len(stored[n]), into.ctypes.data
        steps, kind = records[n].steps, records[n].kind
        row[[STEPS, KIND]] = steps.ctypes.data, kind_number(kind, coding)
    decoder = RecordDecoder([coding], [np.float32])

    def decode(thread: int, deadline: float) -> int:
        decoded, first = 0, thread * _BATCH_ROWS
        while time.perf_counter() < deadline:
            decoder.decode(table, first, first + _BATCH_ROWS)
            decoded += _BATCH_ROWS
        return decoded * 4 * pixels

    return _rate_over_threads(decode, num_threads, budget_s)


def measure_file(
    path: Path, sample_bytes: int, threads: Sequence[int], *, budget_s: float = 3.0
) -> FileRates:
    """Cold read rates of a file.

    Args:
        path: an existing file; it is only read.
        sample_bytes: bytes of a random read.
        threads: numbers of threads to try.
        budget_s: seconds for each measurement; a slow disk is not read to the end.

    Returns:
        The rates.

    Raises:
        StorageError: the file cannot be read.
        UsageError: the file is smaller than a sample.
    """
    try:
        file_bytes = path.stat().st_size
        if file_bytes < sample_bytes:
            raise UsageError(f"{path} has {file_bytes} bytes, less than a sample of {sample_bytes}")
        cached = [drop_from_cache(path)]
        sequential = read_sequentially(path, budget_s)
        random = {}
        for num_threads in threads:
            cached.append(drop_from_cache(path))
            random[num_threads] = read_at_random(path, sample_bytes, num_threads, budget_s)
    except OSError as error:
        raise StorageError(f"cannot read {path} ({error}); probe another place") from error
    known = [share for share in cached if share is not None]
    return FileRates(
        sequential=sequential,
        random=random,
        cached_share=max(known) if len(known) == len(cached) else None,
    )


@contextmanager
def temporary_file(directory: Path, file_bytes: int) -> Iterator[tuple[Path, float]]:
    """A file of random bytes, which no file system can compress, gone at the end.

    Args:
        directory: where to write it.
        file_bytes: its size.

    Yields:
        (path, bytes per second of writing it, fsync included).

    Raises:
        StorageError: it cannot be written.
    """
    path = directory / f".msdata-probe-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        try:
            rate = _write_random(path, file_bytes)
        except OSError as error:
            raise StorageError(
                f"cannot write {file_bytes:,} bytes to {directory} ({error}); probe another "
                "place or a smaller --file-gib"
            ) from error
        yield path, rate
    finally:
        path.unlink(missing_ok=True)


def drop_from_cache(path: Path) -> float | None:
    """Drop a file's pages from the page cache.

    Args:
        path: the file.

    Returns:
        Share of its pages still in memory; None if the system does not tell (mincore does not
        report on files that the user may not write).
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)  # dirty pages cannot be dropped
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        return _cached_share(handle) if os.access(path, os.W_OK) else None
    finally:
        os.close(handle)


def _cached_share(handle: int) -> float | None:
    num_bytes = os.fstat(handle).st_size
    if num_bytes == 0:
        return 0.0
    pages = -(-num_bytes // mmap.PAGESIZE)
    resident = (ctypes.c_ubyte * pages)()
    with mmap.mmap(handle, num_bytes, prot=mmap.PROT_READ) as mapped:
        view = np.frombuffer(mapped, dtype=np.uint8)
        address = view.ctypes.data
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(num_bytes), resident)
        del view  # an exported buffer would keep the map open
    if failed:
        return None
    return float(np.mean(np.frombuffer(bytes(resident), dtype=np.uint8) & 1))


def _write_random(path: Path, file_bytes: int) -> float:
    generator = np.random.default_rng()
    elapsed = 0.0
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb", buffering=0) as file:
        left = file_bytes
        while left:
            block = memoryview(generator.bytes(min(left, _WRITTEN_BYTES)))
            start = time.perf_counter()
            left -= file.write(block)
            elapsed += time.perf_counter() - start
        start = time.perf_counter()
        os.fsync(file.fileno())
        elapsed += time.perf_counter() - start
    return file_bytes / elapsed


def read_sequentially(path: Path, budget_s: float) -> float:
    """Bytes per second of reading a file from its start by one thread, for at most `budget_s`."""
    buffer = bytearray(_SEQUENTIAL_BYTES)
    read = 0
    with path.open("rb", buffering=0) as file:
        start = time.perf_counter()
        while time.perf_counter() - start < budget_s:
            got = file.readinto(buffer)
            if not got:
                break
            read += got
        return read / (time.perf_counter() - start)


def read_at_random(path: Path, sample_bytes: int, num_threads: int, budget_s: float) -> float:
    """Bytes per second of reading records at random places of a file, for at most `budget_s`.

    Each record is read at most once, so that no read finds what an earlier one brought in.
    """
    records = np.random.default_rng(0).permutation(path.stat().st_size // sample_bytes)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_RANDOM)

        def read(thread: int, deadline: float) -> int:
            buffer = bytearray(sample_bytes)
            total = 0
            for record in records[thread::num_threads]:
                if time.perf_counter() > deadline:
                    break
                total += os.preadv(handle, [buffer], int(record) * sample_bytes)
            return total

        return _rate_over_threads(read, num_threads, budget_s)
    finally:
        os.close(handle)


def _rate_over_threads(
    work: Callable[[int, float], int], num_threads: int, budget_s: float
) -> float:
    if num_threads < 1:
        raise UsageError(f"num_threads must be at least 1, got {num_threads}")
    start = time.perf_counter()
    with ThreadPoolExecutor(num_threads) as pool:
        done = sum(pool.map(work, range(num_threads), [start + budget_s] * num_threads))
    return done / (time.perf_counter() - start)


class Communicator(Protocol):
    """The methods of an MPI communicator (mpi4py's `Comm`) that the network probe uses."""

    def Get_rank(self) -> int: ...  # noqa: N802, D102

    def Get_size(self) -> int: ...  # noqa: N802, D102

    def Barrier(self) -> None: ...  # noqa: N802, D102

    def Sendrecv(  # noqa: N802, D102
        self, sendbuf: Any, dest: int, *, recvbuf: Any, source: int
    ) -> None: ...

    def allgather(self, sendobj: Any) -> list[Any]: ...  # noqa: D102


def measure_network(comm: Communicator, sample_bytes: int, *, num_messages: int = 200) -> float:
    """Rate at which this rank receives samples while it sends as many, all ranks at once.

    Args:
        comm: communicator of one rank per node.
        sample_bytes: bytes of a message.
        num_messages: messages to each of a few other ranks.

    Returns:
        Bytes per second of the slowest rank; every rank gets the same number.

    Raises:
        UsageError: the communicator has only one rank.
    """
    rank, size = comm.Get_rank(), comm.Get_size()
    if size < 2:
        raise UsageError("the network needs at least two ranks; start the probe by srun or mpiexec")
    outgoing = np.full(sample_bytes, rank % 251, dtype=np.uint8)
    incoming: NDArray[np.uint8] = np.empty(sample_bytes, dtype=np.uint8)
    seconds, messages = 0.0, 0
    # Next neighbors and far ones: a fat tree may be thinner at the top.
    for distance in sorted({1, size // 2}):
        to, source = (rank + distance) % size, (rank - distance) % size
        for number in range(num_messages + 10):
            if number == 10:  # connections are made by the first messages
                comm.Barrier()
                start = time.perf_counter()
            comm.Sendrecv(outgoing, to, recvbuf=incoming, source=source)
        seconds += time.perf_counter() - start
        messages += num_messages
        if not (incoming == source % 251).all():
            raise StorageError(f"rank {rank} received other bytes than rank {source} sent")
    return float(min(comm.allgather(messages * sample_bytes / seconds)))
