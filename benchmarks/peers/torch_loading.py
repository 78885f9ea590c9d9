"""A map-style PyTorch data set through `torch.utils.data.DataLoader`, as its documentation advises.

Worker processes as many as cores, kept over epochs, two batches each ahead, the default collation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.protocol import Batch, Epochs, Reading

RESUME = "none: the DataLoader has no state; torchdata's stateful one replays"
ADVICE = "PyTorch, torch.utils.data: num_workers=cores, persistent_workers, default collation"


class Samples:
    """A map-style data set: the arrays of a number, and the number at "id".

    Args:
        read: gives the arrays of a sample.
        num_samples: samples of an epoch.
    """

    def __init__(self, read: Callable[[int], dict[str, NDArray[Any]]], num_samples: int) -> None:
        self._read = read
        self._num_samples = num_samples

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, number: int) -> dict[str, Any]:
        return {"id": number, **self._read(number)}


@contextmanager
def open_dataloader(samples: Samples, reading: Reading) -> Iterator[Epochs]:
    """The DataLoader over a data set."""
    import torch

    loader = torch.utils.data.DataLoader(
        samples,  # type: ignore[arg-type]
        batch_size=reading.batch_size,
        shuffle=True,
        num_workers=reading.num_workers,
        persistent_workers=True,
        generator=torch.Generator().manual_seed(reading.seed),
    )

    yield epochs_of(loader, reading)


def epochs_of(loader: Any, reading: Reading) -> Epochs:
    """The epochs of a loader whose batches are dicts of tensors, the ids at "id"."""

    def epoch(_number: int) -> Iterator[Batch]:
        for batch in loader:
            arrays = {name: np.asarray(batch[name]) for name in reading.arrays}
            yield np.asarray(batch["id"]).astype(np.int64), arrays

    return epoch
