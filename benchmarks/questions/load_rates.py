"""How near the loader comes to the limit of memory (hot) and of the disk (cold).

python -m benchmarks load_rates --data bench-data --repeats 5 [--cold]

Hot: 4,000 samples of 580 KiB, uniformly shuffled, batches of 128, two threads. The limit is the
best of bare `preadv` and bare copies out of a memory map: the same bytes of the same files in the
same order into one preallocated batch. Every batch is checked in the timed runs (first and last
bytes of each array), every byte once before them (CRC32C of the index). The files were read front
to back before, so that the page cache has them in large folios; `hot_after_random` is the same
where only the loader read them before, in its random order, for which the kernel takes single
pages. The loader runs as it is by default, which reads the page cache, and with the node's cache,
whose shared memory the runs that are not counted have filled.

Cold: the shards' pages are dropped before every run, and counted. The limit is the best rate of
bare `preadv`, sequential or random, with any of 1, 2, 4, 8 threads; the loader takes its default.
"""

from __future__ import annotations

import gc
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import msdata
from benchmarks.harness import (
    Contestant,
    add_data,
    compare,
    part_parser,
    print_comparison,
    take_turns,
    write_part,
)
from benchmarks.questions.bare_reads import (
    Batch,
    check_edges,
    edges_of,
    fill_by_preadv,
    fill_from_map,
    open_shards,
    read_samples,
    read_sequentially,
)
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


def make_loader(split: Split, threads: int | None, cache: Any = None) -> msdata.Loader:
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
    loader: msdata.Loader,
    order: NDArray[np.int64],
    names: tuple[str, ...],
    edges: NDArray[np.uint8],
) -> float:
    """Epoch 0 of the loader, every batch checked; samples per second.

    Args:
        loader: under test.
        order: int64 (samples,), the order that it promises for this epoch.
        names: arrays in the schema's order.
        edges: from `edges_of`.
    """
    loader.set_epoch(0)
    position = 0
    started_s = time.perf_counter()
    for batch in loader:
        size = len(batch[names[0]])
        arrays = {name: batch[name] for name in names}
        check_edges(arrays, order[position : position + size], edges)
        position += size
    elapsed_s = time.perf_counter() - started_s
    if position != len(order):
        raise SystemExit(f"the loader gave {position} of {len(order)} samples: no result")
    return position / elapsed_s


def first_order(split: Split) -> NDArray[np.int64]:
    """int64 (samples,), the order of epoch 0."""
    return epoch_order("shuffle", seed=SEED, epoch=0, num_samples=len(split))


def _check_every_byte(split: Split) -> None:
    with msdata.Loader(split, BATCH_SIZE, threads=NUM_THREADS, verify=True) as loader:
        num_samples = sum(len(batch["sample_id"]) for batch in loader)
    if num_samples != len(split):
        raise SystemExit(f"the loader gave {num_samples} of {len(split)} samples: no result")


def measure_hot(split: Split, repeats: int, *, is_random: bool = False) -> dict[str, Any]:
    """Loader and bare reads of pages that were read front to back, or in random order."""
    gc.collect()  # a loader's maps would hold their pages
    drop_all(split.shard_paths)
    if not is_random:
        read_sequentially(split.shard_paths, len(split), 1)
    _check_every_byte(split)
    return measure_from_memory(split, repeats)


def measure_from_memory(
    split: Split, repeats: int, caches: tuple[str | None, ...] = (None, "auto")
) -> dict[str, Any]:
    """Loader and bare reads of pages that are in memory however they came there; see `compare`."""
    edges, order = edges_of(split), first_order(split)
    batch = Batch(split, BATCH_SIZE, edges)
    with ExitStack() as stack:
        shards = stack.enter_context(open_shards(split))
        fills = {
            "bare preadv": fill_by_preadv(shards, batch),
            "bare copies out of a memory map": stack.enter_context(fill_from_map(split, batch)),
        }
        bare: dict[str, Contestant] = {
            name: partial(read_samples, order, batch, fill, NUM_THREADS)
            for name, fill in fills.items()
        }
        ours: dict[str, Contestant] = {}
        for cache in caches:
            loader = stack.enter_context(make_loader(split, NUM_THREADS, cache))
            run = partial(run_loader, loader, order, split.schema.names, edges)
            ours[CACHED if cache else LOADER] = run
        return compare(take_turns({**bare, **ours}, repeats, warm_ups=2), list(bare))


def measure_cold(split: Split, repeats: int) -> dict[str, Any]:
    """Loader and bare reads from the disk; see `compare` for what is returned."""
    edges, order = edges_of(split), first_order(split)
    batch = Batch(split, BATCH_SIZE, edges)
    shares: list[float] = []

    def drop() -> None:
        gc.collect()  # a loader's maps would hold their pages
        shares.append(drop_all(split.shard_paths))

    def ours() -> float:
        with make_loader(split, None) as loader:
            return run_loader(loader, order, split.schema.names, edges)

    with open_shards(split) as shards:
        fill = fill_by_preadv(shards, batch)
        bare: dict[str, Contestant] = {}
        for threads in COLD_THREADS:
            with_threads = f"{threads} thread{'s' if threads > 1 else ''}"
            bare[f"sequential preadv, {with_threads}"] = partial(
                read_sequentially, split.shard_paths, len(split), threads
            )
            bare[f"random preadv, {with_threads}"] = partial(
                read_samples, order, batch, fill, threads
            )
        rates = take_turns({**bare, LOADER: ours}, repeats, warm_ups=0, before_each=drop)
    return {**compare(rates, list(bare)), "greatest_cached_share": round(max(shares), 5)}


def drop_all(paths: list[Path]) -> float:
    """Drops files from the page cache; the greatest share of a file's pages that stayed."""
    shares = []
    for path in paths:
        share = drop_from_cache(path)
        if share is None or share > MAX_CACHED_SHARE:
            found = "the system does not tell what" if share is None else f"{share:.1%}"
            raise SystemExit(f"{path} could not be dropped from the page cache ({found} is left)")
        shares.append(share)
    return max(shares)


def main(words: list[str]) -> int:
    """Runs the benchmark; writes `results/load_rates.json`."""
    parser = part_parser("load_rates", "The loader beside bare reads.")
    add_data(parser, 4000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cold", action="store_true", help="also from the disk")
    args = parser.parse_args(words)
    result: dict[str, Any] = {"batch_size": BATCH_SIZE, "threads": NUM_THREADS}
    measures = {"hot": measure_hot, "hot_after_random": partial(measure_hot, is_random=True)}
    if args.cold:
        measures["cold"] = measure_cold
    for container in CONTAINERS:
        split = msdata.open(make_dataset(args.data, container, args.samples)).split("train")
        sample_nbytes = split.schema.sample_nbytes
        result |= {"num_samples": len(split), "sample_nbytes": sample_nbytes}
        for name, measure in measures.items():
            found = measure(split, args.repeats)
            result.setdefault(name, {})[container] = found
            gc.collect()
            print_comparison(f"{container}, {name.replace('_', ' ')}", found, sample_nbytes)
    write_part("load_rates", result, words, args.out)
    return 0
