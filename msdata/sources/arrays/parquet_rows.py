"""Rows of a Parquet column in any order, though Parquet is read forwards, a row group at a time.

A pack reads in random order. So the first row that is wanted of a row group has the whole group
copied, a batch at a time, into a file whose rows are mapped: each group is decoded once, by
whichever worker comes to it first, in bounded memory. Compared with decoding a group per row: disk
space for the decoded columns while the pack runs, in place of hours.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from msdata.core.files import open_known, refusals, storage_error, take_lock, whole_file
from msdata.errors import DataError, SampleError

# Bytes of a decoded batch, roughly.
_BATCH_NBYTES = 32 << 20
_MAX_BATCH = 4096
# Each mapped file takes a descriptor.
_MAX_MAPPED = 64
_READ_NBYTES = 1 << 20


def open_file(path: Path, metadata: Any = None) -> pq.ParquetFile:
    """Opens a Parquet file whose column chunks are read in pieces.

    Args:
        path: the file.
        metadata: what an earlier opening found.

    Raises:
        DataError: it is not Parquet, or truncated.
        StorageError: the file system refused.
    """
    try:
        return pq.ParquetFile(path, metadata=metadata, buffer_size=_READ_NBYTES, pre_buffer=False)
    except (OSError, pa.ArrowException, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise storage_error("read", path, error) from error
        raise DataError(
            f"{path} is not Parquet, or is truncated: {error}; copy it again"
        ) from error


class ColumnRows:
    """The rows of one column, read one by one; safe to use from many threads.

    Args:
        path: the file.
        metadata: its metadata.
        leaves: paths of the column's leaves to read; all in one top-level column.
        scratch: folder for the decoded row groups; None decodes up to the row that is wanted.
    """

    def __init__(
        self, path: Path, metadata: Any, leaves: Sequence[str], scratch: Path | None
    ) -> None:
        self._path, self._metadata, self._leaves = path, metadata, list(leaves)
        self._scratch = scratch
        groups = [metadata.row_group(g) for g in range(metadata.num_row_groups)]
        self._edges = np.cumsum([0, *(group.num_rows for group in groups)])
        self._nbytes = 0
        for group in groups:
            chunks = (group.column(i) for i in range(group.num_columns))
            wanted = (c.total_uncompressed_size for c in chunks if c.path_in_schema in leaves)
            self._nbytes = max(self._nbytes, sum(wanted) // max(1, group.num_rows))
        self._lock = threading.Lock()
        self._mapped: OrderedDict[int, Any] = OrderedDict()
        # Without scratch: group, its batches to come, number of the last, and that batch.
        self._forward: tuple[int, Iterator[Any], int, Any] | None = None

    def __len__(self) -> int:
        return int(self._edges[-1])

    def expect(self, nbytes: int) -> None:
        """Says how large a decoded row is; encodings hide it from the metadata."""
        self._nbytes = max(self._nbytes, nbytes)

    def first(self, count: int) -> pa.Array:
        """The first rows, at most `count`, of the first row group that has some."""
        for group in np.flatnonzero(np.diff(self._edges)).tolist():
            with closing(self._batches(group, count)) as batches:
                for batch in batches:
                    return batch.column(0)
        raise DataError(f"{self._path} has no rows; leave it out")

    def row(self, row: int) -> pa.Array:
        """One row, as an array of length 1.

        Raises:
            SampleError: its row group is broken.
            StorageError: the file system refused, or has no room for the decoded rows.
        """
        group = int(np.searchsorted(self._edges, row, "right")) - 1
        number, place = divmod(row - int(self._edges[group]), self._batch_rows)
        with self._lock:
            batch = (
                self._forward_to(group, number)
                if self._scratch is None
                else self._map(group).get_batch(number)
            )
        return batch.column(0).slice(place, 1)

    @property
    def _batch_rows(self) -> int:
        return max(1, min(_BATCH_NBYTES // max(1, self._nbytes), _MAX_BATCH))

    def _batches(self, group: int, batch_rows: int) -> Generator[pa.RecordBatch, None, None]:
        """The batches of a row group; all but the last have `batch_rows` rows."""
        is_last = False
        try:
            with open_file(self._path, self._metadata) as file:
                for batch in file.iter_batches(
                    batch_rows, row_groups=[group], columns=self._leaves, use_threads=False
                ):
                    if is_last or not batch.num_rows:
                        raise DataError("it is decoded in unequal pieces")
                    is_last = batch.num_rows < batch_rows
                    yield batch
        except (OSError, pa.ArrowException, DataError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise storage_error("read", self._path, error) from error
            raise SampleError(f"row group {group} is broken: {error}") from error

    def _forward_to(self, group: int, number: int) -> pa.RecordBatch:
        if self._forward is None or self._forward[0] != group or self._forward[2] > number:
            self._forward = (group, self._batches(group, self._batch_rows), -1, None)
        _, batches, last, batch = self._forward
        for found in range(last + 1, number + 1):
            batch = next(batches, None)
            if batch is None:
                self._forward = None
                raise SampleError(f"row group {group} has fewer rows than its metadata says")
            self._forward = (group, batches, found, batch)
        return batch

    def _map(self, group: int) -> Any:
        """The mapped rows of a group, which are decoded first unless a process has done so."""
        found = self._mapped.get(group)
        if found is None:
            found = pa.ipc.open_file(pa.memory_map(str(self._decoded(group))))
            self._mapped[group] = found
            if len(self._mapped) > _MAX_MAPPED:
                self._mapped.popitem(last=False)
        self._mapped.move_to_end(group)
        return found

    def _decoded(self, group: int) -> Path:
        assert self._scratch is not None
        status = self._path.stat()
        # A pack that is resumed may find the rows of a file that was replaced meanwhile.
        said = [str(self._path), self._leaves, self._batch_rows, group]
        key = repr((said, status.st_size, status.st_mtime_ns)).encode()
        path = self._scratch / f"{hashlib.sha256(key).hexdigest()[:24]}.arrow"
        if path.exists():
            return path
        with refusals("write", self._scratch):
            self._scratch.mkdir(parents=True, exist_ok=True)
            lock_fd = open_known(path.with_suffix(".lock"))
        try:
            take_lock(lock_fd, waits=True)
            if not path.exists():
                self._decode(group, path)
        finally:
            os.close(lock_fd)
        return path

    def _decode(self, group: int, path: Path) -> None:
        with closing(self._batches(group, self._batch_rows)) as batches:
            first = next(batches, None)
            if first is None:
                raise SampleError(f"row group {group} has fewer rows than its metadata says")
            with (
                whole_file(path, is_one_of_many=True) as file,
                pa.ipc.new_file(file, first.schema) as writer,
            ):
                writer.write_batch(first)
                for batch in batches:
                    writer.write_batch(batch)
