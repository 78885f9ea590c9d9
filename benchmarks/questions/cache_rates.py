"""How near batches out of the node's own shared memory come to bare copies from it.

python -m benchmarks cache_rates --data bench-data --repeats 7

Samples of 580 KiB in an arena that is full, shuffled, batches of 128, two threads. The limit is a
plain copy of the same records, out of the same arena, in the same order, into one preallocated
batch. Every batch is checked in the timed runs (first and last bytes of each array).
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import msdata
from benchmarks.harness import (
    add_data,
    compare,
    part_parser,
    print_comparison,
    take_turns,
    write_part,
)
from benchmarks.questions.bare_reads import Batch, FillRow, edges_of, read_samples
from benchmarks.questions.load_rates import (
    BATCH_SIZE,
    NUM_THREADS,
    first_order,
    make_loader,
    run_loader,
)
from benchmarks.workloads import make_dataset
from msdata.cache.arena import own_arenas
from msdata.cache.slot_file import SlotFile
from msdata.dataset.dataset import Split

BARE, LOADER = "bare copies from shared memory", "msdata.Loader, local hits"
_SHM_DIR = Path("/dev/shm")
_JOB = "bench_cache_rates"


def fill_from_arena(slots: SlotFile, batch: Batch) -> FillRow:
    """Rows by copies out of the arena, whose slots are in the order of the samples."""
    targets = batch.targets()

    def fill(row: int, sample: int) -> None:
        record, start = slots.record(sample), 0
        for target in targets[row]:
            np.copyto(target, record[start : start + len(target)])
            start += len(target)

    return fill


def wait_until_full(loader: msdata.Loader, slots: SlotFile, split: Split) -> None:
    """Waits until the arena holds all samples; SystemExit if it never will."""
    while slots.num_ready < len(split):
        # In this order: what the filler has filled last counts.
        is_done = loader.stats()["cache"]["filler"]["is_done"]
        if is_done and slots.num_ready < len(split):
            raise SystemExit(
                f"the cache could be filled with {slots.num_ready:,} of {len(split):,} samples of "
                f"{split.dataset.path} only: no result; free shared memory, or run 'msdata verify "
                f"{split.dataset.path}' to find what is corrupt"
            )
        time.sleep(0.05)


def measure(split: Split, repeats: int) -> dict[str, Any]:
    """Loader and bare copies in turns; see `compare` for what is returned."""
    edges, order = edges_of(split), first_order(split)
    batch = Batch(split, BATCH_SIZE, edges)
    gib = 1.01 * len(split) * split.schema.sample_nbytes / (1 << 30)
    cache = msdata.CacheConfig(memory_gib=gib, fill="stage", job=_JOB)
    with make_loader(split, NUM_THREADS, cache) as loader:
        (path,) = (p for p in own_arenas(_SHM_DIR) if _JOB in p.name)
        with path.open("rb") as file:
            slots = SlotFile(file.fileno(), is_mapped=True)
            wait_until_full(loader, slots, split)
            slots.prefault(0, slots.num_slots)
            bare = partial(read_samples, order, batch, fill_from_arena(slots, batch), NUM_THREADS)
            ours = partial(run_loader, loader, order, split.schema.names, edges)
            found = compare(take_turns({BARE: bare, LOADER: ours}, repeats, warm_ups=2), [BARE])
            hits = loader.stats()["tiers"]["local"]["samples"]
            slots.close()
    if hits != len(split):
        raise SystemExit(f"{hits} of {len(split)} samples came from memory: no result")
    return found


def main(words: list[str]) -> int:
    """Runs the benchmark; writes `results/cache_rates.json`."""
    parser = part_parser("cache_rates", "Local hits beside bare copies from shared memory.")
    add_data(parser, 1600)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args(words)
    split = msdata.open(make_dataset(args.data, "tar", args.samples)).split("train")
    found = measure(split, args.repeats)
    nbytes = split.schema.sample_nbytes
    print_comparison("records in the node's memory", found, nbytes)
    result = {"sample_nbytes": nbytes, "batch_size": BATCH_SIZE, "local": found}
    write_part("cache_rates", result, words, args.out)
    return 0
