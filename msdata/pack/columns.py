"""Columns of the index that a pack finds: their names, and the numbers of the objects' dicts.

msdata's own names come first and others step aside: a catalog may have a column `shard`, an
object's dict a number `redshift`; neither may replace what the index means by that name, nor get
lost.

Integers are never rounded. A shard's note keeps integers and floats apart, because the type of the
whole column is known only when all shards are packed: one object with NaN or 1.5 must not turn the
ids of all others into doubles.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from msdata.dataset.coded_columns import possible_columns
from msdata.dataset.index import BATCH_NAMES, check_names, fixed_columns
from msdata.schema import Schema

if TYPE_CHECKING:
    import pyarrow as pa

# Keys of the JSON member that are not columns, and the name of that member in HDF5 shards.
_JSON_NAMES = ("num_filled", "num_nan", "json")
# Other names that arrays cannot have: HDF5's dataset of JSON, and the label of every batch.
_NOT_FOR_ARRAYS = ("json", "redshift")


def check_array_names(schema: Schema) -> None:
    """Refuses arrays with a name that the index or a batch already uses.

    Raises:
        UsageError: an array has such a name.
    """
    check_names(schema.names, _NOT_FOR_ARRAYS)


def _taken(schema: Schema) -> set[str]:
    return {
        *fixed_columns(schema),
        *possible_columns(schema.names),
        *BATCH_NAMES,
        *_JSON_NAMES,
        *schema.names,
    }


def label_names(labels: Iterable[str], schema: Schema) -> dict[str, str]:
    """The index's name of each column of the catalog."""
    return _free_names(labels, _taken(schema), "catalog_")


def scalar_names(schema: Schema, labels: Iterable[str]) -> dict[str, str]:
    """The index's name of each number in the objects' dicts.

    Args:
        schema: its `scalars` are the names to map.
        labels: the catalog's columns, as the index names them; they take precedence.
    """
    return _free_names(schema.scalars, _taken(schema) | {*labels}, "object_")


def _free_names(names: Iterable[str], taken: set[str], prefix: str) -> dict[str, str]:
    free: dict[str, str] = {}
    for name in names:
        # HDF5 takes a slash for a folder.
        candidate = name.replace("/", "_").strip(".") or "unnamed"
        while candidate in taken:
            candidate = prefix + candidate
        taken.add(candidate)
        free[name] = candidate
    return free


# Doubles hold every integer up to here.
_MAX_EXACT = 1 << 53
_MAX_INT64 = (1 << 63) - 1


def split_numbers(values: Sequence[float | int | None]) -> pa.StructArray:
    """Separates integers from other numbers.

    Args:
        values: floats, integers of -2^63 to 2^64 - 1, None.

    Returns:
        Structs of `whole` (int64), `large` (uint64, above 2^63 - 1) and `other` (float64); each
        number is in one of them, and null in the others.
    """
    import pyarrow as pa

    is_whole = [isinstance(value, int) for value in values]
    marked = list(zip(values, is_whole, strict=True))
    whole = [v if w and v <= _MAX_INT64 else None for v, w in marked]  # type: ignore[operator]
    large = [v if w and v > _MAX_INT64 else None for v, w in marked]  # type: ignore[operator]
    other = [None if w else v for v, w in marked]
    return pa.StructArray.from_arrays(
        [pa.array(whole, pa.int64()), pa.array(large, pa.uint64()), pa.array(other, pa.float64())],
        names=["whole", "large", "other"],
    )


def join_numbers(column: pa.ChunkedArray) -> tuple[pa.Array, int]:
    """Joins the numbers of all shards into one column.

    Integers stay integers, with null for NaN, if the column holds nothing else or if one is too
    large for a double. If more numbers are not integers, the large integers become null instead.

    Args:
        column: results of `split_numbers`, shard after shard.

    Returns:
        int64, uint64 or float64; and how many numbers are null because they do not fit.
    """
    import pyarrow as pa

    parts = {name: _field(column, name) for name in ("whole", "large", "other")}
    (whole, is_whole), (large, is_large), (other, is_other) = parts.values()
    if not is_whole.any() and not is_large.any():
        return pa.array(other, mask=~is_other), 0
    is_big = is_large | (whole > _MAX_EXACT) | (whole < -_MAX_EXACT)
    fits = is_other & (np.floor(other) == other) & (np.abs(other) <= _MAX_EXACT)
    is_left_out = is_other & ~fits & ~np.isnan(other)
    as_doubles = is_other.any() and np.count_nonzero(is_left_out) > np.count_nonzero(is_big)
    if as_doubles or (is_other.any() and not is_big.any()):
        values = np.where(is_whole, whole.astype(np.float64), other)
        is_number = (is_whole | is_other) & ~is_big
        return pa.array(values, mask=~is_number), int(np.count_nonzero(is_big))
    whole = np.where(fits, np.where(fits, other, 0).astype(np.int64), whole)
    is_whole = is_whole | fits
    is_negative = is_whole & (whole < 0)
    num_left_out = int(np.count_nonzero(is_left_out))
    if np.count_nonzero(is_large) <= np.count_nonzero(is_negative):
        return pa.array(whole, mask=~is_whole), num_left_out + int(np.count_nonzero(is_large))
    values = np.where(is_large, large, np.where(is_negative, 0, whole).astype(np.uint64))
    is_number = is_large | (is_whole & ~is_negative)
    return pa.array(values, mask=~is_number), num_left_out + int(np.count_nonzero(is_negative))


def _field(column: pa.ChunkedArray, name: str) -> tuple[Any, Any]:
    """Values, and the mask of rows that have one."""
    import pyarrow as pa

    arrays = [chunk.field(name) for chunk in column.chunks]
    joined = pa.concat_arrays(arrays)
    is_there = joined.is_valid().to_numpy(zero_copy_only=False)
    return joined.fill_null(0).to_numpy(zero_copy_only=False), is_there
