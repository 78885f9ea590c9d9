"""Reads `rejected.csv`: the objects that a pack left out, for three modules that ask of them."""

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
    """An object that was left out.

    Attributes:
        sample_id: its id.
        path: its file, below the source's folder.
        row: its row there.
        reason: why.
    """

    sample_id: str
    path: str
    row: str
    reason: str


def read_rejected(path: Path) -> Iterator[Rejected]:
    """The rows of a `rejected.csv`, one at a time.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: it is not there.
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
