"""Reads CSV, Parquet and FITS tables: a catalog whole, a survey's table a piece at a time.

The content tells the format, compressed or not; the suffix is never asked. A catalog is read with
all its scalar columns. Release tables have hundreds of columns and tens of millions of rows, of
which a dozen columns are wanted: FITS tables are mapped into memory, so only those are read.
"""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from msdata.catalog.scalars import (
    are_integers,
    as_integers,
    fits_column,
    may_be_rounded,
    plain_column,
    plain_table,
)
from msdata.catalog.values import UNIT
from msdata.core.files import storage_error
from msdata.errors import DataError, StorageError, UsageError

# Given the column names, which of them to read as text, if any.
ChooseText = Callable[[list[str]], str | None]
# Some hundred megabytes at most, whatever the table's size.
ROWS_PER_PIECE = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class TableFile:
    """A table that was opened to learn its format and columns.

    Attributes:
        path: the file.
        what: what messages call it.
        kind: "fits", "csv" or "parquet".
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


def read_table(path: Path, choose_text: ChooseText) -> tuple[pa.Table, tuple[str, ...]]:
    """Reads all scalar columns of a catalog.

    Args:
        path: CSV, Parquet or FITS, also compressed by gzip.
        choose_text: names the CSV column to read as text: ids need every digit and zero.

    Returns:
        Table of numbers, strings and bools, masked or empty values null, integers exact, with a
        FITS column's unit in its field's metadata; and notes on columns that were left out.

    Raises:
        UsageError: the path is missing, or of another format.
        DataError: the file is broken.
        StorageError: the file system refused.
    """
    found = _find_format(path, "catalog", None)
    with _reading(path, "catalog"):
        if found.kind == "csv":
            table, notes = _read_csv(path, choose_text)
        else:
            _check_names(path, found.names)
            if found.kind == "fits":
                table, notes = _read_fits(found)
            else:
                table, notes = plain_table(pyarrow.parquet.read_table(path))
    if not table.num_rows:
        raise UsageError(f"catalog {path} has no rows, only names of columns")
    return table, notes


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
    if found.kind != "csv":
        return found
    with _reading(path, "table"), _csv(path, None) as reader:
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
    with _reading(table.path, table.what):
        if table.kind == "fits":
            yield from _fits_pieces(table, columns, rows_per_piece)
        elif table.kind == "parquet":
            with pyarrow.parquet.ParquetFile(table.path) as file:
                for batch in file.iter_batches(rows_per_piece, columns=list(columns)):
                    yield _trimmed(table, pa.Table.from_batches([batch]).select(list(columns)))
        else:
            with _csv(table.path, columns) as reader:
                for batch in reader:
                    yield _trimmed(table, pa.Table.from_batches([batch]).select(list(columns)))


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
    with _reading(path, "map"), _fits(path) as hdus:
        header = hdus[found.hdu].header
        values = np.asarray(hdus[found.hdu].data.field(name), np.float32).ravel()
        cards = {c: str(header.get(c, "")).strip().upper() for c in ("ORDERING", "COORDSYS")}
    return values, cards


def _find_format(path: Path, what: str, hdu: str | int | None) -> TableFile:
    if not path.is_file():
        raise UsageError(f"{what} {path} is not a file; check the path")
    with _reading(path, what):
        start = _first_bytes(path)
        if start[:4] == b"PAR1":
            names = tuple(pyarrow.parquet.read_schema(path).names)
            return TableFile(path=path, what=what, kind="parquet", names=names)
        if start[:9] == b"SIMPLE  =":
            return _find_fits(path, what, hdu)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise UsageError(f"{what} {path} is UTF-16 text; save it as UTF-8")
        if start[:1] == b"\x80" or b"\0" in start:
            raise UsageError(
                f"{what} {path} is neither CSV nor Parquet nor FITS; a pickled table is not "
                "read, since pickles run code: save it with DataFrame.to_parquet"
            )
        if not start.strip():
            raise DataError(f"{what} {path} is broken: it is empty")
        return TableFile(path=path, what=what, kind="csv")


@contextmanager
def _reading(path: Path, what: str) -> Iterator[None]:
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


def _first_bytes(path: Path) -> bytes:
    with gzip.open(path) if _is_gzip(path) else path.open("rb") as file:
        return file.read(512)


def _is_gzip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


def _stream(path: Path) -> Any:
    return pa.input_stream(str(path), compression="gzip" if _is_gzip(path) else None)


def _read_csv(path: Path, choose_text: ChooseText) -> tuple[pa.Table, tuple[str, ...]]:
    def read(as_text: list[str], only: list[str], encoding: str) -> pa.Table:
        with _stream(path) as stream:
            return pyarrow.csv.read_csv(
                stream,
                read_options=pyarrow.csv.ReadOptions(encoding=encoding),
                convert_options=pyarrow.csv.ConvertOptions(
                    column_types=dict.fromkeys(as_text, pa.string()),
                    include_columns=only,
                    strings_can_be_null=True,
                ),
            )

    def read_all(encoding: str) -> tuple[list[str], str | None, pa.Table]:
        names = _csv_names(path, encoding)
        text = choose_text(names)
        return names, text, read([] if text is None else [text], [], encoding)

    encoding = "utf8"
    notes: tuple[str, ...] = ()
    try:
        names, text, table = read_all(encoding)
        is_utf8 = not any(pa.types.is_binary(kind) for kind in table.schema.types)
    except (UnicodeDecodeError, pa.ArrowInvalid) as error:
        if isinstance(error, pa.ArrowInvalid) and "UTF8" not in str(error):
            raise
        is_utf8 = False
    if not is_utf8:
        encoding = "latin-1"
        notes = (f"{path.name} is not UTF-8: its text was read as Latin-1",)
        names, text, table = read_all(encoding)
    exact = {} if text is None else {text: table.column(text)}
    # Arrow makes doubles of a column with an integer of 2^63 or more.
    rounded = [name for name in names if name != text and may_be_rounded(table.column(name))]
    if rounded:
        again = read(rounded, rounded, encoding)
        exact |= {n: again.column(n) for n in rounded if are_integers(again.column(n))}
    for name, digits in exact.items():
        column = as_integers(digits)
        table = table.set_column(names.index(name), name, column)
        if name != text and pa.types.is_string(column.type):
            notes += (f"column {name!r} holds integers beyond 64 bits: kept as text",)
    table, left_out = plain_table(table)
    return table, (*notes, *left_out)


def _csv_names(path: Path, encoding: str) -> list[str]:
    with _stream(path) as stream:
        options = pyarrow.csv.ReadOptions(encoding=encoding)
        names: list[str] = pyarrow.csv.open_csv(stream, read_options=options).schema.names
    _check_names(path, names)
    return names


def _check_names(path: Path, names: Sequence[str]) -> None:
    """Refuses what cannot be told apart by name: a wrong label would be taken in silence."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(
            f"catalog {path} has {names.count(repeated[0])} columns named {repeated[0]!r}; "
            "rename all but one"
        )
    separator = next((s for s in ";\t|" if len(names) == 1 and s in names[0]), None)
    if separator is not None:
        raise UsageError(
            f"catalog {path} has {separator!r} between its columns; save it with commas, or as "
            "Parquet"
        )


def _trimmed(table: TableFile, piece: pa.Table) -> pa.Table:
    """Columns in one type each, text without spaces around it; other kinds are refused."""
    columns = {}
    for name, column in zip(piece.column_names, piece.columns, strict=True):
        values, remark = plain_column(column)
        columns[name] = _wanted(table, name, values, remark)
        if pa.types.is_string(columns[name].type):
            columns[name] = pc.utf8_trim_whitespace(columns[name])
    return pa.table(columns)


def _wanted(table: TableFile, name: str, values: Any, remark: str) -> Any:
    if values is None:
        raise DataError(f"{table.what} {table.path}: column {name!r} {remark.partition(':')[0]}")
    return values


def _csv(path: Path, columns: Sequence[str] | None) -> Any:
    """A reader of a CSV file, also gzipped; lines of comment before the header are left out."""
    opener = gzip.open if _is_gzip(path) else open
    num_comments = 0
    with opener(path, "rb") as file:
        header = file.readline(1 << 16).removeprefix(_BYTE_ORDER_MARK)
        while header.startswith(b"#"):
            num_comments += 1
            header = file.readline(1 << 16)
    # Values are decoded by `plain_column`.
    is_utf8 = header.decode(errors="ignore").encode() == header
    return pyarrow.csv.open_csv(
        _stream(path),
        read_options=pyarrow.csv.ReadOptions(
            skip_rows=num_comments, block_size=1 << 24, encoding="utf8" if is_utf8 else "latin-1"
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=None if columns is None else list(columns),
            # Types are guessed from the first block; ids beyond 2^63 or with letters further down
            # would be an error, so everything is read as bytes and cast, UTF-8 or not.
            column_types={} if columns is None else dict.fromkeys(columns, pa.binary()),
            strings_can_be_null=True,
        ),
    )


@contextmanager
def _fits(path: Path) -> Iterator[Any]:
    """The open file, mapped; astropy's remarks, such as on units unknown to it, do not matter."""
    from astropy.io import fits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(path, memmap=True) as hdus:
            yield hdus


def _find_fits(path: Path, what: str, hdu: str | int | None) -> TableFile:
    from astropy.io import fits

    with _fits(path) as hdus:
        kinds = (fits.BinTableHDU, fits.TableHDU)
        tables = [k for k, found in enumerate(hdus) if isinstance(found, kinds)]
        chosen = tables
        if hdu is not None:
            named = [k for k in tables if hdu in (k, hdus[k].name)]
            # Someone may have kept the table alone.
            chosen = named or (tables if len(tables) == 1 else [])
        if not chosen:
            wanted = "table" if hdu is None else f"table extension {hdu!r}"
            cause = "; check which file it is"
            if not tables:
                cause = ": it holds images only, or is truncated; give a table, or copy it again"
            raise UsageError(f"{what} {path} has no {wanted}{cause}")
        number = chosen[0]
        notes: tuple[str, ...] = ()
        if len(tables) > 1:
            name = hdus[number].name or number
            notes = (f"of {len(tables)} tables in {path.name} the first, {name!r}, was read",)
        names = tuple(hdus[number].columns.names)
    return TableFile(path=path, what=what, kind="fits", names=names, hdu=number, notes=notes)


def _read_fits(table: TableFile) -> tuple[pa.Table, tuple[str, ...]]:
    """The scalar columns as they are stored: no objects are made of several columns."""
    columns, fields, notes = [], [], []
    with _fits(table.path) as hdus:
        hdu = hdus[table.hdu]
        for column in hdu.columns:
            values, remark = fits_column(hdu.data, column.name)
            if remark:
                notes.append(f"column {column.name!r} {remark}")
            if values is not None:
                unit = {UNIT: str(column.unit).encode()} if column.unit else None
                columns.append(values)
                fields.append(pa.field(column.name, values.type, metadata=unit))
        return pa.Table.from_arrays(columns, schema=pa.schema(fields)), (*notes, *table.notes)


def _fits_pieces(
    table: TableFile, columns: Sequence[str], rows_per_piece: int
) -> Iterator[pa.Table]:
    with _fits(table.path) as hdus:
        data = hdus[table.hdu].data
        for start in range(0, len(data), rows_per_piece):
            rows = data[start : start + rows_per_piece]
            yield pa.table({n: _wanted(table, n, *fits_column(rows, n)) for n in columns})
