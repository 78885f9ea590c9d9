"""A file that processes join and leave; locks tell who uses it, and end with their process.

Every user holds a shared `flock` on the file. If an exclusive `flock` succeeds, the file has no
user: its processes ended or were killed, and another may take it over or remove it. The file stores
no process id, so none can be confused with a later process's.

Roles, such as "fills shard 7", are locks on single bytes (open-file-description locks), which also
end with their process. A `Row` is a piece of the file in which one process describes itself, for
`msdata cache status`; it counts only while its process holds the row's role.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from msdata.cache.own_file import open_own
from msdata.core.checked_json import parse_json
from msdata.core.files import refusals
from msdata.errors import DataError, StorageError

# Making a file takes milliseconds; a process that locks it exclusively for longer is stuck.
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
    """Opens a shared file as one of its users; makes it if none exists that fits.

    Args:
        path: the file; its folder exists.
        fits: takes the descriptor and whether the file has no other users; returns whether the
            file is usable as it is.
        build: takes the descriptor of an empty file and writes what `fits` accepts. No other
            process can join meanwhile.
        dir_fd: descriptor of the file's folder; None uses the path.

    Returns:
        The file's descriptor, for `leave`.

    Raises:
        StorageError: the file system refused, the file belongs to another user, or processes use
            it whose file does not fit.
    """
    deadline = time.monotonic() + _JOIN_TIMEOUT_S
    with refusals("share", path):
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
    raise StorageError(
        f"cannot share {path}: another process has kept it locked for {_JOIN_TIMEOUT_S:.0f} s"
    )


def _join_open(
    fd: int, path: Path, fits: Callable[[int, bool], bool], build: Callable[[int], None]
) -> bool:
    """Takes the shared lock of a good file; returns False if the caller must retry."""
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
            f"cannot share {path}: incompatible processes use it, such as another version of msdata"
        )
    return True


def try_flock(fd: int, operation: int) -> bool:
    """Takes a `flock` without waiting; returns whether it was free."""
    try:
        fcntl.flock(fd, operation | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def leave(fd: int, path: Path, joined_pid: int) -> None:
    """Ends the use of a file; the last user removes it.

    Args:
        fd: the descriptor from `join`; `leave` closes it.
        path: the file.
        joined_pid: the process that joined.
    """
    remove_if_last(fd, path, joined_pid)
    if os.getpid() == joined_pid:
        os.close(fd)


def remove_if_last(fd: int, path: Path, joined_pid: int) -> None:
    """Removes a file if no other process uses it; ends this process's use too.

    Args:
        fd: the descriptor from `join`; stays open.
        path: the file.
        joined_pid: the process that joined; a forked child does nothing, because it shares the
            lock with its parent.
    """
    if os.getpid() != joined_pid:
        return
    with suppress(OSError):
        if try_flock(fd, fcntl.LOCK_EX) and _is_named(fd, path):
            path.unlink()


def _is_named(fd: int, path: Path) -> bool:
    """Whether the path still leads to this file."""
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def remove_if_unused(path: Path) -> bool:
    """Removes a file that has no user; returns whether it did."""
    with suppress(OSError), os.fdopen(open_own(path, os.O_RDWR), "r+b") as file:
        if try_flock(file.fileno(), fcntl.LOCK_EX) and _is_named(file.fileno(), path):
            path.unlink()
            return True
    return False


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
    """Takes a role of the file while the descriptor is open; returns False if it is taken.

    Args:
        fd: the descriptor from `join`.
        number: the role's number.
    """
    try:
        _lock(fd, number, fcntl.F_WRLCK)
    except OSError:
        # Taken, or a file system without such locks: then no process has roles.
        return False
    return True


def is_role_taken(fd: int, number: int) -> bool:
    """Whether a process holds a role through another descriptor.

    Args:
        fd: the file's descriptor.
        number: the role's number.
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
        fd: the descriptor from `join`.
        number: the role's number.

    Yields:
        Whether the role was free.
    """
    is_ours = take_role(fd, number)
    try:
        yield is_ours
    finally:
        if is_ours:
            _lock(fd, number, fcntl.F_UNLCK)


def _lock(fd: int, number: int, kind: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, number, 1, 0))


NUM_ROWS = 128
ROW_NBYTES = 2048
# The roles of rows begin beyond all numbers of shards.
_FIRST_ROLE = 1 << 40
# Length and CRC-32 of the text that follows: a reader may see a half-written row.
_HEAD = "<II"
_TRIES = 3


class Row:
    """This process's row; its lock ends with the descriptor.

    Args:
        fd: the descriptor from `join`.
        start: offset of the rows in the file.
    """

    def __init__(self, fd: int, start: int) -> None:
        self._fd = fd
        free = (n for n in range(NUM_ROWS) if take_role(fd, _FIRST_ROLE + n))
        number = next(free, None)
        # With more processes than rows, the last to come stay invisible.
        self._at = None if number is None else start + number * ROW_NBYTES
        self.write({})

    def write(self, fields: Mapping[str, Any]) -> None:
        """Replaces the content of the row.

        Args:
            fields: plain numbers and strings; content that exceeds a row is dropped.

        Raises:
            OSError: the file system refused.
        """
        text = json.dumps(fields).encode()
        content = struct.pack(_HEAD, len(text), zlib.crc32(text)) + text
        if self._at is not None and len(content) <= ROW_NBYTES:
            os.pwrite(self._fd, content, self._at)


def read_rows(fd: int, start: int) -> list[dict[str, Any]]:
    """The rows of all living processes.

    Args:
        fd: a descriptor opened for this purpose: a descriptor's own locks count as free.
        start: offset of the rows in the file.
    """
    taken = (n for n in range(NUM_ROWS) if is_role_taken(fd, _FIRST_ROLE + n))
    found = (_read(fd, start + n * ROW_NBYTES) for n in taken)
    return [fields for fields in found if fields]


def _read(fd: int, at: int) -> dict[str, Any] | None:
    for _ in range(_TRIES):
        raw = os.pread(fd, ROW_NBYTES, at)
        if len(raw) < ROW_NBYTES:
            return None
        length, checksum = struct.unpack_from(_HEAD, raw)
        text = raw[struct.calcsize(_HEAD) :][:length]
        if zlib.crc32(text) == checksum and text:
            with suppress(DataError):
                return parse_json(text, "a row", cure="").read_as(dict[str, Any])
            return None
    return None
