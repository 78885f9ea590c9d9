"""Opens shards, a limited number: a data set may have more shards than a process may open files."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.files import storage_error
from msdata.errors import DataError, StorageError

# More open files bring no gain.
_MAX_OPEN = 512
# Parts of the process's limit of open files, usually 1,024: files kept open after use, and files
# that each of the few batches in flight may hold.
_SHARE_KEPT = 4
_SHARE_HELD = 28
# Reads with this flag return data in memory and never wait for a disk.
NOWAIT = os.RWF_NOWAIT
# Nonblocking, so that opening a FIFO in a shard's place does not wait; its size reveals it.
_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


class ShardFile:
    """One open shard; closed with its last reference.

    Args:
        path: the file.
        nbytes: its required size.

    Raises:
        DataError: it is missing or of another size.
        StorageError: the file system refused.
    """

    def __init__(self, path: Path, nbytes: int) -> None:
        self.path = path
        self.nbytes = nbytes
        self.fd = -1
        _check_size(path, nbytes, self._open)

    def _open(self) -> int:
        """Opens the file; returns its size."""
        self.fd = os.open(self.path, _OPEN_FLAGS)
        return os.fstat(self.fd).st_size

    def read_now(self, buffers: Sequence[Any], offset: int) -> bool:
        """Fills the buffers if all their bytes are in memory; returns whether it did.

        Returns False if the file system cannot say. Never waits for a disk.
        """
        try:
            return os.preadv(self.fd, buffers, offset, NOWAIT) == sum(map(len, buffers))
        except OSError:
            return False

    def announce(self, offset: int, nbytes: int) -> None:
        """Tells the kernel to read these bytes ahead; returns at once."""
        with suppress(OSError):
            os.posix_fadvise(self.fd, offset, nbytes, os.POSIX_FADV_WILLNEED)

    def read_into(self, buffers: Sequence[Any], offset: int) -> None:
        """Fills the buffers with the bytes at `offset`.

        Args:
            buffers: writable buffers, filled one after the other.
            offset: offset of the first byte.

        Raises:
            DataError: the file ends too early.
            StorageError: the file system refused.
        """
        wanted = sum(len(b) for b in buffers)
        try:
            done = os.preadv(self.fd, buffers, offset)
            if done != wanted:
                self._read_rest(buffers, offset, done)
        except OSError as error:
            raise storage_error("read", self.path, error) from error

    def read_arrays(
        self, offsets: NDArray[np.int64], sizes: NDArray[np.int64]
    ) -> list[NDArray[np.uint8]]:
        """Reads byte ranges, each into an array of its own; see `read_into`.

        Args:
            offsets: int64 (ranges,).
            sizes: int64 (ranges,), in bytes.
        """
        arrays = [np.empty(size, np.uint8) for size in sizes.tolist()]
        for array, offset in zip(arrays, offsets.tolist(), strict=True):
            self.read_into([array.data], offset)
        return arrays

    def _read_rest(self, buffers: Sequence[Any], offset: int, done: int) -> None:
        """Continues after a short read, which is rare."""
        start = 0
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            skip = min(len(view), max(0, done - start))
            while skip < len(view):
                count = os.preadv(self.fd, [view[skip:]], offset + start + skip)
                if count == 0:
                    raise DataError(
                        f"{self.path} ended while it was read, at byte {offset + start + skip}: "
                        f"it was truncated; run 'msdata verify --repair {self.path.parents[1]}'"
                    )
                skip += count
            start += len(view)

    def __del__(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


def _check_size(path: Path, nbytes: int, look: Callable[[], int]) -> None:
    """Raises unless `look` finds the shard with the required size."""
    try:
        found = look()
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing; run 'msdata verify --repair {path.parents[1]}'"
        ) from None
    except OSError as error:
        raise storage_error("read", path, error) from error
    if found != nbytes:
        raise DataError(size_sentence(path, found, nbytes))


def size_sentence(path: Path, found: int, expected: int) -> str:
    """Words the message for a shard with a wrong size."""
    if found < expected:
        fact = f"{expected - found} bytes short of its index: it was truncated"
    else:
        fact = f"{found - expected} bytes longer than its index says: it was altered"
    return f"{path} is {fact}; run 'msdata verify --repair {path.parents[1]}'"


class ShardFiles:
    """Opens shards on demand and keeps the last few hundred open.

    Args:
        paths: the shards.
        nbytes: the required size of each.

    Attributes:
        max_held: number of files that each user should hold at most.
    """

    def __init__(self, paths: Sequence[Path], nbytes: Sequence[int]) -> None:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = _MAX_OPEN * _SHARE_HELD if limit == resource.RLIM_INFINITY else limit
        self.max_held = max(1, limit // _SHARE_HELD)
        self._paths = paths
        self._nbytes = nbytes
        self._max_open = max(1, min(_MAX_OPEN, limit // _SHARE_KEPT))
        self._open: OrderedDict[int, ShardFile] = OrderedDict()
        self._lock = threading.Lock()

    def path(self, number: int) -> Path:
        """Returns the path of a shard."""
        return self._paths[number]

    def open(self, number: int) -> ShardFile:
        """Returns the open file of a shard; it stays open while the caller holds it.

        Raises:
            DataError: it is missing or of another size.
            StorageError: the file system refused.
        """
        return self.open_all((number,))[number]

    def open_all(self, numbers: Iterable[int]) -> dict[int, ShardFile]:
        """Returns the open files of several shards, by number; see `open`."""
        files = {}
        with self._lock:
            for number in numbers:
                file = self._open.get(number)
                if file is None:
                    file = self._opened(number)
                    self._open[number] = file
                    if len(self._open) > self._max_open:
                        self._open.popitem(last=False)
                else:
                    self._open.move_to_end(number)
                files[number] = file
        return files

    def _opened(self, number: int) -> ShardFile:
        try:
            return ShardFile(self._paths[number], self._nbytes[number])
        except StorageError as error:
            if error.errno != errno.EMFILE:
                raise
        # Other code needs descriptors too: give up the shards that are not in use.
        self._open.clear()
        return ShardFile(self._paths[number], self._nbytes[number])

    def check_all(self) -> None:
        """Checks existence and size of every shard.

        Raises:
            DataError: the first fault found.
        """
        for path, nbytes in zip(self._paths, self._nbytes, strict=True):
            _check_size(path, nbytes, partial(os.path.getsize, path))
