"""A lock on an open file, which ends with its process."""

from __future__ import annotations

import fcntl


def take_lock(fd: int) -> bool:
    """Takes the exclusive lock of a file; whether nobody else has it.

    Args:
        fd: the open file.
    """
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some parallel file systems are mounted without locks.
        return True
    return True
