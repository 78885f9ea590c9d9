"""Opens an HDF5 file of stacked arrays with h5py.

It stands alone because only this format can lead to other files: external links, external storage
and virtual datasets are not followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from msdata.core.files import storage_error
from msdata.dataset.hdf5 import import_h5py
from msdata.errors import DataError
from msdata.sources.arrays.stack_array import StackArray

# Chunks hold several samples, which are read in random order.
_CHUNK_CACHE_NBYTES = 64 << 20


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
        with path.open("rb"):
            pass
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
