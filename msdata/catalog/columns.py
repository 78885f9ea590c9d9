"""A catalog with the columns' names that the rest of msdata uses.

Surveys name the same column differently; here known names become `redshift`, `ra`, `dec`, and names
that the index needs for itself are moved out of the way.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from msdata.catalog.scalars import LATIN_1
from msdata.catalog.table import read_table
from msdata.catalog.values import (
    EBV_RANGE,
    POSITION_RANGES,
    REDSHIFT_RANGE,
    Limits,
    check_unit,
    id_text,
    is_ebv,
    note_on_zeros,
    notes_on,
    within,
)
from msdata.errors import UsageError, naming

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
# What Python writes for bytes.
_BYTES = r"^b(['\"])(.*)['\"]$"
# Names that mean an object's own id; of the others a catalog may have several.
_OWN_ID_NAMES = ID_NAMES[:3]
# Single letters that name a band: beside two of them, or beside x and y, a `z` may be one, too.
_BANDS = frozenset("ugriyjhk") | {"ks"}


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """A catalog with canonical column names.

    Attributes:
        path: where it was read from.
        ids: text of each row's id, null where it has none; None for a catalog without ids, which
            can be joined by row number only.
        id_column: the id's column in the file; None without ids.
        file_columns: names of all columns in the file.
        columns: `redshift` (float64), `ra` and `dec` (float64, where known), and the others.
        needs_redshift: an object without redshift is of no use.
        doubted: float64, each row's redshift where it is outside `redshift_range` and counts as
            absent, null elsewhere; None without redshifts.
        redshift_range: lowest and highest redshift that is believed.
        notes: what was renamed or left out, for the report.
    """

    path: Path
    ids: pa.Array | None
    id_column: str | None
    file_columns: tuple[str, ...]
    columns: pa.Table
    needs_redshift: bool = True
    doubted: pa.ChunkedArray | None = None
    redshift_range: Limits = REDSHIFT_RANGE
    notes: tuple[str, ...] = ()


def read_catalog(
    path: Path,
    *,
    table: pa.Table | None = None,
    id_column: str | None = None,
    redshift_column: str | None = None,
    columns: Sequence[str] | None = None,
    needs_redshift: bool = True,
    redshift_range: Limits = REDSHIFT_RANGE,
    ebv_range: Limits = EBV_RANGE,
) -> Catalog:
    """Reads a catalog from a table; see `msdata.catalog.table.read_table` for its formats.

    Args:
        path: the file.
        table: scalar columns that were read already, of what is at `path`; None reads the file.
        id_column: column that names the objects; None looks for a known name.
        redshift_column: column with the redshift; None looks for a known name.
        columns: further columns to keep, as named in the file; None keeps all.
        needs_redshift: an object without redshift is of no use; else there need not be a column.
        redshift_range: lowest and highest redshift to believe; others count as absent.
        ebv_range: lowest and highest E(B-V) to believe, magnitudes.

    Raises:
        UsageError: a column is missing, may be another quantity, or is not numeric.
        DataError: the file is broken.
        StorageError: the file system refused.
    """
    notes: tuple[str, ...] = ()
    if table is None:
        table, notes = read_table(path, lambda names: find_id(path, names, id_column))
    names = table.column_names
    id_name = find_id(path, names, id_column)
    chosen, doubt = _canonical_columns(path, names, redshift_column, needs_redshift=needs_redshift)
    for name in columns or ():
        _check_column(path, names, name, "--columns")
    kept = {key: _as_float(path, table.select([name]), key) for key, name in chosen.items()}
    doubted, remarks = _keep_what_is_believed(kept, redshift_range)
    notes = (*notes, *doubt, *_other_ids(names, id_name, id_column), *remarks)
    wanted = [n for n in names if n not in chosen.values() and (columns is None or n in columns)]
    more = _further_columns(table.select(wanted), {*kept, *names}, id_name, ebv_range)
    ids, remarks = _ids_of(path, id_name, table, notes)
    return Catalog(
        path=path,
        ids=ids,
        id_column=id_name,
        file_columns=tuple(names),
        columns=pa.table(kept | more[0]),
        needs_redshift=needs_redshift,
        doubted=doubted,
        redshift_range=redshift_range,
        notes=(*notes, *remarks, *more[1]),
    )


def _keep_what_is_believed(
    kept: dict[str, pa.ChunkedArray], redshift_range: Limits
) -> tuple[pa.ChunkedArray | None, tuple[str, ...]]:
    """Nulls what is outside its range, in place; gives the redshifts that were, and notes."""
    doubted, notes = None, tuple[str, ...]()
    if "redshift" in kept:
        kept["redshift"], doubted = within(kept["redshift"], redshift_range)
        notes += notes_on("redshifts", doubted, redshift_range, "--redshift-range")
        notes += note_on_zeros(kept["redshift"])
    for name, limits in POSITION_RANGES.items():
        if name in kept:
            kept[name], outside = within(kept[name], limits)
            notes += notes_on(f"{name} in degrees", outside, limits)
    return doubted, notes


def _further_columns(
    table: pa.Table, taken: set[str], id_name: str | None, ebv_range: Limits
) -> tuple[dict[str, pa.ChunkedArray], tuple[str, ...]]:
    """Columns that are kept as they are, by the names that are free for them; and notes on them."""
    kept: dict[str, pa.ChunkedArray] = {}
    notes: tuple[str, ...] = ()
    for name in table.column_names:
        free = _free_name(name, taken | kept.keys())
        if free != name and name == id_name:
            continue  # its values are the index's own `sample_id`
        if free != name:
            notes += (f"column {name!r} is kept as {free!r}: the index has a {name!r} already",)
        kept[free] = table.column(name)
        if is_ebv(name, kept[free].type):
            kept[free], outside = within(kept[free], ebv_range)
            notes += notes_on(f"values of {name!r}", outside, ebv_range, "--ebv-range")
    return kept, notes


def missing_id_column(catalog: Catalog) -> UsageError:
    """The error for objects that can only be joined by an id the catalog does not have."""
    return UsageError(
        f"catalog {catalog.path} has no id column of a known name; it has "
        f"{', '.join(catalog.file_columns)}; name it with --id-column"
    )


def find_id(path: Path, names: Sequence[str], asked: str | None) -> str | None:
    """The column with the ids: the one that was asked for, or of a known name; None for none.

    Raises:
        UsageError: the table does not have the column that was asked for.
    """
    if asked is not None:
        return _check_column(path, names, asked, "--id-column")
    return find_alias(names, ID_NAMES)


def _canonical_columns(
    path: Path, names: Sequence[str], redshift: str | None, *, needs_redshift: bool
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The file's column for each canonical name that is there; and notes on those in doubt."""
    chosen: dict[str, str] = {}
    notes: tuple[str, ...] = ()
    for canonical, aliases in _ALIASES.items():
        is_redshift = canonical == "redshift"
        found = find_alias(names, aliases) if is_redshift else find_position(names, canonical)
        if is_redshift and redshift is not None:
            found = _check_column(path, names, redshift, "--redshift-column")
        elif found is not None and found.lower() == "z" and (beside := _may_be_other_z(names)):
            if needs_redshift:
                raise UsageError(
                    f"catalog {path} has {found!r} beside {beside}, so it may be a magnitude or "
                    f"a coordinate; name the redshift: --redshift-column {found}, or another"
                )
            notes = (f"column {found!r} beside {beside} is not taken as redshift",)
            continue
        if found is not None:
            chosen[canonical] = found
    if needs_redshift and "redshift" not in chosen:
        raise UsageError(
            f"catalog {path} has no redshift column of a known name; it has {', '.join(names)}; "
            "name it with --redshift-column, or give --unlabelled for data without redshifts"
        )
    return chosen, notes


def _may_be_other_z(names: Sequence[str]) -> str:
    """The columns beside which a `z` may be a magnitude or a coordinate; empty for none."""
    lower = {name.lower(): name for name in names}
    bands = [lower[name] for name in lower if name in _BANDS]
    beside = [lower[n] for n in ("x", "y")] if {"x", "y"} <= lower.keys() else bands
    return " and ".join(beside[:2]) if len(beside) >= 2 else ""


def _part_of_coordinate(names: Sequence[str], canonical: str) -> str | None:
    """`coord.ra` or `coord.dec`, as astropy writes a SkyCoord; None for several of them."""
    bases = [n[: -len(".ra")] for n in names if n.endswith(".ra")]
    if len(bases) != 1 or f"{bases[0]}.dec" not in names:
        return None
    return f"{bases[0]}.{canonical}"


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


def find_alias(names: Sequence[str], aliases: Sequence[str]) -> str | None:
    """The first of some known names that a table has, in any case; None where it has none."""
    by_lower = {name.lower(): name for name in reversed(names)}
    return next((by_lower[alias] for alias in aliases if alias in by_lower), None)


def find_position(names: Sequence[str], axis: str) -> str | None:
    """The column that holds a position's "ra" or "dec"; None where no name is known."""
    return find_alias(names, _ALIASES[axis]) or _part_of_coordinate(names, axis)


def _check_column(path: Path, names: Sequence[str], name: str, option: str) -> str:
    if name not in names:
        raise missing_column(f"catalog {path}", names, name, option)
    return name


def missing_column(
    place: str, names: Sequence[str], name: str, option: str, num_shown: int | None = None
) -> UsageError:
    """The error for a column that an option names and a table does not have."""
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    shown = ", ".join(names[:num_shown])
    return UsageError(f"{place} has no column {name!r} ({option}); it has {shown}{hint}")


def _free_name(name: str, taken: set[str]) -> str:
    """`name`, or with `catalog_` before it where the index or a canonical column has it."""
    if not (name in _RESERVED or name in _ALIASES or name.startswith(_RESERVED_PREFIXES)):
        return name
    free = f"catalog_{name}"
    while free in taken or free in _RESERVED:
        free += "_"
    return free


def _as_float(path: Path, table: pa.Table, canonical: str) -> pa.ChunkedArray:
    """The one column of a table, as float64."""
    name, column = table.column_names[0], table.column(0)
    with naming(f"catalog {path}"):
        check_unit(table.schema.field(0), canonical)
    if pa.types.is_null(column.type):
        return column.cast(pa.float64())
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        cure = "write positions as decimal degrees"
        if canonical == "redshift":
            cure = "correct the file or name another column with --redshift-column"
        raise UsageError(
            f"catalog {path}: column {name!r} holds {column.type}, not numbers"
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


def _ids_of(
    path: Path, name: str | None, table: pa.Table, notes: tuple[str, ...]
) -> tuple[pa.Array | None, tuple[str, ...]]:
    """The ids as text, None without; and notes on what was taken away or is missing."""
    if name is None:
        return None, ()
    if f"column {name!r} {LATIN_1}" in notes:
        raise UsageError(
            f"catalog {path}: the ids in column {name!r} are bytes that are not UTF-8; write them "
            "as text, or name another column with --id-column"
        )
    with naming(f"catalog {path}"):
        ids = id_text(name, table.column(name))
    is_repr = pc.match_substring_regex(ids, _BYTES)
    if len(ids) and pc.all(is_repr).as_py():
        # What str() makes of bytes.
        ids = pc.replace_substring_regex(ids, _BYTES, r"\2")
        return ids, (f"the ids in column {name!r} are written like b'123': read as 123",)
    missing = f"rows of the catalog without an id: {ids.null_count:,}"
    return ids, (missing,) if ids.null_count else ()
