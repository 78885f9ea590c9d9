"""What is known of a table once it was opened, and errors that name it."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import pyarrow as pa

from msdata.core.files import storage_error
from msdata.errors import DataError, StorageError, UsageError


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """A table that was opened to learn its format and columns.

    Attributes:
        path: the file.
        what: what messages call it.
        kind: "fits", "csv" (or other text), "parquet", "votable" or "ecsv".
        names: its columns; empty for a CSV file before its encoding is known.
        hdu: for FITS: the extension's number.
        notes: for FITS: that there are further tables.
    """

    path: Path
    what: str
    kind: str
    names: tuple[str, ...] = ()
    hdu: int = 0
    notes: tuple[str, ...] = ()


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turns what readers of broken files raise into errors that name the file."""
    try:
        yield
    except (UsageError, DataError, StorageError):
        raise
    except OSError as error:
        # Without a number it is not the system that complains but gzip, Arrow or astropy.
        if error.errno is None:
            raise DataError(f"{what} {path} is broken or truncated: {error}") from error
        raise storage_error("read", path, error) from error
    except (pa.ArrowException, EOFError, ValueError, TypeError, LookupError) as error:
        raise DataError(f"{what} {path} is broken or truncated: {error}") from error


def open_unpacked(path: Path) -> gzip.GzipFile | BufferedReader:
    """Opens a file for reading, unpacked if it is gzipped."""
    return gzip.open(path) if is_gzip(path) else path.open("rb")


def is_gzip(path: Path) -> bool:
    """Whether the content is gzipped."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def wanted_column(table: TableFile, name: str, values: Any, remark: str) -> Any:
    """The values of a column that was asked for, unless it is of another kind."""
    if values is None:
        raise DataError(f"{table.what} {table.path}: column {name!r} {remark.partition(':')[0]}")
    return values
