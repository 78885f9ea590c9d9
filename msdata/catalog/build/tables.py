"""Reads some columns of a survey's table, FITS, CSV or Parquet, a piece at a time.

Release tables have hundreds of columns and tens of millions of rows; a dozen columns are wanted.
FITS tables are mapped into memory, so only what is asked for is read.
"""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from msdata.catalog.table import decode_text, fits_column, plain_decimals
from msdata.core.files import storage_error
from msdata.errors import DataError, StorageError, UsageError

# Some hundred megabytes at most, whatever the table's size.
ROWS_PER_PIECE = 1 << 20
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class SurveyTable:
    """A table that was opened to learn its columns.

    Attributes:
        path: the file.
        names: its columns.
        kind: "fits", "csv" or "parquet".
        hdu: for FITS: the extension's number.
    """

    path: Path
    names: tuple[str, ...]
    kind: str
    hdu: int = 0


def open_table(path: Path, hdu: str | int | None = None) -> SurveyTable:
    """Finds out what a table is; the content tells, not the name.

    Args:
        path: the file.
        hdu: extension of a FITS file, by name or number; None takes the first table.

    Raises:
        UsageError: it is not there, of another format, or has no such extension.
        DataError: it is broken.
        StorageError: the file system refused.
    """
    if not path.is_file():
        raise UsageError(f"table {path} is not a file; check the path")
    with _Reading(path):
        start = _first_bytes(path)
        if start[:4] == b"PAR1":
            names = tuple(pyarrow.parquet.read_schema(path).names)
            return SurveyTable(path=path, names=names, kind="parquet")
        if start[:9] == b"SIMPLE  =":
            return _open_fits(path, hdu)
        if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise UsageError(f"table {path} is UTF-16 text; save it as UTF-8")
        if b"\0" in start or not start.strip():
            raise UsageError(f"table {path} is neither FITS nor CSV nor Parquet")
        with _csv(path, None) as reader:
            return SurveyTable(path=path, names=tuple(reader.schema.names), kind="csv")


def read_pieces(
    table: SurveyTable, columns: Sequence[str], rows_per_piece: int = ROWS_PER_PIECE
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
    with _Reading(table.path):
        if table.kind == "fits":
            yield from _fits_pieces(table, columns, rows_per_piece)
        elif table.kind == "parquet":
            with pyarrow.parquet.ParquetFile(table.path) as file:
                for batch in file.iter_batches(rows_per_piece, columns=list(columns)):
                    yield _plain(table, pa.Table.from_batches([batch]).select(list(columns)))
        else:
            with _csv(table.path, columns) as reader:
                for batch in reader:
                    yield _plain(table, pa.Table.from_batches([batch]).select(list(columns)))


class _Reading:
    """Turns what readers of broken files raise into errors that name the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, (UsageError, DataError, StorageError)):
            return
        if isinstance(error, OSError) and error.errno is not None:
            raise storage_error("read", self._path, error) from error
        broken = (pa.ArrowException, gzip.BadGzipFile, EOFError, UnicodeDecodeError)
        if isinstance(error, (*broken, OSError, ValueError, TypeError, KeyError)):
            raise DataError(f"table {self._path} is broken or truncated: {error}") from error


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        start = file.read(512)
    if start[:2] != b"\x1f\x8b":
        return start
    with gzip.open(path) as unpacked:
        return unpacked.read(512)


def _csv(path: Path, columns: Sequence[str] | None) -> Any:
    """A reader of a CSV file, also gzipped; lines of comment before the header are left out."""
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    opener = gzip.open if is_gzip else open
    num_comments = 0
    with opener(path, "rb") as file:
        header = file.readline(1 << 16).removeprefix(_BYTE_ORDER_MARK)
        while header.startswith(b"#"):
            num_comments += 1
            header = file.readline(1 << 16)
    stream = pa.input_stream(str(path), compression="gzip" if is_gzip else None)
    return pyarrow.csv.open_csv(
        stream,
        read_options=pyarrow.csv.ReadOptions(
            skip_rows=num_comments, block_size=1 << 24, encoding=_encoding_of(header)
        ),
        convert_options=pyarrow.csv.ConvertOptions(
            include_columns=None if columns is None else list(columns),
            # Types are guessed from the first block; ids beyond 2^63 or with letters further down
            # would be an error, so everything is read as bytes and cast, UTF-8 or not.
            column_types={} if columns is None else dict.fromkeys(columns, pa.binary()),
            strings_can_be_null=True,
        ),
    )


def _encoding_of(header: bytes) -> str:
    """How names of columns are written; their values are decoded by `_plain`."""
    try:
        header.decode()
    except UnicodeDecodeError:
        return "latin-1"
    return "utf8"


def _plain(table: SurveyTable, piece: pa.Table) -> pa.Table:
    """Text trimmed, dictionaries, bytes and large strings as plain text; other kinds refused."""
    import pyarrow.compute as pc

    columns = {}
    for name, column in zip(piece.column_names, piece.columns, strict=True):
        kind = column.type
        if pa.types.is_dictionary(kind):
            column = column.cast(kind.value_type)
        elif pa.types.is_decimal(kind):
            column = plain_decimals(column)
        if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
            column, _ = decode_text(column)
        elif pa.types.is_large_string(column.type) or pa.types.is_string_view(column.type):
            column = column.cast(pa.string())
        if pa.types.is_string(column.type):
            column = pc.utf8_trim_whitespace(column)
        elif not (
            pa.types.is_integer(column.type)
            or pa.types.is_floating(column.type)
            or pa.types.is_boolean(column.type)
            or pa.types.is_null(column.type)
        ):
            raise DataError(f"table {table.path}: column {name!r} holds {kind}, not plain values")
        columns[name] = column
    return pa.table(columns)


def _open_fits(path: Path, hdu: str | int | None) -> SurveyTable:
    from astropy.io import fits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(path, memmap=True) as hdus:
            tables = [k for k, h in enumerate(hdus) if isinstance(h, fits.BinTableHDU)]
            if hdu is not None:
                named = [k for k in tables if hdu in (k, hdus[k].name)]
                # Someone may have kept the table alone.
                tables = named or (tables if len(tables) == 1 else [])
            if not tables:
                wanted = "binary table" if hdu is None else f"table extension {hdu!r}"
                raise UsageError(f"table {path} has no {wanted}; check which file it is")
            names = tuple(hdus[tables[0]].columns.names)
    return SurveyTable(path=path, names=names, kind="fits", hdu=tables[0])


def _fits_pieces(
    table: SurveyTable, columns: Sequence[str], rows_per_piece: int
) -> Iterator[pa.Table]:
    from astropy.io import fits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(table.path, memmap=True) as hdus:
            data = hdus[table.hdu].data
            for start in range(0, len(data), rows_per_piece):
                rows = data[start : start + rows_per_piece]
                yield pa.table({name: _fits_values(table, name, rows) for name in columns})


def _fits_values(table: SurveyTable, name: str, rows: Any) -> pa.Array:
    values, remark = fits_column(rows, name)
    if values is None:
        raise DataError(f"table {table.path}: column {name!r} {remark.partition(':')[0]}")
    return values


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
    from astropy.io import fits

    with _Reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(path, memmap=True) as hdus:
            header = hdus[found.hdu].header
            values = np.asarray(hdus[found.hdu].data.field(name), np.float32).ravel()
            cards = {c: str(header.get(c, "")).strip().upper() for c in ("ORDERING", "COORDSYS")}
    return values, cards
