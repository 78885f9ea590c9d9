"""SPDL: a pipeline of threads over the pickles."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.objects import read_object
from benchmarks.peers.protocol import Batch, Epochs, Peer, Reading


@contextmanager
def _open(data: Path, reading: Reading) -> Iterator[Epochs]:
    from spdl.pipeline import PipelineBuilder

    def read(number: int) -> tuple[int, dict[str, Any]]:
        return number, read_object(data, number)

    def stack(samples: list[tuple[int, dict[str, Any]]]) -> Batch:
        ids = np.array([number for number, _ in samples], np.int64)
        arrays = {name: np.stack([a[name] for _, a in samples]) for name in reading.arrays}
        return ids, arrays

    def epoch(number: int) -> Iterator[Batch]:
        pipeline = (
            PipelineBuilder()
            .add_source(reading.order(number).tolist())
            .pipe(read, concurrency=reading.num_workers)
            .aggregate(reading.batch_size)
            .pipe(stack)
            .add_sink(3)
            .build(num_threads=reading.num_workers + 1)
        )
        with pipeline.auto_stop():
            yield from pipeline.get_iterator(timeout=60)

    yield epoch


PEER = Peer(
    title="SPDL over pickles",
    packages=("spdl", "spdl_core"),
    open=_open,
    convert=None,
    shuffle="uniform",
    resume="none: left to its user's source",
    advice="SPDL, getting started: a pipeline of stages with threads, concurrency=cores",
)
