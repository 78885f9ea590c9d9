"""Writes a stream of small buffers to a file in large aligned blocks, past the page cache.

A page that is new to the page cache costs the kernel more than all our own work on it: measured
here (Linux 6.18, ext4 in a virtual machine), two processes that read 4,000 objects and write their
bytes take 5 to 12 s of system time through the cache and 0.5 s past it (`O_DIRECT`). What is packed
is more than memory holds anyway. What a file system refuses to take past the cache, be it all or
the last block, goes through it.
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from msdata.dataset.shard import pwrite_all

# Blocks end at multiples of this, so that the page cache, where it is used, takes 2 MiB folios: a
# reader maps each with one page fault instead of five hundred, and reads 1.5 times as fast.
_ALIGNMENT = 2 << 20
_BLOCK = 8 << 20
# O_DIRECT asks for less of offset, length and memory nearly everywhere. But several streams of one
# file must not meet in a page either, half of which one would write through the cache and another
# past it.
_DIRECT_ALIGNMENT = mmap.PAGESIZE
# What a file system says that wants other alignment, or nothing past the cache at all.
_REFUSALS = (errno.EINVAL, errno.EOPNOTSUPP)
_NUM_BLOCKS = 2


class _Blocks:
    """Memory of this process's streams: what has been touched is worth keeping between them.

    It goes back to the system with the last open stream, for who packs in a notebook stays.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spare: list[mmap.mmap] = []
        self._num_streams = 0

    def open_stream(self) -> mmap.mmap:
        """Counts a stream; gives its first block."""
        block = self.take()
        with self._lock:
            self._num_streams += 1
        return block

    def take(self) -> mmap.mmap:
        """A block that nobody else has."""
        with self._lock:
            if self._spare:
                return self._spare.pop()
        # Private: a shared one would be that of forked processes, too, which may write as well.
        return mmap.mmap(-1, _BLOCK, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def give(self, block: mmap.mmap) -> None:
        """Takes a block back."""
        with self._lock:
            self._spare.append(block)

    def close_stream(self, blocks: Iterable[mmap.mmap]) -> None:
        """Takes the last blocks of a stream back."""
        with self._lock:
            self._num_streams -= 1
            self._spare += blocks
            if not self._num_streams:
                self._spare.clear()


_blocks = _Blocks()


class BlockWriter:
    """Appends buffers to a file from an offset on; a thread writes while the next block fills.

    After an error it takes no more: close it. It belongs to the process that made it.

    Args:
        fd: the file, open for reading and writing.
        offset: where the first byte goes.
    """

    def __init__(self, fd: int, offset: int = 0) -> None:
        self._fd = fd
        self._offset = offset
        self._block = _blocks.open_stream()
        self._direct_fd = _direct_fd(fd) if offset % _DIRECT_ALIGNMENT == 0 else -1
        self._filled = 0
        self._room = _room_at(offset)
        self._writing: deque[tuple[Future[None], mmap.mmap]] = deque()
        self._thread: ThreadPoolExecutor | None = None
        self._closed = False

    def append(self, buffers: Sequence[Any]) -> None:
        """Adds buffers to the stream; they are copied.

        Raises:
            OSError: the file system refused, this block or one before.
        """
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            while view.nbytes:
                nbytes = min(view.nbytes, self._room - self._filled)
                self._block[self._filled : self._filled + nbytes] = view[:nbytes]
                self._filled += nbytes
                view = view[nbytes:]
                if self._filled == self._room:
                    self._hand_over()

    def flush(self) -> None:
        """Writes what is held back, and waits for all writes.

        Raises:
            OSError: the file system refused.
        """
        while self._writing:
            self._wait_for_one()
        self._write(self._block, self._filled, self._offset)
        self._offset += self._filled
        self._filled, self._room = 0, _room_at(self._offset)

    def close(self) -> None:
        """Gives the memory back; whatever is not flushed is lost. Closing twice is harmless."""
        if self._closed:
            # A block given back twice would be two streams' at a time.
            return
        self._closed = True
        if self._thread is not None:
            # The file is not closed, nor the memory given away, under a write that is under way.
            self._thread.shutdown(cancel_futures=True)
        # After an error the block at hand is also one of those handed over.
        left = {id(block): block for block in (self._block, *(b for _, b in self._writing))}
        self._writing.clear()
        _blocks.close_stream(left.values())
        if self._direct_fd >= 0:
            os.close(self._direct_fd)

    def _hand_over(self) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="write")
        future = self._thread.submit(self._write, self._block, self._filled, self._offset)
        self._writing.append((future, self._block))
        self._offset += self._filled
        self._filled, self._room = 0, _BLOCK
        while len(self._writing) >= _NUM_BLOCKS:
            self._wait_for_one()
        self._block = _blocks.take()

    def _wait_for_one(self) -> None:
        future, block = self._writing[0]
        future.result()
        self._writing.popleft()
        _blocks.give(block)

    def _write(self, block: mmap.mmap, nbytes: int, offset: int) -> None:
        with memoryview(block) as whole, whole[:nbytes] as view:
            done = self._write_direct(view, offset)
            if done < nbytes:
                pwrite_all(self._fd, [view[done:]], offset + done)
                # Has the disk begin at once, so that the last flush finds little left.
                with suppress(OSError):
                    os.posix_fadvise(self._fd, offset, nbytes, os.POSIX_FADV_DONTNEED)

    def _write_direct(self, view: memoryview, offset: int) -> int:
        """Writes what can go past the cache; returns how many bytes from the beginning."""
        end = view.nbytes - view.nbytes % _DIRECT_ALIGNMENT if self._direct_fd >= 0 else 0
        done = 0
        # A short write, as before a full disk, may end where no direct one can go on.
        while done < end and done % _DIRECT_ALIGNMENT == 0:
            try:
                written = os.pwritev(self._direct_fd, [view[done:end]], offset + done)
            except OSError as error:
                if error.errno not in _REFUSALS:
                    raise
                break
            if not written:
                break
            done += written
        return done


def _room_at(offset: int) -> int:
    """Bytes of the block that begins at `offset`: it ends at a multiple of the alignment."""
    return _BLOCK - offset % _ALIGNMENT


def _direct_fd(fd: int) -> int:
    """The same file, open past the page cache; -1 where its file system cannot."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_DIRECT)
    except OSError:
        return -1
