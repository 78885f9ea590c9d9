"""Opens files of stacked arrays: HDF5, NPZ, and Zarr groups of format 2 or 3 on this file system.

Each function gives the arrays by name, which lie on the disk until they are read, and notes on what
is left out. Nothing leads out of an HDF5 file: external links, external storage and virtual
datasets are not followed.
"""

from __future__ import annotations

import math
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from msdata.core.files import storage_error
from msdata.core.npy import read_npy_header
from msdata.dataset.hdf5 import import_h5py
from msdata.errors import DataError, needing

# Chunks of HDF5 hold several samples, which are read in random order.
_CHUNK_CACHE_NBYTES = 64 << 20
# Each worker process unpacks a compressed array of NPZ whole.
_MAX_UNPACKED_NBYTES = 8 << 30
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class StackArray(Protocol):
    """One array of a file: what h5py, Zarr and NumPy have in common."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, samples first."""

    @property
    def dtype(self) -> Any:
        """Its dtype."""

    def __getitem__(self, key: Any) -> Any:
        """One sample, or all with `...`."""


def open_hdf5(path: Path) -> tuple[Mapping[str, StackArray], list[str]]:
    """Opens a file.

    Args:
        path: the file; it stays open.

    Returns:
        Its datasets with one axis or more by name, and notes on those that lie in other files.

    Raises:
        DataError: it is not HDF5, or truncated.
        StorageError: the file system refused.
    """
    h5py = import_h5py()
    datasets: dict[str, StackArray] = {}
    notes: list[str] = []

    def visit(name: str, found: Any) -> None:
        if not isinstance(found, h5py.Dataset) or not found.shape:
            return
        if found.is_virtual or found.external:
            notes.append(f"dataset {name} is left out: its values lie in other files")
            return
        try:
            np.dtype(found.dtype)
        except TypeError:
            return
        datasets[name] = found

    try:
        path.open("rb").close()
        file = h5py.File(path, "r", locking=False, rdcc_nbytes=_CHUNK_CACHE_NBYTES)
        # Visits what lies in the file: links to others are not followed.
        file.visititems(visit)
    except OSError as error:
        if error.errno is not None:
            raise storage_error("read", path, error) from error
        raise DataError(f"{path} is not HDF5, or is truncated: {error}; copy it again") from error
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is broken: {error}") from error
    return datasets, notes


def open_zarr(path: Path) -> tuple[Mapping[str, StackArray], list[str]]:
    """Opens a group.

    Args:
        path: its folder.

    Returns:
        Its arrays by name, those of groups in it as "group/array"; and no notes.

    Raises:
        DataError: it is not a Zarr group, or broken.
        MissingPackageError: zarr is not installed.
    """
    with needing("Zarr groups need zarr", "zarr"):
        import zarr
    arrays: dict[str, StackArray] = {}

    def visit(prefix: str, group: Any) -> None:
        for name, found in sorted(group.arrays()):
            if found.shape:
                arrays[prefix + name] = found
        for name, found in sorted(group.groups()):
            visit(f"{prefix}{name}/", found)

    try:
        visit("", zarr.open_group(str(path), mode="r"))
    except Exception as error:  # zarr and its codecs raise many kinds
        raise DataError(f"{path} is not a Zarr group, or is broken: {error}") from error
    return arrays, []


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
