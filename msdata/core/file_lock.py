"""A lock on an open file, which ends with the last process that has it open."""

from __future__ import annotations

import fcntl


def take_lock(fd: int, *, is_shared: bool = False) -> bool:
    """Takes the lock of a file, or turns the one held into it; whether nobody else is in the way.

    Args:
        fd: the open file.
        is_shared: with others that ask for a shared one.
    """
    operation = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # Some parallel file systems are mounted without locks; what is written still appears whole.
        return True
    return True
