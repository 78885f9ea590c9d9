"""How near the loader comes to the limit of memory (hot) and of the disk (cold).

python -m benchmarks.questions.load_rates --data bench-data --repeats 5 [--cold]

Hot: 4,000 samples of 0.59 MB, uniformly shuffled, batches of 128, two threads. The limit is the
best of bare `preadv` and bare copies out of a memory map: the same bytes of the same files in the
same order into one preallocated batch. Every batch is checked in the timed runs (first and last
word of each array), every byte once before them (CRC32C of the index). The files were read front to
back before, so that the page cache has them in large folios; `hot_after_random` is the same where
only the loader read them before, in its random order, for which the kernel takes single pages.
The loader runs as it is by default, which reads the page cache, and with the node's cache, whose
shared memory the runs that are not counted have filled.

Cold: the shards' pages are dropped before every run, and counted. The limit is the best rate of
bare `preadv`, sequential or random, with any of 1, 2, 4, 8 threads; the loader takes its default.
"""

from __future__ import annotations

import argparse
import gc
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import msdata
from benchmarks.questions.bare_reads import (
    Batch,
    check_words,
    edge_words,
    fill_by_preadv,
    fill_from_map,
    open_shards,
    read_samples,
    read_sequentially,
)
from benchmarks.harness import Contestant, compare, print_comparison, take_turns, write_result
from benchmarks.workloads import CONTAINERS, make_dataset
from msdata.cluster.probe import drop_from_cache
from msdata.dataset.dataset import Split
from msdata.plan.order import epoch_order
from msdata.topology import Topology

BATCH_SIZE = 128
NUM_THREADS = 2
COLD_THREADS = (1, 2, 4, 8)
SEED = 0
# Readahead of the last bytes looked at may leave a few pages.
MAX_CACHED_SHARE = 0.01
LOADER = "msdata.Loader"
CACHED = "msdata.Loader, cache='auto'"


def make_loader(split: Split, threads: int | None, cache: str | None = None) -> msdata.Loader:
    """The loader under test, as a user would call it; None for as many threads as it takes."""
    return msdata.Loader(
        split,
        batch_size=BATCH_SIZE,
        seed=SEED,
        threads=threads,
        topology=Topology(),
        cache=cache,
        across_epochs=False,  # every run is of epoch 0
    )


def run_loader(
    loader: msdata.Loader, order: NDArray[np.int64], names: tuple[str, ...], words: NDArray[Any]
) -> float:
    """One epoch of the loader, every batch checked.

    Args:
        loader: set to epoch 0.
        order: int64 (samples,), the order that it promises for this epoch.
        names: arrays in the schema's order.
        words: from `edge_words`.

    Returns:
        Samples per second.
    """
    loader.set_epoch(0)
    position = 0
    started_s = time.perf_counter()
    for batch in loader:
        size = len(batch[names[0]])
        arrays = {name: batch[name] for name in names}
        check_words(arrays, order[position : position + size], slice(0, size), words)
        position += size
    elapsed_s = time.perf_counter() - started_s
    if position != len(order):
        raise SystemExit(f"the loader gave {position} of {len(order)} samples: no result")
    return position / elapsed_s


def check_every_byte(split: Split) -> None:
    """Runs the loader once with checksums against the index."""
    with msdata.Loader(split, BATCH_SIZE, threads=NUM_THREADS, verify=True) as loader:
        num_samples = sum(len(batch["sample_id"]) for batch in loader)
    if num_samples != len(split):
        raise SystemExit(f"the loader gave {num_samples} of {len(split)} samples: no result")


def measure_hot(split: Split, repeats: int) -> dict[str, Any]:
    """Loader and bare reads from memory; see `compare` for what is returned."""
    drop_all(split.shard_paths)
    read_sequentially(split.shard_paths, len(split), 1)
    check_every_byte(split)
    return measure_from_memory(split, repeats)


def measure_hot_after_random(split: Split, repeats: int) -> dict[str, Any]:
    """The same, of pages that random reads brought into memory."""
    gc.collect()  # a loader's maps would hold their pages
    drop_all(split.shard_paths)
    check_every_byte(split)
    return measure_from_memory(split, repeats)


def measure_from_memory(split: Split, repeats: int) -> dict[str, Any]:
    """Loader and bare reads of pages that are in memory however they came there; see `compare`."""
    words = edge_words(split)
    order = epoch_order("shuffle", seed=SEED, epoch=0, num_samples=len(split))
    batch = Batch(split, BATCH_SIZE, words)
    with (
        open_shards(split) as shards,
        fill_from_map(split, batch) as fill_mapped,
        make_loader(split, NUM_THREADS) as loader,
        make_loader(split, NUM_THREADS, "auto") as cached,
    ):
        bare: dict[str, Contestant] = {
            "bare preadv": partial(
                read_samples, order, batch, fill_by_preadv(shards, batch), NUM_THREADS
            ),
            "bare copies out of a memory map": partial(
                read_samples, order, batch, fill_mapped, NUM_THREADS
            ),
        }
        ours: dict[str, Contestant] = {
            name: partial(run_loader, each, order, split.schema.names, words)
            for name, each in ((LOADER, loader), (CACHED, cached))
        }
        rates = take_turns({**bare, **ours}, repeats, warm_ups=2)
        return compare(rates, list(bare))


def measure_cold(split: Split, repeats: int) -> dict[str, Any]:
    """Loader and bare reads from the disk; see `compare` for what is returned."""
    words = edge_words(split)
    order = epoch_order("shuffle", seed=SEED, epoch=0, num_samples=len(split))
    batch = Batch(split, BATCH_SIZE, words)
    shares: list[float] = []

    def drop() -> None:
        gc.collect()  # a loader's maps would hold their pages
        shares.append(drop_all(split.shard_paths))

    def ours() -> float:
        with make_loader(split, None) as loader:
            return run_loader(loader, order, split.schema.names, words)

    with open_shards(split) as shards:
        fill = fill_by_preadv(shards, batch)
        bare: dict[str, Contestant] = {}
        for threads in COLD_THREADS:
            plural = "s" if threads > 1 else ""
            bare[f"sequential preadv, {threads} thread{plural}"] = partial(
                read_sequentially, split.shard_paths, len(split), threads
            )
            bare[f"random preadv, {threads} thread{plural}"] = partial(
                read_samples, order, batch, fill, threads
            )
        rates = take_turns({**bare, LOADER: ours}, repeats, warm_ups=0, before_each=drop)
    return {**compare(rates, list(bare)), "greatest_cached_share": round(max(shares), 5)}


def drop_all(paths: list[Path]) -> float:
    """Drops files from the page cache.

    Returns:
        The greatest share of a file's pages that stayed.
    """
    shares = []
    for path in paths:
        share = drop_from_cache(path)
        if share is None or share > MAX_CACHED_SHARE:
            found = "nobody can tell" if share is None else f"{share:.1%}"
            raise SystemExit(f"{path} could not be dropped from the page cache ({found} is left)")
        shares.append(share)
    return max(shares)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.questions.load_rates")
    parser.add_argument("--data", type=Path, default=Path("bench-data"), help="made if absent")
    parser.add_argument("--samples", type=int, default=4000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="also from the disk")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; writes `results/load_rates.json`."""
    arguments = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(arguments)
    result: dict[str, Any] = {"batch_size": BATCH_SIZE, "threads": NUM_THREADS}
    measures: list[tuple[str, Callable[[Split, int], dict[str, Any]]]] = [
        ("hot", measure_hot),
        ("hot_after_random", measure_hot_after_random),
    ]
    if args.cold:
        measures.append(("cold", measure_cold))
    for container in CONTAINERS:
        split = msdata.open(make_dataset(args.data, container, args.samples)).split("train")
        sample_nbytes = split.schema.sample_nbytes
        result |= {"num_samples": len(split), "sample_nbytes": sample_nbytes}
        for name, measure in measures:
            found = measure(split, args.repeats)
            result.setdefault(name, {})[container] = found
            gc.collect()
            print_comparison(f"{container}, {name.replace('_', ' ')}", found, sample_nbytes)
    command = shlex.join(["python", "-m", "benchmarks.questions.load_rates", *arguments])
    print(f"\n{write_result('load_rates', result, command=command)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
