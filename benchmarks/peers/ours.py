"""This project's loader: how its contestants convert and read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.protocol import Batch, Epochs, Reading


def pack(objects: Path, out: Path, reading: Reading, *, container: str = "tar") -> None:
    """`msdata pack` as a user types it, no object rejected.

    Raises:
        SystemExit: it failed.
    """
    from msdata.cli import main

    options = ["--split", "1,0,0", "--max-nan-fraction", "1", "--format", container, "--quiet"]
    jobs = ["--jobs", str(reading.num_workers)]
    catalog = ["--catalog", str(objects / "catalog.csv")]
    code = main(["pack", str(objects), str(out), *catalog, *options, *jobs])
    if code:
        raise SystemExit(f"msdata pack ended with {code}")


def _numbers(ids: NDArray[np.str_]) -> NDArray[np.int64]:
    """Ids of digits as numbers; `astype` takes longer for them than the loader for the batch."""
    codes = ids.view(np.uint32).reshape(len(ids), ids.dtype.itemsize // 4)
    digits = codes.astype(np.int64) - ord("0")
    return digits @ 10 ** np.arange(digits.shape[1])[::-1]


@contextmanager
def load(
    data: Path, reading: Reading, *, policy: str = "shuffle", cache: str | None = None
) -> Iterator[Epochs]:
    """`msdata.Loader` over the whole split."""
    import msdata

    split = msdata.open(data).split("train")
    with msdata.Loader(
        split,
        reading.batch_size,
        seed=reading.seed,
        policy=policy,
        topology=msdata.Topology(),
        cache=cache,
        threads=reading.num_workers,
        prefetch=2,
        hold=1,
        columns=[],
    ) as loader:

        def epoch(number: int) -> Iterator[Batch]:
            loader.set_epoch(number)
            for batch in loader:
                yield _numbers(batch["sample_id"]), {name: batch[name] for name in reading.arrays}

        yield epoch
