"""A packed data set, opened: its schema, its splits, its table, single samples.

Opening reads `dataset.json` and the index's footer only; columns are read when asked for.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msdata.checksum import crc32c_of_parts
from msdata.errors import DataError, UsageError
from msdata.index import IndexFile
from msdata.manifest import Manifest, ShardInfo, read_manifest
from msdata.schema import Sample, Schema
from msdata.shard_files import ShardFiles
from msdata.spans import Spans, make_spans, outside

if TYPE_CHECKING:
    import pyarrow as pa


def open_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Opens a data set; exported as `msdata.open`.

    Args:
        path: the data set's folder.

    Raises:
        UsageError: there is no data set.
        DataError: it is damaged.
        StorageError: the file system refused.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    return Dataset(folder, manifest, IndexFile(folder, manifest))


class Dataset:
    """A packed data set; make one with `msdata.open`.

    Attributes:
        path: its folder.
        manifest: the content of `dataset.json`.
    """

    def __init__(self, path: Path, manifest: Manifest, index: IndexFile) -> None:
        self.path = path
        self.manifest = manifest
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
        """The whole index: one row a sample, split by split."""
        return self._index.read_all()

    def split(self, name: str) -> Split:
        """One split.

        Raises:
            UsageError: there is none of that name.
        """
        if name not in self.splits:
            raise UsageError(f"{self.path} has no split {name!r}; it has {', '.join(self.splits)}")
        if name not in self._splits:
            self._splits[name] = Split(self, name, self._index)
        return self._splits[name]

    def __len__(self) -> int:
        return self.manifest.num_samples

    def __getitem__(self, number: int) -> Sample:
        """One sample by its row in `table`; see `Split.__getitem__`."""
        row = number + len(self) if number < 0 else number
        for name in self.splits:
            split = self.split(name)
            if 0 <= row < len(split):
                return split[row]
            row -= len(split)
        raise IndexError(f"sample {number} of {len(self)}")

    def __repr__(self) -> str:
        counts = ", ".join(f"{name}: {len(self.split(name)):,}" for name in self.splits)
        return f"Dataset({str(self.path)!r}, {self.manifest.container}, {counts})"


class Split:
    """One split of a data set.

    Attributes:
        dataset: the data set it belongs to.
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
    def shard_bytes(self) -> NDArray[np.int64]:
        """int64 (shards,), bytes that each shard's samples take in a cache."""
        return self.shard_sizes * self.sample_nbytes

    @property
    def sample_nbytes(self) -> int:
        """Bytes of one sample's arrays."""
        return self.schema.sample_nbytes

    @property
    def redshift(self) -> NDArray[np.float64] | None:
        """float64 (samples,), NaN where unknown; None for a data set without labels."""
        return self.numbers("redshift") if "redshift" in self.dataset.columns else None

    def __len__(self) -> int:
        return sum(s.num_samples for s in self.shards)

    def table(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Columns of the index for this split's samples; all of them for None.

        Raises:
            UsageError: there is no such column.
        """
        return self._index.read(self.name, self._index.column_names if columns is None else columns)

    def numbers(self, column: str, dtype: Any = np.float64) -> NDArray[Any]:
        """One numeric column as an array (samples,); null becomes NaN."""
        return self._index.read_numbers(self.name, column, dtype)

    @cached_property
    def spans(self) -> Spans:
        """Where the samples' arrays lie.

        Raises:
            DataError: the index places an array outside of its shard.
        """
        arrays = self.schema.arrays

        def read(number: int) -> NDArray[np.int64]:
            array = arrays[number]
            offsets = self.numbers(f"offset_{array.name}", np.int64)
            nbytes = np.array([s.nbytes for s in self.shards], np.int64)
            if bad := outside(offsets, self.shard_sizes, nbytes, array.nbytes):
                shard = self.shards[bad[0]]
                raise DataError(
                    f"{self._index.path} is damaged: offset_{array.name} must be 0 to "
                    f"{shard.nbytes - array.nbytes} in {shard.relative_path}, got {bad[1]}; "
                    "restore it or pack again"
                )
            return offsets

        return make_spans(self.shard_sizes, len(arrays), read)

    def column_type(self, column: str) -> pa.DataType:
        """Arrow's type of a column of the index.

        Raises:
            UsageError: there is no such column.
        """
        return self._index.column_type(column)

    def column_parts(self, column: str) -> Iterator[pa.Array]:
        """One column, a part of the rows at a time, so that it is never held twice.

        Raises:
            UsageError: there is no such column.
        """
        return self._index.column_parts(self.name, column)

    @property
    def files(self) -> ShardFiles:
        """The shards' open files; others after a fork, whose lock another thread may have held."""
        if self._files is None or self._files_pid != os.getpid():
            self._files = ShardFiles(self.shard_paths, [s.nbytes for s in self.shards])
            self._files_pid = os.getpid()
        return self._files

    def sample_id(self, number: int) -> str:
        """The id of one sample, by its row within the split."""
        return str(self._index.read_value(self.name, number, "sample_id"))

    def __getitem__(self, number: int) -> Sample:
        """One sample, checked against its checksum.

        Args:
            number: row within the split; negative counts from the end.

        Returns:
            The arrays by name, and the sample's columns of the index by theirs.

        Raises:
            IndexError: there is no such sample.
            DataError: its shard is missing, truncated or altered.
        """
        row = operator.index(number)
        row += len(self) if row < 0 else 0
        if not 0 <= row < len(self):
            raise IndexError(f"sample {number} of {len(self)} in split {self.name!r}")
        values = self._index.read_row(self.name, row)
        spans = self.spans
        offsets = spans.offsets(np.array([row]))[0]
        file = self.files.open(int(spans.shards(np.array([row]))[0]))
        sample: Sample = {}
        for array, offset in zip(self.schema.arrays, offsets.tolist(), strict=True):
            buffer = np.empty(array.shape, array.numpy_dtype)
            file.read_into([buffer.reshape(-1).view(np.uint8).data], offset)
            sample[array.name] = buffer
        found = crc32c_of_parts(sample.values())
        if found != values["crc32c"]:
            raise DataError(
                f"{file.path}: sample {values['sample_id']} was altered (checksum {found:08x}, "
                f"the index says {values['crc32c']:08x}); run 'msdata verify --repair "
                f"{self.dataset.path}'"
            )
        return {**sample, **values}

    def __repr__(self) -> str:
        return f"Split({self.name!r}, {len(self):,} samples in {len(self.shards)} shards)"
