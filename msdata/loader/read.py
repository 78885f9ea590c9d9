"""Threads that fill batch buffers with samples, straight from the page cache.

`_stream_fill` (C, optional: see stream_fill.c) copies samples in memory, a chunk per call, without
the GIL. Other samples, or all of them without that module, are read with `preadv`: one system call
per sample in tar, per array in HDF5, after the kernel was told of the whole batch, so that few
threads give the disk deep queues.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from msdata.core.checksum import crc32c_of_parts
from msdata.dataset.dataset import Split
from msdata.dataset.shard_files import ShardFile
from msdata.dataset.spans import constant_gaps
from msdata.errors import DataError

try:
    from msdata.core import _stream_fill
except ImportError:
    # Not built, or not for this machine; see `Loader.stats()["is_streaming"]`.
    _stream_fill = None  # type: ignore[assignment]
else:
    # A copy built from older source reads the table differently: do not use it.
    if getattr(_stream_fill, "INTERFACE", 0) != 4:
        _stream_fill = None  # type: ignore[assignment]
stream_fill = _stream_fill

# All threads share a batch, in chunks so large that their overhead is negligible.
_MIN_CHUNK_SAMPLES = 16
# Arrays further apart get separate reads.
MAX_GAP_NBYTES = 1 << 16
# One read fills at most this many buffers (IOV_MAX of Linux).
_MAX_BUFFERS = 1024

# Small arrays of one kind stand side by side in HDF5: fetching their neighbors, which the epoch
# needs as well, is cheaper for a disk than separate reads.
_SMALL_NBYTES = 1 << 16
_WINDOW_NBYTES = 1 << 20

# Columns of the table that `_stream_fill` works on.
FD, OFFSET, NBYTES, TARGET = range(4)
# In `FD`: the bytes are in shared memory, and `OFFSET` is their address.
SHARED_MEMORY = -(2**63)


@dataclass
class Filling:
    """A batch that is being read into its buffer.

    Attributes:
        buffer: the destination.
        samples: int64 (n,), the samples, in order.
        shards: int64 (n,), each sample's shard.
        offsets: int64 (n, arrays), where the arrays stand in their shards.
        files: the shards, held open; empty if they are too many.
        table: int64 (n * arrays, 4), the input of `_stream_fill`; None without that module or
            without files.
        rows: int64 (n,), the rows of the buffer in the order in which they are filled.
        done: set when the last sample is read, or one has failed.
        error: the failure.
    """

    buffer: Any
    samples: NDArray[np.int64]
    shards: NDArray[np.int64]
    offsets: NDArray[np.int64]
    files: dict[int, ShardFile]
    table: NDArray[np.int64] | None
    rows: NDArray[np.int64]
    num_left: int = 0
    done: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    error: BaseException | None = None
    is_announced: bool = False
    is_canceled: bool = False

    def raise_error(self) -> None:
        """Raises the failure and drops it, so that no reference cycle keeps the batch alive."""
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
        finally:
            del error


class Rows(Protocol):
    """Rows of a batch to read into: a whole `BatchBuffer`, or some of its rows."""

    @property
    def addresses(self) -> NDArray[np.int64]:
        """int64 (rows, arrays), address of each row's arrays."""

    def reads(self, row: int) -> list[list[Any]]:
        """The buffers of each read of one row."""

    def parts(self, row: int) -> list[NDArray[np.uint8]]:
        """The bytes of one row, array by array."""

    def spans(
        self, offsets: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Offset and bytes of each read of some rows, int64 (k, reads)."""


class BatchReader(Protocol):
    """Fills batches: from storage (`SampleReader`), or from caches first."""

    def plan(self, samples: NDArray[np.int64], buffer: Any) -> Filling:
        """Decides where each sample of a batch comes from."""

    def fill(self, filling: Any, start: int, stop: int) -> None:
        """Reads the samples [start, stop) of a filling from `plan`, in the order of its rows."""


class RecordReader(BatchReader, Protocol):
    """Fills batches with records as they are stored."""

    def read_again(self, filling: Any, i: int) -> None:
        """Reads one sample, in that order, from storage, because it was corrupt.

        Raises:
            DataError: it is corrupt in storage, too.
        """


class FillPool:
    """Owns the threads; `close` ends them.

    Args:
        num_threads: number of threads.
        reader: reads the samples.
    """

    def __init__(self, num_threads: int, reader: BatchReader) -> None:
        self._reader = reader
        self._tasks: queue.SimpleQueue[tuple[Filling, int, int] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"msdata-fill-{i}", daemon=True)
            for i in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, filling: Filling) -> None:
        """Queues a batch; `filling.done` is set when it is filled."""
        num_samples = len(filling.samples)
        chunk = max(_MIN_CHUNK_SAMPLES, -(-num_samples // len(self._threads)))
        starts = range(0, num_samples, chunk)
        filling.num_left = len(starts)
        if not starts:
            filling.done.set()
        for start in starts:
            self._tasks.put((filling, start, min(start + chunk, num_samples)))

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            filling, start, stop = task
            try:
                if filling.error is None and not filling.is_canceled:
                    self._reader.fill(filling, start, stop)
            except BaseException as error:  # raised where the batch is awaited
                filling.error = error
            with filling.lock:
                filling.num_left -= 1
                is_last = filling.num_left == 0
            if is_last:
                filling.done.set()

    def stop(self) -> None:
        """Asks the threads to end after their current tasks, without waiting."""
        for _ in self._threads:
            self._tasks.put(None)

    def close(self) -> None:
        """Ends the threads after their current tasks."""
        self.stop()
        for thread in self._threads:
            thread.join()
        self._threads = []


def end_threads(
    stops: Iterable[Callable[[], None]], in_flight: Iterable[tuple[Any, Filling]], pid: int
) -> None:
    """Asks a loader's threads to end, without waiting: the garbage collector may run in one."""
    if os.getpid() != pid:
        return
    for _, filling in in_flight:
        filling.is_canceled = True
    for stop in stops:
        stop()


class SampleReader:
    """Reads samples into batch buffers; used by all threads at once.

    Args:
        split: the samples.
        checksums: uint32 (samples,) to check every sample against; None trusts the storage.

    Attributes:
        gaps: bytes between one array of a sample and the next, if one read fetches all; else
            None.
        is_streaming: whether `_stream_fill` is used; False disables it. It does not pay for coded
            records, which are decoded from where they are read to.
        num_cold: samples that were not in memory when read.
    """

    def __init__(self, split: Split, checksums: NDArray[np.uint32] | None = None) -> None:
        self._split = split
        self._spans = split.spans
        self._files = split.files
        self._checksums = checksums
        gaps = None if split.is_coded else constant_gaps(split.schema, self._spans)
        if gaps is not None and (
            max(gaps, default=0) > MAX_GAP_NBYTES or 2 * len(gaps) + 1 > _MAX_BUFFERS
        ):
            gaps = None
        self.gaps = gaps
        sizes = [a.nbytes for a in split.schema.arrays]
        self._sizes = np.array(sizes, np.int64)
        self.is_streaming = _stream_fill is not None and not split.is_coded
        self.num_cold = 0

    def plan(self, samples: NDArray[np.int64], buffer: Rows) -> Filling:
        """Decides where each array of a batch comes from.

        Args:
            samples: int64 (n,), numbers within the split.
            buffer: the destination, made with this reader's `gaps`.

        Raises:
            DataError: a shard is missing or truncated.
            StorageError: the file system refused.
        """
        shards = self._spans.shards(samples)
        numbers = self._distinct(shards)
        is_held = len(numbers) <= self._files.max_held
        files = self._files.open_all(numbers) if is_held else {}
        filling = Filling(
            buffer=buffer,
            samples=samples,
            shards=shards,
            offsets=self._spans.offsets(samples, shards),
            files=files,
            table=None,
            rows=np.arange(len(samples)),
        )
        if self.is_streaming and is_held:
            filling.table = self._table(filling, files, slice(0, len(samples)))
        return filling

    def _distinct(self, shards: NDArray[np.int64]) -> list[int]:
        """Distinct shards, ascending; a few thousand flags are faster than sorting."""
        is_there = np.zeros(len(self._spans.start), np.bool_)
        is_there[shards] = True
        return np.flatnonzero(is_there).tolist()

    def _table(
        self, filling: Filling, files: dict[int, ShardFile], rows: slice
    ) -> NDArray[np.int64]:
        offsets = filling.offsets[rows]
        table = np.empty((*offsets.shape, 4), np.int64)
        fds = np.empty(len(self._spans.start), np.int64)
        fds[list(files)] = [file.fd for file in files.values()]
        table[:, :, FD] = fds[filling.shards[rows]][:, None]
        table[:, :, OFFSET] = offsets
        table[:, :, NBYTES] = self._sizes
        table[:, :, TARGET] = filling.buffer.addresses[rows]
        return table.reshape(-1, 4)

    def fill(self, filling: Filling, start: int, stop: int) -> None:
        """Reads the samples [start, stop) of a batch.

        Raises:
            DataError: a shard was truncated or altered.
            StorageError: the file system refused.
        """
        # If the batch's shards cannot all be open at once, read a few samples at a time.
        step = stop - start if filling.files else max(1, self._files.max_held // 4)
        for low in range(start, stop, step):
            high = min(low + step, stop)
            first = low + self._stream(filling, low, high) if self.is_streaming else low
            if first < high:
                self._read(filling, first, high)
        if self._checksums is not None:
            for i in range(start, stop):
                self.check(filling, i, self._checksums)

    def _stream(self, filling: Filling, start: int, stop: int) -> int:
        """Copies samples from [start, stop) while they are in memory; returns how many."""
        if _stream_fill is None:
            return 0
        num_arrays = len(self._sizes)
        if filling.table is not None:
            done = _stream_fill.fill(filling.table, start * num_arrays, stop * num_arrays)
            return done // num_arrays - start
        # This variable holds the files open until the bytes are copied.
        files = self._files.open_all(self._distinct(filling.shards[start:stop]))
        table = self._table(filling, files, slice(start, stop))
        return _stream_fill.fill(table, 0, len(table)) // num_arrays

    def _read(self, filling: Filling, start: int, stop: int) -> None:
        """Reads with preadv: while possible without waiting, then announced, with waiting."""
        reads = list(self._reads(filling, start, stop))
        done = 0
        for file, i, number, place, _ in reads:
            if not file.read_now(filling.buffer.reads(i)[number], place):
                break
            done += 1
        if done == len(reads):
            return
        self._announce(filling)
        for file, i, number, place, _ in reads[done:]:
            file.read_into(filling.buffer.reads(i)[number], place)
        self.num_cold += stop - start - done * (stop - start) // len(reads)

    def _announce(self, filling: Filling) -> None:
        """Tells the kernel of a whole batch, once, at its first sample that is not in memory."""
        with filling.lock:
            is_first = not filling.is_announced
            filling.is_announced = True
        if not is_first:
            return
        windows = set()
        for file, _, _, place, nbytes in self._reads(filling, 0, len(filling.samples)):
            if nbytes >= _SMALL_NBYTES:
                file.announce(place, nbytes)
            else:
                windows.add((file, place // _WINDOW_NBYTES * _WINDOW_NBYTES))
        for file, place in windows:
            file.announce(place, _WINDOW_NBYTES)

    def _reads(
        self, filling: Filling, start: int, stop: int
    ) -> Iterator[tuple[ShardFile, int, int, int, int]]:
        """File, sample, its read's number, offset and bytes of the reads of [start, stop)."""
        rows = np.arange(start, stop)
        places, nbytes = filling.buffer.spans(filling.offsets[start:stop], rows)
        for i, *reads in zip(rows.tolist(), places.tolist(), nbytes.tolist(), strict=True):
            shard = int(filling.shards[i])
            file = filling.files.get(shard) or self._files.open(shard)
            for number, (place, size) in enumerate(zip(*reads, strict=True)):
                yield file, i, number, place, size

    def read_again(self, filling: Filling, i: int) -> None:
        """Checks a sample that does not decode; to read it again would not change it.

        Raises:
            DataError: the sample is corrupt.
        """
        self.check(filling, i, self._split.numbers("crc32c", np.uint32))

    def check(self, filling: Filling, i: int, checksums: NDArray[np.uint32]) -> None:
        """Checks one sample of a filled batch against its checksum.

        Args:
            filling: the batch.
            i: which of its samples.
            checksums: uint32 (samples of the split,).

        Raises:
            DataError: the sample is corrupt.
        """
        sample = int(filling.samples[i])
        found = crc32c_of_parts(filling.buffer.parts(i))
        expected = int(checksums[sample])
        if found != expected:
            raise DataError(
                f"{self._files.path(int(filling.shards[i]))}: sample "
                f"{self._split.sample_id(sample)} is corrupt: CRC32C {found:08x}, "
                f"expected {expected:08x}; run 'msdata verify --repair {self._split.dataset.path}'"
            )
