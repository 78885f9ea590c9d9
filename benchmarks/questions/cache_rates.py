"""How near batches out of the node's own shared memory come to bare copies from it.

python -m benchmarks.questions.cache_rates --data bench-data --repeats 7

Samples of 0.59 MB in an arena that is full, shuffled, batches of 128, two threads. The limit is a
plain copy of the same records, out of the same arena, in the same order, into one preallocated
batch. Every batch is checked in the timed runs (first and last word of each array).
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import msdata
from benchmarks.questions.bare_reads import Batch, FillRow, edge_words, read_samples
from benchmarks.harness import compare, print_comparison, take_turns, write_result
from benchmarks.questions.load_rates import BATCH_SIZE, NUM_THREADS, SEED, run_loader
from benchmarks.workloads import make_dataset
from msdata.cache.arena import own_arenas
from msdata.cache.slot_file import SlotFile
from msdata.dataset.dataset import Split
from msdata.plan.order import epoch_order
from msdata.topology import Topology

BARE, LOADER = "bare copies from shared memory", "msdata.Loader, local hits"
_SHM_DIR = Path("/dev/shm")
_JOB = "bench_cache_rates"


def make_loader(split: Split) -> msdata.Loader:
    """The loader under test, with all that it asks for in its node's memory."""
    gib = 1.01 * len(split) * split.schema.sample_nbytes / (1 << 30)
    return msdata.Loader(
        split,
        batch_size=BATCH_SIZE,
        seed=SEED,
        threads=NUM_THREADS,
        topology=Topology(),
        cache=msdata.CacheConfig(memory_gib=gib, fill="stage", job=_JOB),
    )


def fill_from_arena(slots: SlotFile, batch: Batch) -> FillRow:
    """Rows by copies out of the arena, whose slots are in the order of the samples."""
    targets = [[np.frombuffer(row, np.uint8) for row in rows] for rows in batch.rows]

    def fill(row: int, sample: int) -> None:
        record, start = slots.record(sample), 0
        for target in targets[row]:
            np.copyto(target, record[start : start + len(target)])
            start += len(target)

    return fill


def wait_until_full(loader: msdata.Loader, slots: SlotFile, split: Split) -> None:
    """Waits until the arena holds all samples.

    Raises:
        SystemExit: it never will.
    """
    while slots.num_ready < len(split):
        # In this order: what the filler has filled last counts.
        is_done = loader.stats()["cache"]["filler"]["is_done"]
        if is_done and slots.num_ready < len(split):
            raise SystemExit(
                f"the cache could be filled with {slots.num_ready:,} of {len(split):,} samples of "
                f"{split.dataset.path} only: no result; free shared memory, or run 'msdata verify "
                f"{split.dataset.path}' to find what is altered"
            )
        time.sleep(0.05)


def measure(split: Split, repeats: int) -> dict[str, Any]:
    """Loader and bare copies in turns; see `compare` for what is returned."""
    words = edge_words(split)
    order = epoch_order("shuffle", seed=SEED, epoch=0, num_samples=len(split))
    batch = Batch(split, BATCH_SIZE, words)
    with make_loader(split) as loader:
        (path,) = (p for p in own_arenas(_SHM_DIR) if _JOB in p.name)
        with path.open("rb") as file:
            slots = SlotFile(file.fileno(), is_mapped=True)
            wait_until_full(loader, slots, split)
            slots.prefault(0, slots.num_slots)
            bare = partial(read_samples, order, batch, fill_from_arena(slots, batch), NUM_THREADS)
            ours = partial(run_loader, loader, order, split.schema.names, words)
            found = compare(take_turns({BARE: bare, LOADER: ours}, repeats, warm_ups=2), [BARE])
            hits = loader.stats()["tiers"]["local"]["samples"]
            slots.close()
    if hits != len(split):
        raise SystemExit(f"{hits} of {len(split)} samples came from memory: no result")
    return found


def main(argv: list[str] | None = None) -> int:
    """Runs the benchmark; writes `results/cache_rates.json`."""
    arguments = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="python -m benchmarks.questions.cache_rates")
    parser.add_argument("--data", type=Path, default=Path("bench-data"), help="made if absent")
    parser.add_argument("--samples", type=int, default=1600)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args(arguments)
    split = msdata.open(make_dataset(args.data, "tar", args.samples)).split("train")
    found = measure(split, args.repeats)
    nbytes = split.schema.sample_nbytes
    print_comparison("records in the node's memory", found, nbytes)
    result = {"sample_nbytes": nbytes, "batch_size": BATCH_SIZE, "local": found}
    command = shlex.join(["python", "-m", "benchmarks.questions.cache_rates", *arguments])
    print(f"\n{write_result('cache_rates', result, command=command)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
