"""WebDataset: tars in random order, a shuffle buffer, worker processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.objects import read_objects
from benchmarks.peers.protocol import Batch, Epochs, Peer, Reading

_NUM_SHARDS = 16
_BUFFER_SAMPLES = 1000


def write_tars(objects: Path, out: Path, reading: Reading) -> None:
    """Shards by `webdataset.ShardWriter`, an `.npy` member an array and one for the id."""
    import webdataset

    out.mkdir()
    per_shard = -(-reading.num_samples // _NUM_SHARDS)
    pattern = str(out / "shard-%06d.tar")
    with webdataset.ShardWriter(pattern, maxcount=per_shard, verbose=0) as writer:
        for number, arrays in read_objects(objects, reading):
            members: dict[str, Any] = {f"{name}.npy": array for name, array in arrays.items()}
            writer.write({"__key__": f"{number:07d}", **members, "id.npy": np.array([number])})


@contextmanager
def _open(data: Path, reading: Reading) -> Iterator[Epochs]:
    import webdataset

    shards = sorted(str(path) for path in data.glob("*.tar"))
    names = [f"{name}.npy" for name in reading.arrays]
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards), seed=reading.seed)
        .shuffle(_BUFFER_SAMPLES)
        .decode()
        .to_tuple("id.npy", *names)
        .batched(reading.batch_size)
    )
    loader = webdataset.WebLoader(
        dataset, batch_size=None, num_workers=reading.num_workers, persistent_workers=True
    )

    def epoch(_number: int) -> Iterator[Batch]:
        for ids, *arrays in loader:
            found = {n: np.asarray(a) for n, a in zip(reading.arrays, arrays, strict=True)}
            yield np.asarray(ids).reshape(-1).astype(np.int64), found

    yield epoch


PEER = Peer(
    title="WebDataset",
    packages=("webdataset", "torch"),
    open=_open,
    convert=write_tars,
    shuffle=f"shards in random order, buffer of {_BUFFER_SAMPLES:,} samples a worker",
    resume="none: webdataset#234",
    advice="its README: shardshuffle, shuffle(1000), batched in the workers, WebLoader",
)
