"""Keeps two packs out of one folder, also while the processes of a killed pack still end.

A `flock` belongs to the open file, which worker processes inherit: the lock stays until the last of
them has ended. Under MPI, which may span nodes, every rank holds a shared lock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msdata.core.files import open_known, storage_error, take_lock
from msdata.errors import MsdataError

_WAIT_S = 10.0


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return not take_lock(fd)
    finally:
        os.close(fd)


@contextmanager
def folder_lock(path: Path, *, is_shared: bool = False) -> Iterator[int]:
    """Holds the lock; yields its file descriptor, for worker processes to inherit.

    Args:
        path: the lock's file; created if missing.
        is_shared: share the lock with other ranks of the same run.

    Raises:
        MsdataError: another pack holds it and does not release it in time.
        StorageError: the file system refused.
    """
    try:
        fd = _take(path, is_shared)
    except OSError as error:
        raise storage_error("write", path, error) from error
    try:
        yield fd
    finally:
        os.close(fd)


def share(fd: int) -> None:
    """Turns an exclusive lock into a shared one, which the other ranks can take too."""
    if not take_lock(fd, is_shared=True):
        raise MsdataError("another 'msdata pack' has taken the folder; choose another folder")


def _take(path: Path, is_shared: bool) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = open_known(path)
        try:
            _lock(fd, is_shared, path.parents[1])
            if os.fstat(fd).st_nlink:
                return fd
        except BaseException:
            os.close(fd)
            raise
        # The process that held the lock has removed the file, so locking it protects nothing.
        os.close(fd)


def _lock(fd: int, is_shared: bool, out: Path) -> None:
    """Takes the lock, and gives the workers of a killed pack time to end."""
    deadline = time.monotonic() + _WAIT_S
    while not take_lock(fd, is_shared=is_shared):
        if time.monotonic() > deadline:
            raise is_busy(out)
        time.sleep(0.05)


def is_busy(out: Path) -> MsdataError:
    """The error for a folder that another pack writes to."""
    return MsdataError(
        f"another 'msdata pack' is writing {out}; wait for it, or choose another folder"
    )
