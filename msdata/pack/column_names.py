"""Names in the index and in a sample's JSON: msdata's own come first, others step aside.

A catalogue may have a column `shard`, an object's dict a number `redshift`; neither may replace
what the index means by that name, nor get lost.
"""

from __future__ import annotations

from collections.abc import Iterable

from msdata.dataset.index import BATCH_NAMES, check_names, fixed_columns
from msdata.schema import Schema

# Keys of the JSON member that are no columns, and what HDF5 shards call that member.
_JSON_NAMES = ("num_filled", "num_nan", "json")
# What else an array must not be called: HDF5's dataset of JSON, and the label of every batch.
_NOT_FOR_ARRAYS = ("json", "redshift")


def check_array_names(schema: Schema) -> None:
    """Refuses arrays that bear a name of the index or of a batch, which hold both by name.

    Raises:
        UsageError: there is one.
    """
    check_names(schema.names, _NOT_FOR_ARRAYS)


def _taken(schema: Schema) -> set[str]:
    return {*fixed_columns(schema), *BATCH_NAMES, *_JSON_NAMES, *schema.names}


def label_names(labels: Iterable[str], schema: Schema) -> dict[str, str]:
    """The index's name of each column of the catalogue."""
    return _free_names(labels, _taken(schema), "catalog_")


def scalar_names(schema: Schema, labels: Iterable[str]) -> dict[str, str]:
    """The index's name of each number in the objects' dicts.

    Args:
        schema: its `scalars` are what to name.
        labels: the catalogue's columns, as the index names them; the catalogue goes first.
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
