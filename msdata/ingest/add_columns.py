"""Adds columns to a data set that is packed already: a side table, and no rewritten byte.

A catalog's photometric redshifts or magnitudes are often found after the pack. They go into a table
beside the index, see `msdata.dataset.added`, and are read like any other column of it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from msdata.catalog.columns import ID_NAMES, find_alias
from msdata.catalog.join import first_of_each, without_zeros
from msdata.catalog.table import read_table
from msdata.catalog.values import id_text
from msdata.core.files import locked, whole_file
from msdata.core.output_file import check_output
from msdata.dataset.added import ID, MARK, AddedTable, write_added
from msdata.dataset.coded_columns import possible_columns
from msdata.dataset.dataset import Dataset, open_dataset
from msdata.dataset.index import BATCH_NAMES, IndexFile, file_sha256
from msdata.errors import UsageError, naming

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class AddReport:
    """What `add_columns` did.

    Attributes:
        columns: names of the new columns.
        num_samples: samples of the data set.
        num_missing: samples without a row in the table; their values are null.
        num_unknown: rows of the table whose id no sample has, left out.
        notes: remarks of the table's reader.
    """

    columns: tuple[str, ...]
    num_samples: int
    num_missing: int
    num_unknown: int
    notes: tuple[str, ...]


def add_columns(
    data: str | os.PathLike[str],
    table: str | os.PathLike[str],
    *,
    take: Mapping[str, str] | Sequence[str] | None = None,
    id_column: str | None = None,
    skips_unknown: bool = False,
) -> AddReport:
    """Adds a table's columns to a packed data set, as `msdata index add` does.

        msdata.add_columns("DATA", "strm.parquet", take={"photoz_strm": "z_phot0"})

    Args:
        data: folder of the data set.
        table: CSV, Parquet or FITS, a row per sample.
        take: new name and name in the table of each column, or names alone; None takes all.
        id_column: the table's column of sample ids; None looks for a known name.
        skips_unknown: leave out rows whose id no sample has; else they are an error.

    Raises:
        UsageError: ids repeat, are unknown or match nothing, or a name is taken.
        DataError: a file is damaged.
        StorageError: the file system refused.
    """
    folder, path = Path(data), Path(table)
    opened = open_dataset(folder)
    found, notes = read_table(path, lambda names: id_column or find_alias(names, ID_NAMES) or None)
    names = found.column_names
    ids = _id_name(path, names, id_column)
    if take is None:
        take = [name for name in names if name != ids]
    renamed = dict(take) if isinstance(take, Mapping) else {name: name for name in take}
    _check_names(opened, path, names, renamed)
    rows, num_unknown = _rows_of(opened, path, found[ids], ids)
    if num_unknown and not skips_unknown:
        raise UsageError(
            f"{num_unknown:,} of {found.num_rows:,} rows of {path} have an id that no sample of "
            f"{folder} has; check the ids, or leave those rows out with --skip-unknown"
        )
    columns = {new: found[name].take(rows) for new, name in renamed.items()}
    num_missing = rows.null_count
    with locked(folder, waits=True, is_folder=True):
        # Another process may have added columns since.
        opened = open_dataset(folder)
        _check_names(opened, path, names, renamed)
        _write(opened, columns, path.name, num_missing)
    return AddReport(
        columns=tuple(columns),
        num_samples=len(opened),
        num_missing=num_missing,
        num_unknown=num_unknown,
        notes=notes,
    )


def _id_name(path: Path, names: Sequence[str], asked: str | None) -> str:
    found = find_alias(names, ID_NAMES) if asked is None else asked
    if found is None or found not in names:
        raise UsageError(
            f"{path} has no column {asked!r}; it has {', '.join(names[:40])}"
            if asked is not None
            else f"{path} has no id column of a known name; it has {', '.join(names[:40])}; name "
            "it with --id-column"
        )
    return found


def _check_names(
    data: Dataset, path: Path, names: Sequence[str], renamed: Mapping[str, str]
) -> None:
    """Refuses columns that the table lacks, and new names that are taken."""
    if not renamed:
        raise UsageError(f"{path} must have a column besides its ids, got none to add")
    unknown = [name for name in renamed.values() if name not in names]
    if unknown:
        raise UsageError(
            f"{path} has no column {', '.join(unknown)}; it has {', '.join(names[:40])}"
        )
    arrays = data.schema.names
    # A label decides what a network learns, so it is packed with the samples.
    reserved = {*possible_columns(arrays), *BATCH_NAMES, *arrays, "redshift", "json", "path", "row"}
    taken = [name for name in renamed if name in data.columns or name in reserved]
    if taken:
        raise UsageError(
            f"cannot add {len(taken):,} of {len(renamed):,} columns to {data.path}: it has or "
            f"reserves {', '.join(taken[:10])}; rename with --take NEW={renamed[taken[0]]}"
        )
    odd = [name for name in renamed if not name.strip() or not name.isprintable() or "/" in name]
    if odd:
        raise UsageError(f"names of columns must be printable and without '/', got {odd[0]!r}")


def _rows_of(data: Dataset, path: Path, column: pa.ChunkedArray, name: str) -> tuple[pa.Array, int]:
    """The table's row of each sample, null for none; and rows that no sample has."""
    import pyarrow as pa
    import pyarrow.compute as pc

    with naming(path):
        ids = id_text(name, column)
    keys = without_zeros(ids)
    distinct, codes, first = first_of_each(keys)
    repeated = np.flatnonzero((codes >= 0) & (first[codes] != np.arange(len(codes))))
    if len(repeated):
        raise UsageError(
            f"{len(repeated):,} rows of {path} repeat an id of another row, first "
            f"{ids[int(repeated[0])].as_py()!r}; give each sample one row"
        )
    table = _ids_of(data)
    mine, sample_codes, sample_first = first_of_each(without_zeros(table))
    if len(mine) != len(table):
        where = np.flatnonzero(sample_first[sample_codes] != np.arange(len(table)))
        raise UsageError(
            f"ids of {data.path} differ from each other by leading zeros alone, such as "
            f"{table[int(where[0])].as_py()!r}; columns cannot be added to it"
        )
    place = pc.index_in(without_zeros(table), value_set=distinct)
    rows = pc.if_else(place.is_valid(), pa.array(first).take(pc.fill_null(place, 0)), None)
    num_matched = len(rows) - rows.null_count
    if not num_matched:
        raise UsageError(
            f"no sample of {data.path} has a row in {path}: a sample is {table[0].as_py()!r}, an "
            f"id in column {name!r} is {ids[0].as_py()!r}; name the ids with --id-column"
        )
    return rows, len(ids) - num_matched


def _ids_of(data: Dataset) -> pa.Array:
    """The id of each sample, in the order of the index."""
    import pyarrow as pa

    parts = [part for name in data.splits for part in data.split(name).column_parts(ID)]
    return pa.chunked_array([part.cast(pa.string()) for part in parts]).combine_chunks()


def _write(data: Dataset, columns: Mapping[str, Any], source: str, num_missing: int) -> None:
    """Writes the side table, then `columns.json`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    used = {table.name for table in data.added}
    name = next(n for n in (f"columns-{k:03d}.parquet" for k in range(10_000)) if n not in used)
    path = data.path / name
    check_output(path, MARK)
    side = pa.table({ID: _ids_of(data), **columns}).replace_schema_metadata({b"made_by": MARK})
    start = 0
    with (
        whole_file(path) as file,
        pq.ParquetWriter(file, side.schema, compression="zstd", write_page_checksum=True) as writer,
    ):
        for size in IndexFile(data.path, data.manifest, has_added=False).group_sizes:
            writer.write_table(side.slice(start, size), row_group_size=size)
            start += size
    entry = AddedTable(
        name=name,
        sha256=file_sha256(path),
        columns=tuple(columns),
        source=source,
        num_missing=num_missing,
    )
    write_added(data.path, data.manifest, [*data.added, entry])
