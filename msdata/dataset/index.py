"""`index.parquet`: one row per sample, in the order of splits, shards and positions in the shard.

Every index has the columns `sample_id` (string), `split` (string), `shard` (int32, number within
the split), `offset_{array}` (int64, first byte of the array in the shard), `nbytes` (int64, all
arrays), `crc32c` (uint32, over the arrays in the schema's order), `missing_bands` (string,
such as "galex.NUV,galex.FUV"), `filled_{array}` and `nan_{array}` (int32, pixels). Then follow
the numbers of the objects' dicts and the catalog's columns, such as `redshift`.

In a coded data set `nbytes` and `crc32c` are of the stored bytes; `nbytes_{array}` (int64) are
those of each array, `decoded_crc32c` (uint32) is over the decoded arrays, and each quantized array
has `dtype_{array}` (string, dtype of its codes) and `step_{array}` (list of float32, one per band).
"""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.checked_json import open_regular
from msdata.core.checked_table import check_table, open_table, reading
from msdata.core.files import whole_file
from msdata.dataset import INDEX_NAME
from msdata.dataset.added import AddedTable, JoinedTable, group_sizes
from msdata.dataset.arrow_values import arrow_values, cast_exactly
from msdata.dataset.coded_columns import coding_columns, coding_kinds, possible_columns
from msdata.dataset.coding import ArrayCoding
from msdata.dataset.manifest import Manifest
from msdata.errors import DataError, UsageError
from msdata.schema import Schema

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FILE_NAME = INDEX_NAME
# Small enough to read one split without its neighbors, large enough for fast columns.
_ROW_GROUP_ROWS = 1 << 17
_CURE = "restore it or pack again"
# Names in a batch besides arrays and columns: `Loader(remainder="pad")` and `Loader(weights=...)`.
BATCH_NAMES = ("is_real", "repeat")


def fixed_columns(schema: Schema, codings: Sequence[ArrayCoding] = ()) -> tuple[str, ...]:
    """Names the columns of every index with this schema and coding, in order."""
    return _index_columns(schema.names) + coding_columns(codings)


def _index_columns(arrays: Sequence[str]) -> tuple[str, ...]:
    return (
        "sample_id",
        "split",
        "shard",
        *(f"offset_{name}" for name in arrays),
        "nbytes",
        "crc32c",
        "missing_bands",
        *(f"filled_{name}" for name in arrays),
        *(f"nan_{name}" for name in arrays),
    )


def _kinds(manifest: Manifest) -> dict[str, str]:
    """Returns the kind of each of the `fixed_columns`, for `open_table`."""
    texts = ("sample_id", "split", "missing_bands")
    kinds = {n: "text" if n in texts else "integer" for n in fixed_columns(manifest.schema)}
    return kinds | coding_kinds(manifest.codings)


def write_index(
    folder: Path, table: pa.Table, schema: Schema, codings: Sequence[ArrayCoding] = ()
) -> str:
    """Writes `index.parquet`, whole or not at all.

    Args:
        folder: the data set.
        table: one row per sample with the columns of `fixed_columns(schema, codings)` and any
            others, in the order of splits, shards and samples.
        schema: the arrays of every sample.
        codings: how a coded data set stores them.

    Returns:
        SHA-256 of the file, for the manifest.

    Raises:
        UsageError: a column is missing, or the rows of a split or shard are not contiguous.
        StorageError: the file system refused.
    """
    found = set(table.column_names)
    missing = [name for name in fixed_columns(schema, codings) if name not in found]
    if missing:
        raise UsageError(f"the index must have the columns {', '.join(missing)}")
    parts = split_rows(table)
    shards = table.column("shard").to_numpy()
    if any(bool((np.diff(shards[start:stop]) < 0).any()) for _, start, stop in parts):
        raise UsageError("the index's rows must stand shard by shard within a split")
    path = folder / FILE_NAME
    write_table(path, table, parts)
    return file_sha256(path)


def split_rows(table: pa.Table) -> list[tuple[str, int, int]]:
    """Finds the rows [start, stop) of each split, in order.

    Raises:
        UsageError: the rows of a split are not contiguous.
    """
    encoded = table.column("split").combine_chunks().dictionary_encode()
    codes = np.asarray(encoded.indices)
    starts = [0, *(np.flatnonzero(np.diff(codes)) + 1).tolist()] if len(codes) else []
    stops = [*starts[1:], len(codes)]
    names = [encoded.dictionary[int(codes[start])].as_py() for start in starts]
    if len(set(names)) != len(names):
        raise UsageError("the index's rows must stand split by split")
    return list(zip(names, starts, stops, strict=True))


def write_table(path: Path, table: pa.Table, parts: Sequence[tuple[str, int, int]]) -> None:
    """Writes a Parquet file in which no row group crosses the end of a part."""
    import pyarrow.parquet as pq

    dictionaries = [f.name for f in table.schema if str(f.type) in ("string", "large_string")]
    dictionaries = [name for name in dictionaries if name != "sample_id"]
    with (
        whole_file(path) as file,
        pq.ParquetWriter(
            file,
            table.schema,
            compression="zstd",
            use_dictionary=dictionaries,
            write_page_checksum=True,
        ) as writer,
    ):
        for _, start, stop in parts:
            for first in range(start, stop, _ROW_GROUP_ROWS):
                count = min(_ROW_GROUP_ROWS, stop - first)
                writer.write_table(table.slice(first, count), row_group_size=_ROW_GROUP_ROWS)


def sources_sha256(table: pa.Table) -> str:
    """Computes the checksum of `sources.parquet` for `dataset.json`.

    Leaves out the path of the packed folder: a data set's fingerprint must not depend on it.

    Args:
        table: columns `sample_id` and `path` (text) and `row` (integers).
    """
    import pyarrow as pa

    digest = hashlib.sha256()
    for name in ("sample_id", "path", "row"):
        for text in table[name].cast(pa.large_string()).to_pylist():
            digest.update((b"\xff" if text is None else text.encode()) + b"\0")
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    """Computes the SHA-256 of a file, as hexadecimal digits; raises as `open_regular`."""
    with open_regular(path, _CURE) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_rows(
    file: pq.ParquetFile, start: int, stop: int, columns: Sequence[str] | None = None
) -> pa.Table:
    """Reads rows [start, stop) of a Parquet file, from the row groups that hold them.

    Args:
        file: the open file.
        start: first row.
        stop: the row after the last.
        columns: names of columns; None for all.
    """
    groups: list[int] = []
    first = before = 0
    for group in range(file.metadata.num_row_groups):
        after = before + file.metadata.row_group(group).num_rows
        if before < stop and start < after:
            first = before if not groups else first
            groups.append(group)
        before = after
    names = None if columns is None else list(columns)
    return file.read_row_groups(groups, columns=names).slice(start - first, stop - start)


def check_names(arrays: Sequence[str], columns: Iterable[str] = ()) -> None:
    """Refuses arrays whose name a batch, a sample or the index uses for something else.

    Args:
        arrays: names of a sample's arrays.
        columns: other names in use, such as the catalog's columns.

    Raises:
        UsageError: an array has a reserved name or the name of a column.
    """
    taken = {*_index_columns(arrays), *possible_columns(arrays), *BATCH_NAMES, *columns}
    for name in arrays:
        if name in taken:
            raise UsageError(
                f"array {name!r} has a name that the index or a batch uses for something else; "
                "rename it in the objects and pack them again"
            )


class IndexFile:
    """The open index: reads columns on demand, one split per read.

    Args:
        folder: the data set.
        manifest: its manifest, which the index must agree with.
        is_verified: the caller has compared its checksum with the manifest's already.
        has_added: read the columns of `msdata index add`, too.

    Attributes:
        path: the file.
        added: entries of the side tables.
        group_sizes: rows of each row group.

    Raises:
        DataError: a file is missing, damaged, or belongs to another data set.
        StorageError: the file system refused.
    """

    def __init__(
        self, folder: Path, manifest: Manifest, *, is_verified: bool = False, has_added: bool = True
    ) -> None:
        self.path = folder / FILE_NAME
        try:
            # Before Arrow parses it: 0.03 s per million rows.
            if not is_verified:
                self._check_sha256(manifest.index_sha256)
            file = open_table(
                self.path, _kinds(manifest), cure=_CURE, num_rows=manifest.num_samples
            )
        except (FileNotFoundError, NotADirectoryError):
            raise DataError(f"{self.path} is missing; {_CURE}") from None
        self._file = JoinedTable(folder, manifest, file) if has_added else file
        self.added: tuple[AddedTable, ...] = self._file.added if has_added else ()
        # Arrow rebuilds it per access, which is slow for thousands of columns.
        self._schema = self._file.schema_arrow
        # Reads of one file by several threads at once end the process.
        self._lock = threading.Lock()
        self._fixed = frozenset(fixed_columns(manifest.schema, manifest.codings))
        self.group_sizes = group_sizes(file)
        self._row_groups = self._split_row_groups(manifest)
        self._last_group: tuple[int, Any] = (-1, None)

    def _check_sha256(self, expected: str) -> None:
        with reading(self.path, _CURE):
            found = file_sha256(self.path)
        if found != expected:
            raise DataError(
                f"{self.path} was altered or truncated: SHA-256 {found[:16]}..., expected "
                f"{expected[:16]}...; {_CURE}"
            )

    def _checked(self, read: Callable[[], pa.Table], num_rows: int) -> pa.Table:
        with self._lock, reading(self.path, _CURE):
            table = read()
            # Validates texts too: invalid UTF-8 would fail later, far from here.
            table.validate(full=True)
        fixed = [name for name in table.column_names if name in self._fixed]
        check_table(table, self.path, fixed, cure=_CURE, num_rows=num_rows)
        return table

    def _read_groups(
        self, groups: Sequence[int], columns: Sequence[str], *, use_threads: bool = True
    ) -> pa.Table:
        read = functools.partial(
            self._file.read_row_groups, list(groups), list(columns), use_threads=use_threads
        )
        return self._checked(read, sum(self.group_sizes[g] for g in groups))

    @property
    def column_names(self) -> list[str]:
        """Names of all columns, in order."""
        return list(self._schema.names)

    def _split_row_groups(self, manifest: Manifest) -> dict[str, list[int]]:
        sizes = dict.fromkeys(manifest.splits, 0)
        for shard in manifest.shards:
            sizes[shard.split] += shard.num_samples
        groups: dict[str, list[int]] = {}
        numbers = iter(range(len(self.group_sizes)))
        for name, left in sizes.items():
            groups[name] = []
            while left > 0 and (group := next(numbers, None)) is not None:
                left -= self.group_sizes[group]
                groups[name].append(group)
            if left:
                raise DataError(
                    f"{self.path}: a row group must end with the rows of split {name!r}; write the "
                    "index with msdata.dataset.index.write_index"
                )
        return groups

    def check_columns(self, names: Sequence[str]) -> None:
        """Raises UsageError unless all `names` are columns."""
        unknown = [name for name in names if name not in self.column_names]
        if unknown:
            raise UsageError(
                f"{self.path} has no column {', '.join(unknown)}; it has "
                f"{', '.join(self.column_names)}"
            )

    def read(self, split: str, columns: Sequence[str]) -> pa.Table:
        """Reads columns of one split, in the order of its samples."""
        self.check_columns(columns)
        return self._read_groups(self._row_groups[split], columns)

    def read_rows(self, start: int, stop: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads rows [start, stop) of the whole table, from the row groups that hold them."""
        return self._checked(lambda: read_rows(self._file, start, stop, columns), stop - start)

    def read_all(self) -> pa.Table:
        """Reads the whole table."""
        return self._read_groups(range(len(self.group_sizes)), self.column_names)

    def read_numbers(self, split: str, column: str, dtype: Any) -> NDArray[Any]:
        """Reads one column of one split as an array, group by group to keep memory low.

        Nulls become NaN in a float dtype.

        Raises:
            UsageError: the column holds no numbers, or the dtype cannot hold a value.
            DataError: likewise, if every index has this column.
        """
        self.check_columns([column])
        kind = np.dtype(dtype)
        values = np.empty(sum(self.group_sizes[g] for g in self._row_groups[split]), dtype)
        start = 0
        for part in self.column_parts(split, column):
            try:
                values[start : start + len(part)] = cast_exactly(arrow_values(part), kind)
            except UsageError as error:
                if column in self._fixed:
                    raise DataError(
                        f"{self.path} is damaged: column {column!r} {error}; {_CURE}"
                    ) from None
                raise UsageError(f"{self.path}: column {column!r} {error}") from None
            start += len(part)
        return values

    def column_type(self, column: str) -> pa.DataType:
        """Returns Arrow's type of a column."""
        self.check_columns([column])
        return self._schema.field(column).type

    def column_parts(self, split: str, column: str) -> Iterator[pa.Array]:
        """Yields one column of one split by row groups, so that memory never holds it twice.

        Raises:
            DataError: the index is damaged.
        """
        self.check_columns([column])
        for group in self._row_groups[split]:
            table = self._read_groups([group], [column], use_threads=False)
            yield table.column(0).combine_chunks()

    def read_value(self, split: str, row: int, column: str) -> Any:
        """Reads one value, for error messages: they need one and may lack memory for more."""
        group, row = self._group_and_row(split, row)
        return self._read_groups([group], [column], use_threads=False).column(0)[row].as_py()

    def _group_and_row(self, split: str, row: int) -> tuple[int, int]:
        for group in self._row_groups[split]:
            if row < self.group_sizes[group]:
                return group, row
            row -= self.group_sizes[group]
        raise IndexError(f"row {row} past the end of split {split!r}")

    def read_row(self, split: str, row: int) -> dict[str, Any]:
        """Reads one row of a split; keeps the last row group in memory."""
        group, row = self._group_and_row(split, row)
        number, table = self._last_group
        if number != group:
            table = self._read_groups([group], self.column_names, use_threads=False)
            self._last_group = (group, table)
        columns = zip(table.column_names, table.columns, strict=True)
        return {name: column[row].as_py() for name, column in columns}
