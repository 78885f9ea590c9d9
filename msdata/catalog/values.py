"""Which values of a catalog to believe: redshifts, E(B-V), units, and ids with all their digits.

`pack`, `fetch` and `catalog build` ask here, so that none takes what another refuses.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from msdata.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

# Key of a field's metadata: the unit that a FITS column has.
UNIT = b"unit"
# Above this a double cannot tell neighboring integers apart.
MAX_EXACT = 2**53
# What pandas writes of a column of large integers in which one value is absent.
_EXPONENT = r"^-?[0-9]\.[0-9]+e\+[0-9]+$"
_FLOAT = r"^-?[0-9]+(\.[0-9]*)?(e\+[0-9]+)?$"
_POINT_ZERO = r"\.0*$"
# The like in single precision.
_MAX_EXACT_FLOAT32 = 2**24
Limits = tuple[float, float]
# Lower: motions of nearby galaxies and stars stay above -0.005. Upper: quasars reach 7.6, and what
# catalogs write for "none" starts with 9.99.
REDSHIFT_RANGE = (-0.01, 8.0)
# Maps have noise just below 0; behind more dust than 5 mag no galaxy has a redshift. -999, -9, 9.99
# and 99 mean that there is none.
EBV_RANGE = (-0.1, 5.0)
# Degrees; some tables count right ascension from -180.
POSITION_RANGES = {"ra": (-180.0, 360.0), "dec": (-90.0, 90.0)}
_EBV_NAME = re.compile(r"(?<![a-z])(ebv|ebmv|e_?\(?b[-_]?v\)?)(?![a-df-z])")
_NOT_EBV = re.compile(r"err|sig|std|unc|flag|^e_e")
# Units of FITS columns that cannot be a position in degrees, or a redshift.
_OTHER_UNITS = {
    "redshift": ("km/s", "km s-1", "km.s-1", "km s^-1", "m/s", "m s-1", "mag", "mpc"),
    "ra": ("rad", "radian", "hourangle", "h", "hr", "hour", "hours", "arcmin", "arcsec", "mas"),
}
_OTHER_UNITS["dec"] = _OTHER_UNITS["ra"]


def check_unit(field: pa.Field, canonical: str) -> None:
    """Refuses a position that is not in degrees, or a redshift with a unit.

    Args:
        field: a field of the catalog's table; its metadata may have `UNIT`.
        canonical: "redshift", "ra" or "dec".

    Raises:
        UsageError: the file says that it has another unit.
    """
    unit = (field.metadata or {}).get(UNIT, b"").decode().strip()
    if unit.lower() in _OTHER_UNITS[canonical]:
        wanted = "a redshift without unit" if canonical == "redshift" else "decimal degrees"
        raise UsageError(
            f"column {field.name!r} must be {wanted}, got unit {unit!r}; convert it, or name "
            "another column"
        )


def is_ebv(name: str, kind: pa.DataType) -> bool:
    """Whether a column's name and type are those of E(B-V), such as `ebv_csfd`."""
    import pyarrow as pa

    lower = name.lower()
    is_number = pa.types.is_floating(kind) or pa.types.is_integer(kind)
    return is_number and bool(_EBV_NAME.search(lower)) and not _NOT_EBV.search(lower)


def within(column: pa.ChunkedArray, limits: Limits) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """The values within limits, and those outside; the others of both are null.

    Args:
        column: numbers.
        limits: lowest and highest value that is believed.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    is_outside = pc.or_(pc.less(column, limits[0]), pc.greater(column, limits[1]))
    is_outside = pc.fill_null(is_outside, False)
    nothing = pa.scalar(None, column.type)
    return pc.if_else(is_outside, nothing, column), pc.if_else(is_outside, column, nothing)


def notes_on(
    what: str, outside: pa.ChunkedArray, limits: Limits, option: str | None = None
) -> tuple[str, ...]:
    """A note on the values outside of limits, if there are some.

    Args:
        what: the values are.
        outside: what `within` gave.
        limits: those it was given.
        option: sets the limits, if they can be changed.
    """
    import pyarrow.compute as pc

    count = len(outside) - outside.null_count
    if not count:
        return ()
    examples = pc.unique(outside.drop_null()).slice(0, 3).to_pylist()
    return (
        f"{what} outside {limits[0]:g} to {limits[1]:g}, such as "
        f"{', '.join(f'{v:g}' for v in examples)}, count as absent: {count:,}"
        + (f" ({option} sets the limits)" if option else ""),
    )


def note_on_zeros(redshift: pa.ChunkedArray) -> tuple[str, ...]:
    """A note on redshifts of exactly 0, which some catalogs write for "none"."""
    import pyarrow.compute as pc

    count = pc.sum(pc.equal(redshift, 0.0)).as_py() or 0
    return (f"redshifts of exactly 0, which are kept: {count:,}",) if count > 1 else ()


def id_text(name: str, column: pa.ChunkedArray) -> pa.Array:
    """Ids as text, without the spaces and decimal points that tables add; empty ones null.

    Args:
        name: the column's, for messages.
        column: integers, text or floating-point numbers.

    Raises:
        UsageError: they were written as floating-point numbers and have lost their last digits.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_floating(column.type):
        limit = MAX_EXACT if pa.types.is_float64(column.type) else _MAX_EXACT_FLOAT32
        values = column.to_numpy()
        if np.all(np.isnan(values) | (values == np.trunc(values))):
            if np.any(np.abs(values) >= limit):
                raise _rounded_ids(name, f"{np.nanmax(np.abs(values)):.0f}")
            values = pa.array(values, from_pandas=True)  # NaN is not an id
            column = pc.cast(values, pa.int64())
    text = pc.utf8_trim_whitespace(pc.cast(column, pa.string()))
    text = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
    text = text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text
    return _without_points(name, text)


def _without_points(name: str, text: pa.Array) -> pa.Array:
    """Ids without the `.0` that a column of floating-point numbers adds to every one of them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    has_point = pc.match_substring(text, ".")
    if not pc.any(has_point).as_py() or not pc.all(pc.match_substring_regex(text, _FLOAT)).as_py():
        return text
    written = text.filter(pc.match_substring_regex(text, _EXPONENT))
    if len(written):
        raise _rounded_ids(name, written[0].as_py())
    whole = pc.replace_substring_regex(text, _POINT_ZERO, "")
    if pc.any(pc.match_substring(whole, ".")).as_py():
        return text
    large = whole.filter(pc.greater_equal(pc.cast(whole, pa.float64()), float(MAX_EXACT)))
    if len(large):
        raise _rounded_ids(name, large[0].as_py())
    return whole


def _rounded_ids(name: str, example: str) -> UsageError:
    return UsageError(
        f"the ids in column {name!r} were written as floating-point numbers, such as {example}, "
        "and have lost their last digits; save them as integers or as text"
    )
