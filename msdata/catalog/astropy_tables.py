"""Tables read with astropy: FITS, VOTable and ECSV, whose units, types and masks the file tells.

FITS is mapped into memory, so that only the columns that are wanted are read. The others are read
whole: compared with CSV slower, but nothing is guessed.

Source: IVOA, VOTable 1.5; Astropy Proposal for Enhancement 6 (ECSV).
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from msdata.catalog.scalars import fits_column
from msdata.catalog.table_file import TableFile, open_unpacked, wanted_column
from msdata.catalog.values import UNIT
from msdata.errors import UsageError

# astropy opens what a STREAM refers to, on this machine or another one. Tags are ASCII in every
# encoding that Expat reads but UTF-16, which has zeros; entities could hide one.
_LEADS_ELSEWHERE = re.compile(rb"STREAM[^<]*\bhref|<!ENTITY|\0")


@contextmanager
def open_fits(path: Path) -> Iterator[Any]:
    """The open file, mapped; astropy's remarks, such as on units unknown to it, do not matter."""
    from astropy.io import fits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(path, memmap=True) as hdus:
            yield hdus


def find_fits(path: Path, what: str, hdu: str | int | None) -> TableFile:
    """Finds the table in a file; see `msdata.catalog.table.open_table`."""
    from astropy.io import fits

    with open_fits(path) as hdus:
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


def read_fits(table: TableFile) -> tuple[pa.Table, tuple[str, ...]]:
    """The scalar columns as they are stored: no objects are made of several columns."""
    columns, notes = [], []
    with open_fits(table.path) as hdus:
        hdu = hdus[table.hdu]
        for column in hdu.columns:
            values, remark = fits_column(hdu.data, column.name)
            if remark:
                notes.append(f"column {column.name!r} {remark}")
            if values is not None:
                columns.append((column.name, values, column.unit))
        return _with_units(columns), (*notes, *table.notes)


def fits_pieces(
    table: TableFile, columns: Sequence[str], rows_per_piece: int
) -> Iterator[pa.Table]:
    """Columns, some rows at a time; see `msdata.catalog.table.read_pieces`."""
    with open_fits(table.path) as hdus:
        data = hdus[table.hdu].data
        for start in range(0, len(data), rows_per_piece):
            rows = data[start : start + rows_per_piece]
            yield pa.table({n: wanted_column(table, n, *fits_column(rows, n)) for n in columns})


def read_described(path: Path, kind: str) -> tuple[pa.Table, tuple[str, ...]]:
    """Reads the scalar columns of a table.

    Args:
        path: the file, also gzipped.
        kind: "votable" or "ecsv".

    Returns:
        The table, masked values and NaN null, with a column's unit in its field's metadata; and
        notes: on columns that were left out, masked values, further tables.

    Raises:
        UsageError: the rows are in another file.
    """
    with open_unpacked(path) as file:
        content = file.read()
    with warnings.catch_warnings():
        # astropy remarks on every deviation from the standards.
        warnings.simplefilter("ignore")
        from astropy.io import ascii as text
        from astropy.table.serialize import represent_mixins_as_columns

        if kind == "votable":
            found, notes = _votable(path, content)
        else:
            found, notes = text.read(content.decode(), format="ecsv"), []
        # Coordinates and times by their parts, as they are in the file.
        found = represent_mixins_as_columns(found)
        columns, masked = [], {}
        for name in found.colnames:
            values, num_masked = _values(found[name])
            if values is None:
                notes.append(f"column {name!r} is not a number, text or bool: left out")
                continue
            columns.append((name, values, found[name].unit))
            if num_masked:
                masked[name] = num_masked
    if masked:
        told = ", ".join(f"{name} {count:,}" for name, count in list(masked.items())[:5])
        more = " and others" if masked.keys() - list(masked)[:5] else ""
        notes.append(f"masked values count as missing: {told}{more}")
    return _with_units(columns), tuple(notes)


def _votable(path: Path, content: bytes) -> tuple[Any, list[str]]:
    if _LEADS_ELSEWHERE.search(content):
        raise UsageError(
            f"{path} is a VOTable whose rows lie elsewhere, that defines entities, or in UTF-16: "
            "not read; save it as UTF-8 with its rows inside (TOPCAT: format votable-tabledata)"
        )
    from astropy.io import votable

    tables = list(votable.parse(io.BytesIO(content), verify="ignore").iter_tables())
    if not tables:
        raise UsageError(f"{path} is a VOTable without a table; it may hold a service's error")
    table = tables[0].to_table(use_names_over_ids=True)
    notes = [f"of {len(tables)} tables in {path.name} the first was read"] if tables[1:] else []
    return table, notes


def _values(column: Any) -> tuple[pa.Array | None, int]:
    """The values of one column, None for other kinds than numbers, text and bools."""
    mask = np.ma.getmaskarray(column)
    values = np.asarray(getattr(column, "data", column))
    if values.ndim != 1:
        return None, 0
    if values.dtype.kind in "OSU":
        items = values.tolist()
        if not all(isinstance(v, str | bytes) or v is None for v in items):
            return None, 0
        items = [v.decode() if isinstance(v, bytes) else v for v in items]
        # VOTable has no other way to write that a text is missing.
        texts = [None if m or not v else v.strip() for v, m in zip(items, mask, strict=True)]
        return pa.array(texts, pa.string()), int(mask.sum())
    if values.dtype.kind not in "biuf":
        return None, 0
    if values.dtype == np.float16:
        values = values.astype(np.float32)
    is_absent = mask | np.isnan(values) if values.dtype.kind == "f" else mask
    return pa.array(values.astype(values.dtype.newbyteorder("=")), mask=is_absent), int(mask.sum())


def _with_units(columns: Sequence[tuple[str, pa.Array, Any]]) -> pa.Table:
    """A table of columns by name, each with its unit, if it has one, in its field's metadata."""
    arrays, fields = [], []
    for name, values, unit in columns:
        metadata = {UNIT: str(unit).encode()} if unit else None
        arrays.append(values)
        fields.append(pa.field(name, values.type, metadata=metadata))
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))
