"""Contestants whose batches come out of `torch.utils.data.DataLoader`, or of one that is like it.

As its documentation advises: worker processes as many as cores, kept over epochs, two batches each
ahead, the default collation.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.protocol import (
    Arrays,
    Batch,
    Epochs,
    Reading,
    Samples,
    read_object,
    read_objects,
)

BUFFER_SAMPLES = 1000
WIDS_CHUNK = 2000
WIDS_SHUFFLE = f"within chunks of {WIDS_CHUNK:,} samples, chunks in random order"
_FETCH_THREADS = 16
_NUM_TARS = 16
FILE = "samples.h5"


def stand_in(name: str, **members: object) -> None:
    """Has a peer import what it names but does not use here, where that is not installed.

    Args:
        name: dotted name of a module.
        members: what is imported from it.
    """
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
        return
    parts = name.split(".")
    for stop in range(1, len(parts) + 1):
        module = sys.modules.setdefault(
            ".".join(parts[:stop]), types.ModuleType(".".join(parts[:stop]))
        )
    vars(module).update(members)


def _with_id(read: Callable[[int], Arrays], number: int) -> dict[str, Any]:
    return {"id": number, **read(number)}


def _loader(samples: Any, reading: Reading, **options: Any) -> Any:
    import torch

    workers = {"num_workers": reading.num_workers, "persistent_workers": True}
    size = reading.batch_size
    return torch.utils.data.DataLoader(samples, **{"batch_size": size, **workers, **options})


def _shuffled(reading: Reading) -> dict[str, Any]:
    import torch

    return {"shuffle": True, "generator": torch.Generator().manual_seed(reading.seed)}


@contextmanager
def open_samples(
    reader: Callable[[Path, tuple[str, ...]], Callable[[int], Arrays]], data: Path, reading: Reading
) -> Iterator[Epochs]:
    """The DataLoader over what reads a sample of the converted data: its arrays by its number."""
    samples = Samples(partial(_with_id, reader(data, tuple(reading.arrays))), reading)
    yield epochs_of(_loader(samples, reading, **_shuffled(reading)), reading)


def epochs_of(loader: Any, reading: Reading) -> Epochs:
    """The epochs of a loader whose batches are dicts, the ids at "id"."""

    def epoch(_number: int) -> Iterator[Batch]:
        for batch in loader:
            arrays = {name: np.asarray(batch[name]) for name in reading.arrays}
            yield np.asarray(batch["id"]).reshape(-1).astype(np.int64), arrays

    return epoch


def read_pickle(data: Path, _: tuple[str, ...], number: int) -> Arrays:
    """Pickles as they are: what the astronomers do now."""
    return read_object(data, number)


@contextmanager
def open_concurrent(data: Path, reading: Reading) -> Iterator[Epochs]:
    """Svogor's ConcurrentDataloader: the DataLoader with threads within each batch."""
    stand_in("torch._six", string_classes=(str, bytes))
    from pytorch_concurrent_dataloader import DataLoader

    loader = DataLoader(
        Samples(partial(_with_id, partial(read_object, data)), reading),
        batch_size=reading.batch_size,
        num_workers=reading.num_workers,
        num_fetch_workers=_FETCH_THREADS,
        fetch_impl="asyncio",
        **_shuffled(reading),
    )
    yield epochs_of(loader, reading)


def npy_path(data: Path, name: str, number: int) -> Path:
    """Where an array of a sample lies."""
    return data / name / f"{number:07d}.npy"


def write_npy(objects: Path, out: Path, reading: Reading) -> None:
    """A folder per array, a file per sample."""
    for name in reading.arrays:
        (out / name).mkdir(parents=True)
    for number, arrays in read_objects(objects, reading):
        for name, array in arrays.items():
            np.save(npy_path(out, name, number), array)


def read_npy(data: Path, names: tuple[str, ...], number: int) -> Arrays:
    """One `.npy` file per array and sample."""
    return {name: np.load(npy_path(data, name, number)) for name in names}


class HDF5Reader:
    """Contiguous HDF5 datasets, the file opened in each worker."""

    def __init__(self, data: Path, names: tuple[str, ...]) -> None:
        self._path, self._names, self._file = data / FILE, names, None

    def __call__(self, number: int) -> Arrays:
        """The sample of a number."""
        if self._file is None:
            import h5py

            # In the worker: an HDF5 handle does not survive a fork.
            self._file = h5py.File(self._path, "r")
        return {name: self._file[name][number] for name in self._names}  # type: ignore[index]


def write_tars(objects: Path, out: Path, reading: Reading) -> None:
    """Shards by `webdataset.ShardWriter`, an `.npy` member per array and one for the id."""
    import webdataset

    out.mkdir()
    per_shard = -(-reading.num_samples // _NUM_TARS)
    pattern = str(out / "shard-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=per_shard, verbose=0) as writer:
        for number, arrays in read_objects(objects, reading):
            members: dict[str, Any] = {f"{name}.npy": array for name, array in arrays.items()}
            writer.write({"__key__": f"{number:07d}", **members, "id.npy": np.array([number])})


@contextmanager
def open_webdataset(data: Path, reading: Reading) -> Iterator[Epochs]:
    """Tars in random order, a shuffle buffer, worker processes."""
    import webdataset

    shards = sorted(str(path) for path in data.glob("*.tar"))
    names = ["id", *reading.arrays]
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards), seed=reading.seed)
        .shuffle(BUFFER_SAMPLES)
        .decode()
        .to_tuple(*(f"{name}.npy" for name in names))
        .batched(reading.batch_size)
    )
    loader = webdataset.WebLoader(
        dataset, batch_size=None, num_workers=reading.num_workers, persistent_workers=True
    )

    def epoch(number: int) -> Iterator[Batch]:
        named = (dict(zip(names, batch, strict=True)) for batch in loader)
        return epochs_of(named, reading)(number)

    yield epoch


@contextmanager
def open_wids(data: Path, reading: Reading) -> Iterator[Epochs]:
    """WebDataset's tars by an index, their samples in any order."""
    import wids

    per_shard, count = -(-reading.num_samples // _NUM_TARS), reading.num_samples
    shards = [
        {"url": str(path), "nsamples": min(per_shard, count - number * per_shard)}
        for number, path in enumerate(sorted(data.glob("*.tar")))
    ]
    samples = wids.ShardListDataset(
        shards, lru_size=len(shards), localname=str, keep=True, transformations="PIL"
    )
    samples.add_transform(partial(_named, names=("id", *reading.arrays)))
    sampler = wids.ChunkedSampler(samples, chunksize=WIDS_CHUNK, seed=reading.seed, shuffle=True)
    yield epochs_of(_loader(samples, reading, sampler=sampler), reading)


def _named(sample: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: sample[f".{name}.npy"] for name in names}


def _stand_in_for_streaming() -> None:
    """Its images and texts want these; its MDS does not."""
    stand_in("torchvision.datasets", VisionDataset=object)
    stand_in("torchvision.transforms.functional", to_tensor=None)
    stand_in("transformers.models.auto.tokenization_auto", AutoTokenizer=None)
    stand_in("transformers.feature_extraction_utils", BatchFeature=_Unused)
    stand_in("transformers.tokenization_utils_base", BatchEncoding=_Unused)


class _Unused:
    """No batch is one of these."""


def write_mds(objects: Path, out: Path, reading: Reading) -> None:
    """MDS shards of MosaicML Streaming."""
    _stand_in_for_streaming()
    from streaming import MDSWriter

    columns = {"id": "int"}
    for name, (shape, dtype) in reading.arrays.items():
        columns[name] = f"ndarray:{np.dtype(dtype).name}:{','.join(map(str, shape))}"
    with MDSWriter(out=str(out), columns=columns) as writer:
        for number, arrays in read_objects(objects, reading):
            writer.write({"id": number, **arrays})


@contextmanager
def open_mds(data: Path, reading: Reading) -> Iterator[Epochs]:
    """MosaicML Streaming through the DataLoader."""
    _stand_in_for_streaming()
    from streaming import StreamingDataset

    size = reading.batch_size
    dataset = StreamingDataset(
        local=str(data), shuffle=True, shuffle_seed=reading.seed, batch_size=size
    )
    yield epochs_of(_loader(dataset, reading), reading)


def write_litdata(objects: Path, out: Path, reading: Reading) -> None:
    """Chunks by LitData's `optimize`."""
    import litdata

    litdata.optimize(
        fn=partial(_with_id, partial(read_object, objects)),
        inputs=list(range(reading.num_samples)),
        output_dir=str(out),
        num_workers=reading.num_workers,
        chunk_bytes="64MB",
    )


@contextmanager
def open_litdata(data: Path, reading: Reading) -> Iterator[Epochs]:
    """LitData's streaming data set and loader."""
    import litdata

    dataset = litdata.StreamingDataset(str(data), shuffle=True, seed=reading.seed)
    loader = litdata.StreamingDataLoader(
        dataset,
        batch_size=reading.batch_size,
        num_workers=reading.num_workers,
        persistent_workers=True,
    )
    yield epochs_of(loader, reading)
