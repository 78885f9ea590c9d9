"""HDF5 shards of a coded data set: datasets of codes, or of Blosc chunks that hdf5plugin reads.

One dataset has one dtype, so all samples of a shard are stored as the same one. Codes that are not
compressed have fixed places (`hdf5.py`). The places of chunks depend on their lengths: HDF5 is told
of each as it comes and says where it would lie; the bytes are written there past HDF5.

Source: HDF5's registered filter 32001, Blosc.
"""

from __future__ import annotations

import errno
import io
import math
import os
import resource
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.files import refusals
from msdata.dataset import hdf5
from msdata.dataset.block_writer import BlockWriter, pwrite_all
from msdata.dataset.coding import ArrayCoding
from msdata.dataset.shard import (
    FileShardWriter,
    Record,
    ShardSummary,
    ShardWriter,
    array_views,
)
from msdata.errors import DataError, UsageError
from msdata.schema import Schema

_BLOSC = 32001
# The filter's own parameters: version, format, and the numbers of bitshuffle and of the codecs.
_BLOSC_HEAD = (2, 2)
_LEVEL = 5
_BITSHUFFLE = 2
_CODECS = {"lz4": 1, "zstd": 5}
# What the end of a file takes beside chunks: attributes, and the texts of its samples.
_TAIL_NBYTES = 1 << 20


class CodedHdf5Writer:
    """Writes one HDF5 shard of a coded data set; its first sample decides the datasets' dtypes.

    Args:
        path: final name.
        schema: the arrays.
        codings: how they are stored.
        max_samples: samples to reserve space for; rejected samples leave no holes.
        chunked: one chunk per sample also where codes are not compressed.
    """

    def __init__(
        self,
        path: Path,
        schema: Schema,
        codings: Sequence[ArrayCoding],
        *,
        max_samples: int,
        chunked: bool,
    ) -> None:
        self._path = path
        self._schema = schema
        self._codings = codings
        self._max_samples = max_samples
        self._chunked = chunked
        self._writer: ShardWriter | None = None

    def append(self, record: Record) -> None:
        """Adds one sample, of the dtypes of the first; see `ShardWriter.append`."""
        if self._writer is None:
            self._writer = self._open(record.codes)
        self._writer.append(record)

    def _open(self, codes: Sequence[str]) -> ShardWriter:
        is_compressed = self._codings[0].compress != "none"
        arrays = (
            # The chunks hold zigzag codes, which have no sign.
            replace(a, dtype=kind.replace("i", "u") if is_compressed and c.quantize else kind)
            for a, c, kind in zip(self._schema.arrays, self._codings, codes, strict=True)
        )
        schema = replace(self._schema, arrays=tuple(arrays))
        if is_compressed:
            return _ChunkWriter(self._path, schema, self._codings, self._max_samples)
        return hdf5.Hdf5ShardWriter(
            self._path,
            schema,
            max_samples=self._max_samples,
            chunked=self._chunked,
            codings=self._codings,
        )

    def finish(self) -> ShardSummary:
        """Completes the shard; see `ShardWriter.finish`."""
        assert self._writer is not None
        return self._writer.finish()

    def abort(self) -> None:
        """Removes the unfinished shard; silent, because it follows another error."""
        if self._writer is not None:
            self._writer.abort()


class _Frame(io.FileIO):
    """A file for h5py that keeps all bytes except chunks, whose places it notes."""

    _expected = found = -1

    def expect(self, nbytes: int) -> None:
        """Announces a chunk of zeros."""
        self._expected, self.found = nbytes, -1

    def write(self, content: Any) -> int:
        """Writes bytes, unless they are the chunk that was announced."""
        at, nbytes = self.tell(), len(content)
        if nbytes == self._expected and not np.frombuffer(content, np.uint8).any():
            self.found, self._expected = at, -1
        else:
            pwrite_all(self.fileno(), [content], at)
        self.seek(at + nbytes)
        return nbytes


class _Layout:
    """The places of a shard's chunks, and all its other bytes, in memory.

    Args:
        schema: the arrays, with the dtypes of their codes.
        codings: how they are stored.
        max_samples: samples that the chunk indices have entries for.

    Attributes:
        fd: file in memory, with holes for the chunks.
    """

    def __init__(self, schema: Schema, codings: Sequence[ArrayCoding], max_samples: int) -> None:
        h5py = hdf5.import_h5py()
        self._codings = codings
        self._zeros = bytes(0)
        self._file: Any = None
        self.fd = os.memfd_create("msdata-frame", os.MFD_CLOEXEC)
        try:
            self._frame = _Frame(self.fd, "r+", closefd=False)
            self._file = h5py.File(self._frame, "w", libver=("v110", "v110"), track_order=False)
            self._file.attrs["format"] = "msdata"
            pairs = zip(schema.arrays, codings, strict=True)
            self._datasets = [_create(h5py, self._file, a, c, max_samples) for a, c in pairs]
        except BaseException:
            self.close()
            raise

    def place(self, row: int, a: int, nbytes: int) -> int:
        """Returns the offset at which HDF5 places the chunk of an array."""
        if len(self._zeros) < nbytes:
            self._zeros = bytes(2 * nbytes)
        dataset = self._datasets[a]
        self._frame.expect(nbytes)
        dataset.id.write_direct_chunk((row, *(0 for _ in dataset.shape[1:])), self._zeros[:nbytes])
        if self._frame.found < 0:
            raise DataError(f"h5py did not place a chunk of {dataset.name}; use --format tar")
        return self._frame.found

    def finish(self, records: Sequence[tuple[str, dict[str, Any]]]) -> int:
        """Completes all bytes besides chunks; returns the size of the file."""
        for dataset in self._datasets:
            dataset.resize(len(records), axis=0)
        hdf5.write_columns(self._file, records, self._codings)
        with hdf5.system_errors():
            self._file.close()
        return os.fstat(self.fd).st_size

    def close(self) -> None:
        """Frees the memory."""
        # Cleared first: closing twice might close another thread's file of the same number.
        fd, self.fd = self.fd, -1
        if fd >= 0:
            try:
                if self._file is not None:
                    with hdf5.system_errors():
                        self._file.close()
            finally:
                os.close(fd)


class _ChunkWriter(FileShardWriter):
    """Writes one shard of chunks of different lengths; see `CodedHdf5Writer`."""

    def __init__(
        self, path: Path, schema: Schema, codings: Sequence[ArrayCoding], max_samples: int
    ) -> None:
        self._schema = schema
        self._codings = codings
        self._max_samples = max_samples
        self._records: list[tuple[str, dict[str, Any]]] = []
        self._offsets: list[list[int]] = []
        self._sizes: list[list[int]] = []
        self._end = 0
        # Chunks that HDF5 placed in front of others.
        self._held: list[tuple[int, bytes]] = []
        limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
        self._limit = math.inf if limit == resource.RLIM_INFINITY else limit
        with refusals("write", path):
            self._layout = _Layout(schema, codings, max_samples)
        try:
            super().__init__(path)
        except OSError:
            self._layout.close()
            raise
        self._stream = BlockWriter(self._fd)
        self._streams = [self._stream]

    def _append(self, record: Record) -> None:
        views, row = array_views(record), len(self._records)
        self._offsets.append([self._write(row, a, view) for a, view in enumerate(views)])
        self._sizes.append([view.nbytes for view in views])
        self._records.append((record.sample_id, dict(record.metadata)))

    def _write(self, row: int, a: int, view: memoryview) -> int:
        """Writes a chunk where HDF5 places it; returns its offset."""
        if self._end + view.nbytes + _TAIL_NBYTES > self._limit:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
        offset = self._layout.place(row, a, view.nbytes)
        if offset < self._end:
            self._held.append((offset, bytes(view)))
        else:
            self._stream.append([bytes(offset - self._end), view])
            self._end = offset + view.nbytes
        return offset

    def _complete(self) -> ShardSummary:
        offsets, sizes = np.array(self._offsets, np.int64), np.array(self._sizes, np.int64)
        self._stream.flush()
        for offset, content in self._held:
            pwrite_all(self._fd, [content], offset)
        if len(self._records) < self._max_samples:
            offsets = self._close_up(offsets, sizes)
        nbytes = self._layout.finish(self._records)
        os.ftruncate(self._fd, nbytes)
        ranges = hdf5.frame_ranges(offsets, sizes, nbytes)
        frame_crc = hdf5.copy_frame(self._layout.fd, self._fd, ranges)
        return ShardSummary(nbytes=nbytes, frame_crc32c=frame_crc, offsets=offsets)

    def _close_up(self, old: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Moves the chunks to where they lie if rejected samples have no entries in the indices.

        So a shard's bytes depend on its samples alone, and a repair gives the same ones.

        Returns:
            Their new offsets, int64 (samples, arrays).
        """
        self._layout.close()
        self._layout = _Layout(self._schema, self._codings, len(old))
        new = np.empty_like(old)
        for (row, a), nbytes in np.ndenumerate(sizes):
            new[row, a] = self._layout.place(row, a, int(nbytes))
        hdf5.move_ranges(self._fd, old, new, sizes)
        return new

    def _close(self) -> None:
        super()._close()
        self._layout.close()


def _create(h5py: Any, file: Any, array: Any, coding: ArrayCoding, max_samples: int) -> Any:
    """Creates a dataset of compressed chunks, none of which is there yet."""
    if "hdf5plugin" in sys.modules:
        raise UsageError(
            "cannot write compressed HDF5 shards where hdf5plugin is imported: HDF5 then adds the "
            "filter's name to its headers, and the bytes differ; use the 'msdata' command, or "
            "another process"
        )
    shape = array.shape or (1,)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((1, *shape))
    values = (*_BLOSC_HEAD, array.numpy_dtype.itemsize, array.nbytes, _LEVEL, _BITSHUFFLE)
    # Optional: h5py need not know the filter to write chunks.
    flags = h5py.h5z.FLAG_OPTIONAL
    properties.set_filter(_BLOSC, flags, (*values, _CODECS[coding.compress]))
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)
    # Resized to the samples that are written.
    space = h5py.h5s.create_simple((max_samples, *shape), (max_samples, *shape))
    kind = h5py.h5t.py_create(array.numpy_dtype, logical=True)
    h5py.h5d.create(file.id, array.name.encode(), kind, space, properties)
    dataset = file[array.name]
    for name, value in hdf5.attributes(array, coding).items():
        dataset.attrs[name] = value
    return dataset
