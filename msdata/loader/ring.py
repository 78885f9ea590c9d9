"""The ring of batch buffers: allocated once, on huge pages, used over and over.

Measured on 2 cores: filling 4 KiB pages for the first time takes as long as the copy itself; on
huge pages that were touched before, only the copy takes time.
"""

from __future__ import annotations

import mmap
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.schema import Array, Schema

_HUGE_PAGE = 2 << 20
# Arrays start on page boundaries, which a GPU's driver pins and which any SIMD load accepts.
_ALIGNMENT = 4096


class BatchBuffer:
    """The arrays of one batch, in one piece of memory.

    Args:
        schema: the arrays of a sample.
        batch_size: samples.
        gaps: bytes between the arrays of a sample in its shard, if one read fetches all of them;
            None for one read per array.

    Attributes:
        arrays: by name, shape (batch_size, *survey.shape), C-contiguous.
        targets: buffers of each read, in the order of samples and arrays.
        addresses: int64 (batch_size, number of arrays), address of each sample's arrays.
    """

    def __init__(self, schema: Schema, batch_size: int, gaps: Sequence[int] | None = None) -> None:
        starts = array_starts(schema, batch_size)
        self._map = mmap.mmap(-1, max(starts[-1], 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._map.madvise(mmap.MADV_HUGEPAGE)
        # A GPU that has locked these pages would read stale ones after a fork: they are not copied.
        self._map.madvise(mmap.MADV_DONTFORK)
        self._bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        self.arrays: dict[str, Array] = {}
        rows = []
        for survey, start in zip(schema.arrays, starts[:-1], strict=True):
            raw = self._bytes[start : start + batch_size * survey.nbytes]
            self.arrays[survey.name] = raw.view(survey.numpy_dtype).reshape(
                batch_size, *survey.shape
            )
            rows.append(raw.reshape(batch_size, survey.nbytes))
        base = self._bytes.ctypes.data
        self.addresses: NDArray[np.int64] = np.stack(
            [
                base + start + survey.nbytes * np.arange(batch_size, dtype=np.int64)
                for survey, start in zip(schema.arrays, starts[:-1], strict=True)
            ],
            axis=1,
        )
        self._sizes = np.array([a.nbytes for a in schema.arrays], np.int64)
        if gaps is not None:
            self._sizes = np.array([self._sizes.sum() + sum(gaps)])
        self._lease: NDArray[np.uint8] | None = None
        self._lent: dict[str, Array] = {}
        self._num_own = 0
        self.targets: list[list[Any]] = []
        for i in range(batch_size):
            views = [row[i] for row in rows]
            self.targets += [[v] for v in views] if gaps is None else [_interleave(views, gaps)]

    @property
    def nbytes(self) -> int:
        """Size of the memory."""
        return len(self._bytes)

    def reads(self, row: int) -> list[list[Any]]:
        """The buffers of each read of one sample."""
        per_row = len(self._sizes)
        return self.targets[row * per_row : (row + 1) * per_row]

    def spans(
        self, offsets: NDArray[np.int64], rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where samples are read.

        Args:
            offsets: int64 (k, arrays), where their arrays stand in a shard.
            rows: int64 (k,), their rows.

        Returns:
            Offset and bytes of each read, int64 (k, reads).
        """
        places = offsets[:, : len(self._sizes)]
        return places, np.broadcast_to(self._sizes, places.shape)

    def parts(self, row: int) -> list[NDArray[np.uint8]]:
        """The bytes of one sample, array by array."""
        return [a[row : row + 1].reshape(-1).view(np.uint8) for a in self.arrays.values()]

    def lend(self, num_samples: int) -> dict[str, Any]:
        """Lends the arrays of the first samples; `reclaim` finds out whether they are in use.

        Args:
            num_samples: samples of the batch, which may be shorter than the buffer.
        """
        if self._lease is None:
            # A separate array, which is the base of all views that a caller makes.
            self._lease = np.frombuffer(self._map, np.uint8)
            start = self._bytes.ctypes.data
            self._lent = {}
            for name, array in self.arrays.items():
                begin = array.ctypes.data - start
                raw = self._lease[begin : begin + array.nbytes]
                self._lent[name] = raw.view(array.dtype).reshape(array.shape)
            del raw
            self._num_own = sys.getrefcount(self._lease)
        return {name: array[:num_samples] for name, array in self._lent.items()}

    def copied(self, num_samples: int) -> dict[str, Any]:
        """Copies of the arrays of the first samples."""
        return {name: array[:num_samples].copy() for name, array in self.arrays.items()}

    def reclaim(self) -> weakref.ref[Any] | None:
        """Ends the lending of `lend`.

        Returns:
            None if the caller holds neither a lent array nor a view of one; else a weak reference
            that dies with the last.
        """
        if self._lease is None or sys.getrefcount(self._lease) <= self._num_own:
            return None
        last = weakref.ref(self._lease)
        self._lease, self._lent = None, {}
        return last

    def poison(self) -> None:
        """Makes every float NaN and every integer -1 or the largest."""
        self._bytes[:] = 0xFF

    def touch(self) -> None:
        """Makes the kernel allocate every page now, not while a batch is awaited."""
        self._bytes[::_ALIGNMENT] = 0


def _interleave(views: list[Any], gaps: Sequence[int]) -> list[Any]:
    """Arrays with scratch memory between them for headers; rows share none of it."""
    parts = [views[0]]
    for gap, view in zip(gaps, views[1:], strict=True):
        parts += ([bytearray(gap)] if gap else []) + [view]
    return parts


def array_starts(schema: Schema, batch_size: int) -> list[int]:
    """Offsets of the arrays in a batch's memory, and its size as the last entry."""
    starts = [0]
    for survey in schema.arrays:
        end = starts[-1] + batch_size * survey.nbytes
        starts.append(-(-end // _ALIGNMENT) * _ALIGNMENT)
    starts[-1] = -(-starts[-1] // _HUGE_PAGE) * _HUGE_PAGE
    return starts


def make_ring(
    schema: Schema, batch_size: int, num_buffers: int, gaps: Sequence[int] | None
) -> list[BatchBuffer]:
    """Allocates the buffers of a ring and touches them, two at a time; see `BatchBuffer`."""
    buffers = [BatchBuffer(schema, batch_size, gaps) for _ in range(num_buffers)]
    with ThreadPoolExecutor(2) as executor:
        list(executor.map(BatchBuffer.touch, buffers))
    return buffers


class BatchRing:
    """Free buffers, and those of the last batches, which a caller may read.

    Args:
        buffers: from `make_ring`.
        hold: how many batches stay valid.
        poisons: overwrite a batch once its validity ends, for `Loader(poison=True)`.

    Attributes:
        num_overwritten: batches that a caller still held when their memory was reused.
    """

    def __init__(self, buffers: Sequence[BatchBuffer], hold: int, *, poisons: bool = False) -> None:
        self.nbytes = sum(buffer.nbytes for buffer in buffers)
        self.num_overwritten = 0
        self._free = deque(buffers)
        self._held: deque[BatchBuffer] = deque()
        self._hold, self._poisons = hold, poisons
        self._last: weakref.ref[Any] | None = None

    def __bool__(self) -> bool:
        """Whether a buffer is free."""
        return bool(self._free)

    @property
    def next_free(self) -> BatchBuffer:
        """The buffer that `take` returns: the last one used, likely still in the CPU's cache."""
        return self._free[-1]

    def take(self) -> BatchBuffer:
        """Takes a free buffer to fill."""
        return self._free.pop()

    def give_back(self, buffer: BatchBuffer) -> None:
        """Returns a buffer whose batch was not handed out."""
        self._free.append(buffer)

    def hold(self, buffer: BatchBuffer) -> None:
        """Keeps the newest batch."""
        self._held.append(buffer)

    def release(self) -> None:
        """Frees the buffer of the oldest batch, once `hold` batches are out.

        Warns, once, if the caller still holds arrays of the batch before it.
        """
        last, self._last = self._last, None
        if last is not None and last() is not None:
            self.num_overwritten += 1
            if self.num_overwritten == 1:
                self._warn()
        if len(self._held) < self._hold:
            return
        buffer = self._held.popleft()
        # Checked at the next release: until then a loop's variable may hold it.
        self._last = buffer.reclaim()
        if self._poisons:
            buffer.poison()
        self._free.append(buffer)

    def _warn(self) -> None:
        warnings.warn(
            "a batch was overwritten while a variable or a list still refers to its arrays: only "
            f"the last {self._hold} stay valid; make the loader with copy=True, or copy the arrays "
            "to keep",
            RuntimeWarning,
            stacklevel=4,
        )
