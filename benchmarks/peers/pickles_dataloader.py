"""Pickles as they are through the DataLoader: what the astronomers do now."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from benchmarks.peers.objects import read_object
from benchmarks.peers.protocol import Epochs, Peer, Reading
from benchmarks.peers.torch_loading import ADVICE, RESUME, Samples, open_dataloader


def _open(data: Path, reading: Reading) -> AbstractContextManager[Epochs]:
    return open_dataloader(Samples(partial(read_object, data), reading.num_samples), reading)


PEER = Peer(
    title="pickles + DataLoader",
    packages=("torch",),
    open=_open,
    convert=None,
    shuffle="uniform",
    resume=RESUME,
    advice=ADVICE,
)
