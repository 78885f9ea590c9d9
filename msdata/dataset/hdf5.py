"""HDF5 shards: one dataset per array, its samples in the order of the index.

Compared with tar: h5py and every HDF5 tool read them, and they have no headers between samples; but
a sample needs one read per array instead of one in total. h5py makes the skeleton, `pwrite` writes
the pixels at the offsets that h5py reserved, and the loader reads them there without HDF5.

The skeleton is a file in memory with holes for the pixels, because h5py crashes if it cannot write
(h5py 3.16 on a full disk), and locks files, which some file systems refuse.

Source: HDF5 File Format Specification 3.0, storage of contiguous and of chunked datasets.
"""

from __future__ import annotations

import errno
import os
import re
import resource
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.checksum import crc32c
from msdata.core.files import refusals
from msdata.dataset.block_writer import BlockWriter, pwrite_all
from msdata.dataset.coding import ArrayCoding
from msdata.dataset.shard import FileShardWriter, Record, ShardSummary, array_views, metadata_text
from msdata.errors import DataError, needing
from msdata.schema import Schema, Survey

SUFFIX = ".h5"
_COPY_BYTES = 8 << 20
_ALIGNMENT = 4096
# Largest overhead of HDF5 per array of a sample.
_FRAME_NBYTES = 64
# float64 holds every integer up to here.
_MAX_EXACT = 1 << 53


def import_h5py() -> Any:
    """Imports h5py.

    Raises:
        MissingPackageError: it is not installed.
    """
    with needing("HDF5 shards need h5py", "hdf5"):
        import h5py
    return h5py


class Hdf5ShardWriter(FileShardWriter):
    """Writes one HDF5 shard with at most `max_samples` samples.

    Args:
        path: final name.
        schema: the arrays.
        max_samples: samples to reserve space for; rejected samples leave no holes.
        chunked: one chunk per sample instead of one contiguous block per array.
        codings: how a coded data set stores the arrays; `schema` has the dtypes of their codes.
    """

    def __init__(
        self,
        path: Path,
        schema: Schema,
        *,
        max_samples: int,
        chunked: bool = False,
        codings: Sequence[ArrayCoding] = (),
    ) -> None:
        self._schema = schema
        self._layout = (chunked, codings)
        self._records: list[tuple[str, dict[str, Any]]] = []
        with refusals("write", path), _skeleton(schema, max_samples, (), self._layout) as found:
            self._offsets = found[1]
        super().__init__(path)
        # The samples of a dataset are contiguous, so each dataset has its own stream.
        self._streams = [BlockWriter(self._fd, int(o)) for o in self._offsets[0]]

    def _append(self, record: Record) -> None:
        for stream, view in zip(self._streams, array_views(record), strict=True):
            stream.append([view])
        self._records.append((record.sample_id, dict(record.metadata)))

    def _complete(self) -> ShardSummary:
        for stream in self._streams:
            stream.flush()
        count, sizes = len(self._records), [a.nbytes for a in self._schema.arrays]
        with _skeleton(self._schema, count, self._records, self._layout) as (frame, offsets):
            move_ranges(self._fd, self._offsets[:count], offsets, sizes)
            nbytes = os.fstat(frame).st_size
            os.ftruncate(self._fd, nbytes)
            frame_crc = copy_frame(frame, self._fd, frame_ranges(offsets, sizes, nbytes))
        return ShardSummary(nbytes=nbytes, frame_crc32c=frame_crc, offsets=offsets)


@contextmanager
def _skeleton(
    schema: Schema,
    num_samples: int,
    records: Sequence[tuple[str, dict[str, Any]]],
    layout: tuple[bool, Sequence[ArrayCoding]],
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Makes a shard without pixels in memory.

    Yields:
        Its descriptor, and the offsets reserved for the pixels, int64 (samples, arrays).

    Raises:
        OSError: the system refused.
    """
    _check_limit(schema, num_samples, records)
    fd = os.memfd_create("msdata-skeleton", os.MFD_CLOEXEC)
    try:
        yield fd, _make_skeleton(Path(f"/proc/self/fd/{fd}"), schema, num_samples, records, layout)
    finally:
        os.close(fd)


def _check_limit(
    schema: Schema, num_samples: int, records: Sequence[tuple[str, dict[str, Any]]]
) -> None:
    """Refuses shards above the limit of file sizes, which would crash h5py."""
    most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if most == resource.RLIM_INFINITY:
        return
    wanted = num_samples * (schema.sample_nbytes + _FRAME_NBYTES * len(schema.arrays))
    if records:
        # Two texts, padded to the longest one, and a number per label.
        wanted += num_samples * max(
            len(metadata_text(metadata)) + len(name.encode()) + 8 * len(metadata)
            for name, metadata in records
        )
    if wanted + _FRAME_NBYTES * 1024 > most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))


def _make_skeleton(
    path: Path,
    schema: Schema,
    num_samples: int,
    records: Sequence[tuple[str, dict[str, Any]]],
    layout: tuple[bool, Sequence[ArrayCoding]],
) -> NDArray[np.int64]:
    chunked, codings = layout
    h5py = import_h5py()
    # libver 1.10 has the chunk index without a B-tree; no times, which would differ run by run.
    with (
        system_errors(),
        h5py.File(
            path,
            "w",
            # Same layout as the default driver, which does not accept files without a name.
            driver="stdio",
            locking=False,
            libver=("v110", "v110"),
            track_order=False,
            alignment_threshold=_ALIGNMENT,
            alignment_interval=_ALIGNMENT,
        ) as file,
    ):
        file.attrs["format"] = "msdata"
        offsets = np.zeros((num_samples, len(schema.arrays)), np.int64)
        if num_samples:
            for a, array in enumerate(schema.arrays):
                dataset = _reserve(h5py, file, array, num_samples, chunked)
                coding = codings[a] if codings else None
                for name, value in attributes(array, coding).items():
                    dataset.attrs[name] = value
                offsets[:, a] = _sample_offsets(dataset, num_samples, array.nbytes)
        if records:
            write_columns(file, records, codings)
    return offsets


@contextmanager
def system_errors() -> Iterator[None]:
    """Turns h5py's RuntimeError about a system error on closing into an OSError."""
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"errno = (\d+)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from error


def _reserve(h5py: Any, file: Any, array: Survey, num_samples: int, chunked: bool) -> Any:
    """Creates a dataset with space allocated now and never filled."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)
    if chunked:
        properties.set_chunk((1, *array.shape) if array.shape else (1,))
    space = h5py.h5s.create_simple((num_samples, *array.shape))
    kind = h5py.h5t.py_create(array.numpy_dtype, logical=True)
    h5py.h5d.create(file.id, array.name.encode(), kind, space, properties)
    return file[array.name]


def attributes(array: Survey, coding: ArrayCoding | None) -> dict[str, Any]:
    """Attributes of an array's dataset."""
    fields = {
        "quantize": None if coding is None else coding.quantize,
        "compress": None if coding is None else coding.compress,
        "zigzag": True if coding and coding.quantize and array.dtype[1] == "u" else None,
        "bands": ",".join(array.bands),
        "pixel_scale_arcsec": array.pixel_scale_arcsec,
        "unit": array.unit,
        "zero_points_ab": array.zero_points_ab,
    }
    return {name: value for name, value in fields.items() if value not in (None, "")}


def _sample_offsets(dataset: Any, num_samples: int, nbytes: int) -> NDArray[np.int64]:
    if dataset.chunks is None:
        start = int(dataset.id.get_offset())
        return start + nbytes * np.arange(num_samples, dtype=np.int64)
    offsets = np.zeros(num_samples, np.int64)

    def note(chunk: Any) -> None:
        offsets[chunk.chunk_offset[0]] = chunk.byte_offset

    dataset.id.chunk_iter(note)
    if bool((np.diff(offsets) != nbytes).any()):
        raise DataError(f"h5py scattered the chunks of {dataset.name}; use a contiguous layout")
    return offsets


def write_columns(
    file: Any, records: Sequence[tuple[str, dict[str, Any]]], codings: Sequence[ArrayCoding] = ()
) -> None:
    """Stores ids, labels, steps and other metadata, one dataset per name.

    Args:
        file: the open file of h5py.
        records: id and metadata of each sample.
        codings: how a coded data set stores the arrays.
    """
    ids = [sample_id.encode() for sample_id, _ in records]
    _create_column(file, "sample_id", np.array(ids, dtype=f"S{max(map(len, ids))}"))
    texts = [metadata_text(metadata) for _, metadata in records]
    _create_column(file, "json", np.array(texts, dtype=f"S{max(map(len, texts))}"))
    for name in records[0][1]:
        column = None if name in file else label_column([m[name] for _, m in records])
        if column is not None:
            values, absent = column
            _create_column(file, name, values)
            if absent is not None:
                file[name].attrs["_FillValue"] = absent
    for name in (c.name for c in codings if c.quantize is not None):
        steps = [m["coding"][name]["step"] for _, m in records]
        _create_column(file, f"{name}_step", np.array(steps, np.float32))


def label_column(values: Sequence[Any]) -> tuple[NDArray[Any], Any] | None:
    """Converts numbers exactly to the array of a dataset.

    Args:
        values: values of all samples; None for null.

    Returns:
        The array (samples,), and its value for null: the lowest int64 or int8 (truth values), the
        highest uint64; None for floats, whose null is NaN, and without nulls. None in place of both
        if no type holds all values, such as text: only `json` holds these.
    """
    present = [v for v in values if v is not None]
    if any(not isinstance(v, (int, float)) for v in present):
        return None
    integers = [v for v in present if isinstance(v, int)]
    if len(integers) < len(present) or not present:
        if any(abs(v) > _MAX_EXACT for v in integers):
            return None
        return np.array([np.nan if v is None else v for v in values], np.float64), None
    low, high, has_null = min(integers), max(integers), len(present) < len(values)
    if all(isinstance(v, bool) for v in present):
        if not has_null:
            return np.array(values, np.bool_), None
        kind: np.dtype[Any] = np.dtype(np.int8)
    else:
        kind = np.dtype(np.int64 if high <= np.iinfo(np.int64).max else np.uint64)
    limits = np.iinfo(kind)
    absent = limits.max if kind.kind == "u" else limits.min
    if low < limits.min or high > limits.max or (has_null and absent in (low, high)):
        return None
    numbers = np.array([absent if v is None else v for v in values], kind)
    return numbers, kind.type(absent) if has_null else None


def _create_column(file: Any, name: str, values: NDArray[Any]) -> None:
    file.create_dataset(name, data=values, track_times=False)


def frame_ranges(
    offsets: NDArray[np.int64], sizes: Sequence[int] | NDArray[np.int64], nbytes: int
) -> list[tuple[int, int]]:
    """Lists the byte ranges [start, stop) between the arrays of a file, in file order.

    Args:
        offsets: int64 (samples, arrays), offset of each array.
        sizes: bytes of each array; int64 (samples, arrays) if they differ.
        nbytes: size of the file.
    """
    starts = offsets.reshape(-1)
    lengths = np.broadcast_to(np.asarray(sizes, np.int64), offsets.shape).reshape(-1)
    order = np.argsort(starts, kind="stable")
    starts, stops = starts[order], (starts + lengths)[order]
    gap_starts = np.concatenate([[0], stops])
    gap_stops = np.concatenate([starts, [nbytes]])
    keep = gap_stops > gap_starts
    return list(zip(gap_starts[keep].tolist(), gap_stops[keep].tolist(), strict=True))


def move_ranges(
    fd: int,
    old: NDArray[np.int64],
    new: NDArray[np.int64],
    sizes: Sequence[int] | NDArray[np.int64],
) -> None:
    """Moves byte ranges within a file to places that may overlap the old ones.

    Args:
        fd: the file, open for reading and writing.
        old: int64 (..., arrays), where they lie.
        new: int64 (..., arrays), where they go.
        sizes: their lengths, of each array or of each range.

    Raises:
        OSError: the file system refused.
    """
    lengths = np.broadcast_to(np.asarray(sizes, np.int64), old.shape).reshape(-1).tolist()
    sources, targets = old.reshape(-1).tolist(), new.reshape(-1).tolist()
    waiting = deque(np.argsort(old, axis=None, kind="stable").tolist())
    held: dict[int, bytes] = {}
    moved = set()
    for at in np.argsort(new, axis=None, kind="stable").tolist():
        moved.add(at)
        if at not in held and sources[at] == targets[at]:
            continue
        content = held.pop(at, None) or os.pread(fd, lengths[at], sources[at])
        # Those that would be overwritten wait in memory: few, because nearly all move down.
        while waiting and sources[waiting[0]] < targets[at] + lengths[at]:
            number = waiting.popleft()
            if number not in moved:
                held[number] = os.pread(fd, lengths[number], sources[number])
        pwrite_all(fd, [content], targets[at])


def copy_frame(skeleton: int, fd: int, ranges: Sequence[tuple[int, int]]) -> int:
    """Copies everything except pixels from the skeleton into the shard; returns its CRC32C."""
    crc = 0
    for start, stop in ranges:
        while start < stop:
            piece = os.pread(skeleton, min(_COPY_BYTES, stop - start), start)
            crc = crc32c(piece, crc)
            pwrite_all(fd, [piece], start)
            start += len(piece)
    return crc
