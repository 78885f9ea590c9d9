"""Keeps two packs out of one folder, also while the processes of a killed one are still ending.

A `flock` belongs to the open file, which worker processes inherit: it stays until the last of them
has ended. Under MPI, which may span nodes, every rank holds a shared one.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from msdata.atomic_file import storage_error
from msdata.errors import MsdataError

_WAIT_S = 10.0


def is_locked(path: Path) -> bool:
    """Whether another process holds the lock."""
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
    return False


@contextmanager
def folder_lock(path: Path, *, is_shared: bool = False) -> Iterator[int]:
    """Holds the lock; yields its file descriptor, for worker processes to inherit.

    Args:
        path: the lock's file; made if it is not there.
        is_shared: with other ranks of the same run.

    Raises:
        MsdataError: another pack holds it, and goes on holding it.
        StorageError: the file system refused.
    """
    try:
        fd = _take(path, fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX)
    except OSError as error:
        raise storage_error("write", path, error) from error
    try:
        yield fd
    finally:
        os.close(fd)


def share(fd: int) -> None:
    """Turns the lock that was taken alone into one that the other ranks can take too."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise MsdataError(
            "another 'msdata pack' has taken the folder; choose another folder"
        ) from None
    except OSError:
        # See `_lock`.
        return


def _take(path: Path, operation: int) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(fd, operation, path.parents[1])
            if os.fstat(fd).st_nlink:
                return fd
        except BaseException:
            os.close(fd)
            raise
        # Whoever held it has ended and removed it: it no longer keeps anybody out.
        os.close(fd)


def _lock(fd: int, operation: int, out: Path) -> None:
    """Takes the lock, giving the workers of a pack that was just killed time to end."""
    deadline = time.monotonic() + _WAIT_S
    while True:
        try:
            fcntl.flock(fd, operation | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise is_busy(out) from None
            time.sleep(0.05)
        except OSError:
            # Some parallel file systems are mounted without locks; a shard still appears whole.
            return


def is_busy(out: Path) -> MsdataError:
    """The error for a folder that another pack writes to."""
    return MsdataError(
        f"another 'msdata pack' is writing {out}; wait for it, or choose another folder"
    )
