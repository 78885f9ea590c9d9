"""Opens Parquet files that may be damaged or hostile; checks columns, types and rows once.

Errors that Arrow raises become a `DataError` with the file's name and the cure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from msdata.core.checked_json import JsonValue, open_regular, parse_json
from msdata.core.files import storage_error
from msdata.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# Kinds of columns, and the names of the Arrow types that each accepts, without digits.
KINDS: Mapping[str, tuple[str, ...]] = {
    "text": ("string", "large_string"),
    "integer": ("int", "uint"),
    "list": ("list<element: float>", "fixed_size_list<element: float>"),
    "number": ("int", "uint", "float", "double", "halffloat"),
}


@contextmanager
def reading(path: Path, cure: str) -> Iterator[None]:
    """Turns the errors that Arrow raises for a damaged file into a DataError.

    Args:
        path: the file.
        cure: end of the message, such as "restore it or pack again".

    Raises:
        FileNotFoundError, NotADirectoryError: the file does not exist; the caller decides what
            this means.
        DataError: the file is damaged.
        StorageError: the file system refused.
    """
    import pyarrow as pa

    try:
        yield
    except (FileNotFoundError, NotADirectoryError):
        raise
    except (OSError, pa.ArrowException, ValueError, OverflowError) as error:
        # Arrow raises OSError for damage too, then without errno.
        if isinstance(error, OSError) and error.errno:
            raise storage_error("read", path, error) from error
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is damaged ({reason}); {cure}") from error


def open_table(
    path: Path, columns: Mapping[str, str], *, cure: str, num_rows: int | None = None
) -> pq.ParquetFile:
    """Opens a Parquet file and checks its footer.

    Args:
        path: the file.
        columns: kind of each required column, a key of `KINDS`.
        cure: end of messages.
        num_rows: required number of rows; None for any.

    Raises:
        FileNotFoundError, NotADirectoryError: the file does not exist.
        DataError: it is damaged, or has other columns or rows.
        StorageError: the file system refused.
    """
    import pyarrow.parquet as pq

    with reading(path, cure):
        open_regular(path, cure).close()
        file = pq.ParquetFile(path, memory_map=False, page_checksum_verification=True)
        schema = file.schema_arrow
    names = schema.names
    if len(set(names)) != len(names):
        raise DataError(f"{path} is damaged: its columns must have distinct names; {cure}")
    for name, kind in columns.items():
        found = str(schema.field(name).type) if name in names else "nothing"
        if found.partition("[")[0].rstrip("0123456789") not in KINDS[kind]:
            raise DataError(
                f"{path} is damaged: column {name!r} must hold {kind} values, got {found}; {cure}"
            )
    if num_rows is not None and file.metadata.num_rows != num_rows:
        raise DataError(
            f"{path} is damaged: it must have {num_rows} rows, got {file.metadata.num_rows}; {cure}"
        )
    return file


def read_whole(
    path: Path, columns: Mapping[str, str], *, cure: str, num_rows: int | None = None
) -> pa.Table:
    """Reads the named columns of a Parquet file, which must not have nulls; see `open_table`.

    Raises:
        FileNotFoundError, NotADirectoryError: the file does not exist.
        DataError: it is damaged, or has other columns or rows.
        StorageError: the file system refused.
    """
    file = open_table(path, columns, cure=cure, num_rows=num_rows)
    with file, reading(path, cure):
        table = file.read(list(columns))
        table.validate(full=True)
    check_table(table, path, columns, cure=cure, num_rows=file.metadata.num_rows)
    return table


def check_table(
    table: pa.Table, path: Path, names: Iterable[str], *, cure: str, num_rows: int
) -> None:
    """Refuses a table with a wrong number of rows, or with nulls in the named columns.

    Raises:
        DataError: it has either.
    """
    if table.num_rows != num_rows:
        raise DataError(
            f"{path} is damaged: it must have {num_rows} rows, got {table.num_rows}; {cure}"
        )
    for name in names:
        if count := table.column(name).null_count:
            raise DataError(
                f"{path} is damaged: column {name!r} must not have nulls, got {count}; {cure}"
            )


def file_metadata(schema: pa.Schema, key: bytes, path: Path, cure: str) -> JsonValue:
    """Reads JSON from a Parquet file's metadata.

    Raises:
        DataError: the key is missing, or its value is damaged.
    """
    found = (schema.metadata or {}).get(key)
    if found is None:
        raise DataError(f"{path} is damaged: metadata {key.decode()!r} is missing; {cure}")
    return parse_json(found, path, cure=cure, has_paths=True)
