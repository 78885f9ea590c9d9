"""Writes files that appear whole or not at all, locks files, and words refusals of the system.

A file is written under a temporary name, fsynced and renamed; then its folder is fsynced.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from msdata.errors import StorageError

TEMPORARY_SUFFIX = ".partial"
# Earlier versions left out the hexadecimal digits.
_TEMPORARY_NAME = re.compile(r"(.+?)(?:\.[0-9a-f]{12})?\.partial", re.DOTALL)
_NEVER_ELSEWHERE = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# Read and write: HDF5 shards are read back while they are put together.
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | _NEVER_ELSEWHERE

_CURES = {
    errno.ENOSPC: "the disk is full; free some space, then run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space, then run the same command again",
    errno.EFBIG: "a file gets larger than 'ulimit -f' or the file system allows; raise the limit, "
    "or ask for smaller files",
    errno.EROFS: "the file system is mounted read-only; choose another target",
    errno.EACCES: "permission is denied; choose another path or fix its permissions",
    errno.EPERM: "the operation is not permitted; choose another path or fix its permissions",
    errno.ENOENT: "it does not exist; check the path",
    errno.ENOTDIR: "a part of the path is a file, not a folder; check the path",
    errno.ELOOP: "it is a link or a special file, and its content would go elsewhere; remove it",
    errno.EIO: "the storage reported an I/O error; check the disk or file system, then run again",
}


def storage_error(doing: str, path: Path, error: OSError) -> StorageError:
    """Makes a StorageError from an OSError.

    Args:
        doing: the failed action, such as "write".
        path: the file or folder.
        error: the operating system's error.

    Returns:
        The error to raise: its message names path, reason and cure; it keeps `errno`.
    """
    reason = _CURES.get(error.errno or 0, f"{error.strerror or error}")
    refusal = StorageError(f"cannot {doing} {path}: {reason}")
    refusal.errno = error.errno
    return refusal


@contextmanager
def refusals(doing: str, path: Path) -> Iterator[None]:
    """Turns an OSError into a StorageError; see `storage_error`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(doing, path, error) from error


def take_lock(fd: int, *, is_shared: bool = False, waits: bool = False) -> bool:
    """Takes the lock of an open file, or converts a held one; returns False if others hold it.

    The lock ends with the last process that has the file open.

    Args:
        fd: the open file.
        is_shared: share the lock with other shared ones.
        waits: wait until others have released it.
    """
    operation = fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX
    try:
        fcntl.flock(fd, operation | (0 if waits else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        # Some parallel file systems lack locks; files still appear whole.
        return True
    return True


@dataclass(frozen=True, kw_only=True)
class Temporary:
    """A new file under an unpredictable name, open for writing.

    Attributes:
        fd: the open file, locked while it is open; the caller closes it.
        path: its name, `NAME.HEX.partial` beside the final file.
    """

    fd: int
    path: Path


def open_temporary(path: Path) -> Temporary:
    """Makes a temporary file for `path`: a new one per call, and never through a link.

    Args:
        path: the final name.

    Raises:
        OSError: the file system refused.
    """
    while True:
        temporary = path.with_name(f"{path.name}.{os.urandom(6).hex()}{TEMPORARY_SUFFIX}")
        fd = os.open(temporary, _NEW_FILE, 0o666)
        # The lock tells it from the leftovers of killed processes, which are removed.
        if take_lock(fd) and os.fstat(fd).st_nlink:
            return Temporary(fd=fd, path=temporary)
        os.close(fd)
        _discard(temporary)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Removes the temporary files that killed processes left in a folder.

    Removes only regular files of this user with such a name that no process has open. On a file
    system without locks all of them stay.

    Args:
        folder: the folder; may be missing.
        name: the final name of the temporary files; None for any.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY_NAME.fullmatch(entry.name)
            if found is not None and name in (None, found[1]):
                with suppress(OSError):
                    _remove_leftover(folder / entry.name)


def _remove_leftover(path: Path) -> None:
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
    finally:
        os.close(fd)


def open_known(path: Path, flags: int = os.O_RDWR) -> int:
    """Opens a file with a known name for writing, or makes it: a lock, a journal.

    Args:
        path: the file.
        flags: further flags, such as `os.O_APPEND`; nothing is truncated.

    Returns:
        Its descriptor: a regular file with a single name, so that no link leads elsewhere.

    Raises:
        OSError: the file system refused; ELOOP if it is anything but such a file.
    """
    fd = os.open(path, flags | _NEVER_ELSEWHERE | os.O_CREAT, 0o644)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(fd)
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fspath(path))
    return fd


@contextmanager
def locked(path: Path, *, waits: bool = False, is_folder: bool = False) -> Iterator[bool]:
    """Holds the lock of a file unless another process does; yields whether this one has it.

    Args:
        path: the lock's file, made if missing.
        waits: wait until the others have released it.
        is_folder: lock a folder, which exists.

    Raises:
        StorageError: the file system refused.
    """
    with refusals("read" if is_folder else "write", path):
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY) if is_folder else open_known(path)
    try:
        yield take_lock(fd, waits=waits)
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def publish(temporary: Path, path: Path) -> None:
    """Renames the finished, fsynced temporary file to its final name."""
    temporary.replace(path)
    sync_folder(path.parent)


@contextmanager
def whole_file(path: Path, *, is_one_of_many: bool = False) -> Iterator[IO[bytes]]:
    """Opens a binary file that gets its name once it is complete and on the disk.

    If several processes write the same file at the same time, the last one wins.

    Args:
        path: the final name; a previous file stays until the new one is whole.
        is_one_of_many: the folder holds thousands of files, so the caller removes the leftovers of
            killed processes once; otherwise this function does.

    Yields:
        The open temporary file.

    Raises:
        StorageError: the file system refused; the temporary file is removed.
    """
    temporary = None
    try:
        if not is_one_of_many:
            remove_leftovers(path.parent, path.name)
        temporary = open_temporary(path)
        with os.fdopen(temporary.fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            publish(temporary.path, path)
    except BaseException as error:
        if temporary is not None:
            _discard(temporary.path)
        if not isinstance(error, OSError) or isinstance(error, StorageError):
            raise
        raise storage_error("write", path, error) from error


def _discard(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def write_whole(path: Path, content: bytes, *, is_one_of_many: bool = False) -> None:
    """Writes `content` to `path`, whole or not at all; see `whole_file`."""
    with whole_file(path, is_one_of_many=is_one_of_many) as file:
        file.write(content)
