"""HDF5 shards of a coded data set: datasets of codes, or of Blosc chunks that hdf5plugin reads.

One dataset has one dtype, so all samples of a shard are stored as the same one. Codes that are not
compressed have fixed places (`hdf5.py`). The places of chunks depend on their lengths: HDF5 is told
of each as it comes and says where it would lie; the bytes are written there past HDF5.

Source: HDF5's registered filter 32001, Blosc.
"""

from __future__ import annotations

import errno
import math
import os
import resource
import sys
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.files import open_temporary, publish, storage_error
from msdata.dataset import hdf5
from msdata.dataset.block_writer import BlockWriter
from msdata.dataset.coding import ArrayCoding
from msdata.dataset.shard import Record, ShardSummary, ShardWriter, array_views, pwrite_all
from msdata.errors import DataError, UsageError
from msdata.schema import Schema

_BLOSC = 32001
# The filter's own parameters: version, format, and the numbers of bitshuffle and of the codecs.
_BLOSC_HEAD = (2, 2)
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


class _Frame:
    """A file for h5py that keeps all bytes except chunks, whose places it notes.

    Args:
        fd: file in memory.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0
        self._expected = -1
        self.found = -1

    def expect(self, nbytes: int) -> None:
        """Announces a chunk of zeros."""
        self._expected, self.found = nbytes, -1

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves to an offset; see `io.IOBase.seek`."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: os.fstat(self._fd).st_size}
        self._at = base[whence] + offset
        return self._at

    def tell(self) -> int:
        """Returns the offset."""
        return self._at

    def write(self, content: Any) -> int:
        """Writes bytes, unless they are the chunk that was announced."""
        nbytes = len(content)
        if nbytes == self._expected and not np.frombuffer(content, np.uint8).any():
            self.found, self._expected = self._at, -1
        else:
            pwrite_all(self._fd, [content], self._at)
        self._at += nbytes
        return nbytes

    def read(self, nbytes: int) -> bytes:
        """Reads bytes; see `io.RawIOBase.read`. h5py asks for it, and uses `readinto`."""
        content = os.pread(self._fd, nbytes, self._at)
        self._at += len(content)
        return content

    def readinto(self, buffer: Any) -> int:
        """Reads bytes; see `io.RawIOBase.readinto`."""
        nbytes = os.preadv(self._fd, [buffer], self._at)
        self._at += nbytes
        return nbytes

    def truncate(self, size: int | None = None) -> int:
        """Sets the size; see `io.IOBase.truncate`."""
        size = self._at if size is None else size
        os.ftruncate(self._fd, size)
        return size

    def flush(self) -> None:
        """Does nothing: memory needs none."""


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
            self._frame = _Frame(self.fd)
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


class _ChunkWriter:
    """Writes one shard of chunks of different lengths; see `CodedHdf5Writer`."""

    def __init__(
        self, path: Path, schema: Schema, codings: Sequence[ArrayCoding], max_samples: int
    ) -> None:
        self._path = path
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
        try:
            self._layout = _Layout(schema, codings, max_samples)
            try:
                temporary = open_temporary(path)
            except OSError:
                self._layout.close()
                raise
        except OSError as error:
            raise storage_error("write", path, error) from error
        self._fd, self._partial = temporary.fd, temporary.path
        self._stream = BlockWriter(self._fd)

    def append(self, record: Record) -> None:
        """Adds one sample; see `ShardWriter.append`."""
        views, row = array_views(record), len(self._records)
        try:
            places = [self._write(row, a, view) for a, view in enumerate(views)]
        except OSError as error:
            raise storage_error("write", self._path, error) from error
        self._offsets.append(places)
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

    def finish(self) -> ShardSummary:
        """Completes the shard; see `ShardWriter.finish`."""
        offsets, sizes = np.array(self._offsets, np.int64), np.array(self._sizes, np.int64)
        try:
            self._stream.flush()
            for offset, content in self._held:
                pwrite_all(self._fd, [content], offset)
            if len(self._records) < self._max_samples:
                offsets = self._close_up(offsets, sizes)
            nbytes = self._layout.finish(self._records)
            os.ftruncate(self._fd, nbytes)
            ranges = hdf5.frame_ranges(offsets, sizes, nbytes)
            frame_crc = hdf5.copy_frame(self._layout.fd, self._fd, ranges)
            os.fsync(self._fd)
            publish(self._partial, self._path)
            self._close()
        except OSError as error:
            raise storage_error("write", self._path, error) from error
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
        move_chunks(self._fd, old.reshape(-1), new.reshape(-1), sizes.reshape(-1))
        return new

    def abort(self) -> None:
        """Removes the unfinished shard; silent, because it follows another error."""
        is_open = self._fd >= 0
        with suppress(OSError, RuntimeError):
            self._close()
        if is_open:
            with suppress(OSError):
                self._partial.unlink()

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._stream.close()
            os.close(fd)
        self._layout.close()


def move_chunks(
    fd: int, old: NDArray[np.int64], new: NDArray[np.int64], sizes: NDArray[np.int64]
) -> None:
    """Moves byte ranges within a file to places that may overlap the old ones.

    Args:
        fd: the file, open for reading and writing.
        old: int64 (ranges,), where they lie.
        new: int64 (ranges,), where they go.
        sizes: int64 (ranges,), their lengths.

    Raises:
        OSError: the file system refused.
    """
    waiting = deque(np.argsort(old, kind="stable").tolist())
    held: dict[int, bytes] = {}
    moved = set()

    def read(number: int) -> bytes:
        return os.pread(fd, int(sizes[number]), int(old[number]))

    for at in np.argsort(new, kind="stable").tolist():
        # Those that would be overwritten wait in memory: few, because nearly all move down.
        while waiting and old[waiting[0]] < new[at] + sizes[at]:
            number = waiting.popleft()
            if number not in moved:
                held[number] = read(number)
        content = held.pop(at) if at in held else read(at)
        moved.add(at)
        if old[at] != new[at]:
            pwrite_all(fd, [content], int(new[at]))


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
    level = 5
    values = (*_BLOSC_HEAD, array.numpy_dtype.itemsize, array.nbytes, level, _BITSHUFFLE)
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
