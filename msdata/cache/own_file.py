"""Opens files and folders in places that other users can write to, and trusts none of them.

Names in `/dev/shm` and on shared scratch can be guessed, so another user may have put a link, a
FIFO or a folder there. These functions follow no link, wait for no FIFO, and check kind and owner
on the open descriptor: a check of the name beforehand would prove nothing.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from msdata.core.files import storage_error
from msdata.errors import StorageError

_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
_WRITING = os.O_WRONLY | os.O_RDWR
_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
# Errors of `open` that tell of another kind or owner of file.
_TELLING = (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.ENODEV)


def open_own(path: Path, flags: int, *, dir_fd: int | None = None, is_private: bool = True) -> int:
    """Opens a regular file that this user owns.

    Args:
        path: the file; with `dir_fd` only its name counts.
        flags: flags of `os.open`.
        dir_fd: descriptor of the file's folder; None uses the path.
        is_private: refuse a file that others may open, and create files that they may not.

    Returns:
        The descriptor.

    Raises:
        StorageError: the name belongs to something else.
        OSError: the file system refused.
    """
    name = path if dir_fd is None else Path(path.name)
    try:
        fd = os.open(name, flags | _FLAGS, 0o600 if is_private else 0o644, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in _TELLING:
            _refuse(path, os.stat(name, dir_fd=dir_fd, follow_symlinks=False))
        raise
    try:
        found = os.fstat(fd)
        _refuse(path, found)
        # A hard link to another file of this user, made to have that file overwritten.
        if flags & _WRITING and found.st_nlink > 1:
            raise StorageError(f"cannot use {path}: it is a hard link; remove it")
        if is_private and found.st_mode & 0o077:
            raise StorageError(
                f"cannot use {path}: others may open it (mode {found.st_mode & 0o777:o}); remove it"
            )
    except BaseException:
        os.close(fd)
        raise
    return fd


def _refuse(path: Path, found: os.stat_result) -> None:
    """Raises StorageError unless `found` is a regular file of this user."""
    for is_kind, words in _KINDS:
        if is_kind(found.st_mode):
            raise StorageError(f"cannot use {path}: it is {words}, not a file; remove it")
    if found.st_uid != os.geteuid():
        raise StorageError(f"cannot use {path}: it belongs to another user ({found.st_uid})")


def is_own_file(path: Path) -> bool:
    """Whether a path is a regular file of this user."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()


def make_folder(path: Path) -> None:
    """Makes a folder, or accepts an existing one of any user, but not another user's link.

    Args:
        path: the folder; missing parents are made.

    Raises:
        StorageError: the path is another user's symbolic link.
        OSError: the file system refused.
    """
    if path.is_symlink() and path.lstat().st_uid not in (0, os.geteuid()):
        raise StorageError(
            f"cannot use {path}: it is a symbolic link that another user made; choose "
            "another folder"
        )
    path.mkdir(parents=True, exist_ok=True)


def open_own_folder(path: Path, *, is_followed: bool = False) -> int:
    """Opens a folder that only this user can write to; makes it and its parents if missing.

    Args:
        path: the folder.
        is_followed: accept a symbolic link that this user or root made.

    Returns:
        The descriptor, for use as `dir_fd`.

    Raises:
        StorageError: the path is not a folder, belongs to another user, or others may write to it;
            or the file system refused.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        if path.is_symlink() and not (is_followed and path.lstat().st_uid in (0, os.geteuid())):
            raise StorageError(f"cannot use {path}: it is a symbolic link; remove it")
        follow = 0 if is_followed else os.O_NOFOLLOW
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | follow)
    except StorageError:
        raise
    except FileExistsError as error:
        raise StorageError(f"cannot use {path}: it is not a folder; remove it") from error
    except OSError as error:
        raise storage_error("use", path, error) from error
    found = os.fstat(fd)
    reason = None
    if found.st_uid != os.geteuid():
        reason = f"it belongs to another user ({found.st_uid}); choose another folder"
    elif found.st_mode & 0o022:
        reason = f"others may write to it (mode {found.st_mode & 0o777:o}); run chmod go-w {path}"
    if reason is not None:
        os.close(fd)
        raise StorageError(f"cannot use {path}: {reason}")
    return fd


def read_own(path: Path, most_nbytes: int, *, is_private: bool = True) -> bytes:
    """Reads a small file that this user owns.

    Args:
        path: the file.
        most_nbytes: refuse a longer file.
        is_private: refuse a file that others may open.

    Raises:
        StorageError: the name belongs to something else, or the file is too long.
        OSError: the file system refused.
    """
    with open(open_own(path, os.O_RDONLY, is_private=is_private), "rb") as file:
        content = file.read(most_nbytes + 1)
    if len(content) > most_nbytes:
        raise StorageError(f"cannot use {path}: it has more than {most_nbytes:,} bytes; remove it")
    return content
