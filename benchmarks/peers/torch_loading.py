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
    """A map-style data set: (id, arrays) of a number.

    Args:
        read: gives the arrays of a sample.
        num_samples: samples of an epoch.
    """

    def __init__(self, read: Callable[[int], dict[str, NDArray[Any]]], num_samples: int) -> None:
        self._read = read
        self._num_samples = num_samples

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, number: int) -> tuple[int, dict[str, NDArray[Any]]]:
        return number, self._read(number)


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

    def epoch(_number: int) -> Iterator[Batch]:
        for ids, arrays in loader:
            yield ids.numpy().astype(np.int64), {n: arrays[n].numpy() for n in reading.arrays}

    yield epoch
