"""Columns of CSV, Parquet and FITS tables as plain Arrow columns: numbers, text and bools."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from msdata.catalog.values import MAX_EXACT

_INTEGER = r"^[+-]?[0-9]+$"
_LEFT_OUT = "is not a number, text or bool: left out"
LATIN_1 = "is not UTF-8: read as Latin-1"


def plain_column(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray | None, str]:
    """A column in one type for each kind of value.

    Args:
        column: any Arrow type.

    Returns:
        Numbers, strings or bools, None for other kinds; and what there is to say about them, empty
        for nothing.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return column.cast(pa.string()), ""
    if pa.types.is_decimal(kind):
        if kind.scale > 0:
            return column.cast(pa.float64()), ""
        # Without digits after the point: integers, or text if too large.
        digits = [None if v is None else str(int(v)) for v in column.to_pylist()]
        return as_integers(pa.chunked_array([pa.array(digits, pa.string())])), ""
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        column, is_latin = decode_text(column)
        return column, LATIN_1 if is_latin else ""
    if pa.types.is_float16(kind):
        return column.cast(pa.float32()), ""
    if pa.types.is_null(kind):
        # Every value is empty.
        return column.cast(pa.float64()), ""
    plain = (pa.types.is_integer, pa.types.is_floating, pa.types.is_string, pa.types.is_boolean)
    if any(is_of(kind) for is_of in plain):
        return column, ""
    return None, f"({kind}) {_LEFT_OUT}"


def plain_table(table: pa.Table) -> tuple[pa.Table, tuple[str, ...]]:
    """Columns of numbers, strings and bools, in one type each; notes on the others."""
    columns: dict[str, Any] = {}
    notes = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        values, remark = plain_column(column)
        if remark:
            notes.append(f"column {name!r} {remark}")
        if values is not None:
            columns[name] = values
    return pa.table(columns), tuple(notes)


def may_be_rounded(column: pa.ChunkedArray) -> bool:
    """Whether it has doubles so large that they cannot tell neighboring integers apart."""
    if not pa.types.is_floating(column.type):
        return False
    return bool(pc.any(pc.greater_equal(pc.abs(column), float(MAX_EXACT))).as_py())


def are_integers(column: pa.ChunkedArray) -> bool:
    """Whether every text is that of an integer."""
    return bool(pc.all(pc.match_substring_regex(column, _INTEGER)).as_py())


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
        The column as strings, and whether they are Latin-1.
    """
    try:
        return column.cast(pa.string()), False
    except pa.ArrowInvalid:
        texts = [None if v is None else v.decode("latin-1") for v in column.to_pylist()]
        return pa.array(texts, pa.string()), True


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
        return text, LATIN_1 if is_latin else ""
    # Scaled numbers, bools and digits of text tables are not stored as what they mean.
    values = np.asarray(data.field(name))
    if values.dtype.kind not in "biuf":
        return None, f"({values.dtype}) {_LEFT_OUT}"
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
