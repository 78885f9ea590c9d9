"""Reads a catalogue file, CSV, Parquet or FITS, into an Arrow table of scalar columns.

The content tells the format, compressed or not; the suffix is never asked.
"""

from __future__ import annotations

import gzip
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from msdata.errors import DataError, StorageError, UsageError

# Given the column names, which of them to read as text, if any.
ChooseText = Callable[[list[str]], str | None]


def read_table(path: Path, choose_text: ChooseText) -> tuple[pa.Table, tuple[str, ...]]:
    """Reads all scalar columns of a catalogue.

    Args:
        path: CSV, Parquet or FITS, also compressed by gzip.
        choose_text: names the CSV column that stays text: ids above 2**63 would become floats.

    Returns:
        Table of numbers, strings and bools, masked or empty values null; and notes on columns that
        were left out.

    Raises:
        UsageError: the path is missing, or of another format.
        DataError: the file is broken.
        StorageError: the file system refused.
    """
    if not path.is_file():
        raise UsageError(f"catalogue {path} is no file; check the path")
    try:
        start, is_gzip = _first_bytes(path)
        if start[:4] == b"PAR1":
            _check_names(path, pyarrow.parquet.read_schema(path).names)
            table = pyarrow.parquet.read_table(path)
        elif start[:9] == b"SIMPLE  =":
            return _read_fits(path)
        elif start[:1] == b"\x80" or b"\0" in start:
            raise UsageError(
                f"catalogue {path} is neither CSV nor Parquet nor FITS; a pickled table is not "
                "read, since pickles run code: save it with DataFrame.to_parquet"
            )
        else:
            table = _read_csv(path, "gzip" if is_gzip else None, choose_text)
        if not table.num_rows:
            raise UsageError(f"catalogue {path} has no rows, only names of columns")
    except (pa.ArrowInvalid, gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"catalogue {path} is broken: {error}") from error
    except OSError as error:
        # Without a number it is not the system that complains but Arrow or astropy.
        if error.errno is None:
            raise DataError(f"catalogue {path} is broken: {error}") from error
        raise StorageError(f"cannot read catalogue {path}: {error.strerror or error}") from error
    return _scalar_columns(table)


def _first_bytes(path: Path) -> tuple[bytes, bool]:
    with path.open("rb") as file:
        start = file.read(512)
    if start[:2] != b"\x1f\x8b":
        return start, False
    with gzip.open(path) as unpacked:
        return unpacked.read(512), True


def _read_csv(path: Path, compression: str | None, choose_text: ChooseText) -> pa.Table:
    with pa.input_stream(str(path), compression=compression) as stream:
        names = pyarrow.csv.open_csv(stream).schema.names
    _check_names(path, names)
    text = choose_text(names)
    options = pyarrow.csv.ConvertOptions(
        column_types={} if text is None else {text: pa.string()}, strings_can_be_null=True
    )
    with pa.input_stream(str(path), compression=compression) as stream:
        table = pyarrow.csv.read_csv(stream, convert_options=options)
    if text is None:
        return table
    return table.set_column(names.index(text), text, _as_integers(table.column(text)))


def _check_names(path: Path, names: list[str]) -> None:
    """Refuses what cannot be told apart by name: a wrong label would be taken in silence."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(
            f"catalogue {path} has {names.count(repeated[0])} columns named {repeated[0]!r}; "
            "rename all but one"
        )
    separator = next((s for s in ";\t|" if len(names) == 1 and s in names[0]), None)
    if separator is not None:
        raise UsageError(
            f"catalogue {path} has {separator!r} between its columns; save it with commas, or as "
            "Parquet"
        )


def _as_integers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Integers where they say the same as the text, else the text."""
    try:
        integers = column.cast(pa.int64())
    except pa.ArrowInvalid:
        return column
    return integers if integers.cast(pa.string()).equals(column) else column


def _scalar_columns(table: pa.Table) -> tuple[pa.Table, tuple[str, ...]]:
    """Columns of numbers, strings and bools, in one type each; notes on the others."""
    columns: dict[str, Any] = {}
    notes = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        kind = column.type
        if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
            column = column.cast(pa.string())
        elif pa.types.is_decimal(kind):
            column = column.cast(pa.float64())
        elif pa.types.is_float16(kind):
            column = column.cast(pa.float32())
        elif pa.types.is_null(kind):
            # Every value is empty.
            column = column.cast(pa.float64())
        elif not (
            pa.types.is_integer(kind)
            or pa.types.is_floating(kind)
            or pa.types.is_string(kind)
            or pa.types.is_boolean(kind)
        ):
            notes.append(f"column {name!r} ({kind}) is not a number, text or bool: left out")
            continue
        columns[name] = column
    return pa.table(columns), tuple(notes)


def _read_fits(path: Path) -> tuple[pa.Table, tuple[str, ...]]:
    from astropy.io import fits
    from astropy.table import Table
    from astropy.utils.exceptions import AstropyWarning

    # Units that astropy does not know are no concern here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        with fits.open(path) as hdus:
            tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU | fits.TableHDU)]
            if not tables:
                raise UsageError(
                    f"catalogue {path} has no table: it holds images only, or is truncated; "
                    "give a table, or copy it again"
                )
            try:
                table = Table.read(tables[0])
            except (TypeError, ValueError, KeyError, IndexError) as error:
                raise DataError(f"catalogue {path} is broken: {error}") from error
    columns: dict[str, Any] = {}
    notes = []
    for name in table.colnames:
        if table[name].ndim == 1 and table[name].dtype.kind in "biufSU":
            columns[name] = _fits_column(table[name])
        else:
            notes.append(f"column {name!r} has more than one value a row: left out")
    return pa.table(columns), tuple(notes)


def _fits_column(column: Any) -> pa.Array:
    mask = np.ma.getmaskarray(column) if hasattr(column, "mask") else None
    values = np.asarray(column)
    if values.dtype.kind == "S":
        values = np.char.decode(values, "latin-1")
    if values.dtype.kind == "U":
        return pa.array(np.char.strip(values), pa.string(), mask=mask)
    return pa.array(values.astype(values.dtype.newbyteorder("=")), mask=mask)
