"""Reads `rejected.csv`, the objects that a pack left out; three rooms use it."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from msdata.core.checked_json import open_regular
from msdata.core.files import storage_error
from msdata.errors import DataError

COLUMNS = ("sample_id", "path", "row", "reason")


@dataclass(frozen=True, slots=True)
class Rejected:
    """A rejected object.

    Attributes:
        sample_id: its id.
        path: its file, relative to the source's folder.
        row: its row in the file.
        reason: why it was rejected.
    """

    sample_id: str
    path: str
    row: str
    reason: str


def read_rejected(path: Path) -> Iterator[Rejected]:
    """Yields the rows of a `rejected.csv`.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: it is damaged.
        StorageError: the file system refused.
    """
    cure = "restore it from a copy, or pack again"
    try:
        with (
            open_regular(path, cure) as raw,
            io.TextIOWrapper(raw, encoding="utf-8", newline="") as file,
        ):
            for number, row in enumerate(csv.reader(file, strict=True), 1):
                if len(row) != len(COLUMNS) or (number == 1 and tuple(row) != COLUMNS):
                    raise DataError(
                        f"{path} is damaged: line {number} must have the fields "
                        f"{', '.join(COLUMNS)}; {cure}"
                    )
                if number > 1:
                    yield Rejected(*row)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise storage_error("read", path, error) from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(f"{path} is damaged ({error}); {cure}") from error
