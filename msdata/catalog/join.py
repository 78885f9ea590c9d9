"""Labels: a catalog of redshifts and positions, joined to the objects a source has listed.

Ids are compared as text, but leading zeros of integers do not count, so that the file
`0001234.npy` finds the integer 1234. Where two ids of the catalog differ by nothing else, objects
of that number are ambiguous and rejected. Vectorized, for millions of objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from msdata.catalog.columns import Catalog, missing_id_column, read_catalog
from msdata.errors import UsageError

__all__ = ["Catalog", "Joined", "join", "read_catalog"]

NO_ROW = "no row in the catalog"
NO_REDSHIFT = "no redshift in the catalog"
CONFLICT = "conflicting rows in the catalog"
AMBIGUOUS = "ambiguous id: rows of the catalog differ from each other by leading zeros alone"
ALIKE = "ambiguous id: another object's differs from it by leading zeros alone"

_Rows = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Joined:
    """Objects with their labels.

    Attributes:
        table: the candidates in their order, the catalog's columns, and `reason` (string): why
            the object is rejected, null where it is good.
        num_rejected: rows with a reason.
    """

    table: pa.Table
    num_rejected: int


def join(candidates: pa.Table, catalog: Catalog) -> Joined:
    """Gives each object its catalog row.

    Objects with a `catalog_row` are joined by that number, others by `sample_id`. Of objects with
    the same id the first is kept. Catalog rows of the same id count once where they are equal.

    Args:
        candidates: what `Source.scan` gave.
        catalog: what `read_catalog` gave.

    Returns:
        The labeled objects; rejected ones have a reason.

    Raises:
        UsageError: no object has a row in the catalog, or the catalog has no ids.
    """
    by_row = "catalog_row" in candidates.column_names
    if by_row:
        keys = candidates["sample_id"].combine_chunks()
        wanted = candidates["catalog_row"].to_numpy()
        rows = np.where((wanted >= 0) & (wanted < catalog.columns.num_rows), wanted, -1)
        conflicts = ambiguous = alike = np.zeros(len(rows), bool)
    else:
        if catalog.ids is None:
            raise missing_id_column(catalog)
        keys = without_zeros(_flat(candidates["sample_id"]))
        rows, conflicts, ambiguous = _match(keys, catalog.ids, catalog.columns)
        alike = _differ_by_zeros(keys, _flat(candidates["sample_id"]))
    if len(rows) and (rows < 0).all():
        raise _nothing_matches(candidates, catalog, by_row=by_row)
    row_of_each = pa.array(rows, pa.int64(), mask=rows < 0)
    labels = catalog.columns.take(row_of_each)
    reason = np.full(len(rows), None, object)
    if catalog.needs_redshift:
        has_redshift = pc.fill_null(pc.is_finite(labels["redshift"]), False).to_numpy()
        reason[~has_redshift] = NO_REDSHIFT
        _mark_doubted(catalog, row_of_each, reason)
    reason[conflicts] = CONFLICT
    reason[ambiguous] = AMBIGUOUS
    reason[rows < 0] = NO_ROW
    _mark_duplicates(_flat(keys), candidates["path"], reason)
    reason[alike] = ALIKE
    table = candidates
    for name in labels.column_names:
        table = table.append_column(name, labels[name])
    reasons = pa.array(reason, pa.string())
    return Joined(
        table=table.append_column("reason", reasons),
        num_rejected=len(reasons) - reasons.null_count,
    )


def _flat(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def without_zeros(ids: pa.Array) -> pa.Array:
    """Ids, of which those that are integers have lost their leading zeros.

    Args:
        ids: strings.
    """
    trimmed = pc.utf8_ltrim(ids, characters="0")
    values = pc.if_else(pc.equal(trimmed, ""), "0", trimmed)
    # One name among the numbers, such as a footer's, must not undo the join of all others.
    return pc.if_else(pc.ascii_is_decimal(ids), values, ids)


def first_of_each(keys: pa.Array) -> tuple[pa.Array, _Rows, _Rows]:
    """Distinct keys, the number of its key for each row (-1: null), the first row of each key."""
    encoded = keys.dictionary_encode()
    codes = pc.fill_null(pc.cast(encoded.indices, pa.int64()), -1).to_numpy()
    first = np.zeros(len(encoded.dictionary), np.int64)
    # Of several values written to one place the last stays: written backwards, the first row.
    backwards = np.flatnonzero(codes >= 0)[::-1]
    first[codes[backwards]] = backwards
    return encoded.dictionary, codes, first


def _differ_by_zeros(keys: pa.Array, ids: pa.Array) -> NDArray[np.bool_]:
    """Which objects share their key with an object of another id, such as 5 with 0000005."""
    distinct, codes, first = first_of_each(keys)
    later = np.flatnonzero(first[codes] != np.arange(len(codes)))
    differs = pc.not_equal(ids.take(later), ids.take(first[codes[later]]))
    is_alike = np.zeros(len(distinct), bool)
    is_alike[codes[later[differs.to_numpy(zero_copy_only=False)]]] = True
    return np.asarray(is_alike[codes])


def _match(
    keys: pa.Array, ids: pa.Array, columns: pa.Table
) -> tuple[_Rows, NDArray[np.bool_], NDArray[np.bool_]]:
    """Catalog row of each key (-1: none); whether its rows conflict; whether it is ambiguous."""
    distinct, codes, first = first_of_each(without_zeros(ids))
    found = pc.fill_null(pc.index_in(keys, value_set=distinct), -1).to_numpy().astype(np.int64)
    # The last of each is read for the key -1.
    is_contradicted, is_ambiguous = np.zeros((2, len(distinct) + 1), bool)
    repeated = np.flatnonzero(codes >= 0)
    repeated = repeated[first[codes[repeated]] != repeated]
    if repeated.size:
        firsts = first[codes[repeated]]
        differs = differ(columns.take(repeated), columns.take(firsts))
        is_contradicted[codes[repeated[differs]]] = True
        differs = pc.not_equal(ids.take(repeated), ids.take(firsts)).to_numpy(zero_copy_only=False)
        is_ambiguous[codes[repeated[differs]]] = True
    rows = np.where(found >= 0, np.append(first, -1)[found], -1)
    return rows, is_contradicted[found], is_ambiguous[found]


def differ(left: pa.Table, right: pa.Table) -> NDArray[np.bool_]:
    """Rows in which two tables differ; null and NaN equal themselves."""
    differs = np.zeros(left.num_rows, bool)
    for a, b in zip(left.columns, right.columns, strict=True):
        same: Any = pc.fill_null(pc.equal(a, b), False).to_numpy()
        both_absent: Any = pc.and_(
            pc.is_null(a, nan_is_null=True), pc.is_null(b, nan_is_null=True)
        ).to_numpy()
        differs |= ~(same | both_absent)
    return differs


def _mark_doubted(catalog: Catalog, rows: pa.Array, reason: NDArray[np.object_]) -> None:
    if catalog.doubted is None:
        return
    doubted = catalog.doubted.take(rows)
    places = np.flatnonzero(doubted.is_valid().to_numpy())
    low, high = catalog.redshift_range
    for place, value in zip(places.tolist(), doubted.drop_null().to_pylist(), strict=True):
        reason[place] = f"redshift {value:g} in the catalog is outside {low:g} to {high:g}"


def _mark_duplicates(keys: pa.Array, paths: pa.ChunkedArray, reason: NDArray[np.object_]) -> None:
    _, codes, first = first_of_each(keys)
    later = np.flatnonzero(first[codes] != np.arange(len(codes)))
    if later.size:
        kept = paths.take(first[codes[later]]).to_pylist()
        reason[later] = [f"duplicate id; {path} is kept" for path in kept]


def _nothing_matches(candidates: pa.Table, catalog: Catalog, *, by_row: bool) -> UsageError:
    if by_row:
        return UsageError(
            f"no object has a row in {catalog.path}: it has {catalog.columns.num_rows} rows, the "
            f"first object is of row {candidates['catalog_row'][0].as_py()}; give the catalog "
            "that the indices were made from"
        )
    example = catalog.ids[0].as_py() if catalog.ids is not None and len(catalog.ids) else None
    sample_id = candidates["sample_id"][0].as_py()
    return UsageError(
        f"no object has a row in {catalog.path}: an object is {sample_id!r}, "
        f"an id in column {catalog.id_column!r} is {example!r}; "
        "name the column that holds the objects' names with --id-column"
    )
