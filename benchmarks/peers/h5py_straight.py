"""Contiguous HDF5 data sets, each sample read straight into its row of a preallocated batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.peers.objects import read_objects
from benchmarks.peers.protocol import Batch, Epochs, Peer, Reading

FILE = "samples.h5"


def write_hdf5(objects: Path, out: Path, reading: Reading) -> None:
    """A contiguous data set an array."""
    import h5py

    out.mkdir()
    with h5py.File(out / FILE, "w") as file:
        for name, (shape, dtype) in reading.arrays.items():
            file.create_dataset(name, (reading.num_samples, *shape), dtype)
        for number, arrays in read_objects(objects, reading):
            for name, array in arrays.items():
                file[name][number] = array


@contextmanager
def _open(data: Path, reading: Reading) -> Iterator[Epochs]:
    import h5py

    with h5py.File(data / FILE, "r") as file:
        sets = {name: file[name] for name in reading.arrays}
        batch = reading.empty_batch()

        def epoch(number: int) -> Iterator[Batch]:
            order = reading.order(number)
            for first in range(0, len(order), reading.batch_size):
                ids = order[first : first + reading.batch_size]
                for name, target in batch.items():
                    for row, sample in enumerate(ids.tolist()):
                        sets[name].read_direct(target[row], sample)
                yield ids, {name: array[: len(ids)] for name, array in batch.items()}

        yield epoch


PEER = Peer(
    title="h5py, read straight",
    packages=("h5py",),
    open=_open,
    convert=write_hdf5,
    shuffle="uniform",
    reads_ahead=False,
    resume="none: left to its user",
    advice="h5py, Datasets: read_direct avoids an intermediate copy",
)
