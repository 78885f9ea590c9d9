"""Decides once, before any pixel is read, which objects go where: labels, splits, shards.

The split of an object and its place in the order are functions of (seed, id) alone, so that neither
changes when objects are added, and both are the same for any number of processes.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from msdata.catalog.sky_cells import cell_names
from msdata.core.trusted_names import is_plain_name
from msdata.errors import DataError, UsageError
from msdata.pack.columns import label_names
from msdata.pack.settings import SPLIT_NAMES, PackSettings
from msdata.schema import Schema

if TYPE_CHECKING:
    import pyarrow as pa

    from msdata.catalog.join import Catalog

_SOURCE_COLUMNS = ("sample_id", "path", "row", "split", "catalog_row", "reason")


@dataclass(frozen=True, kw_only=True)
class ShardSlice:
    """One shard to write: rows [start, stop) of the candidates."""

    split: str
    name: str
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The objects in shard order, and those that are rejected already.

    Attributes:
        table: `sample_id`, `path`, `row`, `split` and the labels, shard after shard.
        slices: the shards.
        rejected: `sample_id`, `path`, `row`, `reason`.
        label_columns: names of the catalog's columns, in order.
        notes: remarks of the catalog reader.
    """

    table: pa.Table
    slices: tuple[ShardSlice, ...]
    rejected: pa.Table
    label_columns: tuple[str, ...]
    notes: tuple[str, ...]


def plan_candidates(
    objects: pa.Table,
    schema: Schema,
    settings: PackSettings,
    measure: Callable[[pa.Table, Sequence[str]], int],
    suffix: str,
) -> Candidates:
    """Joins labels, draws splits and order, and cuts the order into shards.

    Args:
        objects: the table that `Source.scan` returned.
        schema: the arrays of every object.
        settings: the settings of the pack.
        measure: gives the bytes of one sample in a shard, headers included, from the objects that
            are kept and the names of their labels' columns.
        suffix: that of shards' names.

    Raises:
        UsageError: the catalog does not fit, or lacks the split column.
        DataError: no object is left.
    """
    catalog = _read_catalog(settings)
    notes: tuple[str, ...] = () if catalog is None else catalog.notes
    if settings.arrays is not None:
        objects, found = _with_checked_labels(objects, settings, catalog)
        notes += found
    joined, label_columns = _join(objects, catalog)
    is_rejected = joined["reason"].is_valid()
    rejected = joined.filter(is_rejected).select(["sample_id", "path", "row", "reason"])
    import pyarrow.compute as pc

    kept = joined.filter(pc.invert(is_rejected)).drop_columns(["reason"])
    if kept.num_rows == 0:
        reason = rejected["reason"][0].as_py() if rejected.num_rows else "none found"
        raise DataError(f"no object of {settings.source} is usable; the first: {reason}")
    keys = hashed_ids(kept["sample_id"].to_pylist(), settings.seed)
    splits = _splits(kept, keys[:, 0], settings)
    names = label_names(label_columns, schema)
    kept = kept.rename_columns([names.get(n, n) for n in kept.column_names])
    per_shard = settings.samples_per_shard(kept.num_rows, measure(kept, tuple(names.values())))
    kept, slices = _place(kept, splits, keys[:, 1], per_shard, suffix)
    renamed = [f"column {a!r} is kept as {b!r}" for a, b in names.items() if a != b]
    return Candidates(
        table=kept,
        slices=slices,
        rejected=rejected,
        label_columns=tuple(names.values()),
        notes=(*notes, *renamed, *_axis_notes(schema)),
    )


def _axis_notes(schema: Schema) -> list[str]:
    return [
        f"array {a.name!r} ({'x'.join(map(str, a.shape))}) is stored unchanged, bands last; "
        "mstrain takes (bands, height, width): numpy.moveaxis(image, -1, 0)"
        for a in schema.arrays
        if a.has_bands_last
    ]


def _read_catalog(settings: PackSettings) -> Catalog | None:
    if settings.catalog is None:
        return None
    from msdata.catalog.join import read_catalog

    return read_catalog(
        settings.catalog,
        id_column=settings.id_column,
        redshift_column=settings.redshift_column,
        columns=None,
        needs_redshift=not settings.unlabelled,
        redshift_range=settings.redshift_range,
        ebv_range=settings.ebv_range,
    )


def _with_checked_labels(
    objects: pa.Table, settings: PackSettings, catalog: Catalog | None
) -> tuple[pa.Table, tuple[str, ...]]:
    """Names and ranges of a source's own labels as those of a catalog; its columns precede."""
    from msdata.catalog.columns import read_catalog

    own = objects.select([n for n in objects.column_names if n not in _SOURCE_COLUMNS])
    kept = objects.drop_columns(own.column_names)
    if not own.num_columns:
        return kept, ()
    labels = read_catalog(
        settings.source,
        table=own,
        redshift_column=settings.redshift_column if catalog is None else None,
        needs_redshift=False,
        redshift_range=settings.redshift_range,
        ebv_range=settings.ebv_range,
    )
    taken = () if catalog is None else catalog.columns.column_names
    for name, column in zip(labels.columns.column_names, labels.columns.columns, strict=True):
        if name not in taken:
            kept = kept.append_column(name, column)
    return kept, tuple(n for n in labels.notes if not n.startswith("ids are taken"))


def _join(objects: pa.Table, catalog: Catalog | None) -> tuple[pa.Table, tuple[str, ...]]:
    import pyarrow as pa

    if catalog is None:
        ids = objects["sample_id"].to_pylist()
        paths = objects["path"].to_pylist()
        reasons = _duplicates(ids, paths)
        # Packed data sets and files of arrays bring their columns along.
        labels = tuple(n for n in objects.column_names if n not in _SOURCE_COLUMNS)
        return objects.append_column("reason", pa.array(reasons, pa.string())), labels
    from msdata.catalog.join import join

    table = join(objects, catalog).table
    labels = tuple(n for n in table.column_names if n not in _SOURCE_COLUMNS)
    return table, labels


def _duplicates(ids: list[str], paths: list[str]) -> list[str | None]:
    first: dict[str, str] = {}
    reasons: list[str | None] = []
    for sample_id, path in zip(ids, paths, strict=True):
        kept = first.setdefault(sample_id, path)
        reasons.append(None if kept is path else f"duplicate id; {kept} is kept")
    return reasons


def hashed_ids(ids: list[str], seed: int) -> NDArray[np.uint64]:
    """uint64 (ids, 2): one word for the split, one for the order; BLAKE2b keyed by the seed."""
    keyed = hashlib.blake2b(digest_size=16, key=seed.to_bytes(8, "little"))
    digests = bytearray()
    for sample_id in ids:
        one = keyed.copy()
        one.update(sample_id.encode())
        digests += one.digest()
    return np.frombuffer(digests, "<u8").reshape(-1, 2)


def _splits(table: pa.Table, keys: NDArray[np.uint64], settings: PackSettings) -> list[str]:
    if settings.split_column is not None:
        return _splits_of_column(table, settings.split_column)
    if "split" in table.column_names:
        option = "--split-by" if settings.split_by != "id" else "--split"
        if option == "--split-by" or settings.split_fractions != PackSettings.split_fractions:
            raise UsageError(
                f"{option}: the objects of {settings.source} are split already, by their folders "
                "or names; leave it out, or name a --split-column"
            )
        return list(map(str, table["split"].to_pylist()))
    if settings.split_by == "sky":
        # All objects of a cell have the cell's key.
        keys = hashed_ids(cell_names(table), settings.seed)[:, 0]
    edges = np.cumsum(settings.split_fractions)[:-1]
    numbers = np.searchsorted(edges, keys.astype(np.float64) * 2.0**-64, side="right")
    return [SPLIT_NAMES[number] for number in numbers.tolist()]


def _splits_of_column(table: pa.Table, column: str) -> list[str]:
    # The join renames a catalog's own `split`: the name is taken by the index.
    name = next((n for n in (column, f"catalog_{column}") if n in table.column_names), None)
    if name is None:
        known = [n for n in table.column_names if n not in _SOURCE_COLUMNS]
        raise UsageError(f"the catalog has no column {column!r}; it has {', '.join(known)}")
    values = table[name].to_pylist()
    for value in set(values):
        is_word = str(value).replace("-", "_").isidentifier() and is_plain_name(str(value))
        if value is None or not is_word:
            raise UsageError(
                f"column {column!r} holds {value!r}, which cannot name a split's folder; use "
                "words such as train, val, test"
            )
    return [str(value) for value in values]


def _place(
    table: pa.Table,
    splits: list[str],
    keys: NDArray[np.uint64],
    samples_per_shard: int,
    suffix: str,
) -> tuple[pa.Table, tuple[ShardSlice, ...]]:
    """Sorts by (split, key) and cuts each split into shards of equal size."""
    import pyarrow as pa

    # Known names in their usual order, then others by name.
    names = sorted(set(splits), key=lambda n: (_known_place(n), n))
    numbers = np.array([names.index(n) for n in splits]) if len(names) > 1 else np.zeros(len(keys))
    # Ids break ties, should two keys ever be equal: the table is sorted by id, the sort is stable.
    order = np.lexsort((keys, numbers))
    slices: list[ShardSlice] = []
    start = 0
    for number, name in enumerate(names):
        count = int(np.count_nonzero(numbers == number))
        num_shards = -(-count // samples_per_shard)
        edges = start + count * np.arange(num_shards + 1) // num_shards
        slices += (
            ShardSlice(split=name, name=f"shard-{i:06d}{suffix}", start=a, stop=b)
            for i, (a, b) in enumerate(itertools.pairwise(edges.tolist()))
        )
        start += count
    placed = table.drop_columns(["split"]) if "split" in table.column_names else table
    placed = placed.append_column("split", pa.array(splits, pa.string()))
    return placed.take(pa.array(order)), tuple(slices)


def _known_place(name: str) -> int:
    return SPLIT_NAMES.index(name) if name in SPLIT_NAMES else len(SPLIT_NAMES)
