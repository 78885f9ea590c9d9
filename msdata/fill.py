"""Threads that fill batch buffers with samples, straight from the shards' pages.

A sample costs one system call (in HDF5 one an array), which releases the GIL; all that Python has
to decide was decided before, batch by batch, so that a thread needs the GIL as seldom and as
briefly as can be. What is not in memory is announced to the kernel before it is read, so that the
disk sees deep queues however few threads there are.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.checksum import crc32c_of_parts
from msdata.dataset import Split
from msdata.errors import DataError
from msdata.ring import BatchBuffer
from msdata.shard_files import NOWAIT, ShardFile
from msdata.spans import constant_gaps

# Small enough that all threads share in every batch, large enough that handing out costs nothing.
CHUNK_SAMPLES = 16
# Arrays further apart are fetched by reads of their own.
_MAX_GAP_NBYTES = 1 << 16

# File descriptor, buffers to fill, offset, bytes: one system call.
Read = tuple[int, list[Any], int, int]


@dataclass
class Filling:
    """A batch on its way into its buffer.

    Attributes:
        buffer: where it goes.
        samples: int64 (n,), the samples, in order.
        reads: the system calls, `num_reads_per_sample` a sample.
        files: the shards that are read, held open.
        done: set when the last sample is there, or one has failed.
        error: what went wrong.
    """

    buffer: BatchBuffer
    samples: NDArray[np.int64]
    reads: list[Read]
    files: dict[int, ShardFile]
    num_left: int = 0
    done: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    error: BaseException | None = None
    is_cancelled: bool = False


class FillPool:
    """Owns the threads; `close` ends them.

    Args:
        num_threads: threads.
        reader: what reads the samples.
    """

    def __init__(self, num_threads: int, reader: SampleReader) -> None:
        self._reader = reader
        self._tasks: queue.SimpleQueue[tuple[Filling, int, int] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"msdata-fill-{i}", daemon=True)
            for i in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, filling: Filling) -> None:
        """Has a batch filled; `filling.done` tells when it is."""
        starts = range(0, len(filling.samples), CHUNK_SAMPLES)
        filling.num_left = len(starts)
        if not starts:
            filling.done.set()
        for start in starts:
            self._tasks.put((filling, start, min(start + CHUNK_SAMPLES, len(filling.samples))))

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            filling, start, stop = task
            try:
                if filling.error is None and not filling.is_cancelled:
                    self._reader.fill(filling, start, stop)
            except BaseException as error:  # raised where the batch is awaited
                filling.error = error
            with filling.lock:
                filling.num_left -= 1
                is_last = filling.num_left == 0
            if is_last:
                filling.done.set()

    def close(self) -> None:
        """Ends the threads after what they are at."""
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []


class SampleReader:
    """Reads samples into batch buffers; used by all threads at once.

    Args:
        split: where the samples are.
        checksums: uint32 (samples,) to check every sample against; None trusts the storage.

    Attributes:
        gaps: bytes between one array of a sample and the next, where one read fetches all; else
            None.
        num_cold: samples that were not in memory when read.
    """

    def __init__(self, split: Split, checksums: NDArray[np.uint32] | None = None) -> None:
        self._split = split
        self._spans = split.spans
        self._files = split.files
        self._checksums = checksums
        gaps = constant_gaps(split.schema, self._spans)
        self.gaps = None if gaps is None or max(gaps, default=0) > _MAX_GAP_NBYTES else gaps
        sizes = [a.nbytes for a in split.schema.arrays]
        self._read_sizes = sizes if self.gaps is None else [sum(sizes) + sum(self.gaps)]
        self.num_cold = 0

    def plan(self, samples: NDArray[np.int64], buffer: BatchBuffer) -> Filling:
        """Decides the system calls that fill a batch.

        Args:
            samples: int64 (n,), numbers within the split.
            buffer: where they go; made with this reader's `gaps`.

        Raises:
            DataError: a shard is missing or truncated.
            StorageError: the file system refused.
        """
        per_sample = len(self._read_sizes)
        shards = self._spans.shards(samples)
        files = {n: self._files.open(n) for n in np.unique(shards).tolist()}
        descriptors = [files[n].fd for n in np.repeat(shards, per_sample).tolist()]
        places = self._spans.offsets(samples)[:, :per_sample].reshape(-1).tolist()
        sizes = self._read_sizes * len(samples)
        reads = list(zip(descriptors, buffer.targets, places, sizes, strict=False))
        return Filling(buffer=buffer, samples=samples, reads=reads, files=files)

    def fill(self, filling: Filling, start: int, stop: int) -> None:
        """Reads the samples [start, stop) of a batch.

        Raises:
            DataError: a shard was truncated or altered.
            StorageError: the file system refused.
        """
        per_sample = len(self._read_sizes)
        reads = filling.reads[start * per_sample : stop * per_sample]
        num_hot = _read_from_memory(reads)
        if num_hot < len(reads):
            self._read_from_storage(filling, reads[num_hot:])
        if self._checksums is not None:
            for i in range(start, stop):
                self._check(filling, i)

    def _read_from_storage(self, filling: Filling, reads: Sequence[Read]) -> None:
        by_descriptor = {file.fd: file for file in filling.files.values()}
        for descriptor, _, place, nbytes in reads:
            by_descriptor[descriptor].announce(place, nbytes)
        for descriptor, target, place, _ in reads:
            by_descriptor[descriptor].read_into(target, place)
        self.num_cold += len(reads) // len(self._read_sizes)

    def _check(self, filling: Filling, i: int) -> None:
        assert self._checksums is not None
        sample = int(filling.samples[i])
        found = crc32c_of_parts(array[i] for array in filling.buffer.arrays.values())
        expected = int(self._checksums[sample])
        if found != expected:
            shard = int(self._spans.shards(filling.samples[i : i + 1])[0])
            raise DataError(
                f"{filling.files[shard].path}: sample {self._split.sample_id(sample)} was altered "
                f"(checksum {found:08x}, the index says {expected:08x}); run 'msdata verify "
                f"--repair {self._split.dataset.path}'"
            )


def _read_from_memory(reads: Sequence[Read]) -> int:
    """Does the reads until one meets bytes that are not in memory; returns how many were done."""
    preadv = os.preadv
    flags = NOWAIT
    for number, (descriptor, target, place, nbytes) in enumerate(reads):
        try:
            if preadv(descriptor, target, place, flags) != nbytes:
                return number
        except OSError:
            # Not in memory, or a file system that cannot tell: the waiting read will say.
            return number
    return len(reads)
