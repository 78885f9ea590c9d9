"""Threads that fill batch buffers with samples, straight from the shards' pages.

A sample costs one system call or copy, which releases the GIL; two threads saturate the memory of
two cores. Cold samples are announced to the kernel before they are read, so that the disk sees deep
queues however few threads there are.
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
from msdata.mapped_shard import MapBudget, MappedShard, map_if_huge
from msdata.ring import BatchBuffer
from msdata.spans import constant_gaps

# Small enough that all threads share in every batch, large enough that handing out costs nothing.
CHUNK_SAMPLES = 16
# Arrays further apart are fetched by reads of their own.
_MAX_GAP_NBYTES = 1 << 16


@dataclass
class Filling:
    """A batch on its way into its buffer.

    Attributes:
        buffer: where it goes.
        samples: int64 (n,), the samples, in order.
        done: set when the last of them is there, or the first has failed.
        error: what went wrong.
    """

    buffer: BatchBuffer
    samples: NDArray[np.int64]
    num_left: int = 0
    done: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    is_cancelled: bool = False


class FillPool:
    """Owns the threads; a context manager in effect: `close` ends them.

    Args:
        split: where the samples are.
        num_threads: threads.
        checksums: uint32 (samples,) to check every sample against; None trusts the storage.
    """

    def __init__(
        self, split: Split, num_threads: int, checksums: NDArray[np.uint32] | None = None
    ) -> None:
        self._reader = SampleReader(split, checksums)
        self._tasks: queue.SimpleQueue[tuple[Filling, int, int] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"msdata-fill-{i}", daemon=True)
            for i in range(num_threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def reader(self) -> SampleReader:
        """What reads the samples; it has counters."""
        return self._reader

    def submit(self, filling: Filling) -> None:
        """Has a batch filled; `filling.done` tells when it is."""
        starts = range(0, len(filling.samples), CHUNK_SAMPLES)
        filling.num_left = len(starts)
        if not starts:
            filling.done.set()
        for start in starts:
            self._tasks.put((filling, start, min(start + CHUNK_SAMPLES, len(filling.samples))))

    def _work(self) -> None:
        gaps = self._reader.make_gap_buffers()
        while (task := self._tasks.get()) is not None:
            filling, start, stop = task
            try:
                if filling.error is None and not filling.is_cancelled:
                    rows = filling.buffer.rows[start:stop]
                    self._reader.read(filling.samples[start:stop], rows, gaps)
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
    """Reads samples into rows; used by all threads at once.

    Args:
        split: where the samples are.
        checksums: as `FillPool`.

    Attributes:
        num_cold: samples that were not in memory.
        num_mapped: samples copied out of a map.
    """

    def __init__(self, split: Split, checksums: NDArray[np.uint32] | None) -> None:
        self._split = split
        self._spans = split.spans
        self._files = split.files
        self._sizes = [a.nbytes for a in split.schema.arrays]
        self._checksums = checksums
        gaps = constant_gaps(split.schema, self._spans)
        self._gaps = None if gaps is None or max(gaps, default=0) > _MAX_GAP_NBYTES else gaps
        self._budget = MapBudget()
        self._maps: dict[int, MappedShard | None] = {}
        self._nowait = getattr(os, "RWF_NOWAIT", 0)
        self.num_cold = 0
        self.num_mapped = 0

    def make_gap_buffers(self) -> list[bytearray]:
        """Where a thread's reads put the headers between arrays."""
        return [bytearray(n) for n in self._gaps or ()]

    def forget_maps(self) -> None:
        """Has every shard looked at anew: what was cold may be hot by now, and the reverse."""
        self._maps = {}

    def read(
        self,
        samples: NDArray[np.int64],
        rows: Sequence[Sequence[NDArray[np.uint8]]],
        gaps: Sequence[bytearray],
    ) -> None:
        """Reads samples, announcing all of them to the kernel if the first is not in memory.

        Args:
            samples: int64 (n,), numbers within the split.
            rows: for each sample its arrays' bytes, to be written.
            gaps: this thread's gap buffers.

        Raises:
            DataError: a shard is missing, truncated or altered.
            StorageError: the file system refused.
        """
        shards = self._spans.shards(samples).tolist()
        offsets = self._spans.offsets(samples).tolist()
        is_cold = False
        for i, (shard, places) in enumerate(zip(shards, offsets, strict=True)):
            mapped = self._map_of(shard)
            if mapped is not None:
                for target, place in zip(rows[i], places, strict=True):
                    mapped.copy(target, place)
                self.num_mapped += 1
                continue
            file = self._files.open(shard)
            requests = self._requests(rows[i], places, gaps)
            if not is_cold and not all(file.read_now(b, o) for b, o in requests):
                is_cold = True
                self._announce(shards[i:], offsets[i:])
                self.num_cold += len(shards) - i
            if is_cold:
                for buffers, place in requests:
                    file.read_into(buffers, place)
        if self._checksums is not None:
            self._check(samples, rows)

    def _requests(
        self,
        row: Sequence[NDArray[np.uint8]],
        places: Sequence[int],
        gaps: Sequence[bytearray],
    ) -> list[tuple[list[Any], int]]:
        """The reads of one sample: a scattering one where its arrays stand together."""
        if self._gaps is None:
            return [([target], place) for target, place in zip(row, places, strict=True)]
        buffers: list[Any] = [row[0]]
        for gap, target in zip(gaps, row[1:], strict=True):
            buffers += (gap, target)
        return [(buffers, places[0])]

    def _announce(self, shards: Sequence[int], offsets: Sequence[Sequence[int]]) -> None:
        """Tells the kernel to fetch samples, without waiting for them."""
        for shard, places in zip(shards, offsets, strict=True):
            file = self._files.open(shard)
            if self._gaps is None:
                for place, size in zip(places, self._sizes, strict=True):
                    file.announce(place, size)
            else:
                file.announce(places[0], places[-1] + self._sizes[-1] - places[0])

    def _map_of(self, shard: int) -> MappedShard | None:
        try:
            mapped = self._maps[shard]
        except KeyError:
            file = self._files.open(shard)
            mapped = self._maps[shard] = map_if_huge(file.fd, file.nbytes, self._budget)
        return mapped if mapped is not None and mapped.is_trusted else None

    def _check(
        self, samples: NDArray[np.int64], rows: Sequence[Sequence[NDArray[np.uint8]]]
    ) -> None:
        assert self._checksums is not None
        for sample, row in zip(samples.tolist(), rows, strict=False):
            found, expected = crc32c_of_parts(row), int(self._checksums[sample])
            if found != expected:
                shard = self._files.open(int(self._spans.shards(np.array([sample]))[0]))
                name = self._split.sample_id(sample)
                raise DataError(
                    f"{shard.path}: sample {name} was altered (checksum {found:08x}, the index "
                    f"says {expected:08x}); run 'msdata verify --repair "
                    f"{self._split.dataset.path}'"
                )
