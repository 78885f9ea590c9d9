"""This project's loader: how its contestants convert and read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.peers.protocol import Batch, Epochs, Reading

RESUME = "exact: state_dict() holds (seed, epoch, position); on other numbers of ranks too"


def pack(container: str, objects: Path, out: Path, reading: Reading) -> None:
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


@contextmanager
def load(
    policy: str, data: Path, reading: Reading, *, cache: str | None = None
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
                ids = np.asarray(batch["sample_id"]).astype(np.int64)
                yield ids, {name: batch[name] for name in reading.arrays}

        yield epoch
