"""Open shards, as few as needed: a data set may have more shards than a process may open files."""

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

from msdata.core.files import storage_error
from msdata.errors import DataError, StorageError

# More open files than this make nothing faster.
_MAX_OPEN = 512
# Parts of the process's limit of open files, usually 1,024: what is kept open beyond its use, and
# what each of the batches in flight may hold, of which there are a few.
_SHARE_KEPT = 4
_SHARE_HELD = 28
# Reads with this flag give what is in memory and never wait for a disk.
NOWAIT = os.RWF_NOWAIT
# A FIFO in a shard's place is told by its size, without waiting for its writer.
_OPEN_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC


class ShardFile:
    """One open shard; closed when nobody holds it any more.

    Args:
        path: the file.
        nbytes: the size it has to have.

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
        """Fills the buffers if all their bytes are in memory; says whether it did.

        Where the file system cannot tell, the answer is no. Never waits for a disk.
        """
        try:
            return os.preadv(self.fd, buffers, offset, NOWAIT) == sum(map(len, buffers))
        except OSError:
            return False

    def announce(self, offset: int, nbytes: int) -> None:
        """Tells the kernel that these bytes will be read soon; returns at once."""
        with suppress(OSError):
            os.posix_fadvise(self.fd, offset, nbytes, os.POSIX_FADV_WILLNEED)

    def read_into(self, buffers: Sequence[Any], offset: int) -> None:
        """Fills the buffers with the bytes from `offset` on.

        Args:
            buffers: writable buffers, filled one after the other.
            offset: where the bytes begin.

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

    def _read_rest(self, buffers: Sequence[Any], offset: int, done: int) -> None:
        """Goes on after a short read; the common case never comes here."""
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


def _stat_size(path: Path) -> int:
    return path.stat().st_size


def _check_size(path: Path, nbytes: int, look: Callable[[], int]) -> None:
    """Raises unless `look` finds the shard there, and as large as it has to be."""
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
    """What to say of a shard whose size is wrong."""
    if found < expected:
        fact = f"{expected - found} bytes short of its index: it was truncated"
    else:
        fact = f"{found - expected} bytes longer than its index says: it was altered"
    return f"{path} is {fact}; run 'msdata verify --repair {path.parents[1]}'"


class ShardFiles:
    """Opens shards when they are asked for and keeps the last few hundred open.

    Args:
        paths: the shards.
        nbytes: the size each has to have.
        max_open: how many to keep open; None goes by the process's limit of open files.

    Attributes:
        max_held: files that each user should hold at once at most.
    """

    def __init__(
        self, paths: Sequence[Path], nbytes: Sequence[int], *, max_open: int | None = None
    ) -> None:
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        limit = _MAX_OPEN * _SHARE_HELD if limit == resource.RLIM_INFINITY else limit
        self.max_held = max(1, limit // _SHARE_HELD)
        self._paths = paths
        self._nbytes = nbytes
        self._max_open = max_open or max(1, min(_MAX_OPEN, limit // _SHARE_KEPT))
        self._open: OrderedDict[int, ShardFile] = OrderedDict()
        self._lock = threading.Lock()

    def path(self, number: int) -> Path:
        """Where a shard lies."""
        return self._paths[number]

    def open(self, number: int) -> ShardFile:
        """The open file of a shard; stays open for as long as the caller holds it.

        Raises:
            DataError: it is missing or of another size.
            StorageError: the file system refused.
        """
        return self.open_all((number,))[number]

    def open_all(self, numbers: Iterable[int]) -> dict[int, ShardFile]:
        """The open files of several shards, by number; see `open`."""
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
        # Others need the process's files too; it works without those that nobody reads.
        self._open.clear()
        return ShardFile(self._paths[number], self._nbytes[number])

    def check_all(self) -> None:
        """Checks existence and size of every shard.

        Raises:
            DataError: the first fault found.
        """
        for path, nbytes in zip(self._paths, self._nbytes, strict=True):
            _check_size(path, nbytes, partial(_stat_size, path))
