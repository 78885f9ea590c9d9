"""Predictions as an HDF5 file that qp reads: its `hist` form, for RAIL and other tools.

/meta/pdf_name, pdf_version   what qp makes of it: "hist"
/meta/bins                    float64 (1, K + 1), edges of the bins in redshift
/data/pdfs                    float32 (N, K), per unit redshift
/ancil                        the other columns of the table of predictions, each (N,)

Text is bytes of equal length, as NumPy has it; a null is NaN, the lowest integer (said in the
attribute `_FillValue`) or an empty text. The root's attribute `mstrain` is the metadata of the
Parquet table. h5py only sees a file in memory with a hole for the densities: it crashes where the
disk is full.

Source: qp-prob 1.1, `qp.hist`; Malz et al. 2018, AJ 156, 35.
"""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from msdata.core.files import storage_error, whole_file
from msdata.dataset.hdf5 import import_h5py, label_column, system_errors

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIX = ".hdf5"
_GROUP_ROWS = 32_768
# Room for headers and the heap, beside what is counted.
_FRAME_NBYTES = 1 << 20
Columns = Mapping[str, "NDArray[Any] | pa.ChunkedArray"]


def write_qp(
    path: Path,
    columns: Columns,
    densities: Callable[[NDArray[np.int64]], NDArray[np.float32]],
    edges: NDArray[np.float64],
    metadata: Mapping[str, Any],
) -> None:
    """Writes predictions in qp's form, whole or not at all.

    Args:
        path: the file.
        columns: (N,) each, in the order of the file; NaN and null as above.
        densities: gives the densities of some rows, float32 (n, K).
        edges: float64 (K + 1,), edges of the bins.
        metadata: plain values.

    Raises:
        MissingPackageError: h5py is not installed.
        StorageError: the file system refused.
    """
    ancillary = {name: _plain(values) for name, values in columns.items()}
    num_rows, num_bins = len(next(iter(ancillary.values()))[0]), len(edges) - 1
    nbytes = 4 * num_rows * num_bins
    fd = os.memfd_create("mstrain-qp", os.MFD_CLOEXEC)
    try:
        _check_limit(nbytes + sum(values.nbytes for values, _ in ancillary.values()))
        offset = _make_frame(
            Path(f"/proc/self/fd/{fd}"), ancillary, (num_rows, num_bins), edges, metadata
        )
        end = os.fstat(fd).st_size
        with whole_file(path) as file:
            for part in _parts(fd, 0, offset):
                file.write(part)
            for start in range(0, num_rows, _GROUP_ROWS):
                rows = np.arange(start, min(start + _GROUP_ROWS, num_rows))
                file.write(np.ascontiguousarray(densities(rows), "<f4").data)
            for part in _parts(fd, offset + nbytes, end):
                file.write(part)
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise storage_error("write", path, error) from error
        raise
    finally:
        os.close(fd)


def _check_limit(nbytes: int) -> None:
    """Refuses a file above the limit of file sizes, which would crash h5py."""
    most, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if most != resource.RLIM_INFINITY and nbytes + _FRAME_NBYTES > most:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))


def _make_frame(
    path: Path,
    ancillary: Mapping[str, tuple[NDArray[Any], Any]],
    shape: tuple[int, int],
    edges: NDArray[np.float64],
    metadata: Mapping[str, Any],
) -> int:
    """Makes the file but for the densities, and gives where they belong."""
    h5py = import_h5py()
    options = {"driver": "stdio", "locking": False, "libver": ("v110", "v110")}
    with system_errors(), h5py.File(path, "w", track_order=False, **options) as file:
        file.attrs["mstrain"] = json.dumps(metadata)
        meta = file.create_group("meta")
        content = {"pdf_name": np.array([b"hist"]), "pdf_version": np.array([0])}
        for name, values in {**content, "bins": edges[None]}.items():
            meta.create_dataset(name, data=values, track_times=False)
        group = file.create_group("ancil")
        for name, (values, absent) in ancillary.items():
            group.create_dataset(name, data=values, track_times=False)
            if absent is not None:
                group[name].attrs["_FillValue"] = absent
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        properties.set_obj_track_times(False)
        space, kind = h5py.h5s.create_simple(shape), h5py.h5t.IEEE_F32LE
        data = file.create_group("data")
        return int(h5py.h5d.create(data.id, b"pdfs", kind, space, properties).get_offset())


def _parts(fd: int, start: int, stop: int) -> Iterator[bytes]:
    """Bytes [start, stop) of a file."""
    while start < stop and (part := os.pread(fd, min(stop - start, 1 << 24), start)):
        yield part
        start += len(part)


def _plain(values: NDArray[Any] | pa.ChunkedArray) -> tuple[NDArray[Any], Any]:
    """A column as HDF5 takes it, and its value for null, if that is none of its own."""
    if isinstance(values, np.ndarray) and values.dtype.kind in "fiu":
        return values, None
    listed = values.to_pylist() if hasattr(values, "to_pylist") else list(values)
    numbers = label_column(listed)
    if numbers is not None:
        return numbers
    texts = ["" if value is None else str(value) for value in listed]
    return np.char.encode(np.array(texts, dtype=str), "utf-8"), None
