"""Opens an NPZ file of stacked arrays: maps what is stored as it is, unpacks what is compressed."""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from msdata.core.files import storage_error
from msdata.core.npy import read_npy_header
from msdata.errors import DataError
from msdata.sources.arrays.stack_array import StackArray

# Each worker process unpacks a compressed array whole.
_MAX_UNPACKED_NBYTES = 8 << 30
_LOCAL_HEADER = struct.Struct("<4s22xHH")


def open_npz(path: Path) -> tuple[Mapping[str, StackArray], list[str]]:
    """Opens a file.

    Args:
        path: the file.

    Returns:
        Its arrays by name; those of `np.savez` are mapped, those of `np.savez_compressed` are in
        memory. And notes on members that are left out: pickled objects are never loaded.

    Raises:
        DataError: it is not NPZ, broken, or larger than memory should hold.
        StorageError: the file system refused.
    """
    arrays: dict[str, StackArray] = {}
    notes: list[str] = []
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".npy")]
            packed = sum(m.file_size for m in members if m.compress_type != zipfile.ZIP_STORED)
            if packed > _MAX_UNPACKED_NBYTES:
                raise DataError(
                    f"{path} has {packed:,} bytes unpacked, more than {_MAX_UNPACKED_NBYTES:,}: "
                    "save it with numpy.savez, or as HDF5"
                )
            for member in members:
                name = member.filename.removesuffix(".npy")
                found = _open_member(path, archive, member)
                if found is None:
                    notes.append(f"{name} is left out: it holds pickled objects")
                else:
                    arrays[name] = found
    except OSError as error:
        raise storage_error("read", path, error) from error
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, NotImplementedError) as error:
        raise DataError(
            f"{path} is not an NPZ file, or is truncated: {error}; copy it again"
        ) from error
    return arrays, notes


def _open_member(
    path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo
) -> np.ndarray[Any, Any] | None:
    with archive.open(member) as file:
        shape, is_fortran, dtype = read_npy_header(file)
        start = file.tell()
        if dtype.hasobject:
            return None
        nbytes = math.prod(shape) * dtype.itemsize
        if start + nbytes != member.file_size:
            raise ValueError(f"{member.filename} of shape {shape} has {member.file_size} bytes")
        order: Any = "F" if is_fortran else "C"
        if member.compress_type == zipfile.ZIP_STORED and not member.flag_bits & 1 and nbytes:
            offset = _data_offset(path, member) + start
            return np.memmap(path, dtype, "r", offset, shape, order)
        return np.frombuffer(file.read(), dtype).reshape(shape, order=order)


def _data_offset(path: Path, member: zipfile.ZipInfo) -> int:
    """Where the bytes of a stored member begin; the local header repeats the name."""
    with path.open("rb") as file:
        file.seek(member.header_offset)
        magic, name_nbytes, extra_nbytes = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    if magic != b"PK\3\4":
        raise ValueError(f"{member.filename} has no header")
    return int(member.header_offset + _LOCAL_HEADER.size + name_nbytes + extra_nbytes)
