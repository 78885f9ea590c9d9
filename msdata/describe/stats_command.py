"""`msdata stats`: options, progress, and the table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import msdata
from msdata.augment.statistics import FILE_NAME, MARK, BandStatistics, Statistics
from msdata.core.options import add_jobs, num_jobs
from msdata.core.output_file import check_output
from msdata.core.progress import ProgressLine
from msdata.core.text import table_lines
from msdata.describe.stats import DEFAULT_MAX_SAMPLES, measure
from msdata.errors import UsageError

WHEN_INTERRUPTED = "nothing was written"
_SHOWN_QUANTILES = ("0.01", "0.5", "0.99", "0.999")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `msdata stats`."""
    parser.add_argument("data", type=Path, help="folder of the data set")
    parser.add_argument("--split", help="whose samples; default: train, or the first there is")
    parser.add_argument(
        "--max-samples",
        type=int,
        default=DEFAULT_MAX_SAMPLES,
        help="look at so many, drawn at random; %(default)s",
    )
    parser.add_argument(
        "--out", type=Path, help=f"the file to write, a .json; default: {FILE_NAME} in the data set"
    )
    add_jobs(parser, "threads")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress line")


def run(args: argparse.Namespace) -> int:
    """Measures a data set's bands and writes the statistics; returns the exit code."""
    jobs = num_jobs(args.jobs)
    if args.max_samples < 1:
        raise UsageError(f"--max-samples {args.max_samples} is no number of samples; give some")
    if args.out is not None and args.out.suffix != ".json":
        raise UsageError(f"{args.out} is no .json; name the file so")
    path = args.data / FILE_NAME if args.out is None else args.out
    data = msdata.open(args.data)
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent}, the folder of --out, does not exist; make it first")
    default = "train" if "train" in data.splits else data.splits[0]
    split = data.split(default if args.split is None else args.split)
    total = min(args.max_samples, len(split))
    line = ProgressLine("stats", total, is_quiet=args.quiet)
    check_output(path, MARK)
    statistics = measure(split, max_samples=total, jobs=jobs, progress=line.update)
    line.close(total, total * split.sample_nbytes)
    statistics.write(path)
    if args.json:
        print(json.dumps({**statistics.to_json(), "path": str(path)}))
        return 0
    for text in statistics_lines(statistics):
        print(text)
    print(f"wrote {path}")
    return 0


def statistics_lines(statistics: Statistics) -> Iterator[str]:
    """The result for people: a row a band."""
    yield f"{statistics.num_samples:,} samples of {statistics.split}, {statistics.fingerprint}"
    head = ("band", "mean", "std", "sky noise", *(f"{float(q):.1%}" for q in _SHOWN_QUANTILES))
    rows = [
        (f"{array}.{name}", *_cells(band))
        for array, bands in statistics.arrays.items()
        for name, band in bands.items()
    ]
    yield from table_lines((*head, "NaN", "no coverage"), rows)


def _cells(band: BandStatistics) -> list[str]:
    values = [band.mean, band.std, band.sky_sigma, *(band.quantiles[q] for q in _SHOWN_QUANTILES)]
    return [*(f"{value:.4g}" for value in values), f"{band.num_nan:,}", f"{band.num_missing:,}"]
