"""LitData: chunks by `optimize`, read by its streaming data set and loader."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.objects import read_object
from benchmarks.peers.protocol import Epochs, Peer, Reading
from benchmarks.peers.torch_loading import epochs_of


def _sample(objects: Path, number: int) -> dict[str, Any]:
    return {"id": number, **read_object(objects, number)}


def _convert(objects: Path, out: Path, reading: Reading) -> None:
    import litdata

    litdata.optimize(
        fn=partial(_sample, objects),
        inputs=list(range(reading.num_samples)),
        output_dir=str(out),
        num_workers=reading.num_workers,
        chunk_bytes="64MB",
    )


@contextmanager
def _open(data: Path, reading: Reading) -> Iterator[Epochs]:
    import litdata

    dataset = litdata.StreamingDataset(str(data), shuffle=True, seed=reading.seed)
    loader = litdata.StreamingDataLoader(
        dataset,
        batch_size=reading.batch_size,
        num_workers=reading.num_workers,
        persistent_workers=True,
    )

    yield epochs_of(loader, reading)


PEER = Peer(
    title="LitData",
    packages=("litdata",),
    open=_open,
    convert=_convert,
    shuffle="chunks in random order, samples within a chunk",
    resume="approximate: state_dict of its loader; wrong on several nodes, litdata#248 #316",
    advice="LitData, README: optimize with 64 MB chunks, StreamingDataLoader, workers=cores",
)
