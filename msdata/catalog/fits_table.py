"""Tables in FITS files, mapped into memory, so that only the columns that are wanted are read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from msdata.catalog.scalars import fits_column
from msdata.catalog.table_file import TableFile, table_with_units, wanted_column
from msdata.errors import UsageError


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
        return table_with_units(columns), (*notes, *table.notes)


def fits_pieces(
    table: TableFile, columns: Sequence[str], rows_per_piece: int
) -> Iterator[pa.Table]:
    """Columns, some rows at a time; see `msdata.catalog.table.read_pieces`."""
    with open_fits(table.path) as hdus:
        data = hdus[table.hdu].data
        for start in range(0, len(data), rows_per_piece):
            rows = data[start : start + rows_per_piece]
            yield pa.table({n: wanted_column(table, n, *fits_column(rows, n)) for n in columns})
