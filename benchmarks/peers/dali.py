"""DALI pipelines on the CPU: how the outputs of a run become a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.peers.protocol import Batch, Epochs, Reading

RESUME = "exact: a pipeline's checkpoint, where all of its operators support it"


def epochs_of(pipeline: Any, reading: Reading, read_ids: Any) -> Epochs:
    """The batches of a pipeline whose outputs are the arrays in order, then what gives the ids."""

    def epoch(_number: int) -> Iterator[Batch]:
        for _ in range(reading.num_samples // reading.batch_size):
            *arrays, last = pipeline.run()
            found = [np.asarray(output.as_tensor()) for output in arrays]
            yield read_ids(last), dict(zip(reading.arrays, found, strict=True))

    return epoch
