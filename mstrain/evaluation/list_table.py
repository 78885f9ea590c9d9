"""Tables with a list of numbers in every row: densities, embeddings.

Each rank spools its own lists to the disk and the first joins them, so that memory holds the
table's other columns only; readers take one part of the rows after the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from msdata.core.checked_json import JsonValue
from msdata.core.checked_table import check_table, file_metadata, open_table, reading
from msdata.core.files import TEMPORARY_SUFFIX, open_known, storage_error, take_lock, whole_file
from msdata.dataset.dataset import Split
from msdata.errors import DataError, UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from mstrain.distributed import Ranks

METADATA_KEY = b"mstrain"
# Rows of a group: 50 MB of densities of 400 bins.
_GROUP_ROWS = 32_768


@dataclass(frozen=True, kw_only=True)
class Spooled:
    """What one rank left on the disk.

    Attributes:
        path: file of values, row by row.
        rows: int64 (n,), the row in the table of each.
    """

    path: Path
    rows: NDArray[np.int64]


class Spool:
    """Writes lists of one rank to a file beside the table to be; a context manager.

    Args:
        table: the table's file.
        rank: rank of this process.
        num_values: values of each row's list.
        dtype: their type.
    """

    def __init__(
        self, table: Path, rank: int, num_values: int, dtype: DTypeLike = np.float32
    ) -> None:
        self.path = _spool_path(table, f"{rank:05d}")
        self._table, self._rank = table, rank
        self.num_values, self.dtype = num_values, np.dtype(dtype)
        self._file: Any = None

    def open(self) -> None:
        """Makes the file; the first rank does so before the others, and keeps a second job out.

        Raises:
            UsageError: another job is writing the same table.
            StorageError: the file system refused.
        """
        try:
            self._file = os.fdopen(open_known(self.path, os.O_RDWR | os.O_APPEND), "ab")
            if not take_lock(self._file.fileno()):
                self._file.close()
                self._file = None
                raise UsageError(
                    f"another job is writing {self._table}; wait for it, or give another place"
                )
            self._file.truncate(0)
        except OSError as error:
            raise storage_error("write", self.path, error) from error
        if self._rank == 0:
            # Left over from a job that was killed.
            for path in self._table.parent.glob(_spool_path(self._table, "*").name):
                if path != self.path:
                    path.unlink(missing_ok=True)

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *of_error: object) -> None:
        if self._file is None:
            return
        self.path.unlink(missing_ok=True)
        # What a full disk no longer takes is thrown away all the same.
        with suppress(OSError):
            self._file.close()

    def add(self, values_NK: NDArray[Any]) -> None:
        """Appends lists, (N, K) in the spool's type.

        Raises:
            StorageError: the disk is full, or gone.
        """
        assert values_NK.dtype == self.dtype
        assert values_NK.shape[1] == self.num_values
        try:
            self._file.write(np.ascontiguousarray(values_NK).data)
        except OSError as error:
            raise storage_error("write", self.path, error) from error

    def finish(self, rows: NDArray[np.int64]) -> Spooled:
        """Makes what was added readable to the first rank, on whatever node.

        Args:
            rows: int64 (n,), the row in the table of each list that was added.

        Raises:
            StorageError: the disk is full, or gone.
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise storage_error("write", self.path, error) from error
        return Spooled(path=self.path, rows=rows)


@contextmanager
def opened_spool(
    table: Path, ranks: Ranks, num_values: int, dtype: DTypeLike = np.float32
) -> Iterator[Spool]:
    """This rank's open `Spool`; the first rank opens its own before the others; see `open`."""
    with Spool(table, ranks.topology.rank, num_values, dtype) as spool:
        ranks.on_first(spool.open)
        if not ranks.is_first:
            spool.open()
        yield spool


def _spool_path(table: Path, rank: str) -> Path:
    return table.with_name(f".{table.name}.rank{rank}{TEMPORARY_SUFFIX}")


class SpooledRows:
    """The lists of all ranks by their rows in the table.

    Args:
        parts: files of all ranks; every row of the table is in one of them.
        num_rows: rows of the table.
        num_values: values of each list.
        dtype: their type.

    Raises:
        DataError: a row is missing, or there twice.
    """

    def __init__(
        self,
        parts: Sequence[Spooled],
        num_rows: int,
        num_values: int,
        dtype: DTypeLike = np.float32,
    ) -> None:
        self._part = np.full(num_rows, -1, np.int64)
        self._place = np.zeros(num_rows, np.int64)
        self._maps = [_mapped(part, num_values, np.dtype(dtype)) for part in parts]
        self.num_values, self.dtype = num_values, np.dtype(dtype)
        for number, part in enumerate(parts):
            self._part[part.rows] = number
            self._place[part.rows] = np.arange(len(part.rows))
        num_given = sum(len(part.rows) for part in parts)
        num_found = int((self._part >= 0).sum())
        if num_given != num_rows or num_found != num_rows:
            raise DataError(
                f"the ranks gave {num_given} rows, {num_found} different ones, for {num_rows} "
                "samples; this is a fault of mstrain, please report it"
            )

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """The lists of rows, (n, K)."""
        found = np.empty((len(rows), self.num_values), self.dtype)
        part = self._part[rows]
        for number, mapped in enumerate(self._maps):
            here = part == number
            found[here] = mapped[self._place[rows[here]]]
        return found


def _mapped(part: Spooled, num_values: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    if not len(part.rows):
        return np.zeros((0, num_values), dtype)
    try:
        return np.memmap(part.path, dtype, "r", shape=(len(part.rows), num_values))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{part.path} of another rank cannot be read here ({error}); write the table "
            "to a folder that all nodes see"
        ) from error


def with_rows(
    pieces: Sequence[Mapping[str, NDArray[Any]]], split: Split, first: int
) -> dict[str, NDArray[Any]]:
    """The columns of this rank's samples of a split, with their rows in the table."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = joined_pieces(pieces)
    if not found:
        return {}
    ids = pa.array(found.pop("sample_id"), pa.string())
    rows = pc.index_in(ids, value_set=split.table(["sample_id"]).column(0))
    return {"row": rows.to_numpy(zero_copy_only=False).astype(np.int64) + first, **found}


def joined_pieces(pieces: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Columns one after the other; none where a rank had no sample."""
    full = [piece for piece in pieces if piece]
    return {name: np.concatenate([piece[name] for piece in full]) for name in (full or [{}])[0]}


def index_column(splits: Sequence[Split], name: str) -> pa.ChunkedArray:
    """A column of the index, in Arrow's own type: integers beside nulls stay integers."""
    import pyarrow as pa

    return pa.chunked_array([part for split in splits for part in split.column_parts(name)])


def write_list_table(
    path: Path,
    columns: Mapping[str, NDArray[Any] | pa.Array | pa.ChunkedArray],
    name: str,
    lists: SpooledRows,
    metadata: Mapping[str, Any],
) -> None:
    """Writes a table as Parquet, whole or not at all.

    Args:
        path: the file; what was there before stays until the new one is whole.
        columns: (N,) each, in the order of the file; NaN in NumPy's is written as null, Arrow's
            are written as they are.
        name: the lists' column, the last one.
        lists: lists of the same rows.
        metadata: plain values.

    Raises:
        StorageError: the file system refused.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {}
    for column, values in columns.items():
        is_text = isinstance(values, np.ndarray) and values.dtype.kind in "UO"
        kind = pa.string() if is_text else None
        is_arrow = isinstance(values, pa.Array | pa.ChunkedArray)
        arrays[column] = values if is_arrow else pa.array(values, kind, from_pandas=True)
    table = pa.table(arrays)
    of_lists = pa.field(name, pa.list_(pa.from_numpy_dtype(lists.dtype), lists.num_values))
    schema = table.schema.append(of_lists)
    schema = schema.with_metadata({METADATA_KEY: json.dumps(metadata).encode()})
    with (
        whole_file(path) as file,
        pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=False) as writer,
    ):
        for start in range(0, table.num_rows, _GROUP_ROWS):
            part = table.slice(start, _GROUP_ROWS).combine_chunks()
            flat = pa.array(lists[np.arange(start, start + len(part))].ravel())
            column = pa.FixedSizeListArray.from_arrays(flat, lists.num_values)
            writer.write_table(part.append_column(of_lists, column), _GROUP_ROWS)


def list_parts(
    path: Path, name: str, num_rows: int, dtype: DTypeLike, cure: str
) -> Iterator[NDArray[Any]]:
    """The lists of a table, (n, K) in `dtype`, one part of the rows after the other.

    Args:
        path: the file.
        name: the lists' column.
        num_rows: rows that the table must have.
        dtype: what the lists hold.
        cure: end of messages.

    Raises:
        DataError: the file is damaged.
    """
    with open_table(path, {}, cure=cure, num_rows=num_rows) as file:
        num_values = list_size(file.schema_arrow, name, dtype)
        for group in range(file.metadata.num_row_groups):
            with reading(path, cure):
                table = file.read_row_group(group, [name])
                table.validate(full=True)
            num_here = file.metadata.row_group(group).num_rows
            check_table(table, path, [name], cure=cure, num_rows=num_here)
            flat = np.asarray(table.column(0).combine_chunks().flatten(), dtype)
            yield flat.reshape(-1, num_values)


def read_list_table(
    path: Path,
    kinds: Mapping[str, str],
    names: Sequence[str],
    dtype: DTypeLike,
    check: Callable[[JsonValue, int], None],
    *,
    what: str,
    command: str,
    cure: str,
) -> tuple[dict[str, Any], dict[str, NDArray[Any]], str, int]:
    """Reads the metadata and all columns of a table but that of the lists.

    Args:
        path: the .parquet file.
        kinds: kinds of columns that it must have, see `msdata.core.checked_table.KINDS`.
        names: what the column of lists may be called; without any of them the last is missing.
        dtype: what the lists must hold.
        check: checks the metadata against the lists' length, 0 without lists; raises DataError.
        what: what the table holds, for messages.
        command: what makes such a table, for messages.
        cure: end of messages.

    Returns:
        The metadata; the columns by name, see `column_array`; the lists' column, and their length.

    Raises:
        UsageError: the file does not exist, or is another kind of table.
        StorageError: the file system refused.
    """
    try:
        with open_table(path, kinds, cure=cure) as file, reading(path, cure):
            schema = file.schema_arrow
            found = file_metadata(schema, METADATA_KEY, path, cure)
            lists = next((name for name in names if name in schema.names), names[-1])
            size = list_size(schema, lists, dtype)
            check(found, size)
            others = [name for name in schema.names if name != lists]
            table = file.read(others)
            table.validate(full=True)
            check_table(table, path, kinds, cure=cure, num_rows=file.metadata.num_rows)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path} does not exist; run {command!r} first") from None
    except DataError as error:
        raise UsageError(f"{path} is not a table of {what}: {error}") from error
    return found.value, {n: column_array(table.column(n)) for n in others}, lists, size


def lists_of_rows(
    parts: Iterable[NDArray[Any]], rows: NDArray[np.int64], num_values: int, dtype: DTypeLike
) -> NDArray[Any]:
    """The lists of some rows, (n, K), from all parts of a table; each part is read once."""
    found, start = np.empty((len(rows), num_values), dtype), 0
    for part in parts:
        here = (rows >= start) & (rows < start + len(part))
        found[here] = part[rows[here] - start]
        start += len(part)
    return found


def list_size(schema: pa.Schema, name: str, dtype: DTypeLike) -> int:
    """Length of the lists of a column; 0 where it holds something else."""
    import pyarrow as pa

    kind = schema.field(name).type if name in schema.names else pa.null()
    wanted = pa.from_numpy_dtype(np.dtype(dtype))
    is_list = pa.types.is_fixed_size_list(kind) and kind.value_type == wanted
    return int(kind.list_size) if is_list else 0


def column_array(column: pa.ChunkedArray) -> NDArray[Any]:
    """A column for NumPy: null as NaN, in integers and booleans masked (`numpy.ma`)."""
    import pyarrow as pa

    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return np.array(column.to_pylist(), object)
    if column.null_count and (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
        is_null = column.is_null().to_numpy()
        # NaN beside integers would make doubles of them, which have 53 bits.
        return np.ma.masked_array(
            column.fill_null(pa.scalar(0).cast(column.type)).to_numpy(), is_null
        )
    return np.asarray(column.to_numpy())


def as_floats(values: Any) -> NDArray[np.float64]:
    """Numbers of a column from `column_array` as float64, NaN where they are masked."""
    return np.asarray(np.ma.filled(np.ma.asarray(values, np.float64), np.nan), np.float64)
