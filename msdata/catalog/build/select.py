"""From a piece of a survey's table to the rows that pass, with the reasons of the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from msdata.catalog.build.recipe import SPEED_OF_LIGHT_KM_S, Cut, Names, Recipe
from msdata.catalog.build.spec import CatalogSpec
from msdata.catalog.join import first_of_each
from msdata.catalog.values import id_text
from msdata.errors import DataError, UsageError

NO_POSITION = "no position"
NO_REDSHIFT = "no redshift"
STAR = "star"
OUTSIDE_SKY = "declination"
OUTSIDE_REDSHIFT = "redshift range"

_Bool = NDArray[np.bool_]
_Float = NDArray[np.float64]

_COMPARISONS: dict[str, Callable[..., _Bool]] = {
    "equals": np.isin,
    "one_of": np.isin,
    "at_least": np.greater_equal,
    "above": np.greater,
    "at_most": np.less_equal,
    "below": np.less,
}


@dataclass(frozen=True, kw_only=True)
class Columns:
    """A recipe's columns as one table has them.

    Attributes:
        id: name of the id's column.
        ra: name of the right ascension's.
        dec: name of the declination's.
        redshifts: names of the redshifts' that the table has, in order.
        cuts: name of each cut's; None where an optional one has no column.
        further: names of columns to keep, such as E(B-V); None where the table has none.
    """

    id: str
    ra: str
    dec: str
    redshifts: tuple[str, ...]
    cuts: tuple[str | None, ...]
    further: tuple[str | None, ...] = ()

    @property
    def wanted(self) -> list[str]:
        """All of them, each once."""
        names = (self.id, self.ra, self.dec, *self.redshifts, *self.cuts, *self.further)
        return list(dict.fromkeys(name for name in names if name is not None))


def find_columns(
    recipe: Recipe, names: Sequence[str], place: str, further: Sequence[str] = ()
) -> Columns:
    """Finds a recipe's columns; upper and lower case are the same unless both are there.

    Args:
        recipe: the survey's.
        names: the table's columns.
        place: the table's name, for messages.
        further: columns to keep if they are there.

    Raises:
        UsageError: a column is not there.
    """
    lower = {name.lower(): name for name in reversed(names)}

    def find(asked: Names) -> str | None:
        exact = next((n for n in asked if n in names), None)
        return exact or next((lower[n.lower()] for n in asked if n.lower() in lower), None)

    def need(asked: Names) -> str:
        found = find(asked)
        if found is None:
            raise UsageError(
                f"table {place} has no column {' or '.join(asked)}, which the recipe of "
                f"{recipe.name} needs ({recipe.files}); it has {', '.join(names[:40])}"
            )
        return found

    redshifts = tuple(name for asked in recipe.redshifts if (name := find(asked)) is not None)
    return Columns(
        id=need(recipe.id),
        ra=need(recipe.ra),
        dec=need(recipe.dec),
        redshifts=redshifts or (need(recipe.redshifts[-1]),),
        cuts=tuple((find if cut.is_optional else need)(cut.column) for cut in recipe.cuts),
        further=tuple(find((name,)) for name in further),
    )


def select_rows(
    piece: pa.Table, recipe: Recipe, columns: Columns, spec: CatalogSpec
) -> tuple[pa.Table, Counter[str]]:
    """Applies a survey's own cuts, then those common to all; a row counts for the first it fails.

    Args:
        piece: the table's columns.
        recipe: the survey's.
        columns: what the table calls them.
        spec: the common cuts.

    Returns:
        Table of the rows that pass: `object_id` (string), `ra`, `dec` in degrees, `redshift`
        (float64), `further_0` and so on (float64); and how many were dropped, by reason.
    """
    left = np.ones(piece.num_rows, bool)
    dropped: Counter[str] = Counter()

    def drop(passes: _Bool, reason: str) -> None:
        nonlocal left
        dropped[reason] += int(np.count_nonzero(left & ~passes))
        left = left & passes

    for cut, name in zip(recipe.cuts, columns.cuts, strict=True):
        if name is not None:
            drop(passes_cut(piece[name], cut), cut.reason)
    ra = angles(piece[columns.ra], is_hours=True)
    dec = angles(piece[columns.dec], is_hours=False)
    redshift = first_redshift([piece[name] for name in columns.redshifts], recipe.redshift_unit)
    with np.errstate(invalid="ignore"):
        drop((np.abs(dec) <= 90) & (ra >= -360) & (ra <= 720), NO_POSITION)
        drop(np.isfinite(redshift), NO_REDSHIFT)
        if recipe.stars_below is not None:
            drop(redshift >= recipe.stars_below, STAR)
        drop(dec > spec.dec_above, OUTSIDE_SKY)
        within = (redshift > spec.redshift_above) & (redshift < spec.redshift_below)
        drop(within, OUTSIDE_REDSHIFT)
    rows = pa.array(np.flatnonzero(left))
    kept: dict[str, Any] = {
        "object_id": _ids(columns.id, piece[columns.id].take(rows)),
        "ra": ra[left] % 360,
        "dec": dec[left],
        "redshift": redshift[left],
    }
    for k, further in enumerate(columns.further):
        values = np.full(len(rows), np.nan) if further is None else numbers(piece[further])[left]
        kept[f"further_{k}"] = values
    return pa.table(kept), dropped


def passes_cut(column: pa.ChunkedArray, cut: Cut) -> _Bool:
    """Which rows pass all tests of a cut; null and NaN pass none.

    Args:
        column: numbers, text or bools.
        cut: the tests.
    """
    passes = np.ones(len(column), bool)
    for test, value in cut.tests.items():
        wanted = list(value) if test == "one_of" else [value]
        if any(isinstance(w, str) for w in wanted):
            found = pc.is_in(column.cast(pa.string()), value_set=pa.array([str(w) for w in wanted]))
            passes &= np.asarray(found)
            continue
        values = numbers(_truths(column) if isinstance(value, bool) else column)
        with np.errstate(invalid="ignore"):
            passes &= _COMPARISONS[test](values, [float(w) for w in wanted])
    return passes


def _truths(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Text of bools, as CSV has it, as 1 and 0; other columns as they are."""
    if not pa.types.is_string(column.type):
        return column
    lower = pc.utf8_lower(column)
    is_true = pc.is_in(lower, value_set=pa.array(["true", "t", "1"]))
    is_known = pc.or_(is_true, pc.is_in(lower, value_set=pa.array(["false", "f", "0"])))
    return pc.if_else(is_known, is_true, pa.scalar(None, pa.bool_()))


def numbers(column: pa.ChunkedArray) -> _Float:
    """A column as float64; null and empty text become NaN.

    Raises:
        DataError: a text is not a number.
    """
    if pa.types.is_string(column.type):
        empty = pc.is_in(column, value_set=pa.array(["", "NaN", "nan", "null", "--"]))
        column = pc.if_else(empty, pa.scalar(None, pa.string()), column)
        try:
            column = column.cast(pa.float64())
        except pa.ArrowInvalid as error:
            raise DataError(f"a text stands where a number is wanted: {error}") from error
    elif not pa.types.is_float64(column.type):
        column = column.cast(pa.float64(), safe=False)
    return np.asarray(pc.fill_null(column, np.nan).to_numpy(), np.float64)


def angles(column: pa.ChunkedArray, *, is_hours: bool) -> _Float:
    """Degrees; texts with spaces or colons are sexagesimal, hours for a right ascension.

    Args:
        column: numbers, or text such as `-12 34 56.7` or `01:02:03.4`.
        is_hours: whether sexagesimal values are hours.
    """
    if not pa.types.is_string(column.type):
        return numbers(column)
    text = pc.replace_substring_regex(pc.utf8_trim_whitespace(column), r"[:\s]+", " ")
    if not pc.any(pc.match_substring(text, " ")).as_py():
        return numbers(text)
    parts = pc.extract_regex(text, r"^(?P<sign>[+-]?)(?P<a>\d+) (?P<b>\d+) (?P<c>\d+\.?\d*)$")
    a, b, c = (numbers(pc.struct_field(parts, name)) for name in ("a", "b", "c"))
    is_negative = np.asarray(pc.fill_null(pc.equal(pc.struct_field(parts, "sign"), "-"), False))
    value = (a + b / 60 + c / 3600) * (15.0 if is_hours else 1.0)
    return np.where(is_negative, -value, value)


def first_redshift(columns: Sequence[pa.ChunkedArray], unit: str) -> _Float:
    """The first redshift of each row that is finite and above 0, else the last column's.

    Args:
        columns: in order of trust.
        unit: "1", or "km/s" for c z.

    Raises:
        DataError: the values are not velocities.
    """
    chosen = numbers(columns[-1]).copy()
    for column in reversed(columns[:-1]):
        values = numbers(column)
        with np.errstate(invalid="ignore"):
            chosen = np.where(np.isfinite(values) & (values > 0), values, chosen)
    if unit != "km/s":
        return chosen
    given = chosen[np.isfinite(chosen) & (chosen != 0)]
    if given.size and np.abs(given).max() <= 1:
        # 6dF's database has a CZ of this kind, too; as a velocity it would pass all cuts.
        raise DataError(
            "velocities must be c z in km/s, got values that all lie from -1 to 1: redshifts or a "
            "Cartesian coordinate; give the table that holds c z"
        )
    return chosen / SPEED_OF_LIGHT_KM_S


def _ids(name: str, column: pa.ChunkedArray) -> pa.Array:
    """Ids as text; empty ones, 0 and negative numbers mean that there is none."""
    text = id_text(name, column)
    is_none = pc.match_substring_regex(text, r"^(0*|-\d+)$")
    return pc.if_else(pc.fill_null(is_none, True), pa.scalar(None, pa.string()), text)


def repeated_ids(ids: pa.ChunkedArray) -> _Bool:
    """Rows whose id an earlier row has; rows without an id are never repeated."""
    _, codes, first = first_of_each(ids.combine_chunks())
    return np.asarray((codes >= 0) & (np.append(first, -1)[codes] != np.arange(len(codes))))
