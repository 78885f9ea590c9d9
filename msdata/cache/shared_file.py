"""A file that processes join and leave: who uses it is told by locks, which die with their owner.

Every user holds a shared `flock` on the file. So a file on which an exclusive one can be had has no
user: its processes ended or were killed, and it may be taken over or removed. No process id is
stored anywhere, none can be mistaken for a later process's.

Roles, such as "fills shard 7", are locks on single bytes (open-file-description locks): they too
end with the process that holds them.
"""

from __future__ import annotations

import fcntl
import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from msdata.cache.own_file import open_own
from msdata.core.files import storage_error
from msdata.errors import StorageError

# Making a file takes milliseconds; whoever holds it exclusively for longer is stuck.
_JOIN_TIMEOUT_S = 10.0
_POLL_S = 0.005
# struct flock of 64-bit Linux: type, whence, start, length, pid.
_FLOCK = "hhqqi4x"


def join(
    path: Path,
    fits: Callable[[int, bool], bool],
    build: Callable[[int], None],
    *,
    dir_fd: int | None = None,
) -> int:
    """Opens a shared file as one of its users, making it where there is none that fits.

    Args:
        path: the file; its folder exists.
        fits: given the descriptor and whether there are no other users, tells whether the file
            can be used as it is.
        build: given the descriptor of an empty file, writes what `fits` accepts. Nobody else can
            join meanwhile.
        dir_fd: the file's folder, opened before; None goes by the path.

    Returns:
        The file's descriptor; `leave` takes it.

    Raises:
        StorageError: the file system refused, the file is another user's, or is in use by
            processes whose file does not fit.
    """
    deadline = time.monotonic() + _JOIN_TIMEOUT_S
    try:
        while time.monotonic() < deadline:
            fd = open_own(path, os.O_RDWR | os.O_CREAT, dir_fd=dir_fd)
            try:
                if _join_open(fd, path, fits, build):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
            time.sleep(_POLL_S)
    except StorageError:
        raise
    except OSError as error:
        raise storage_error("share", path, error) from error
    raise StorageError(
        f"cannot share {path}: another process has kept it locked for {_JOIN_TIMEOUT_S:.0f} s"
    )


def _join_open(
    fd: int, path: Path, fits: Callable[[int, bool], bool], build: Callable[[int], None]
) -> bool:
    """Takes the shared lock of a good file; False where another try is needed."""
    if try_flock(fd, fcntl.LOCK_EX):
        if not os.fstat(fd).st_nlink:
            return False
        if not fits(fd, True):
            try:
                os.ftruncate(fd, 0)
                build(fd)
            except BaseException:
                with suppress(OSError):
                    if _is_named(fd, path):
                        path.unlink()
                raise
    if not try_flock(fd, fcntl.LOCK_SH) or not os.fstat(fd).st_nlink:
        return False
    if not fits(fd, False):
        raise StorageError(
            f"cannot share {path}: processes use it that do not fit this one, such as another "
            "version of msdata"
        )
    return True


def try_flock(fd: int, operation: int) -> bool:
    """Takes a `flock` if it is free."""
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def leave(fd: int, path: Path, joined_pid: int, *, is_kept: bool) -> None:
    """Ends the use of a file.

    Args:
        fd: from `join`; closed.
        path: the file.
        joined_pid: the process that joined.
        is_kept: the file stays for later jobs; else the last user removes it.
    """
    if not is_kept:
        remove_if_last(fd, path, joined_pid)
    if os.getpid() == joined_pid:
        os.close(fd)


def remove_if_last(fd: int, path: Path, joined_pid: int) -> None:
    """Removes a file if no other process uses it; this one's use ends too.

    Args:
        fd: from `join`; stays open.
        path: the file.
        joined_pid: the process that joined; a forked child does nothing, since the lock is also
            its parent's.
    """
    if os.getpid() != joined_pid:
        return
    with suppress(OSError):
        if try_flock(fd, fcntl.LOCK_EX) and _is_named(fd, path):
            path.unlink()


def _is_named(fd: int, path: Path) -> bool:
    """Whether the name still means this file."""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def remove_if_unused(path: Path) -> bool:
    """Removes a file that has no user; says whether it did."""
    try:
        fd = open_own(path, os.O_RDWR)
    except OSError:
        return False
    try:
        if not try_flock(fd, fcntl.LOCK_EX) or not _is_named(fd, path):
            return False
        path.unlink()
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def is_used(path: Path) -> bool:
    """Whether a process uses a file."""
    try:
        fd = open_own(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        return not try_flock(fd, fcntl.LOCK_EX)
    finally:
        os.close(fd)


def take_role(fd: int, number: int) -> bool:
    """Takes a role of the file for as long as the descriptor is open; False where it is taken.

    Args:
        fd: from `join`.
        number: of the role.
    """
    try:
        _lock(fd, number, fcntl.F_WRLCK)
    except OSError:
        # Taken, or a file system without such locks: then nobody has roles.
        return False
    return True


def is_role_taken(fd: int, number: int) -> bool:
    """Whether somebody holds a role through another descriptor.

    Args:
        fd: of the file.
        number: of the role.
    """
    asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0)
    try:
        found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
    except OSError:
        return False
    return bool(struct.unpack(_FLOCK, found)[0] != fcntl.F_UNLCK)


@contextmanager
def role(fd: int, number: int) -> Iterator[bool]:
    """Holds one role of the file, unless another process has it.

    Args:
        fd: from `join`.
        number: of the role.

    Yields:
        Whether it was free.
    """
    is_ours = take_role(fd, number)
    try:
        yield is_ours
    finally:
        if is_ours:
            _lock(fd, number, fcntl.F_UNLCK)


def _lock(fd: int, number: int, kind: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, number, 1, 0))
