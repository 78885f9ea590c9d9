"""Contestants that map or hold all samples as arrays: turboloader, FFCV, DDStore."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.protocol import Batch, Epochs, Reading, Samples, fill_arrays, read_object

_BETON = "samples.beton"
_FFCV_PAGE_BYTES = 16 << 20


def write_arrays(objects: Path, out: Path, reading: Reading) -> None:
    """One `.npy` file of all samples per array."""
    out.mkdir()
    targets = {
        name: np.lib.format.open_memmap(
            out / f"{name}.npy", "w+", np.dtype(dtype), (reading.num_samples, *shape)
        )
        for name, (shape, dtype) in reading.arrays.items()
    }
    fill_arrays(targets, objects, reading)


@contextmanager
def open_turboloader(data: Path, reading: Reading) -> Iterator[Epochs]:
    """`ArrayDataLoader` of turboloader over memory maps."""
    import turboloader

    arrays = [np.load(data / f"{name}.npy", mmap_mode="r") for name in reading.arrays]
    loader = turboloader.ArrayDataLoader(
        np.arange(reading.num_samples),
        *arrays,
        batch_size=reading.batch_size,
        shuffle=True,
        seed=reading.seed,
    )

    def epoch(number: int) -> Iterator[Batch]:
        loader.set_epoch(number)
        for ids, *found in loader:
            yield ids, dict(zip(reading.arrays, found, strict=True))

    yield epoch


@contextmanager
def open_ddstore(data: Path, reading: Reading) -> Iterator[Epochs]:
    """DDStore of one rank: all samples in an MPI window, each taken out by a one-sided get."""
    from mpi4py import MPI
    from pyddstore import PyDDStore

    store = PyDDStore(MPI.COMM_WORLD)
    for name in reading.arrays:
        array = np.load(data / f"{name}.npy")
        store.add(name, array.reshape(len(array), -1))
    batch = reading.empty_batch()
    rows = {name: array.reshape(len(array), -1) for name, array in batch.items()}

    def epoch(number: int) -> Iterator[Batch]:
        for ids in reading.batches(number):
            store.epoch_begin()
            for name, target in rows.items():
                for row, sample in enumerate(ids.tolist()):
                    store.get(name, target[row : row + 1], sample)
            store.epoch_end()
            yield ids, {name: array[: len(ids)] for name, array in batch.items()}

    try:
        yield epoch
    finally:
        store.free()


def _row(objects: Path, reading: Reading, number: int) -> tuple[Any, ...]:
    arrays = read_object(objects, number)
    return (*(arrays[name] for name in reading.arrays), number)


def write_beton(objects: Path, out: Path, reading: Reading) -> None:
    """FFCV's file of pages, an `NDArrayField` per array."""
    from ffcv.fields import IntField, NDArrayField
    from ffcv.writer import DatasetWriter

    out.mkdir()
    fields: dict[str, Any] = {
        name: NDArrayField(np.dtype(dtype), shape)
        for name, (shape, dtype) in reading.arrays.items()
    }
    writer = DatasetWriter(
        str(out / _BETON),
        {**fields, "id": IntField()},
        page_size=_FFCV_PAGE_BYTES,
        num_workers=reading.num_workers,
    )
    writer.from_indexed_dataset(Samples(partial(_row, objects, reading), reading))


@contextmanager
def open_ffcv(data: Path, reading: Reading) -> Iterator[Epochs]:
    """FFCV's loader, its file mapped by the operating system."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.ndarray import NDArrayDecoder
    from ffcv.loader import Loader, OrderOption

    pipelines: dict[str, list[Any]] = {name: [NDArrayDecoder()] for name in reading.arrays}
    loader = Loader(
        str(data / _BETON),
        batch_size=reading.batch_size,
        num_workers=reading.num_workers,
        os_cache=True,
        order=OrderOption.RANDOM,
        seed=reading.seed,
        drop_last=False,
        pipelines={**pipelines, "id": [IntDecoder()]},
    )

    def epoch(_number: int) -> Iterator[Batch]:
        for *arrays, ids in loader:
            found = dict(zip(reading.arrays, arrays, strict=True))
            yield np.asarray(ids).reshape(-1).astype(np.int64), found

    yield epoch
