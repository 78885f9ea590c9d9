"""Positions that somebody typed or listed: ids, degrees of any notation, E(B-V) beside them.

What cannot be looked for is refused before anything is fetched, with its rows: a position that was
misread gives a redshift of another piece of sky.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from msdata.catalog.build.dust import reddening
from msdata.catalog.build.spec import DustTask
from msdata.catalog.columns import find_id, find_position
from msdata.catalog.table import open_table, read_pieces, read_table
from msdata.catalog.values import EBV_RANGE, check_unit, id_text
from msdata.errors import UsageError

_Float = NDArray[np.float64]

# Pan-STARRS has no images below, and every network here looks at them.
LOWEST_DEC_DEG = -30.0
_DECIMAL, _SEXAGESIMAL = "degrees", "sexagesimal"
# Colons, blanks, and the letters and signs of hours, degrees, minutes and seconds.
_BETWEEN = re.compile(r"[\s:hdms°'\"′″]+")
_PARTS = re.compile(r"([+-]?)(\d{1,3}) (\d{1,2}) (\d{1,2}(?:\.\d*)?)")
_TWO = re.compile(r"(\S+?)(?:\s*,\s*|\s+)([+-]?\S+)")
_SIX = re.compile(r"((?:\S+\s+){2}\S+?)(?:\s*,\s*|\s+)((?:\S+\s+){2}\S+)")
_NUM_SHOWN = 5
# 3.6 milliarcseconds: the same position, written by two programs.
_SAME_DEG = 1e-6


@dataclass(frozen=True, kw_only=True)
class Positions:
    """Positions that were read.

    Attributes:
        table: `sample_id` (string), `ra` from 0 to 360 and `dec` (float64, degrees), and further
            columns.
        notes: remarks for the user.
    """

    table: pa.Table
    notes: tuple[str, ...] = ()


def parse_position(text: str) -> tuple[float, float]:
    """The position that a text means, such as `197.6144 +18.4381` or `13:10:27.5 +18:26:17`.

    Args:
        text: right ascension and declination, with blanks or a comma between: degrees, or
            sexagesimal, where a right ascension counts hours unless it has a `d`.

    Returns:
        Right ascension from 0 to 360 and declination, degrees.

    Raises:
        UsageError: the text is not a position, or lies below the survey.
    """
    match = _TWO.fullmatch(text.strip()) or _SIX.fullmatch(text.strip())
    words = () if match is None else match.groups()
    read = [_angle(word, is_hours=k == 0) for k, word in enumerate(words)]
    if len(read) != 2 or read[0][1] != read[1][1] or not read[0][1]:
        raise UsageError(
            "a position must be a right ascension and a declination, such as '197.6144 +18.4381' "
            f"or '13:10:27.5 +18:26:17', got {text!r}"
        )
    ra, dec = (np.array([value]) for value, _ in read)
    _check_range("the position", ra, dec)
    return float(ra[0] % 360), float(dec[0])


def make_positions(
    positions: Sequence[tuple[float, float]], ids: Sequence[str] | None = None
) -> Positions:
    """Positions of a program, checked as those of a file.

    Args:
        positions: right ascension and declination of each, degrees.
        ids: their ids; None names each by its position.

    Raises:
        UsageError: there are none, or some cannot be looked for.
    """
    found = np.asarray(positions, np.float64)
    if found.ndim != 2 or found.shape[1] != 2 or not len(found):
        raise UsageError(
            "positions must be pairs of right ascension and declination in degrees, got an array "
            f"of shape {found.shape}"
        )
    ra, dec = found.T
    return Positions(table=_checked("positions", ids, ra, dec, {}))


def read_positions(path: Path, *, id_column: str | None = None) -> Positions:
    """Reads a list of positions.

    Args:
        path: CSV, Parquet or FITS table with columns `ra` and `dec` or alike, all in degrees or
            all sexagesimal. Other columns are kept.
        id_column: column with the ids; None looks for a known name, and names objects by their
            positions where there is none.

    Raises:
        UsageError: a column is missing, or rows cannot be looked for.
        DataError: the file is broken.
        StorageError: the file system refused.
    """
    table, notes = read_table(path, lambda names: find_id(path, names, id_column))
    file = open_table(path)
    names = list(file.names)
    places = [find_position(names, axis) for axis in ("ra", "dec")]
    if None in places:
        raise UsageError(
            f"{path} must have columns of known names for right ascension and declination (ra, "
            f"dec), got {', '.join(names)}"
        )
    axes = [str(name) for name in places]
    for name, axis in zip(axes, ("ra", "dec"), strict=True):
        if name in table.column_names:
            check_unit(table.schema.field(name), axis)
    # As text: a reader of CSV takes 13:10:27 for a time.
    pieces = pa.concat_tables(list(read_pieces(file, axes)))
    ra, dec = _read_angles(path, pieces, axes)
    chosen = find_id(path, names, id_column)
    if chosen is None:
        notes = (*notes, f"{path.name} has no column of ids: objects are named by position")
    ids = None if chosen is None else id_text(chosen, table[chosen]).to_pylist()
    others = {n: table[n] for n in table.column_names if n not in (*axes, chosen)}
    # Of these the reader says that it left them out.
    notes = tuple(note for note in notes if not any(repr(name) in note for name in axes))
    return Positions(table=_checked(str(path), ids, ra, dec, others), notes=notes)


def with_reddening(positions: Positions, maps: Mapping[str, DustTask]) -> Positions:
    """Adds columns of E(B-V), float32, magnitudes; null where the map has none.

    Args:
        positions: the positions.
        maps: where each column comes from, by its name.

    Raises:
        UsageError: there is such a column already, or the map cannot be used.
        DataError: a map is broken.
    """
    table, notes = positions.table, positions.notes
    ra, dec = (table[axis].to_numpy() for axis in ("ra", "dec"))
    for name, task in maps.items():
        if name in table.column_names:
            raise UsageError(
                f"the positions have a column {name!r} already; name the map otherwise"
            )
        values = reddening(task, ra, dec)
        with np.errstate(invalid="ignore"):
            is_known = (values >= EBV_RANGE[0]) & (values <= EBV_RANGE[1])
        if not is_known.all():
            notes = (*notes, f"{name} is unknown for {_rows(np.flatnonzero(~is_known))}")
        table = table.append_column(name, pa.array(values, pa.float32(), mask=~is_known))
    return Positions(table=table, notes=notes)


def position_id(ra_deg: float, dec_deg: float) -> str:
    """Id of an object without one, such as `J197.61440+18.43810`."""
    return f"J{ra_deg:09.5f}{dec_deg:+09.5f}"


def _angle(text: str, *, is_hours: bool) -> tuple[float, str]:
    """Degrees and notation of an angle; NaN and nothing where the text is none."""
    text = text.replace("−", "-")
    try:
        value = float(text)
        return (value, _DECIMAL) if math.isfinite(value) else (math.nan, "")
    except ValueError:
        match = _PARTS.fullmatch(_BETWEEN.sub(" ", text).strip())
    if match is None or float(match[3]) >= 60 or float(match[4]) >= 60:
        return math.nan, ""
    value = int(match[2]) + float(match[3]) / 60 + float(match[4]) / 3600
    scale = 15.0 if is_hours and not re.search("[d°]", text) else 1.0
    return (-value if match[1] == "-" else value) * scale, _SEXAGESIMAL


def _read_angles(path: Path, table: pa.Table, axes: Sequence[str]) -> tuple[_Float, _Float]:
    """Right ascension and declination of each row, degrees, of one notation."""
    values = np.full((2, table.num_rows), np.nan)
    notations = np.full((2, table.num_rows), "", dtype=object)
    for k, name in enumerate(axes):
        for row, text in enumerate(table[name].to_pylist()):
            values[k, row], notations[k, row] = _angle(str(text).strip(), is_hours=k == 0)
    is_bad = (notations == "").any(axis=0)
    if is_bad.any():
        row = int(np.flatnonzero(is_bad)[0])
        shown = " ".join(str(table[name][row].as_py()) for name in axes)
        raise UsageError(
            f"{path}: positions must be degrees or sexagesimal, got {shown[:60]!r}{_like(is_bad)}"
        )
    is_decimal = (notations == _DECIMAL).sum(axis=0)
    if len(np.unique(is_decimal)) > 1 or is_decimal[0] not in (0, 2):
        raise UsageError(
            f"{path}: positions must be in one notation, got {int((is_decimal == 2).sum()):,} rows "
            f"in degrees, {int((is_decimal == 0).sum()):,} sexagesimal and "
            f"{int((is_decimal == 1).sum()):,} of both; write all of them in degrees"
        )
    return values[0], values[1]


def _checked(
    place: str, ids: Sequence[str | None] | None, ra: _Float, dec: _Float, others: dict[str, Any]
) -> pa.Table:
    """The table of positions, each there once and in the survey; without ids, named by them."""
    _check_range(place, ra, dec)
    if ids is None:
        ids = [position_id(*pair) for pair in zip(ra % 360, dec, strict=True)]
    missing = np.flatnonzero([not name for name in ids])
    if len(missing):
        raise UsageError(f"{place}: every object must have an id, got none in {_rows(missing)}")
    ra = ra % 360
    keys = np.round(np.stack([ra, dec]) / _SAME_DEG).astype(np.int64)
    # `5` and `0000005` name one file.
    numbers = [str(name).lstrip("0") if str(name).isdigit() else name for name in ids]
    for what, values in (("id", np.array(numbers, dtype=str)), ("position", keys)):
        _, first = np.unique(values, axis=values.ndim - 1, return_index=True)
        repeated = np.setdiff1d(np.arange(len(ids)), first)
        if len(repeated):
            raise UsageError(
                f"{place}: every {what} must be there once, got repeated ones in {_rows(repeated)}"
            )
    taken = {name: column for name, column in others.items() if name not in ("ra", "dec")}
    names = pa.array([str(name) for name in ids], pa.string())
    return pa.table({"sample_id": names, "ra": ra, "dec": dec, **taken})


def _check_range(place: str, ra: _Float, dec: _Float) -> None:
    with np.errstate(invalid="ignore"):
        is_on_sky = (ra >= -180) & (ra <= 360) & (np.abs(dec) <= 90)
        is_too_low = dec < LOWEST_DEC_DEG
    if not is_on_sky.all():
        row = int(np.flatnonzero(~is_on_sky)[0])
        raise UsageError(
            f"{place}: right ascension must be 0 to 360 and declination -90 to 90 degrees, got "
            f"{ra[row]:g} {dec[row]:g}{_like(~is_on_sky)}"
        )
    if is_too_low.any():
        row = int(np.flatnonzero(is_too_low)[0])
        raise UsageError(
            f"{place}: declination must be at least {LOWEST_DEC_DEG:g}, as Pan-STARRS has no "
            f"images below, got {dec[row]:g}{_like(is_too_low)}"
        )


def _like(is_bad: NDArray[np.bool_]) -> str:
    """In which rows the like is found, for a message; nothing for a single position."""
    return f" and the like in {_rows(np.flatnonzero(is_bad))}" if len(is_bad) > 1 else ""


def _rows(rows: NDArray[np.int64]) -> str:
    """How many rows, and the first of them, counted from 1 below the header."""
    shown = [f"{row + 1:,}" for row in rows[:_NUM_SHOWN].tolist()]
    more = ", ..." if len(rows) > _NUM_SHOWN else ""
    return f"{len(rows):,} row{'s' * (len(rows) > 1)} ({', '.join(shown)}{more})"
