"""A catalogue with the columns' names that the rest of msdata uses.

Surveys name the same column differently; here known names become `redshift`, `ra`, `dec`, and names
that the index needs for itself are moved out of the way.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from msdata.catalogfile import read_table
from msdata.errors import UsageError

ID_NAMES = (
    *("sample_id", "mantis_id", "mantis_shrimp_id", "object_id", "objid", "obj_id", "id"),
    *("galaxy_id", "source_id", "photoobjid_survey", "photoobjid", "specobjid", "targetid"),
)
# In order of trust: a spectroscopic redshift before a plain `z`.
_ALIASES = {
    "redshift": ("redshift", "zspec", "z_spec", "specz", "spec_z", "z"),
    "ra": ("ra", "raj2000", "ra_deg", "alpha_j2000", "right_ascension"),
    "dec": ("dec", "dej2000", "decj2000", "dec_deg", "delta_j2000", "declination"),
}
# Columns that candidates or the index have of their own.
_RESERVED = frozenset(
    (
        *("sample_id", "path", "row", "split", "catalog_row", "shard", "nbytes", "crc32c"),
        *("offset", "flags", "reason"),
    )
)
_RESERVED_PREFIXES = ("offset_", "nbytes_", "crc32c_")
# Names that mean an object's own id; of the others a catalogue may have several.
_OWN_ID_NAMES = ID_NAMES[:3]
# What pandas writes of a column of large integers in which one value is absent.
_EXPONENT = r"^-?[0-9]\.[0-9]+e\+[0-9]+$"
_FLOAT = r"^-?[0-9]+(\.[0-9]*)?(e\+[0-9]+)?$"
_POINT_ZERO = r"\.0*$"
# Above this a double cannot tell neighbouring whole numbers apart.
_MAX_EXACT = 2**53
# -1 would be light from behind infinity; -9, -99 and -9999 mean that there is none.
_IMPOSSIBLE_REDSHIFT = -1.0


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """A catalogue with canonical column names.

    Attributes:
        path: where it was read from.
        ids: text of each row's id, null where it has none; None for a catalogue without ids, which
            can be joined by row number only.
        id_column: the id's column in the file; None without ids.
        file_columns: names of all columns in the file.
        columns: `redshift` (float64), `ra` and `dec` (float64, where known), and the others.
        needs_redshift: an object without redshift is of no use.
        notes: what was renamed or left out, for the report.
    """

    path: Path
    ids: pa.Array | None
    id_column: str | None
    file_columns: tuple[str, ...]
    columns: pa.Table
    needs_redshift: bool = True
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        is_empty = not self.columns.num_columns
        if self.ids is not None and not is_empty and len(self.ids) != self.columns.num_rows:
            raise UsageError(f"{len(self.ids)} ids for {self.columns.num_rows} catalogue rows")


def read_catalog(
    path: Path,
    *,
    id_column: str | None = None,
    redshift_column: str | None = None,
    columns: Sequence[str] | None = None,
    needs_redshift: bool = True,
) -> Catalog:
    """Reads a catalogue from CSV, Parquet or FITS.

    Args:
        path: the file.
        id_column: column that names the objects; None looks for a known name.
        redshift_column: column with the redshift; None looks for a known name.
        columns: further columns to keep, as named in the file; None keeps all.
        needs_redshift: an object without redshift is of no use; else there need not be a column.

    Returns:
        The catalogue.

    Raises:
        UsageError: a column is not there or, for the redshift, is not numeric.
        DataError: the file is broken.
        StorageError: the file system refused.
    """
    table, notes = read_table(path, lambda names: _id_name(path, names, id_column))
    names = table.column_names
    id_name = _id_name(path, names, id_column)
    chosen = _canonical_columns(path, names, redshift_column, needs_redshift=needs_redshift)
    for name in columns or ():
        _check_column(path, names, name, "--columns")
    kept, renamed = {}, []
    notes = (*notes, *_other_ids(names, id_name, id_column))
    for canonical, name in chosen.items():
        kept[canonical] = _as_float(path, name, table.column(name), canonical)
    if "redshift" in kept:
        kept["redshift"], absent = _possible_redshifts(kept["redshift"])
        notes = (*notes, *absent)
    for name in names:
        if name in chosen.values() or (columns is not None and name not in columns):
            continue
        free = _free_name(name, {*kept, *names})
        if free != name and name == id_name:
            continue  # its values are the index's own `sample_id`
        if free != name:
            renamed.append(f"column {name!r} is kept as {free!r}: the index has a {name!r} already")
        kept[free] = table.column(name)
    return Catalog(
        path=path,
        ids=None if id_name is None else _id_text(path, id_name, table.column(id_name)),
        id_column=id_name,
        file_columns=tuple(names),
        columns=pa.table(kept),
        needs_redshift=needs_redshift,
        notes=(*notes, *renamed),
    )


def missing_id_column(catalog: Catalog) -> UsageError:
    """The error for objects that can only be joined by an id the catalogue does not have."""
    return UsageError(
        f"catalogue {catalog.path} has no id column of a known name; it has "
        f"{', '.join(catalog.file_columns)}; name it with --id-column"
    )


def _id_name(path: Path, names: Sequence[str], asked: str | None) -> str | None:
    if asked is not None:
        return _check_column(path, names, asked, "--id-column")
    return _first_alias(names, ID_NAMES)


def _canonical_columns(
    path: Path, names: Sequence[str], redshift: str | None, *, needs_redshift: bool
) -> dict[str, str]:
    """The file's column for each canonical name that is there."""
    chosen = {}
    for canonical, aliases in _ALIASES.items():
        found = _first_alias(names, aliases)
        if canonical == "redshift" and redshift is not None:
            found = _check_column(path, names, redshift, "--redshift-column")
        elif found is not None and found.lower() == "z" and _has_magnitudes(names):
            if needs_redshift:
                raise UsageError(
                    f"catalogue {path} has {found!r} beside g, r and i, so it may be a magnitude; "
                    f"say which is the redshift: --redshift-column {found}, or another"
                )
            continue
        if found is not None:
            chosen[canonical] = found
    if needs_redshift and "redshift" not in chosen:
        raise UsageError(
            f"catalogue {path} has no redshift column of a known name; it has {', '.join(names)}; "
            "name it with --redshift-column, or give --unlabelled for data without redshifts"
        )
    return chosen


def _has_magnitudes(names: Sequence[str]) -> bool:
    return {"g", "r", "i"} <= {name.lower() for name in names}


def _other_ids(names: Sequence[str], chosen: str | None, asked: str | None) -> Iterator[str]:
    """A note where the id could be in another column as well."""
    if chosen is None or asked is not None or chosen.lower() in _OWN_ID_NAMES:
        return
    others = [name for name in names if name.lower() in ID_NAMES and name != chosen]
    if others:
        yield (
            f"ids are taken from column {chosen!r}, not from {', '.join(map(repr, others))}; "
            "--id-column names another"
        )


def _first_alias(names: Sequence[str], aliases: Sequence[str]) -> str | None:
    by_lower = {name.lower(): name for name in reversed(names)}
    return next((by_lower[alias] for alias in aliases if alias in by_lower), None)


def _check_column(path: Path, names: Sequence[str], name: str, option: str) -> str:
    if name in names:
        return name
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UsageError(
        f"catalogue {path} has no column {name!r} ({option}); it has {', '.join(names)}{hint}"
    )


def _free_name(name: str, taken: set[str]) -> str:
    """`name`, or with `catalog_` before it where the index or a canonical column has it."""
    if not (name in _RESERVED or name in _ALIASES or name.startswith(_RESERVED_PREFIXES)):
        return name
    free = f"catalog_{name}"
    while free in taken or free in _RESERVED:
        free += "_"
    return free


def _as_float(path: Path, name: str, column: pa.ChunkedArray, canonical: str) -> pa.ChunkedArray:
    if pa.types.is_null(column.type):
        return column.cast(pa.float64())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        cure = "mend the file, or leave the column out"
        if canonical == "redshift":
            cure = "mend the file or name another column with --redshift-column"
        elif canonical in ("ra", "dec"):
            cure = "write positions as decimal degrees"
        raise UsageError(
            f"catalogue {path}: column {name!r} holds {column.type}, not numbers"
            f"{_first_text(column)}; {cure}"
        )
    return pc.cast(column, pa.float64(), safe=False)


def _first_text(column: pa.ChunkedArray) -> str:
    """Says where the first value is that makes a column one of text."""
    if not pa.types.is_string(column.type):
        return ""
    for number, value in enumerate(column.to_pylist(), start=1):
        try:
            float(value or "nan")
        except ValueError:
            return f", the first is {value[:40]!r} in row {number:,}"
    return ""


def _possible_redshifts(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, tuple[str, ...]]:
    """Redshifts with null for those that none can have, and a note on them."""
    is_impossible = pc.fill_null(pc.less_equal(column, _IMPOSSIBLE_REDSHIFT), False)
    num_impossible = pc.sum(is_impossible).as_py() or 0
    if not num_impossible:
        return column, ()
    example = column.filter(is_impossible)[0].as_py()
    kept = pc.if_else(is_impossible, pa.scalar(None, pa.float64()), column)
    what = f"{num_impossible:,} redshift{'s' * (num_impossible > 1)} of -1 or below"
    return kept, (f"{what}, such as {example:g}, counted as absent",)


def _id_text(path: Path, name: str, column: pa.ChunkedArray) -> pa.Array:
    """Ids as text, without the spaces and decimal points that tables add; empty ones null.

    Raises:
        UsageError: they were written as floating-point numbers and have lost their last digits.
    """
    if pa.types.is_floating(column.type):
        values = column.to_numpy()
        if np.all(np.isnan(values) | (values == np.trunc(values))):
            if np.any(np.abs(values) >= _MAX_EXACT):
                raise _rounded_ids(path, name, f"{np.nanmax(np.abs(values)):.0f}")
            column = pc.cast(column, pa.int64(), safe=False)
    text = pc.utf8_trim_whitespace(pc.cast(column, pa.string()))
    text = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
    text = text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text
    return _without_points(path, name, text)


def _without_points(path: Path, name: str, text: pa.Array) -> pa.Array:
    """Ids without the `.0` that a column of floating-point numbers adds to every one of them."""
    has_point = pc.match_substring(text, ".")
    if not pc.any(has_point).as_py() or not pc.all(pc.match_substring_regex(text, _FLOAT)).as_py():
        return text
    written = text.filter(pc.match_substring_regex(text, _EXPONENT))
    if len(written):
        raise _rounded_ids(path, name, written[0].as_py())
    whole = pc.replace_substring_regex(text, _POINT_ZERO, "")
    if pc.any(pc.match_substring(whole, ".")).as_py():
        return text
    large = whole.filter(pc.greater_equal(pc.cast(whole, pa.float64()), float(_MAX_EXACT)))
    if len(large):
        raise _rounded_ids(path, name, large[0].as_py())
    return whole


def _rounded_ids(path: Path, name: str, example: str) -> UsageError:
    return UsageError(
        f"catalogue {path}: the ids in column {name!r} were written as floating-point numbers, "
        f"such as {example}, and have lost their last digits; save them as integers or as text"
    )
