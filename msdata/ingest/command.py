"""`msdata index`: opens files where they lie as a data set, and adds columns to a packed one.

It stands alone as every command does. `msdata index add DATA TABLE` has a third word, which no
index of files has; a source folder named `add` is `./add`.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from msdata.core.options import add_jobs, parse_renames
from msdata.core.text import print_result
from msdata.errors import UsageError
from msdata.ingest.add_columns import add_columns
from msdata.ingest.in_place import index_in_place

WHEN_INTERRUPTED = "nothing was written"
_ADD = "add"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `msdata index`."""
    parser.usage = (
        "msdata index SRC DATA [--split A,B,C] [--seed N] [--jobs N] [--json]\n"
        "       msdata index add DATA TABLE [--take NEW=NAME,...] [--id-column NAME] "
        "[--skip-unknown] [--json]"
    )
    parser.add_argument(
        "source",
        metavar="SRC",
        help="WebDataset tar, HDF5 file, or a folder of them or of .npy files, one per sample; "
        "'add' adds the columns of a table to a packed data set",
    )
    parser.add_argument("out", metavar="DATA", type=Path, help="folder of the data set")
    parser.add_argument(
        "table", metavar="TABLE", type=Path, nargs="?", help="add: CSV, Parquet or FITS"
    )
    parser.add_argument(
        "--split",
        help="fractions of train, val and test (default: the folders train, val, ... of the "
        "source if it has them, else 0.7,0.1,0.2)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the splits (%(default)s)")
    add_jobs(parser, "files read in parallel")
    parser.add_argument(
        "--take", metavar="NEW=NAME,...", help="add: columns, by a new name or their own (all)"
    )
    parser.add_argument(
        "--id-column", metavar="NAME", help="add: column of sample ids (default: a known name)"
    )
    parser.add_argument(
        "--skip-unknown", action="store_true", help="add: leave out rows that no sample has"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Runs `msdata index`; returns the exit code."""
    if args.table is not None:
        return _add(args)
    if args.take or args.id_column or args.skip_unknown:
        raise UsageError(
            "--take, --id-column and --skip-unknown must be used with 'msdata index add DATA TABLE'"
        )
    try:
        fractions = tuple(map(float, args.split.split(","))) if args.split else None
    except ValueError:
        raise UsageError(
            f"--split must be fractions such as 0.7,0.1,0.2, got {args.split!r}"
        ) from None
    report = index_in_place(
        Path(args.source), args.out, split_fractions=fractions, seed=args.seed, jobs=args.jobs
    )
    manifest = report.manifest
    splits = dict.fromkeys(manifest.splits, 0)
    for shard in manifest.shards:
        splits[shard.split] += shard.num_samples
    result = {"path": str(args.out), "fingerprint": manifest.fingerprint, "splits": splits}
    told = ", ".join(f"{name} {count:,}" for name, count in splits.items())
    text = f"indexed {manifest.num_samples:,} samples in place ({told}); {args.source} must stay"
    print_result(result, report.notes, text, as_json=args.json)
    return 0


def _add(args: argparse.Namespace) -> int:
    if args.source != _ADD:
        raise UsageError(
            f"msdata index takes SRC DATA, or 'add' DATA TABLE, got three paths, first "
            f"{args.source!r}"
        )
    if args.split is not None:
        raise UsageError("--split must be used with SRC DATA: columns are added to all splits")
    report = add_columns(
        args.out,
        args.table,
        take=None if args.take is None else parse_renames("--take", args.take),
        id_column=args.id_column,
        skips_unknown=args.skip_unknown,
    )
    left_out = f"; {report.num_unknown:,} rows left out" if report.num_unknown else ""
    text = (
        f"added {', '.join(report.columns)} to {args.out}: {report.num_samples:,} samples, "
        f"{report.num_missing:,} without a row in {args.table}{left_out}"
    )
    result = {"path": str(args.out), **asdict(report)}
    print_result(result, report.notes, text, as_json=args.json)
    return 0
