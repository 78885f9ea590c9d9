"""Reads a catalog file, CSV, Parquet or FITS, into an Arrow table of scalar columns.

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
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet

from msdata.catalog.values import MAX_EXACT, UNIT
from msdata.errors import DataError, StorageError, UsageError

# Given the column names, which of them to read as text, if any.
ChooseText = Callable[[list[str]], str | None]
_INTEGER = r"^[+-]?[0-9]+$"


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
    if not path.is_file():
        raise UsageError(f"catalog {path} is not a file; check the path")
    try:
        start, is_gzip = _first_bytes(path)
        if start[:4] == b"PAR1":
            _check_names(path, pyarrow.parquet.read_schema(path).names)
            table, notes = _scalar_columns(pyarrow.parquet.read_table(path))
        elif start[:9] == b"SIMPLE  =":
            table, notes = _read_fits(path)
        elif start[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise UsageError(f"catalog {path} is UTF-16 text; save it as UTF-8")
        elif start[:1] == b"\x80" or b"\0" in start:
            raise UsageError(
                f"catalog {path} is neither CSV nor Parquet nor FITS; a pickled table is not "
                "read, since pickles run code: save it with DataFrame.to_parquet"
            )
        else:
            table, notes = _read_csv(path, "gzip" if is_gzip else None, choose_text)
    except (pa.ArrowInvalid, gzip.BadGzipFile, EOFError, UnicodeDecodeError) as error:
        raise DataError(f"catalog {path} is broken: {error}") from error
    except OSError as error:
        # Without a number it is not the system that complains but Arrow or astropy.
        if error.errno is None:
            raise DataError(f"catalog {path} is broken: {error}") from error
        raise StorageError(f"cannot read catalog {path}: {error.strerror or error}") from error
    if not table.num_rows:
        raise UsageError(f"catalog {path} has no rows, only names of columns")
    return table, notes


def _first_bytes(path: Path) -> tuple[bytes, bool]:
    with path.open("rb") as file:
        start = file.read(512)
    if start[:2] != b"\x1f\x8b":
        return start, False
    with gzip.open(path) as unpacked:
        return unpacked.read(512), True


def _read_csv(
    path: Path, compression: str | None, choose_text: ChooseText
) -> tuple[pa.Table, tuple[str, ...]]:
    def read(as_text: list[str], only: list[str], encoding: str) -> pa.Table:
        with pa.input_stream(str(path), compression=compression) as stream:
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
        names = _csv_names(path, compression, encoding)
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
    rounded = [name for name in names if name != text and _may_be_rounded(table.column(name))]
    if rounded:
        again = read(rounded, rounded, encoding)
        exact |= {n: again.column(n) for n in rounded if _are_integers(again.column(n))}
    for name, digits in exact.items():
        column = as_integers(digits)
        table = table.set_column(names.index(name), name, column)
        if name != text and pa.types.is_string(column.type):
            notes += (f"column {name!r} holds integers beyond 64 bits: kept as text",)
    table, left_out = _scalar_columns(table)
    return table, (*notes, *left_out)


def _csv_names(path: Path, compression: str | None, encoding: str) -> list[str]:
    with pa.input_stream(str(path), compression=compression) as stream:
        options = pyarrow.csv.ReadOptions(encoding=encoding)
        names: list[str] = pyarrow.csv.open_csv(stream, read_options=options).schema.names
    _check_names(path, names)
    return names


def _may_be_rounded(column: pa.ChunkedArray) -> bool:
    if not pa.types.is_floating(column.type):
        return False
    return bool(pc.any(pc.greater_equal(pc.abs(column), float(MAX_EXACT))).as_py())


def _are_integers(column: pa.ChunkedArray) -> bool:
    return bool(pc.all(pc.match_substring_regex(column, _INTEGER)).as_py())


def _check_names(path: Path, names: list[str]) -> None:
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


def as_integers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Integers of 64 bits where they say the same as the text, else the text."""
    for kind in (pa.int64(), pa.uint64()):
        try:
            integers = column.cast(kind)
        except pa.ArrowInvalid:
            continue
        return integers if integers.cast(pa.string()).equals(column) else column
    return column


def decode_text(column: pa.ChunkedArray | pa.Array) -> tuple[pa.ChunkedArray | pa.Array, bool]:
    """Bytes as text: UTF-8, or Latin-1 where one value is not UTF-8.

    Args:
        column: binary.

    Returns:
        The same as strings, and whether they are Latin-1.
    """
    try:
        return column.cast(pa.string()), False
    except pa.ArrowInvalid:
        texts = [None if v is None else v.decode("latin-1") for v in column.to_pylist()]
        return pa.array(texts, pa.string()), True


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
            column = plain_decimals(column)
        elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            column, is_latin = decode_text(column)
            if is_latin:
                notes.append(f"column {name!r} is not UTF-8: read as Latin-1")
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


def plain_decimals(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Decimals without digits after the point as integers, or text if too large; else floats."""
    return column.cast(pa.float64()) if column.type.scale > 0 else as_integers(_digits(column))


def _digits(column: pa.ChunkedArray) -> pa.ChunkedArray:
    texts = [None if v is None else str(int(v)) for v in column.to_pylist()]
    return pa.chunked_array([pa.array(texts, pa.string())])


def _read_fits(path: Path) -> tuple[pa.Table, tuple[str, ...]]:
    from astropy.io import fits
    from astropy.utils.exceptions import AstropyWarning

    # Units that astropy does not know do not matter here.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)
        with fits.open(path) as hdus:
            tables = [hdu for hdu in hdus if isinstance(hdu, fits.BinTableHDU | fits.TableHDU)]
            if not tables:
                raise UsageError(
                    f"catalog {path} has no table: it holds images only, or is truncated; "
                    "give a table, or copy it again"
                )
            _check_names(path, list(tables[0].columns.names))
            try:
                table, notes = _fits_table(tables[0])
            except (TypeError, ValueError, KeyError, IndexError) as error:
                raise DataError(f"catalog {path} is broken: {error}") from error
            if len(tables) > 1:
                name = tables[0].name or hdus.index(tables[0])
                notes += (f"of {len(tables)} tables in {path.name} the first, {name!r}, was read",)
    return table, notes


def _fits_table(hdu: Any) -> tuple[pa.Table, tuple[str, ...]]:
    """The scalar columns as they are stored: no objects are made of several columns."""
    columns, fields, notes = [], [], []
    for column in hdu.columns:
        values, remark = fits_column(hdu.data, column.name)
        if remark:
            notes.append(f"column {column.name!r} {remark}")
        if values is not None:
            unit = {UNIT: str(column.unit).encode()} if column.unit else None
            columns.append(values)
            fields.append(pa.field(column.name, values.type, metadata=unit))
    return pa.Table.from_arrays(columns, schema=pa.schema(fields)), tuple(notes)


def fits_column(data: Any, name: str) -> tuple[pa.Array | None, str]:
    """A column of a FITS table, masked values null.

    Args:
        data: rows of an astropy `FITS_rec`.
        name: the column's.

    Returns:
        Numbers, bools or text without spaces around it, None for other kinds; and what there is to
        say about them, empty for nothing.
    """
    stored, column = data.view(np.ndarray)[name], data.columns[name]
    if stored.ndim != 1:
        return None, "has several values per row: left out"
    if stored.dtype.kind == "S" and "A" in str(column.format):
        text, is_latin = decode_text(pa.array(np.char.strip(stored), pa.binary()))
        text = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
        return text, "is not UTF-8: read as Latin-1" if is_latin else ""
    # Scaled numbers, bools and digits of text tables are not stored as what they mean.
    values = np.asarray(data.field(name))
    if values.dtype.kind not in "biuf":
        return None, f"({values.dtype}) is not a number, text or bool: left out"
    mask = None
    if stored.dtype.kind == "S":
        text = np.char.strip(stored)
        mask = (text == b"") | (text == str(column.null).strip().encode())
    elif values.dtype.kind == "b":
        mask = stored == 0
    elif stored.dtype.kind in "iu" and column.null is not None:
        mask = stored == column.null
        if values.dtype.kind == "u" and not mask.any():
            # The standard means the stored number; astropy writes the one that it stands for.
            mask = values == column.null
    elif values.dtype.kind == "f":
        mask = np.isnan(values)
    return pa.array(values.astype(values.dtype.newbyteorder("=")), mask=mask), ""
