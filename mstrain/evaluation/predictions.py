"""The table of predictions: one Parquet file, a row per sample in the order of the index.

sample_id, split       string
redshift               float64, null where unknown; absent where the data set has no such column
z_mean ... z_q84       float64, point estimates and spreads of the density
pit ... log_likelihood float64, null or absent where the redshift is
hpd_level, lower_peak  float64, likewise: where in its density the truth lies, see `densities`
density                fixed-size list of float32, per unit redshift in each bin
further columns        of the index, as asked for, in the index's own types

Of another number than a redshift, `mass`, the columns are called mass, mass_mean, mass_std and so
on. Of classes they are NAME, NAME_predicted (in the type of NAME), NAME_probability (float64, of
the predicted class), log_loss, brier, and probabilities (fixed-size list of float32, in the order
of "classes" in the metadata).

The file's metadata hold the edges of the bins, and where the predictions came from. Densities are
spooled to disk by each rank and joined by the first, so that memory holds their other columns only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.checked_table import check_table, file_metadata, open_table, reading
from msdata.core.files import TEMPORARY_SUFFIX, open_known, storage_error, take_lock, whole_file
from msdata.errors import DataError, UsageError
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.qp_file import SUFFIX as QP_SUFFIX
from mstrain.evaluation.qp_file import write_qp

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT_VERSION = 1
METADATA_KEY = b"mstrain"
MARK = b'"bin_edges"'
# Rows of a group: 50 MB of densities of 400 bins.
_GROUP_ROWS = 32_768
DENSITY, PROBABILITIES = "density", "probabilities"
_CURE = "give a table that 'mstrain evaluate' or 'mstrain predict' wrote"


@dataclass(frozen=True, kw_only=True)
class Spooled:
    """What one rank left on the disk.

    Attributes:
        path: file of float32 densities, row by row.
        rows: int64 (n,), each density's row in the table.
    """

    path: Path
    rows: NDArray[np.int64]


class Spool:
    """Writes densities of one rank to a file beside the table to be; a context manager.

    Args:
        table: the table's file.
        rank: rank of this process.
        num_bins: values of each density.
    """

    def __init__(self, table: Path, rank: int, num_bins: int) -> None:
        self.path = _spool_path(table, f"{rank:05d}")
        self._table, self._rank, self._num_bins = table, rank, num_bins
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

    def add(self, density_NK: NDArray[np.float32]) -> None:
        """Appends densities, float32 (N, K).

        Raises:
            StorageError: the disk is full, or gone.
        """
        assert density_NK.dtype == np.float32
        assert density_NK.shape[1] == self._num_bins
        try:
            self._file.write(np.ascontiguousarray(density_NK).data)
        except OSError as error:
            raise storage_error("write", self.path, error) from error

    def finish(self, rows: NDArray[np.int64]) -> Spooled:
        """Makes what was added readable to the first rank, on whatever node.

        Args:
            rows: int64 (n,), the row in the table of each density that was added.

        Raises:
            StorageError: the disk is full, or gone.
        """
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise storage_error("write", self.path, error) from error
        return Spooled(path=self.path, rows=rows)


def _spool_path(table: Path, rank: str) -> Path:
    return table.with_name(f".{table.name}.rank{rank}{TEMPORARY_SUFFIX}")


class SpooledDensities:
    """The densities of all ranks by their rows in the table.

    Args:
        parts: files of all ranks; every row of the table is in one of them.
        num_rows: rows of the table.
        num_bins: values of each density.

    Raises:
        DataError: a row is missing, or there twice.
    """

    def __init__(self, parts: Sequence[Spooled], num_rows: int, num_bins: int) -> None:
        self._part = np.full(num_rows, -1, np.int64)
        self._place = np.zeros(num_rows, np.int64)
        self._maps = [_mapped(part, num_bins) for part in parts]
        self._num_bins = num_bins
        for number, part in enumerate(parts):
            self._part[part.rows] = number
            self._place[part.rows] = np.arange(len(part.rows))
        num_given = sum(len(part.rows) for part in parts)
        num_found = int((self._part >= 0).sum())
        if num_given != num_rows or num_found != num_rows:
            raise DataError(
                f"the ranks gave {num_given} densities, {num_found} different ones, for {num_rows} "
                "samples; this is a fault of mstrain, please report it"
            )

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The densities of rows, float32 (n, K)."""
        found = np.empty((len(rows), self._num_bins), np.float32)
        part = self._part[rows]
        for number, mapped in enumerate(self._maps):
            here = part == number
            found[here] = mapped[self._place[rows[here]]]
        return found


def _mapped(part: Spooled, num_bins: int) -> NDArray[np.float32]:
    if not len(part.rows):
        return np.zeros((0, num_bins), np.float32)
    try:
        return np.memmap(part.path, np.float32, "r", shape=(len(part.rows), num_bins))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{part.path} of another rank cannot be read here ({error}); write the predictions "
            "to a folder that all nodes see"
        ) from error


def table_fields(
    columns: Mapping[str, NDArray[Any] | pa.Array | pa.ChunkedArray],
    num_bins: int,
    density: str = DENSITY,
) -> pa.Schema:
    """Arrow's schema of a table with these columns and densities."""
    import pyarrow as pa

    fields = []
    for name, values in columns.items():
        if isinstance(values, pa.Array | pa.ChunkedArray):
            kind = values.type
        else:
            is_text = values.dtype.kind in "UO"
            kind = pa.string() if is_text else pa.from_numpy_dtype(values.dtype)
        fields.append(pa.field(name, kind))
    return pa.schema([*fields, pa.field(density, pa.list_(pa.float32(), num_bins))])


def write_predictions(
    path: Path,
    columns: Mapping[str, NDArray[Any] | pa.Array | pa.ChunkedArray],
    densities: SpooledDensities,
    edges: Floats,
    origin: Mapping[str, Any],
) -> None:
    """Writes the table, whole or not at all; as qp reads it if the name ends in ".hdf5".

    Args:
        path: the file; what was there before stays until the new one is whole.
        columns: (N,) each, in the order of the file; NaN in NumPy's is written as null, Arrow's
            are written as they are.
        densities: densities of the same rows.
        edges: float64 (K + 1,), edges of the bins.
        origin: where the predictions came from, for the metadata; plain values. With "classes", the
            densities are probabilities of these.

    Raises:
        StorageError: the file system refused.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    num_rows = len(next(iter(columns.values())))
    metadata = {"format_version": FORMAT_VERSION, "bin_edges": edges.tolist(), **origin}
    if path.suffix == QP_SUFFIX:
        write_qp(path, columns, densities.__getitem__, edges, metadata)
        return
    density = PROBABILITIES if "classes" in origin else DENSITY
    schema = table_fields(columns, len(edges) - 1, density)
    schema = schema.with_metadata({METADATA_KEY: json.dumps(metadata).encode()})
    with (
        whole_file(path) as file,
        pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=False) as writer,
    ):
        for start in range(0, num_rows, _GROUP_ROWS):
            rows = np.arange(start, min(start + _GROUP_ROWS, num_rows))
            arrays = [_rows_of(values, start, len(rows)) for values in columns.values()]
            flat = pa.array(densities[rows].ravel())
            arrays.append(pa.FixedSizeListArray.from_arrays(flat, len(edges) - 1))
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema), _GROUP_ROWS)


def _rows_of(values: NDArray[Any] | pa.Array | pa.ChunkedArray, start: int, count: int) -> pa.Array:
    import pyarrow as pa

    if isinstance(values, pa.ChunkedArray):
        return values.slice(start, count).combine_chunks()
    if isinstance(values, pa.Array):
        return values.slice(start, count)
    return pa.array(values[start : start + count], from_pandas=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """An open table of predictions.

    Attributes:
        path: its file.
        edges: float64 (K + 1,), edges of the bins.
        origin: the metadata.
        columns: (N,) each, without the densities; null as NaN, in integers and booleans masked
            (`numpy.ma`).
        density: the column of the densities; of classes that of their probabilities.
    """

    path: Path
    edges: Floats
    origin: Mapping[str, Any]
    columns: Mapping[str, NDArray[Any]]
    density: str = DENSITY

    def __len__(self) -> int:
        return len(self.columns["sample_id"])

    def density_parts(self) -> Iterator[NDArray[np.float32]]:
        """The densities, float32 (n, K), one part of the rows after the other.

        Raises:
            DataError: the file is damaged.
        """
        with open_table(self.path, {}, cure=_CURE, num_rows=len(self)) as file:
            for group in range(file.metadata.num_row_groups):
                with reading(self.path, _CURE):
                    table = file.read_row_group(group, [self.density])
                    table.validate(full=True)
                num_rows = file.metadata.row_group(group).num_rows
                check_table(table, self.path, [self.density], cure=_CURE, num_rows=num_rows)
                yield _density_array(table, len(self.edges) - 1)

    def densities_of(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """The densities of some rows, float32 (n, K); reads the parts that hold them."""
        found = np.empty((len(rows), len(self.edges) - 1), np.float32)
        wanted, start = np.asarray(rows, np.int64), 0
        for part in self.density_parts():
            here = (wanted >= start) & (wanted < start + len(part))
            found[here] = part[wanted[here] - start]
            start += len(part)
        return found

    def mean_density(self, is_counted: NDArray[np.bool_]) -> Floats:
        """Mean of the densities of some samples.

        Args:
            is_counted: bool (N,).

        Returns:
            float64 (K,), per unit redshift; zero where no sample counts.
        """
        total, start = np.zeros(len(self.edges) - 1), 0
        for part in self.density_parts():
            total += part[is_counted[start : start + len(part)]].sum(axis=0, dtype=np.float64)
            start += len(part)
        return np.asarray(total / max(1, int(is_counted.sum())), np.float64)


def read_predictions(path: Path | str) -> Predictions:
    """Opens a table that `evaluate` or `predict` wrote.

    Args:
        path: the .parquet file.

    Returns:
        Its columns, (N,) each; densities are read when they are asked for.

    Raises:
        UsageError: the file does not exist, or is another kind of table.
        StorageError: the file system refused.
    """
    path = Path(path)
    try:
        with open_table(path, {"sample_id": "text"}, cure=_CURE) as file, reading(path, _CURE):
            found = file_metadata(file.schema_arrow, METADATA_KEY, path, _CURE)
            edges = np.array(found["bin_edges"].read_as(tuple[float, ...]), np.float64)
            num_bins = len(edges) - 1
            column = PROBABILITIES if PROBABILITIES in file.schema_arrow.names else DENSITY
            size = _list_size(file.schema_arrow, column)
            if num_bins < 1 or size != num_bins or not bool((np.diff(edges) > 0).all()):
                found["bin_edges"].refuse("rising edges, one more than densities")
            names = [name for name in file.schema_arrow.names if name != column]
            table = file.read(names)
            table.validate(full=True)
            check_table(table, path, (), cure=_CURE, num_rows=file.metadata.num_rows)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{path} does not exist; run 'mstrain evaluate' first") from None
    except DataError as error:
        raise UsageError(f"{path} is not a table of predictions: {error}") from error
    content = {name: value for name, value in found.value.items() if name != "bin_edges"}
    columns = {name: _column_array(table.column(name)) for name in names}
    return Predictions(path=path, edges=edges, origin=content, columns=columns, density=column)


def _list_size(schema: pa.Schema, name: str) -> int:
    """Length of the lists of float32 that a column holds; 0 where it holds something else."""
    import pyarrow as pa

    kind = schema.field(name).type if name in schema.names else pa.null()
    is_list = pa.types.is_fixed_size_list(kind) and pa.types.is_float32(kind.value_type)
    return int(kind.list_size) if is_list else 0


def _column_array(column: pa.ChunkedArray) -> NDArray[Any]:
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


def _density_array(table: pa.Table, num_bins: int) -> NDArray[np.float32]:
    column = table.column(0).combine_chunks()
    flat = np.asarray(column.flatten(), np.float32)
    return flat.reshape(-1, num_bins)
