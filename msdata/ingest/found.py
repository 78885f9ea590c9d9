"""What `msdata index` finds in files: samples, the places of their arrays, their labels.

Readers of each kind of file fill `FoundFile`s; `in_place.py` makes the data set of them.
"""

from __future__ import annotations

import functools
import io
import json
import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.checksum import crc32c
from msdata.core.npy import read_npy_header
from msdata.core.trusted_names import short
from msdata.errors import DataError, UsageError, naming
from msdata.ingest.found_labels import FoundLabel, label_of_values
from msdata.ingest.label_checks import check_id

if TYPE_CHECKING:
    import pyarrow as pa

# Enough for the header of any array of numbers.
_HEADER_NBYTES = 1 << 16
_PIECE_NBYTES = 8 << 20
_IDS_AT_ONCE = 1 << 16


@dataclass(frozen=True, slots=True)
class FoundArray:
    """An array of a sample.

    Attributes:
        dtype: little-endian dtype string.
        shape: its shape.
        offset: its first byte in the file.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(slots=True)
class FoundSample:
    """A sample while its file is read.

    Attributes:
        sample_id: its id.
        arrays: its arrays by name.
        labels: its labels by name, as found.
    """

    sample_id: str
    arrays: dict[str, FoundArray] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FoundFile:
    """A file with samples, in columns: it may hold millions.

    Attributes:
        path: absolute path.
        nbytes: its size.
        ids: ids of its samples, in file order.
        arrays: dtype and shape of the arrays of each sample, in order.
        offsets: first byte of each sample's array, by name.
        labels: its labels.
        left_out: what is neither array nor label, by kind, with the number of samples.
        crc32c: uint32 (samples,), checksum over a sample's arrays, in order.
        num_nan: NaN values of each sample, by array.
    """

    path: Path
    nbytes: int
    ids: pa.Array
    arrays: Mapping[str, tuple[str, tuple[int, ...]]]
    offsets: Mapping[str, NDArray[np.int64]]
    labels: Mapping[str, FoundLabel]
    left_out: Counter[str]
    crc32c: NDArray[np.uint32]
    num_nan: Mapping[str, NDArray[np.int32]]

    def __len__(self) -> int:
        return len(self.ids)


def found_file(
    path: Path,
    nbytes: int,
    ids: pa.Array,
    arrays: Mapping[str, tuple[str, tuple[int, ...]]],
    offsets: Mapping[str, NDArray[np.int64]],
    labels: Mapping[str, FoundLabel],
    left_out: Counter[str],
) -> FoundFile:
    """A file whose headers were read; reads its arrays once, for checksums and NaN.

    Raises:
        UsageError: an id is not a printable text.
        DataError: the file ends too early.
    """
    with naming(f"cannot index {path}", UsageError):
        for start in range(0, len(ids), _IDS_AT_ONCE):
            for sample_id in ids.slice(start, _IDS_AT_ONCE).to_pylist():
                check_id(sample_id)
    crc32c_of, num_nan = _measured(path, len(ids), arrays, offsets)
    return FoundFile(
        path=path,
        nbytes=nbytes,
        ids=ids,
        arrays=arrays,
        offsets=offsets,
        labels=labels,
        left_out=left_out,
        crc32c=crc32c_of,
        num_nan=num_nan,
    )


def file_of_samples(
    path: Path, nbytes: int, samples: Sequence[FoundSample], left_out: Counter[str]
) -> FoundFile:
    """A file of the samples that were found in it one by one.

    Raises:
        UsageError: they have different arrays, or labels of several kinds.
        DataError: the file ends too early.
    """
    import pyarrow as pa

    ids = [sample.sample_id for sample in samples]
    arrays = {name: (a.dtype, a.shape) for name, a in samples[0].arrays.items()} if samples else {}
    for sample in samples:
        found = {name: (a.dtype, a.shape) for name, a in sample.arrays.items()}
        check_same_arrays(path, (sample.sample_id, found), (ids[0], arrays, path))
    offsets = {
        name: np.array([sample.arrays[name].offset for sample in samples], np.int64)
        for name in arrays
    }
    labels = {}
    for name in dict.fromkeys(name for sample in samples for name in sample.labels):
        label = label_of_values(name, [sample.labels.get(name) for sample in samples], ids)
        if label is not None:
            labels[name] = label
    return found_file(path, nbytes, pa.array(ids, pa.string()), arrays, offsets, labels, left_out)


_Arrays = Mapping[str, tuple[str, tuple[int, ...]]]


def check_same_arrays(
    path: Path, sample: tuple[str, _Arrays], first: tuple[str, _Arrays, Path]
) -> None:
    """Refuses a sample whose arrays are not those of the first one.

    Args:
        path: file of the sample.
        sample: its id and arrays.
        first: id, arrays and file of the first one.

    Raises:
        UsageError: names, shapes, dtypes or the order differ.
    """
    (sample_id, found), (first_id, wanted, where) = sample, first
    if found != wanted:
        raise UsageError(
            f"cannot read {path} in place: sample {sample_id!r} has {_told(found)}, {first_id!r} "
            f"of {where.name} has {_told(wanted)}; crop them to one shape: {convert(path)}"
        )
    # The order of the first sample's arrays is that of the checksum.
    if list(found) != list(wanted):
        raise UsageError(
            f"cannot read {path} in place: the arrays of {sample_id!r} are in another order than "
            f"those of {first_id!r}; {convert(path)}"
        )


def _told(arrays: _Arrays) -> str:
    return ", ".join(f"{n} {d} {'x'.join(map(str, s))}" for n, (d, s) in arrays.items())


def convert(path: Path) -> str:
    """What to do with a file that cannot be read in place."""
    # `pack` takes tars, HDF5, NPZ, Zarr, Parquet and pictures; the writer what Python can read.
    return (
        f"convert it with 'msdata pack {path} NEW', or write its arrays with msdata.Writer (guide: "
        "Data of your own)"
    )


def cannot(path: Path, found: str) -> UsageError:
    """The error for a file that cannot be read in place."""
    return UsageError(f"cannot read {path} in place: {found}; {convert(path)}")


def npy_array(fd: int, path: Path, offset: int, nbytes: int, name: str) -> FoundArray:
    """Reads the header of an array in `.npy` format.

    Args:
        fd: the open file.
        path: its path, for messages.
        offset: first byte of the `.npy` content.
        nbytes: bytes of the content.
        name: what holds it, for messages.

    Raises:
        UsageError: it is pickled, big-endian, or in Fortran's order.
        DataError: it is not `.npy` content, or truncated.
    """
    head = os.pread(fd, min(10, nbytes), offset)
    if len(head) < 10 or head[:6] != b"\x93NUMPY":
        raise DataError(f"{path}: {name} is damaged: it does not start as a .npy file")
    # Version 1.0 has two bytes for the length of the header, later ones four.
    width = 2 if head[6] == 1 else 4
    length = 8 + width + int.from_bytes(os.pread(fd, width, offset + 8), "little")
    if length > min(nbytes, _HEADER_NBYTES):
        raise DataError(f"{path}: {name} is damaged: the header of its array is too long")
    try:
        dtype, shape, is_fortran = _parse_header(os.pread(fd, length, offset))
    except ValueError as error:
        raise DataError(f"{path}: {name} is damaged: {error}") from error
    if is_fortran:
        raise cannot(path, f"{name} is in Fortran's order")
    kind = checked_dtype(path, name, dtype)
    array = FoundArray(kind, shape, offset + length)
    if length + array.nbytes != nbytes:
        raise DataError(
            f"{path}: {name} is damaged: it must have {length + array.nbytes} bytes, got {nbytes}"
        )
    return array


@functools.lru_cache(maxsize=256)
def _parse_header(header: bytes) -> tuple[np.dtype[Any], tuple[int, ...], bool]:
    shape, is_fortran, dtype = read_npy_header(io.BytesIO(header))
    # One axis or none has the same order either way.
    return dtype, shape, is_fortran and len(shape) > 1


def checked_dtype(path: Path, name: str, dtype: np.dtype[Any]) -> str:
    """Returns the dtype string of an array of numbers.

    Raises:
        UsageError: it is pickled, big-endian or not of numbers.
    """
    if dtype.hasobject:
        raise cannot(path, f"{name} is a pickled object, not an array of numbers")
    if dtype.kind not in "biufc":
        raise cannot(path, f"{name} has dtype {dtype}, not numbers")
    if dtype.byteorder == ">":
        raise cannot(path, f"{name} is big-endian")
    return dtype.newbyteorder("<").str


def _measured(
    path: Path, count: int, arrays: _Arrays, offsets: Mapping[str, NDArray[np.int64]]
) -> tuple[NDArray[np.uint32], dict[str, NDArray[np.int32]]]:
    """Reads each sample's arrays once: their checksum, and how many values are NaN."""
    crcs = np.zeros(count, np.uint32)
    num_nan = {name: np.zeros(count, np.int32) for name in arrays}
    plan = []
    for name, (said, shape) in arrays.items():
        dtype = np.dtype(said)
        content = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
        plan.append((offsets[name].tolist(), content, content.view(dtype), num_nan[name]))
    with path.open("rb", buffering=0) as file:
        fd = file.fileno()
        for row in range(count):
            crc = 0
            for starts, content, values, counts in plan:
                _read_into(fd, path, content, starts[row])
                crc = crc32c(content, crc)
                if values.dtype.kind in "fc":
                    counts[row] = np.count_nonzero(np.isnan(values))
            crcs[row] = crc
    return crcs, num_nan


def _read_into(fd: int, path: Path, content: NDArray[np.uint8], offset: int) -> None:
    done = 0
    while done < len(content):
        count = os.preadv(fd, [content[done : done + _PIECE_NBYTES].data], offset + done)
        if not count:
            raise DataError(f"{path} is truncated: an array at byte {offset} is cut off")
        done += count


def flat_labels(text: bytes, path: Path, name: str) -> tuple[dict[str, Any], list[str]]:
    """Reads the labels of a JSON text: its numbers, texts and truth values.

    Returns:
        Labels by name, and the names of other values.

    Raises:
        DataError: it is not a JSON object.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: {name} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: {name} must hold a JSON object, got {short(found)}")
    labels = {n: v for n, v in found.items() if v is None or isinstance(v, str | int | float)}
    return labels, [n for n in found if n not in labels]
