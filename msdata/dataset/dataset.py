"""A packed data set, opened: its schema, its splits, its table, single samples.

Opening reads `dataset.json` and the footer of the index; columns are read on demand.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.checksum import crc32c_of_parts
from msdata.dataset.coded_columns import decoded, read_array_nbytes, read_codes, read_steps
from msdata.dataset.coding import ArrayCoding
from msdata.dataset.index import IndexFile, check_names, fixed_columns
from msdata.dataset.links import check_links
from msdata.dataset.manifest import Manifest, ShardInfo, read_manifest
from msdata.dataset.shard_files import ShardFile, ShardFiles
from msdata.dataset.spans import Spans, make_spans, outside
from msdata.errors import DataError, UsageError
from msdata.schema import Sample, Schema

if TYPE_CHECKING:
    import pyarrow as pa


def open_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Opens a data set; exported as `msdata.open`.

    Args:
        path: the data set's folder.

    Raises:
        UsageError: `path` is not a data set.
        DataError: it is damaged, or an array and a column share a name.
        StorageError: the file system refused.
    """
    manifest = read_manifest(Path(path))
    # Absolute, so that neither chdir nor another process changes its meaning.
    folder = Path(path).absolute()
    check_links(folder, manifest)
    index = IndexFile(folder, manifest)
    own = fixed_columns(manifest.schema, manifest.codings)
    try:
        check_names(manifest.schema.names, [c for c in index.column_names if c not in own])
    except UsageError as error:
        raise DataError(f"cannot open {folder}: {error}") from None
    return Dataset(folder, manifest, index)


def _reopen(path: Path, fingerprint: str, split: str | None = None) -> Dataset | Split:
    """Reopens a pickled data set or split, unless the folder holds another data set now."""
    data = open_dataset(path)
    if data.manifest.fingerprint != fingerprint:
        raise DataError(
            f"{path} is another data set than the one that was pickled: fingerprint "
            f"{data.manifest.fingerprint}, expected {fingerprint}; open it again where it is used"
        )
    return data if split is None else data.split(split)


def as_row(number: Any, count: int, place: str) -> int:
    """Converts an index to a row; negative ones count from the end.

    Args:
        number: any kind of integer.
        count: number of rows.
        place: name of the table, for the message.

    Raises:
        TypeError: `number` is not an integer.
        IndexError: the row does not exist.
    """
    try:
        row = operator.index(number)
    except TypeError:
        raise TypeError(
            f"a sample's number must be an integer, got {number!r}; ask for one sample at a time"
        ) from None
    if not -count <= row < count:
        raise IndexError(f"sample {number} of {count} in {place}")
    return row + count if row < 0 else row


class Dataset:
    """A packed data set; open one with `msdata.open`.

    It and its splits can be pickled: unpickling opens the files again.

    Attributes:
        path: its folder, absolute.
        manifest: the content of `dataset.json`.
        added: tables of columns that `msdata index add` added to the index's.
    """

    def __init__(self, path: Path, manifest: Manifest, index: IndexFile) -> None:
        self.path = path
        self.manifest = manifest
        self.added = index.added
        self._index = index
        self._splits: dict[str, Split] = {}

    @property
    def schema(self) -> Schema:
        """The arrays of every sample."""
        return self.manifest.schema

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return self.manifest.splits

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the index's columns."""
        return tuple(self._index.column_names)

    @cached_property
    def table(self) -> pa.Table:
        """The whole index: one row per sample, split by split."""
        return self._index.read_all()

    def split(self, name: str) -> Split:
        """Returns one split.

        Raises:
            UsageError: the data set has no split of this name.
        """
        if name not in self.splits:
            raise UsageError(f"{self.path} has no split {name!r}; it has {', '.join(self.splits)}")
        if name not in self._splits:
            self._splits[name] = Split(self, name, self._index)
        return self._splits[name]

    def __len__(self) -> int:
        return self.manifest.num_samples

    def __getitem__(self, number: int) -> Sample:
        """Reads one sample by its row in `table`; see `Split.__getitem__`."""
        row = as_row(number, len(self), str(self.path))
        for name in self.splits:
            split = self.split(name)
            if row < len(split):
                break
            row -= len(split)
        return split[row]

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.manifest.fingerprint)

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}: {len(self.split(name)):,}" for name in self.splits)
        return f"Dataset({str(self.path)!r}, {self.manifest.container}, {counts})"


class Split:
    """One split of a data set.

    Attributes:
        dataset: the data set that contains it.
        name: its name.
        shards: its shards, in the order of its samples.
    """

    def __init__(self, dataset: Dataset, name: str, index: IndexFile) -> None:
        self.dataset = dataset
        self.name = name
        self.shards: tuple[ShardInfo, ...] = tuple(
            s for s in dataset.manifest.shards if s.split == name
        )
        self._index = index
        self._files: ShardFiles | None = None
        self._files_pid = 0

    @property
    def schema(self) -> Schema:
        """The arrays of every sample."""
        return self.dataset.schema

    @property
    def shard_paths(self) -> list[Path]:
        """The shards' files, in the order of `shards`."""
        return [self.dataset.path / s.relative_path for s in self.shards]

    @property
    def shard_sizes(self) -> NDArray[np.int64]:
        """int64 (shards,), samples in each shard."""
        return np.array([s.num_samples for s in self.shards], np.int64)

    @property
    def sample_nbytes(self) -> int:
        """Bytes of one sample's decoded arrays."""
        return self.schema.sample_nbytes

    @property
    def is_coded(self) -> bool:
        """Whether the shards hold codes, compressed arrays, or both."""
        return bool(self.dataset.manifest.coding)

    @cached_property
    def codings(self) -> tuple[ArrayCoding, ...]:
        """How each array is stored, in the schema's order; empty if the data set is not coded."""
        return self.dataset.manifest.codings

    @cached_property
    def array_nbytes(self) -> NDArray[np.int64]:
        """int64 (samples, arrays), stored bytes of each array; read-only.

        Raises:
            DataError: the index promises impossible numbers.
        """
        if self.is_coded:
            return read_array_nbytes(self)
        sizes = np.array([a.nbytes for a in self.schema.arrays], np.int64)
        return np.broadcast_to(sizes, (len(self), len(sizes)))

    @cached_property
    def record_nbytes(self) -> NDArray[np.int64]:
        """int64 (samples,), stored bytes of each sample's arrays; read-only.

        One number takes the place of millions where all are equal (stride 0).
        """
        if not self.is_coded:
            return np.broadcast_to(np.int64(self.sample_nbytes), len(self))
        return np.asarray(self.array_nbytes.sum(axis=1))

    @property
    def shard_record_nbytes(self) -> NDArray[np.int64]:
        """int64 (shards,), bytes of each shard's records, which is what it takes in a cache."""
        if not self.is_coded:
            return self.shard_sizes * self.sample_nbytes
        sums = np.append(0, np.cumsum(self.record_nbytes))
        return np.asarray(np.diff(sums[np.append(0, np.cumsum(self.shard_sizes))]))

    def steps(self, array: str) -> NDArray[np.float32]:
        """Reads the steps of a quantized array.

        Returns:
            float32 (samples, bands), 0 for a band that is stored unchanged; (samples, 0) for an
            array that is not quantized.
        """
        return read_steps(self, array)

    def codes(self, array: str) -> NDArray[np.uint8]:
        """Reads the dtype that each sample of a quantized array is stored as.

        Returns:
            uint8 (samples,), numbers of entries of `msdata.dataset.manifest.CODES`; zeros for an
            array that is not quantized: its dtype is the schema's.
        """
        return read_codes(self, array)

    @property
    def redshift(self) -> NDArray[np.float64] | None:
        """float64 (samples,), NaN where unknown; None for a data set without labels."""
        return self.numbers("redshift") if "redshift" in self.dataset.columns else None

    def __len__(self) -> int:
        return sum(s.num_samples for s in self.shards)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads columns of the index for this split's samples; all of them for None.

        Raises:
            UsageError: a column does not exist.
        """
        if columns is not None:
            self.check_columns(columns)
        return self._index.read(self.name, self._index.column_names if columns is None else columns)

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raises UsageError unless `columns` is a list of names of the index's columns."""
        if isinstance(columns, str):
            raise UsageError(
                f"columns must be a list of names, got {columns!r}; give [{columns!r}]"
            )
        if not isinstance(columns, Iterable) or any(not isinstance(c, str) for c in columns):
            raise UsageError(f"columns must be a list of names, got {columns!r}")
        self._index.check_columns(columns)

    def numbers(self, column: str, dtype: Any = np.float64) -> NDArray[Any]:
        """Reads one column of numbers as an array (samples,); null becomes NaN.

        Raises:
            UsageError: the column does not exist or holds no numbers, or the dtype cannot hold its
                values: integers beyond 2**53 as float64, nulls or fractions as integers.
        """
        return self._index.read_numbers(self.name, column, dtype)

    @cached_property
    def spans(self) -> Spans:
        """Places of the samples' arrays.

        Raises:
            DataError: the index places an array outside of its shard.
        """
        arrays = self.schema.arrays

        def read(number: int) -> NDArray[np.int64]:
            array = arrays[number]
            offsets = self.numbers(f"offset_{array.name}", np.int64)
            nbytes = np.array([s.nbytes for s in self.shards], np.int64)
            sizes = self.array_nbytes[:, number]
            if bad := outside(offsets, self.shard_sizes, nbytes, sizes):
                shard = self.shards[bad[0]]
                raise DataError(
                    f"{self._index.path} is damaged: offset_{array.name} must be 0 to "
                    f"{shard.nbytes - int(sizes.min())} in {shard.relative_path}, got {bad[1]}; "
                    "restore it or pack again"
                )
            return offsets

        return make_spans(self.shard_sizes, len(arrays), read)

    def column_type(self, column: str) -> pa.DataType:
        """Returns Arrow's type of a column of the index.

        Raises:
            UsageError: the column does not exist.
        """
        return self._index.column_type(column)

    def column_parts(self, column: str) -> Iterator[pa.Array]:
        """Yields one column in parts, so that memory never holds it twice.

        Raises:
            UsageError: the column does not exist.
        """
        return self._index.column_parts(self.name, column)

    @property
    def files(self) -> ShardFiles:
        """The shards' open files; new ones after a fork: a thread may have held the lock."""
        if self._files is None or self._files_pid != os.getpid():
            self._files = ShardFiles(self.shard_paths, [s.nbytes for s in self.shards])
            self._files_pid = os.getpid()
        return self._files

    def sample_id(self, number: int) -> str:
        """Returns the id of one sample, by its row within the split."""
        return str(self._index.read_value(self.name, number, "sample_id"))

    def __getitem__(self, number: int) -> Sample:
        """Reads one sample and checks its checksum.

        Args:
            number: row within the split; negative ones count from the end.

        Returns:
            The sample's arrays and its columns of the index, by name.

        Raises:
            TypeError: the number is not an integer.
            IndexError: the sample does not exist.
            DataError: its shard is missing, truncated or corrupt.
        """
        row = as_row(number, len(self), f"split {self.name!r}")
        values = self._index.read_row(self.name, row)
        stored, file = self.read_stored(row)
        found = crc32c_of_parts(stored)
        if found != values["crc32c"]:
            raise DataError(
                f"{file.path}: sample {values['sample_id']} is corrupt: CRC32C {found:08x}, "
                f"expected {values['crc32c']:08x}; run 'msdata verify --repair {self.dataset.path}'"
            )
        try:
            return {**decoded(self.schema, self.codings, stored, values), **values}
        except DataError as error:
            raise DataError(f"{file.path}: sample {values['sample_id']}: {error}") from error

    def read_stored(self, row: int) -> tuple[list[NDArray[np.uint8]], ShardFile]:
        """Reads the stored bytes of one sample's arrays, unchecked; also returns their shard."""
        rows, spans = np.array([row]), self.spans
        file = self.files.open(int(spans.shards(rows)[0]))
        return file.read_arrays(spans.offsets(rows)[0], self.array_nbytes[row]), file

    def __reduce__(self) -> tuple[Any, ...]:
        data = self.dataset
        return _reopen, (data.path, data.manifest.fingerprint, self.name)

    def __repr__(self) -> str:
        return f"Split({self.name!r}, {len(self):,} samples in {len(self.shards)} shards)"
