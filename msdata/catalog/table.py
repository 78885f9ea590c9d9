"""Reads CSV, Parquet, FITS, VOTable and ECSV tables: a catalog whole, a survey's by pieces.

The content tells the format, compressed or not; the suffix is never asked. A catalog is read with
all its scalar columns. Release tables have hundreds of columns and tens of millions of rows, of
which a dozen columns are wanted: FITS tables are mapped into memory, so only those are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from msdata.catalog.astropy_tables import (
    find_fits,
    fits_pieces,
    open_fits,
    read_described,
    read_fits,
)
from msdata.catalog.scalars import plain_column, plain_table
from msdata.catalog.table_file import TableFile, open_unpacked, reading, wanted_column
from msdata.catalog.text_table import ChooseText, check_names, open_csv, read_csv_table
from msdata.core.files import refusals
from msdata.errors import DataError, UsageError

_PARQUET_SUFFIXES = (".parquet", ".pq")
# Some hundred megabytes at most, whatever the table's size.
ROWS_PER_PIECE = 1 << 20


def read_table(path: Path, choose_text: ChooseText) -> tuple[pa.Table, tuple[str, ...]]:
    """Reads all scalar columns of a catalog.

    Args:
        path: CSV, TSV, Parquet, FITS, VOTable or ECSV, also compressed by gzip; or a folder of
            Parquet files with the same columns.
        choose_text: names the CSV column to read as text: ids need every digit and zero.

    Returns:
        Table of numbers, strings and bools, masked or empty values null, integers exact, with a
        FITS column's unit in its field's metadata; and notes on columns that were left out.

    Raises:
        UsageError: the path is missing, or of another format.
        DataError: the file is broken.
        StorageError: the file system refused.
    """
    if path.is_dir():
        return _read_parquet_folder(path)
    found = _find_format(path, "catalog", None)
    with reading(path, "catalog"):
        if found.kind in ("votable", "ecsv"):
            table, notes = read_described(path, found.kind)
            check_names(path, table.column_names)
        elif found.kind == "csv":
            table, notes = read_csv_table(path, choose_text)
        else:
            check_names(path, found.names)
            if found.kind == "fits":
                table, notes = read_fits(found)
            else:
                table, notes = plain_table(pyarrow.parquet.read_table(path))
    if not table.num_rows:
        raise UsageError(f"catalog {path} has no rows, only names of columns")
    return table, notes


def _read_parquet_folder(folder: Path) -> tuple[pa.Table, tuple[str, ...]]:
    """Reads the Parquet files of one folder, as Spark, Dask and Hugging Face write them."""
    with refusals("list", folder):
        entries = sorted(folder.iterdir())
        files = [p for p in entries if p.suffix.lower() in _PARQUET_SUFFIXES and p.is_file()]
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
            table = pyarrow.parquet.read_table(path, partitioning=None)
            table = table.replace_schema_metadata(None)
        if tables and not table.schema.equals(tables[0].schema):
            has, wanted = (
                ", ".join(f"{field.name} {field.type}" for field in one.schema)
                for one in (table, tables[0])
            )
            raise UsageError(
                f"catalog {folder}: {path.name} has columns {has}, but {paths[0].name} has "
                f"{wanted}; write all with the same columns"
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


def open_table(path: Path, hdu: str | int | None = None) -> TableFile:
    """Finds out what a survey's table is; the content tells, not the name.

    Args:
        path: the file.
        hdu: extension of a FITS file, by name or number; None takes the first table.

    Raises:
        UsageError: it does not exist, is of another format, or has no such extension.
        DataError: it is broken.
        StorageError: the file system refused.
    """
    found = _find_format(path, "table", hdu)
    if found.kind in ("votable", "ecsv"):
        with reading(path, "table"):
            names = tuple(read_described(path, found.kind)[0].column_names)
        return replace(found, names=names)
    if found.kind != "csv":
        return found
    with reading(path, "table"), open_csv(path, None) as reader:
        return TableFile(path=path, what="table", kind="csv", names=tuple(reader.schema.names))


def read_pieces(
    table: TableFile, columns: Sequence[str], rows_per_piece: int = ROWS_PER_PIECE
) -> Iterator[pa.Table]:
    """Reads columns, some rows at a time.

    Args:
        table: what `open_table` gave.
        columns: names of columns of numbers, text or bools.
        rows_per_piece: rows, at most, of a piece; CSV is read in pieces of its own size.

    Yields:
        Tables of these columns, in the file's order; text without spaces around it, masked values
        null.

    Raises:
        DataError: the file is broken, or a column is of another kind.
        StorageError: the file system refused.
    """
    with reading(table.path, table.what):
        if table.kind == "fits":
            yield from fits_pieces(table, columns, rows_per_piece)
        elif table.kind == "parquet":
            with pyarrow.parquet.ParquetFile(table.path) as file:
                for batch in file.iter_batches(rows_per_piece, columns=list(columns)):
                    yield _trimmed(table, batch, columns)
        elif table.kind == "csv":
            with open_csv(table.path, columns) as reader:
                for batch in reader:
                    yield _trimmed(table, batch, columns)
        else:
            whole = read_described(table.path, table.kind)[0]
            for start in range(0, whole.num_rows, rows_per_piece):
                yield _trimmed(table, whole.slice(start, rows_per_piece), columns)


def read_healpix(path: Path, column: str | None = None) -> tuple[Any, dict[str, str]]:
    """Reads a HEALPix map.

    Args:
        path: FITS file with the map in its first table, one or many pixels per row.
        column: name of the column; None takes the first.

    Returns:
        float32 (pixels,) and the cards `ORDERING`, `COORDSYS`, in upper case, empty where absent.

    Raises:
        UsageError: it is not there, or has no such column.
        DataError: it is broken, or not a map of the whole sky.
    """
    found = open_table(path)
    if found.kind != "fits":
        raise UsageError(f"map {path} is not a FITS file")
    name = found.names[0] if column is None else column
    if name not in found.names:
        raise UsageError(f"map {path} has no column {name!r}; it has {', '.join(found.names)}")
    with reading(path, "map"), open_fits(path) as hdus:
        header = hdus[found.hdu].header
        values = np.asarray(hdus[found.hdu].data.field(name), np.float32).ravel()
        cards = {c: str(header.get(c, "")).strip().upper() for c in ("ORDERING", "COORDSYS")}
    return values, cards


def _find_format(path: Path, what: str, hdu: str | int | None) -> TableFile:
    if not path.is_file():
        raise UsageError(f"{what} {path} is not a file; check the path")
    with reading(path, what):
        with open_unpacked(path) as file:
            start = file.read(1024)
        if start[:4] == b"PAR1":
            names = tuple(pyarrow.parquet.read_schema(path).names)
            return TableFile(path=path, what=what, kind="parquet", names=names)
        if start[:9] == b"SIMPLE  =":
            return find_fits(path, what, hdu)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise UsageError(f"{what} {path} is UTF-16 text; save it as UTF-8")
        if start.startswith(b"# %ECSV"):
            return TableFile(path=path, what=what, kind="ecsv")
        if start.lstrip()[:1] == b"<":
            if b"VOTABLE" in start:
                return TableFile(path=path, what=what, kind="votable")
            raise UsageError(
                f"{what} {path} is XML or HTML but not a VOTable: a page or an error of a service? "
                "download the table again"
            )
        if start[:1] == b"\x80" or b"\0" in start:
            raise UsageError(
                f"{what} {path} is neither CSV, Parquet, FITS nor VOTable; a pickled table is not "
                "read, since pickles run code: save it with DataFrame.to_parquet"
            )
        if not start.strip():
            raise DataError(f"{what} {path} is broken: it is empty")
        return TableFile(path=path, what=what, kind="csv")


def _trimmed(
    table: TableFile, piece: pa.Table | pa.RecordBatch, columns: Sequence[str]
) -> pa.Table:
    """Columns in one type each, text without spaces around it; other kinds are refused."""
    found = {}
    for name in columns:
        values = wanted_column(table, name, *plain_column(piece[name]))
        found[name] = pc.utf8_trim_whitespace(values) if pa.types.is_string(values.type) else values
    return pa.table(found)
