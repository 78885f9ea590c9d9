"""Guards output files: a command replaces only files that an earlier run of it made.

Each kind of file has a mark: bytes that its writer always puts near its start or end.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from msdata.core.files import storage_error, whole_file
from msdata.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

# Larger than the context of a Croissant file before our fields, and than the footer of a table of
# predictions with a thousand bins.
_SEARCHED_NBYTES = 1 << 18
# In the text chunk that the PNG format has for it.
PNG_MARK = b"Software\0msdata"


def check_output(path: Path, mark: bytes | None) -> None:
    """Refuses to let a command replace a file that it did not make.

    Args:
        path: the output file.
        mark: bytes within the first or last 256 KiB of every file of this kind; None for a kind
            without a mark, of which no file is replaced.

    Raises:
        UsageError: the path is a folder or a file without the mark.
        StorageError: the file system refused.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        # The writer reports a missing folder.
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
    """Makes a folder for results, unless it exists; call it after all other checks.

    Raises:
        UsageError: a part of the path is a file.
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


def write_table(path: Path, table: pa.Table, mark: bytes | None = None) -> None:
    """Writes a table, whole or not at all.

    Args:
        path: CSV if it ends in .csv, else Parquet.
        table: the table.
        mark: the mark of a Parquet file, see `check_output`; None for none.

    Raises:
        StorageError: the file system refused.
    """
    import pyarrow.csv
    import pyarrow.parquet

    with whole_file(path) as file:
        if path.suffix == ".csv":
            pyarrow.csv.write_csv(table, file, pyarrow.csv.WriteOptions(quoting_style="needed"))
            return
        if mark is not None:
            table = table.replace_schema_metadata({"made_by": mark})
        pyarrow.parquet.write_table(table, file, compression="zstd")
