"""MosaicML Streaming: MDS shards through the DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.peers.objects import read_objects
from benchmarks.peers.protocol import Epochs, Peer, Reading
from benchmarks.peers.torch_loading import epochs_of


def _convert(objects: Path, out: Path, reading: Reading) -> None:
    from streaming import MDSWriter

    columns = {"id": "int"}
    for name, (shape, dtype) in reading.arrays.items():
        columns[name] = f"ndarray:{np.dtype(dtype).name}:{','.join(map(str, shape))}"
    with MDSWriter(out=str(out), columns=columns) as writer:
        for number, arrays in read_objects(objects, reading):
            writer.write({"id": number, **arrays})


@contextmanager
def _open(data: Path, reading: Reading) -> Iterator[Epochs]:
    import torch
    from streaming import StreamingDataset

    dataset = StreamingDataset(
        local=str(data), shuffle=True, shuffle_seed=reading.seed, batch_size=reading.batch_size
    )
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=reading.batch_size,
        num_workers=reading.num_workers,
        persistent_workers=True,
    )

    yield epochs_of(loader, reading)


PEER = Peer(
    title="MosaicML Streaming",
    packages=("mosaicml-streaming", "torch"),
    open=_open,
    convert=_convert,
    shuffle="py1e: within blocks of shards",
    resume="exact: StreamingDataLoader's state_dict, mid-epoch, on other numbers of ranks",
    advice="Streaming, user guide: MDS shards at their default size, shuffle, batch_size given",
)
