"""One of upstream's block files: a float `.npy` whose rows are whole objects.

Rows are read by offset, one system call per row, from a descriptor that stays open: opening costs a
round trip on a parallel file system. Fortran order is read through a memory map and is slow, since
one row then lies all over the file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msdata.core.npy import read_npy_header
from msdata.errors import DataError, SampleError, StorageError
from msdata.schema import MANTIS_SHRIMP, Array, Sample

# Fifty times upstream's whole catalog: more is a broken header.
_MAX_ROWS = 200_000_000
# Upstream flattens the surveys in this order, which is not the order in which shards hold them.
ROW_ORDER = ("galex", "panstarrs", "unwise")
NUM_COLUMNS = sum(int(np.prod(MANTIS_SHRIMP[name].shape)) for name in ROW_ORDER)


@dataclass(frozen=True, kw_only=True)
class BlockHeader:
    """Where the rows of a block file stand.

    Attributes:
        num_rows: rows the header promises; a truncated file has fewer.
        dtype: the pixels', any float and byte order.
        is_fortran: columns stand together instead of rows.
        data_offset: where the array begins, in bytes.
    """

    num_rows: int
    dtype: np.dtype[Any]
    is_fortran: bool
    data_offset: int


def read_header(path: Path) -> BlockHeader:
    """Reads and checks the header of a block file.

    Args:
        path: the `.npy` file.

    Returns:
        Its header.

    Raises:
        DataError: it is not a float `.npy` of (rows, 148596).
        StorageError: the file system refused.
    """
    try:
        with path.open("rb") as file:
            shape, is_fortran, dtype = read_npy_header(file)
            data_offset = file.tell()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(
            f"{path} is not a block file: its .npy header is broken; copy it again"
        ) from error
    if len(shape) != 2 or shape[1] != NUM_COLUMNS or dtype.kind != "f":
        raise DataError(
            f"{path} has shape {shape} and dtype {dtype}, expected float (rows, {NUM_COLUMNS}): "
            "galex, panstarrs and unwise flattened; it is not a block file of upstream's"
        )
    if shape[0] > _MAX_ROWS:
        raise DataError(f"{path} promises {shape[0]:,} rows; its .npy header is broken")
    return BlockHeader(
        num_rows=shape[0], dtype=dtype, is_fortran=is_fortran, data_offset=data_offset
    )


def read_row(path: Path, descriptor: int, header: BlockHeader, row: int) -> Sample:
    """Reads one object.

    Args:
        path: the file, for Fortran order and for messages.
        descriptor: that file, open for reading.
        header: the file's header.
        row: number of the row.

    Returns:
        `galex`, `panstarrs`, `unwise` as views of one buffer, shaped as in `MANTIS_SHRIMP`, with
        the dtype and byte order of the file.

    Raises:
        SampleError: the row is cut off, or all zeros, which is how upstream marks missing objects.
        StorageError: the file system refused.
    """
    if not 0 <= row < header.num_rows:
        raise SampleError(f"row {row} of a block file of {header.num_rows} rows")
    if header.is_fortran:
        flat = _fortran_row(path, header, row)
    else:
        flat = np.empty(NUM_COLUMNS, header.dtype)
        offset = header.data_offset + row * flat.nbytes
        try:
            num_read = os.preadv(descriptor, [flat.view(np.uint8).data], offset)
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
        if num_read != flat.nbytes:
            raise SampleError(
                f"truncated block file: row {row} ends at byte {offset + flat.nbytes}, "
                f"the file at {offset + num_read}"
            )
    # The middle of the row is a galaxy's image in all but missing objects: look there first.
    middle = NUM_COLUMNS // 2
    if not flat[middle : middle + 512].any() and not flat.any():
        raise SampleError("the row is all zeros: a missing object")
    return _split(flat)


def _fortran_row(path: Path, header: BlockHeader, row: int) -> Array:
    shape = (header.num_rows, NUM_COLUMNS)
    try:
        rows = np.memmap(path, header.dtype, "r", header.data_offset, shape, "F")
    except ValueError as error:
        raise SampleError(
            "truncated block file: its columns stand together, so every row is affected"
        ) from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    return np.array(rows[row])


def _split(flat: Array) -> Sample:
    sample: Sample = {}
    begin = 0
    for name in ROW_ORDER:
        shape = MANTIS_SHRIMP[name].shape
        end = begin + int(np.prod(shape))
        sample[name] = flat[begin:end].reshape(shape)
        begin = end
    return sample
