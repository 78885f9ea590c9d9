"""Files that appear whole or not at all: temporary name, fsync, rename, fsync of the folder.

Also the one place that turns an operating system's refusal into a sentence with a cure.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from msdata.errors import StorageError

TEMPORARY_SUFFIX = ".partial"

_CURES = {
    errno.ENOSPC: "the disk is full; free some space, then run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space, then run the same command again",
    errno.EFBIG: "a file gets larger than 'ulimit -f' or the file system allows; raise the limit, "
    "or ask for smaller files",
    errno.EROFS: "the file system is mounted read-only; choose another target",
    errno.EACCES: "permission is denied; choose another path or mend its permissions",
    errno.EPERM: "the operation is not permitted; choose another path or mend its permissions",
    errno.ENOENT: "it does not exist; check the path",
    errno.ENOTDIR: "a part of the path is a file, not a folder; check the path",
    errno.EIO: "the storage reported an I/O error; check the disk or file system, then run again",
}


def storage_error(doing: str, path: Path, error: OSError) -> StorageError:
    """The sentence for an operating system's refusal.

    Args:
        doing: what was tried, such as "write".
        path: the file or folder.
        error: what the operating system said.

    Returns:
        The error to raise; its message names path, reason and cure, its `errno` is kept.
    """
    reason = _CURES.get(error.errno or 0, f"{error.strerror or error}")
    mended = StorageError(f"cannot {doing} {path}: {reason}")
    mended.errno = error.errno
    return mended


def partial_path(path: Path) -> Path:
    """The temporary name beside `path` under which it is written."""
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def sync_folder(folder: Path) -> None:
    """Makes renames inside `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def publish(path: Path) -> None:
    """Renames the finished, fsynced temporary file of `path` to its final name."""
    _publish(partial_path(path), path)


def _publish(temporary: Path, path: Path) -> None:
    temporary.replace(path)
    sync_folder(path.parent)


@contextmanager
def whole_file(path: Path, *, is_contended: bool = False) -> Iterator[IO[bytes]]:
    """A binary file that gets its name only once it is complete and on the disk.

    Args:
        path: the final name; what was there before stays until the new file is whole.
        is_contended: several may write it at the same time; each does so under a name of its own,
            and the last to end stays.

    Yields:
        The open temporary file.

    Raises:
        StorageError: the file system refused; the temporary file is removed.
    """
    temporary = partial_path(path)
    if is_contended:
        temporary = temporary.with_name(f"{path.name}.{secrets.token_hex(6)}{TEMPORARY_SUFFIX}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _publish(temporary, path)
    except OSError as error:
        _discard(temporary)
        if isinstance(error, StorageError):
            raise
        raise storage_error("write", path, error) from error
    except BaseException:
        _discard(temporary)
        raise


def _discard(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def write_whole(path: Path, content: bytes, *, is_contended: bool = False) -> None:
    """Writes `content` to `path`, whole or not at all; see `whole_file`."""
    with whole_file(path, is_contended=is_contended) as file:
        file.write(content)
