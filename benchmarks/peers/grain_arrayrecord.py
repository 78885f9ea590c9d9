"""Grain over ArrayRecord, one record a sample."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.objects import read_objects, record_of
from benchmarks.peers.protocol import Batch, Epochs, Peer, Reading

_FILE = "samples.arrayrecord"


def _convert(objects: Path, out: Path, reading: Reading) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    out.mkdir()
    # Records one by one and uncompressed, as advised for random access to incompressible data.
    writer = ArrayRecordWriter(str(out / _FILE), "group_size:1,uncompressed")
    for number, arrays in read_objects(objects, reading):
        writer.write(np.int64(number).tobytes() + record_of(arrays, reading).tobytes())
    writer.close()


@contextmanager
def _open(data: Path, reading: Reading) -> Iterator[Epochs]:
    import grain

    dtype = np.dtype([("id", "<i8"), *reading.dtype().descr])
    source = grain.sources.ArrayRecordDataSource([str(data / _FILE)])

    def parse(record: bytes) -> dict[str, Any]:
        fields = np.frombuffer(record, dtype)[0]
        return {name: fields[name] for name in dtype.names or ()}

    def epoch(number: int) -> Iterator[Batch]:
        dataset = (
            grain.MapDataset.source(source)
            .seed(reading.seed + number)
            .shuffle()
            .map(parse)
            .to_iter_dataset(grain.ReadOptions(num_threads=16, prefetch_buffer_size=500))
            .batch(reading.batch_size)
        )
        for batch in dataset:
            yield np.asarray(batch["id"]), {name: batch[name] for name in reading.arrays}

    yield epoch


PEER = Peer(
    title="Grain + ArrayRecord",
    packages=("grain", "array_record"),
    open=_open,
    convert=_convert,
    shuffle="uniform",
    resume="exact: an iterator's get_state and set_state",
    advice="Grain, tutorials: MapDataset with the default ReadOptions; ArrayRecord group_size:1",
)
