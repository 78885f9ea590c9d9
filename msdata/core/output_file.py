"""Files that a command is told to write: what no earlier run made is never replaced.

Each kind of file bears a mark, some bytes that its writer always puts near its beginning or end.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from msdata.core.files import storage_error
from msdata.errors import UsageError

# More than the context of a Croissant file before our fields, and than the footer of a table of
# predictions of a thousand bins.
_SEARCHED_NBYTES = 1 << 18
# In the text chunk that the PNG format has for it.
PNG_MARK = b"Software\0msdata"


def check_output(path: Path, mark: bytes | None) -> None:
    """Refuses to let a command replace a file that it did not make.

    Args:
        path: what is to be written.
        mark: what every file of this kind has within its first or last 256 KiB; None where there
            is no such thing, so that nothing is replaced.

    Raises:
        UsageError: there is something without the mark, or a folder.
        StorageError: the file system refused.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        # A missing folder is the writer's to report.
        return
    except OSError as error:
        raise storage_error("replace", path, error) from error
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode) and mark is not None:
            end = max(0, status.st_size - _SEARCHED_NBYTES)
            if any(mark in os.pread(fd, _SEARCHED_NBYTES, at) for at in (0, end)):
                return
    finally:
        os.close(fd)
    raise UsageError(
        f"{path} exists, and this command did not make it; nothing was replaced: remove it, or "
        "give another name"
    )


def make_folder(folder: Path) -> None:
    """Makes a folder for results, unless it is there; the last of the checks before the work.

    Raises:
        UsageError: something else has its name.
        StorageError: the file system refused.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(
            f"cannot make the folder {folder}: a part of the path is a file; give another --out"
        ) from None
    except OSError as error:
        raise storage_error("make", folder, error) from error
