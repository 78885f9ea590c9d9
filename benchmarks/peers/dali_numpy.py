"""DALI's `readers.numpy` on the CPU, one reader an array."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.dali import RESUME, epochs_of
from benchmarks.peers.npy_dataloader import npy_path, write_npy
from benchmarks.peers.protocol import Epochs, Peer, Reading


def _ids(output: Any) -> NDArray[np.int64]:
    names = [bytes(np.asarray(output[row])).decode() for row in range(len(output))]
    return np.array([int(Path(name).stem) for name in names], np.int64)


@contextmanager
def _open(data: Path, reading: Reading) -> Iterator[Epochs]:
    from nvidia.dali import fn, pipeline_def

    numbers = range(reading.num_samples)

    @pipeline_def(
        batch_size=reading.batch_size,
        num_threads=reading.num_workers,
        device_id=None,
        seed=reading.seed,
    )
    def pipe() -> Any:
        arrays = [
            # Readers that shuffle after each epoch do so alike, so arrays of a sample meet.
            fn.readers.numpy(
                files=[str(npy_path(data, name, n)) for n in numbers], shuffle_after_epoch=True
            )
            for name in reading.arrays
        ]
        return (*arrays, fn.get_property(arrays[0], key="source_info"))

    pipeline = pipe()
    pipeline.build()
    yield epochs_of(pipeline, reading, _ids)


PEER = Peer(
    title="DALI readers.numpy",
    packages=("nvidia-dali-cuda120", "nvidia-dali-cuda130"),
    open=_open,
    convert=write_npy,
    shuffle="uniform after the first epoch",
    resume=RESUME,
    advice="DALI, readers.numpy: files listed, shuffle_after_epoch",
)
