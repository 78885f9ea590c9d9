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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.checksum import crc32c
from msdata.core.trusted_names import short
from msdata.errors import DataError, SampleError, UsageError
from msdata.ingest.label_checks import RANGES, plain_value

# `pack` takes tars, HDF5, NPZ, Zarr and pictures; the writer whatever Python can read.
CONVERT = (
    "convert it with 'msdata pack SRC NEW', or write its arrays with msdata.Writer "
    "(guide: Data of your own)"
)
# Enough for the header of any array of numbers.
_HEADER_NBYTES = 1 << 16
_PIECE_NBYTES = 8 << 20


@dataclass(frozen=True)
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


@dataclass
class FoundSample:
    """A sample of a file.

    Attributes:
        sample_id: its id.
        arrays: its arrays by name.
        labels: its labels by name, as found.
        crc32c: checksum over its arrays, in order; set once they are read.
        num_nan: NaN values of each array.
    """

    sample_id: str
    arrays: dict[str, FoundArray] = field(default_factory=dict)
    labels: dict[str, Any] = field(default_factory=dict)
    crc32c: int = 0
    num_nan: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FoundFile:
    """A file with samples.

    Attributes:
        path: absolute path.
        nbytes: its size.
        samples: its samples, in file order.
        left_out: what is neither array nor label, by kind, with the number of samples.
    """

    path: Path
    nbytes: int
    samples: list[FoundSample]
    left_out: Counter[str]


def cannot(path: Path, found: str, cure: str = CONVERT) -> UsageError:
    """The error for a file that cannot be read in place."""
    return UsageError(f"cannot read {path} in place: {found}; {cure}")


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
    file = io.BytesIO(header)
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, is_fortran, dtype = read(file)
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


def measure(fd: int, path: Path, sample: FoundSample) -> None:
    """Reads a sample's arrays once: their checksum, and how many values are NaN.

    Raises:
        DataError: the file ends too early.
    """
    crc = 0
    for name, array in sample.arrays.items():
        content = _read(fd, path, array)
        crc = crc32c(content, crc)
        values = content.view(np.dtype(array.dtype))
        count = int(np.count_nonzero(np.isnan(values))) if values.dtype.kind in "fc" else 0
        sample.num_nan[name] = count
    sample.crc32c = crc


def _read(fd: int, path: Path, array: FoundArray) -> NDArray[np.uint8]:
    content = np.empty(array.nbytes, np.uint8)
    done = 0
    while done < len(content):
        count = os.preadv(fd, [content[done : done + _PIECE_NBYTES].data], array.offset + done)
        if not count:
            raise DataError(f"{path} is truncated: an array at byte {array.offset} is cut off")
        done += count
    return content


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


def believed(labels: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The labels that an index can keep, and the names of those that are dropped.

    A redshift or position outside of what `msdata pack` believes becomes None.
    """
    kept, dropped = {}, []
    for name, value in labels.items():
        try:
            kept[name], _ = plain_value(name, value)
        except SampleError:
            dropped.append(name)
            if name in RANGES:
                kept[name] = None
    return kept, dropped
