"""Contiguous HDF5 data sets through the DataLoader, the file opened in each worker."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from benchmarks.peers.h5py_straight import FILE, write_hdf5
from benchmarks.peers.protocol import Epochs, Peer, Reading
from benchmarks.peers.torch_loading import ADVICE, RESUME, Samples, open_dataloader


class _Reader:
    def __init__(self, path: Path, names: tuple[str, ...]) -> None:
        self._path, self._names = path, names
        self._file: Any = None

    def __call__(self, number: int) -> dict[str, NDArray[Any]]:
        if self._file is None:
            import h5py

            # In the worker: an HDF5 handle does not survive a fork.
            self._file = h5py.File(self._path, "r")
        return {name: self._file[name][number] for name in self._names}


def _open(data: Path, reading: Reading) -> AbstractContextManager[Epochs]:
    reader = _Reader(data / FILE, tuple(reading.arrays))
    return open_dataloader(Samples(reader, reading.num_samples), reading)


PEER = Peer(
    title="h5py + DataLoader",
    packages=("h5py", "torch"),
    open=_open,
    convert=write_hdf5,
    shuffle="uniform",
    resume=RESUME,
    advice=ADVICE + "; the file opened once a worker",
)
