"""A catalog in several Parquet files of one folder, as Spark, Dask and Hugging Face write them.

It stands alone because only a catalog, which is read whole, may be a folder.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from msdata.catalog.scalars import plain_table
from msdata.catalog.table_file import reading
from msdata.catalog.text_table import check_names
from msdata.core.files import storage_error
from msdata.errors import UsageError

_SUFFIXES = (".parquet", ".pq")


def read_parquet_folder(folder: Path) -> tuple[pa.Table, tuple[str, ...]]:
    """Reads the scalar columns of the Parquet files in a folder, in the order of their names.

    Args:
        folder: its subfolders are not entered.

    Returns:
        The table, and notes on what is not read.

    Raises:
        UsageError: it holds none, their columns differ, or they have no rows.
        DataError: a file is broken.
        StorageError: the file system refused.
    """
    try:
        entries = sorted(folder.iterdir())
        files = [p for p in entries if p.suffix.lower() in _SUFFIXES and p.is_file()]
    except OSError as error:
        raise storage_error("list", folder, error) from error
    # Writers put summaries and marks there under such names.
    paths = [p for p in files if not p.name.startswith((".", "_"))]
    if not paths:
        told = ", ".join(p.name for p in entries[:3]) or "nothing"
        raise UsageError(
            f"catalog {folder} is a folder without .parquet files (it holds {told}); give a file"
        )
    parts = [p.name for p in entries if p.is_dir() and "=" in p.name]
    if parts:
        raise UsageError(
            f"catalog {folder} has files and partitions such as {parts[0]}, whose columns stand in "
            "the names of folders; write it as one file"
        )
    tables: list[pa.Table] = []
    for path in paths:
        with reading(path, "catalog"):
            table = pq.read_table(path, partitioning=None).replace_schema_metadata(None)
        if tables and not table.schema.equals(tables[0].schema):
            raise UsageError(
                f"catalog {folder}: {path.name} has columns {_told(table.schema)}, but "
                f"{paths[0].name} has {_told(tables[0].schema)}; write all with the same columns"
            )
        check_names(path, table.column_names)
        tables.append(table)
    with reading(folder, "catalog"):
        found, notes = plain_table(pa.concat_tables(tables))
    if not found.num_rows:
        raise UsageError(f"catalog {folder} has no rows, only names of columns")
    others = [p.name for p in entries if p not in paths]
    if others:
        notes += (f"{len(others)} entries of {folder.name} are not read, such as {others[0]}",)
    return found, (f"read {len(paths)} files of {folder.name}", *notes)


def _told(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
