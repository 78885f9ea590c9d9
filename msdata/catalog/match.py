"""Brings columns of another table to the objects of a catalog, by an id or by position.

The catalog keeps its rows and their order. An object takes values from one row of the table or from
none: where several could be meant its new columns stay empty, and the object is counted. The table
is read a piece at a time, so it may be far larger than memory; its matched rows are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from msdata.catalog.build.select import angles
from msdata.catalog.columns import ID_NAMES, find_alias, find_position, missing_column
from msdata.catalog.join import differ, first_of_each, without_zeros
from msdata.catalog.scalars import are_integers, as_integers
from msdata.catalog.sky import neighbors, sky_tree
from msdata.catalog.table import open_table, read_pieces, read_table
from msdata.catalog.table_file import TableFile
from msdata.catalog.values import id_text
from msdata.errors import UsageError, naming

_Rows = NDArray[np.int64]
# What tables write for "none" in columns of numbers.
_PLACEHOLDERS = (-9999.0, -999.0, -99.0, 99.0, 999.0, 9999.0)
_MAX_ARCSEC = 60.0


@dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """How a table is matched.

    Attributes:
        take: new name and name in the table of each column to bring in.
        on: id columns in the catalog and in the table; None matches by position.
        within_arcsec: largest distance of a match by position.
        positions: columns of right ascension and declination in the catalog and in the table; None
            looks for known names.
    """

    take: Mapping[str, str]
    on: tuple[str, str] | None = None
    within_arcsec: float | None = None
    positions: tuple[tuple[str, str], tuple[str, str]] | None = None

    def __post_init__(self) -> None:
        if not self.take:
            raise UsageError("--take must name at least one column, such as z_phot=photoz")
        if (self.on is None) == (self.within_arcsec is None):
            raise UsageError("give either --on ID=TABLE_ID or --within-arcsec R, one of the two")
        if self.within_arcsec is not None and not 0 < self.within_arcsec <= _MAX_ARCSEC:
            raise UsageError(
                f"--within-arcsec must be above 0 and at most {_MAX_ARCSEC:g}, got "
                f"{self.within_arcsec:g}"
            )
        if self.positions is not None and self.on is not None:
            raise UsageError("--positions must be used with --within-arcsec, not with --on")


@dataclass(frozen=True, kw_only=True)
class Matched:
    """A catalog with columns of another table.

    Attributes:
        table: the catalog's rows in their order, then the new columns, null where nothing matched.
        num_matched: objects with a row of the table.
        num_ambiguous: objects that several rows could belong to, or whose only row is as close to
            another object; their new columns are null.
        num_unmatched: all others.
        notes: what was left out or looks wrong.
    """

    table: pa.Table
    num_matched: int
    num_ambiguous: int
    num_unmatched: int
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Candidates:
    """Rows of the table that may belong to objects.

    Attributes:
        values: the taken columns, then those that tell rows apart.
        objects: int64 (pairs,), row in the catalog, ascending.
        rows: int64 (pairs,), row of `values`.
        arcsec: float64 (pairs,), their distance; None for ids.
        notes: remarks.
    """

    values: pa.Table
    objects: _Rows
    rows: _Rows
    arcsec: NDArray[np.float64] | None
    notes: tuple[str, ...]


def match_tables(catalog: Path, table: Path, config: MatchConfig) -> Matched:
    """Matches a catalog with a table.

    Args:
        catalog: CSV, Parquet or FITS; read whole.
        table: likewise; read in pieces.
        config: by what, and which columns to take.

    Raises:
        UsageError: a column is missing, a name is taken, or nothing matches.
        DataError: a file is broken.
        StorageError: the file system refused.
    """
    id_name = None if config.on is None else config.on[0]
    objects, notes = read_table(
        catalog, lambda names: id_name if id_name in names else find_alias(names, ID_NAMES)
    )
    found = open_table(table)
    _check_columns(catalog, objects.column_names, found, config)
    choose = _by_position if config.on is None else _by_id
    given = choose(catalog, objects, found, config)
    row_N, is_ambiguous_N, more = _decide(given, objects.num_rows, is_by_id=config.on is not None)
    picked = given.values.take(pa.array(row_N, pa.int64(), mask=row_N < 0))
    for new in config.take:
        objects = objects.append_column(new, picked[new])
        more += _placeholder_note(new, picked[new])
    num_matched, num_ambiguous = int((row_N >= 0).sum()), int(is_ambiguous_N.sum())
    return Matched(
        table=objects,
        num_matched=num_matched,
        num_ambiguous=num_ambiguous,
        num_unmatched=objects.num_rows - num_matched - num_ambiguous,
        notes=(*notes, *found.notes, *given.notes, *more),
    )


def _check_columns(
    catalog: Path, names: Sequence[str], table: TableFile, config: MatchConfig
) -> None:
    """Refuses columns that are missing, and new names that are taken."""
    for place, known, wanted, option in (
        (catalog, names, config.on and config.on[:1], "--on"),
        (table.path, table.names, config.on and config.on[1:], "--on"),
        (catalog, names, config.positions and config.positions[0], "--positions"),
        (table.path, table.names, config.positions and config.positions[1], "--positions"),
        (table.path, table.names, tuple(config.take.values()), "--take"),
    ):
        for name in wanted or ():
            if name not in known:
                raise missing_column(str(place), known, name, option, num_shown=40)
    lower = {name.lower(): name for name in names}
    for new in config.take:
        if not new.isprintable() or not new.strip():
            raise UsageError(f"--take must give a column a printable name, got {new!r}")
        if new.lower() in lower:
            raise UsageError(
                f"{catalog} has a column {lower[new.lower()]!r} already; give the new one another "
                f"name: --take {new}_2={config.take[new]}"
            )


def _by_id(catalog: Path, objects: pa.Table, table: TableFile, config: MatchConfig) -> _Candidates:
    """Rows of the table whose id an object has."""
    assert config.on is not None
    mine, theirs = config.on
    with naming(catalog):
        ids = id_text(mine, objects[mine])
    distinct, code_N, _ = first_of_each(without_zeros(ids))
    codes, pieces, example = [], [], None
    for piece in read_pieces(table, list(dict.fromkeys([theirs, *config.take.values()]))):
        with naming(table.path):
            text = id_text(theirs, piece[theirs])
        known = text.drop_null()
        example = known[0].as_py() if example is None and len(known) else example
        code = pc.fill_null(pc.index_in(without_zeros(text), value_set=distinct), -1).to_numpy()
        kept = pa.array(np.flatnonzero(code >= 0))
        codes.append(code[code >= 0].astype(np.int64))
        pieces.append(_taken(piece, config).take(kept).append_column("\0id", text.take(kept)))
    code_M = np.concatenate(codes) if codes else np.zeros(0, np.int64)
    if not len(code_M):
        first = next((v for v in ids.to_pylist() if v is not None), None)
        raise UsageError(
            f"no object of {catalog} has a row in {table.path}: an id of column {mine!r} is "
            f"{first!r}, one of column {theirs!r} is {example!r}; name the columns that hold the "
            "same ids with --on"
        )
    # All pairs of an object and a row that share a code: rows sorted by code, then ranges of them.
    order = np.argsort(code_M, kind="stable")
    start_N = np.searchsorted(code_M[order], code_N, "left")
    count_N = np.where(code_N < 0, 0, np.searchsorted(code_M[order], code_N, "right") - start_N)
    objects_P = np.repeat(np.arange(len(code_N)), count_N)
    within_P = np.arange(len(objects_P)) - np.repeat(np.cumsum(count_N) - count_N, count_N)
    notes = (f"rows of {catalog.name} without an id: {ids.null_count:,}",) if ids.null_count else ()
    return _Candidates(
        values=_joined(pieces, table),
        objects=objects_P,
        rows=order[np.repeat(start_N, count_N) + within_P],
        arcsec=None,
        notes=notes,
    )


def _by_position(
    catalog: Path, objects: pa.Table, table: TableFile, config: MatchConfig
) -> _Candidates:
    """Rows of the table that lie close to an object."""
    assert config.within_arcsec is not None
    mine, theirs = config.positions or (
        _position_names(catalog, objects.column_names),
        _position_names(table.path, table.names),
    )
    at_N, sky = _sky(catalog, objects, mine)
    found_objects, found_rows, arcsec, pieces = [], [], [], []
    num_rows = num_nowhere = num_kept = 0
    for piece in read_pieces(table, list(dict.fromkeys([*theirs, *config.take.values()]))):
        at_M, sky_M = _sky(table.path, piece, theirs)
        num_rows, num_nowhere = num_rows + len(piece), num_nowhere + len(piece) - len(at_M)
        pairs, distance = neighbors(sky, sky_M, config.within_arcsec)
        used, place = np.unique(pairs[:, 1], return_inverse=True)
        kept = pa.array(at_M[used])
        values = _taken(piece, config)
        for number, name in enumerate(theirs):
            values = values.append_column(f"\0{number}", piece[name])
        pieces.append(values.take(kept))
        found_objects.append(at_N[pairs[:, 0]])
        found_rows.append(place + num_kept)
        arcsec.append(distance)
        num_kept += len(used)
    objects_P = np.concatenate(found_objects) if pieces else np.zeros(0, np.int64)
    if not len(objects_P):
        raise UsageError(
            f"no object of {catalog} has a row in {table.path} within {config.within_arcsec:g} "
            f"arcsec ({len(at_N):,} and {num_rows - num_nowhere:,} positions); check that both are "
            "in degrees and of the same sky, and name their columns with --positions"
        )
    order = np.argsort(objects_P, kind="stable")
    notes = [
        f"rows of {path.name} without a position, which match nothing: {count:,}"
        for path, count in ((catalog, len(objects) - len(at_N)), (table.path, num_nowhere))
        if count
    ]
    return _Candidates(
        values=_joined(pieces, table),
        objects=objects_P[order],
        rows=np.concatenate(found_rows)[order],
        arcsec=np.concatenate(arcsec)[order],
        notes=tuple(notes),
    )


def _sky(path: Path, table: pa.Table, names: tuple[str, str]) -> tuple[_Rows, Any]:
    """Rows that have a position, and their tree."""
    place = f"{path}: columns {names[0]!r} and {names[1]!r}"
    try:
        with naming(place):
            ra, dec = (angles(table[n], is_hours=n == names[0]) for n in names)
    except pa.ArrowException as error:
        raise UsageError(
            f"{place} must be positions, got {table[names[0]].type} and {table[names[1]].type}"
        ) from error
    with np.errstate(invalid="ignore"):
        rows = np.flatnonzero((np.abs(dec) <= 90) & (ra >= -360) & (ra <= 720))
    return rows, sky_tree(ra[rows], dec[rows])


def _taken(piece: pa.Table, config: MatchConfig) -> pa.Table:
    return pa.table({new: piece[name] for new, name in config.take.items()})


def _joined(pieces: Sequence[pa.Table], table: TableFile) -> pa.Table:
    """All pieces; the columns of CSV, which are text, as numbers where all values are."""
    whole = pa.concat_tables(pieces, promote_options="permissive").combine_chunks()
    if table.kind == "csv":
        whole = pa.table(
            {n: _numbers_of(c) for n, c in zip(whole.column_names, whole.columns, strict=True)}
        )
    return whole


def _numbers_of(column: pa.ChunkedArray) -> pa.ChunkedArray:
    empty = pc.is_in(column, value_set=pa.array(["", "null", "NULL", "--"]))
    column = pc.if_else(empty, pa.scalar(None, pa.string()), column)
    if column.null_count == len(column):
        return column.cast(pa.float64())
    if are_integers(column.drop_null()):
        return as_integers(column)
    try:
        return column.cast(pa.float64())
    except pa.ArrowInvalid:
        return column


def _decide(
    given: _Candidates, num_objects: int, *, is_by_id: bool
) -> tuple[_Rows, NDArray[np.bool_], tuple[str, ...]]:
    """Each object's row of `values`, -1 for none; which are ambiguous; and notes."""
    objects, rows = given.objects, given.rows
    # Rows that repeat an object's first candidate in every way count once.
    is_first = np.append(True, objects[1:] != objects[:-1])
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(objects)), 0))
    later = np.flatnonzero(~is_first)
    is_other = differ(given.values.take(rows[later]), given.values.take(rows[first[later]]))
    has_several = np.zeros(num_objects, bool)
    has_several[objects[later[is_other]]] = True
    row_N = np.full(num_objects, -1, np.int64)
    row_N[objects[is_first]] = rows[is_first]
    num_repeated = int((~is_other).sum())
    sharing = np.bincount(rows, minlength=given.values.num_rows)
    is_shared = (row_N >= 0) & (sharing[row_N] > 1) & ~has_several
    where = "the same id" if is_by_id else "an object"
    notes = [(f"rows that repeat another one of {where}, counted once: ", num_repeated)]
    if is_by_id:
        notes.append(("objects that share their id, and so a row, with another: ", is_shared.sum()))
        is_ambiguous = has_several
    else:
        notes.append(("ambiguous since two objects share their closest row: ", is_shared.sum()))
        is_ambiguous = has_several | is_shared
    notes.append(("ambiguous since several rows could be meant: ", has_several.sum()))
    row_N[is_ambiguous] = -1
    told = tuple(f"{text}{int(count):,}" for text, count in notes if count)
    return row_N, is_ambiguous, told + _distance_note(given, row_N)


def _distance_note(given: _Candidates, row_N: _Rows) -> tuple[str, ...]:
    """How far matches lie; chance alone puts half of them beyond 0.71 of the radius."""
    if given.arcsec is None:
        return ()
    matched = given.arcsec[row_N[given.objects] == given.rows]
    if not len(matched):
        return ()
    return (
        f"separation of the matched: median {np.median(matched):.3f} arcsec, 99 % within "
        f"{np.quantile(matched, 0.99):.3f}",
    )


def _placeholder_note(name: str, column: pa.ChunkedArray) -> tuple[str, ...]:
    if not (pa.types.is_floating(column.type) or pa.types.is_integer(column.type)):
        return ()
    values = pa.array(_PLACEHOLDERS).cast(column.type, safe=False)
    is_placeholder = pc.is_in(column, value_set=values)
    count = pc.sum(is_placeholder).as_py() or 0
    if not count:
        return ()
    first = column.filter(is_placeholder)[0].as_py()
    return (f"values of {name!r} that look like placeholders, such as {first:g}: {count:,}",)


def _position_names(path: Path, names: Sequence[str]) -> tuple[str, str]:
    """The columns of right ascension and declination, by their names."""
    found = find_position(names, "ra"), find_position(names, "dec")
    if found[0] is None or found[1] is None:
        raise UsageError(
            f"{path} has no columns of right ascension and declination of known names; it has "
            f"{', '.join(names[:40])}; name them with --positions"
        )
    return found[0], found[1]
