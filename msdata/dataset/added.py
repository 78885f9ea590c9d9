"""Columns that were added to a packed data set: side tables with the rows of the index.

`columns.json` names them, with their SHA-256 and the fingerprint of the data set that they belong
to; each is a Parquet file beside the index, with the same rows in the same row groups, `sample_id`
first. So they are read as the index is, and neither the index nor `dataset.json` changes: caches,
statistics and trained runs stay those of the same samples.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from msdata.core.checked_json import Count, Within, open_regular, read_json
from msdata.core.checked_table import check_table, open_table, read_whole, reading
from msdata.core.files import storage_error, write_whole
from msdata.core.trusted_names import is_plain_name
from msdata.dataset.manifest import Manifest, fingerprint_of
from msdata.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

REGISTRY_NAME = "columns.json"
# Name in the metadata of a side table, so that only our own files are replaced.
MARK = b"msdata index add"
ID = "sample_id"
_CURE = f"restore it, or delete {REGISTRY_NAME} and add the columns again with 'msdata index add'"


@dataclass(frozen=True, kw_only=True)
class AddedTable:
    """A side table's entry in `columns.json`.

    Attributes:
        name: its file's.
        sha256: SHA-256 of that file.
        columns: names of its columns, without `sample_id`.
        source: name of the file that they came from.
        num_missing: samples that had no row there, whose values are null.
    """

    name: Annotated[str, Within(1, 255)]
    sha256: Annotated[str, Within(64, 64)]
    columns: tuple[str, ...]
    source: str
    num_missing: Count


@dataclass(frozen=True, kw_only=True)
class _Registry:
    format: Literal["msdata columns"] = "msdata columns"
    fingerprint: str
    tables: tuple[AddedTable, ...]


def read_added(folder: Path, manifest: Manifest) -> tuple[AddedTable, ...]:
    """The side tables of a data set; empty if it has none.

    Raises:
        DataError: `columns.json` is damaged, or of another data set.
        StorageError: the file system refused.
    """
    path = folder / REGISTRY_NAME
    try:
        found = read_json(path, cure=_CURE, has_paths=True)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    registry: _Registry = found.read_as(_Registry)
    if registry.fingerprint != manifest.fingerprint:
        raise DataError(
            f"{path} is of data set {registry.fingerprint}, this is {manifest.fingerprint}: its "
            f"columns belong to other samples; {_CURE}"
        )
    names = [name for table in registry.tables for name in table.columns]
    for table in registry.tables:
        if not is_plain_name(table.name) or not table.name.endswith(".parquet"):
            found["tables"].refuse("tables whose names are plain and end in .parquet")
        if len({*names}) != len(names) or ID in names or not table.columns:
            found["tables"].refuse("tables of distinct columns")
    return registry.tables


def write_added(folder: Path, manifest: Manifest, tables: Sequence[AddedTable]) -> None:
    """Writes `columns.json`; the side tables are there before.

    Raises:
        StorageError: the file system refused.
    """
    registry = _Registry(fingerprint=manifest.fingerprint, tables=tuple(tables))
    write_whole(folder / REGISTRY_NAME, json.dumps(asdict(registry), indent=1).encode() + b"\n")


def added_fingerprint(tables: Sequence[AddedTable]) -> str | None:
    """Sixteen hexadecimal digits that identify the added columns; None for none."""
    if not tables:
        return None
    return fingerprint_of({"tables": [[t.sha256, list(t.columns)] for t in tables]})


class JoinedTable:
    """The index and its side tables, read as one Parquet file.

    Args:
        folder: the data set.
        manifest: its manifest.
        index: the open index.

    Attributes:
        metadata: the index's; the row groups of all are alike.
        schema_arrow: columns of all.
        added: the side tables' entries.

    Raises:
        DataError: a side table is missing, altered, or of other rows, or a name is there twice.
        StorageError: the file system refused.
    """

    def __init__(self, folder: Path, manifest: Manifest, index: pq.ParquetFile) -> None:
        import pyarrow as pa

        self.metadata = index.metadata
        self.added = read_added(folder, manifest)
        self._index = index
        self._sides: list[tuple[Path, pq.ParquetFile, AddedTable]] = []
        # Arrow rebuilds a schema per access, which is slow for thousands of columns.
        schema = index.schema_arrow
        fields = list(schema)
        taken = {*schema.names}
        for table in self.added:
            path = folder / table.name
            check_added(path, table)
            file = open_table(path, {ID: "text"}, cure=_CURE, num_rows=manifest.num_samples)
            found = file.schema_arrow
            if [*found.names] != [ID, *table.columns] or taken & {*table.columns}:
                raise DataError(
                    f"{path} must have the columns {', '.join((ID, *table.columns))}, which the "
                    f"index does not have, got {', '.join(found.names[:20])}; {_CURE}"
                )
            if group_sizes(file) != group_sizes(index):
                raise DataError(f"{path} must have the row groups of the index; {_CURE}")
            taken |= {*table.columns}
            fields += [found.field(name) for name in table.columns]
            self._sides.append((path, file, table))
        self.schema_arrow = pa.schema(fields) if self._sides else schema

    def read_row_groups(
        self, groups: Sequence[int], columns: Sequence[str] | None = None, **options: Any
    ) -> pa.Table:
        """Reads row groups, as `pyarrow.parquet.ParquetFile` does."""
        import pyarrow as pa

        wanted = self.schema_arrow.names if columns is None else list(columns)
        if not self._sides:
            return self._index.read_row_groups(list(groups), columns=wanted, **options)
        own = [name for name in self._index.schema_arrow.names if name in wanted]
        num_rows = sum(self.metadata.row_group(group).num_rows for group in groups)
        parts: dict[str, Any] = {}
        if own:
            found = self._index.read_row_groups(list(groups), columns=own, **options)
            parts = dict(zip(found.column_names, found.columns, strict=True))
        for path, file, table in self._sides:
            names = [name for name in table.columns if name in wanted]
            if not names:
                continue
            with reading(path, _CURE):
                read = file.read_row_groups(list(groups), columns=names, **options)
                read.validate(full=True)
            check_table(read, path, (), cure=_CURE, num_rows=num_rows)
            parts |= dict(zip(read.column_names, read.columns, strict=True))
        return pa.table({name: parts[name] for name in wanted})


def check_added(path: Path, table: AddedTable) -> None:
    """Refuses a side table that is missing or altered.

    Raises:
        DataError: it is either.
        StorageError: the file system refused.
    """
    try:
        with open_regular(path, _CURE) as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            f"{path} is missing, with the added columns {', '.join(table.columns)}; {_CURE}"
        ) from None
    except OSError as error:
        raise storage_error("read", path, error) from error
    if found != table.sha256:
        raise DataError(
            f"{path} was altered or truncated, with the added columns "
            f"{', '.join(table.columns)}: SHA-256 {found[:16]}..., expected "
            f"{table.sha256[:16]}...; {_CURE}"
        )


def read_ids(path: Path) -> pa.ChunkedArray:
    """The `sample_id` of each row of a side table.

    Raises:
        DataError: the file is damaged.
    """
    return read_whole(path, {ID: "text"}, cure=_CURE)[ID]


def group_sizes(file: Any) -> list[int]:
    """Rows of each row group of an open Parquet file."""
    return [file.metadata.row_group(g).num_rows for g in range(file.metadata.num_row_groups)]
