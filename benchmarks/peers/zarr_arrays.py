"""Zarr: an array of all samples, a chunk a sample, chunks gathered in shards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.peers.objects import read_object
from benchmarks.peers.protocol import Batch, Epochs, Peer, Reading

_SHARD_SAMPLES = 64


def _convert(objects: Path, out: Path, reading: Reading) -> None:
    import zarr

    group = zarr.open_group(str(out), mode="w")
    arrays = {
        name: group.create_array(
            name,
            shape=(reading.num_samples, *shape),
            dtype=dtype,
            chunks=(1, *shape),
            shards=(_SHARD_SAMPLES, *shape),
            # The samples are noise, which compression only makes slower.
            compressors=None,
        )
        for name, (shape, dtype) in reading.arrays.items()
    }
    for first in range(0, reading.num_samples, _SHARD_SAMPLES):
        stop = min(first + _SHARD_SAMPLES, reading.num_samples)
        block = [read_object(objects, number) for number in range(first, stop)]
        for name, array in arrays.items():
            array[first:stop] = np.stack([sample[name] for sample in block])


@contextmanager
def _open(data: Path, reading: Reading) -> Iterator[Epochs]:
    import zarr

    group = zarr.open_group(str(data), mode="r")
    arrays = {name: group[name] for name in reading.arrays}

    def epoch(number: int) -> Iterator[Batch]:
        order = reading.order(number)
        for first in range(0, len(order), reading.batch_size):
            ids = order[first : first + reading.batch_size]
            yield ids, {name: np.asarray(array.oindex[ids]) for name, array in arrays.items()}

    yield epoch


PEER = Peer(
    title="Zarr",
    packages=("zarr",),
    open=_open,
    convert=_convert,
    shuffle="uniform",
    reads_ahead=False,
    resume="none: left to its user",
    advice="Zarr, performance: chunks as they are read, in shards; oindex of a batch",
)
