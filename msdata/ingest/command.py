"""`msdata index`: opens files where they lie as a data set.

It stands alone as every command does.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from msdata.core.options import add_jobs
from msdata.errors import UsageError
from msdata.ingest.in_place import index_in_place

WHEN_INTERRUPTED = "nothing was written"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `msdata index`."""
    parser.add_argument(
        "source",
        type=Path,
        help="WebDataset tar, HDF5 file, or a folder of them or of .npy files, one per sample",
    )
    parser.add_argument("out", type=Path, help="folder of the data set, new or empty")
    parser.add_argument(
        "--split",
        help="fractions of train, val and test (default: the folders train, val, ... of the "
        "source if it has them, else 0.7,0.1,0.2)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the splits (%(default)s)")
    add_jobs(parser, "files read in parallel")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Runs `msdata index`; returns the exit code."""
    try:
        fractions = tuple(map(float, args.split.split(","))) if args.split else None
    except ValueError:
        raise UsageError(
            f"--split must be fractions such as 0.7,0.1,0.2, got {args.split!r}"
        ) from None
    report = index_in_place(
        args.source, args.out, split_fractions=fractions, seed=args.seed, jobs=args.jobs
    )
    manifest = report.manifest
    splits = dict.fromkeys(manifest.splits, 0)
    for shard in manifest.shards:
        splits[shard.split] += shard.num_samples
    if args.json:
        result = {"path": str(args.out), "fingerprint": manifest.fingerprint, "splits": splits}
        print(json.dumps({**result, "notes": list(report.notes)}))
        return 0
    for note in report.notes:
        print(f"note: {note}")
    told = ", ".join(f"{name} {count:,}" for name, count in splits.items())
    print(f"indexed {manifest.num_samples:,} samples in place ({told}); {args.source} must stay")
    return 0
