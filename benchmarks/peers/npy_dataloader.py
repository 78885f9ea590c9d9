"""One `.npy` file an array and sample, through the DataLoader."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.objects import read_objects
from benchmarks.peers.protocol import Epochs, Peer, Reading
from benchmarks.peers.torch_loading import ADVICE, RESUME, Samples, open_dataloader


def npy_path(data: Path, name: str, number: int) -> Path:
    """Where an array of a sample lies."""
    return data / name / f"{number:07d}.npy"


def write_npy(objects: Path, out: Path, reading: Reading) -> None:
    """A folder an array, a file a sample."""
    for name in reading.arrays:
        (out / name).mkdir(parents=True)
    for number, arrays in read_objects(objects, reading):
        for name, array in arrays.items():
            np.save(npy_path(out, name, number), array)


def _read(data: Path, names: tuple[str, ...], number: int) -> dict[str, NDArray[Any]]:
    return {name: np.load(npy_path(data, name, number)) for name in names}


def _open(data: Path, reading: Reading) -> AbstractContextManager[Epochs]:
    read = partial(_read, data, tuple(reading.arrays))
    return open_dataloader(Samples(read, reading.num_samples), reading)


PEER = Peer(
    title=".npy + DataLoader",
    packages=("torch", "numpy"),
    open=_open,
    convert=write_npy,
    shuffle="uniform",
    resume=RESUME,
    advice=ADVICE,
)
