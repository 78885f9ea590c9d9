"""The command `msdata mock OUT --n N --seed S`."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from msdata.core.options import add_jobs, num_jobs
from msdata.core.progress import ProgressLine
from msdata.core.text import bytes_text
from msdata.mock.planted import KINDS, Planting, parse_shares
from msdata.mock.write import write_mock
from msdata.schema import MANTIS_SHRIMP


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `msdata mock`."""
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to fill; new or empty")
    parser.add_argument(
        "--n", type=int, default=1000, metavar="N", help="objects, 0.57 MiB each (default: 1000)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="S", help="same seed, same bytes (default: 0)"
    )
    parser.add_argument(
        "--plant",
        metavar="KIND=SHARE,...",
        default="",
        help=f"plant faults, told in column 'planted': {', '.join(KINDS)} (default: none)",
    )
    parser.add_argument(
        "--deaf-band",
        metavar="SURVEY.BAND",
        help="take this band's images from other objects, so that it says nothing of the redshift",
    )
    parser.add_argument(
        "--only-band",
        metavar="SURVEY.BAND",
        help="take all other bands' images from other objects",
    )
    add_jobs(parser, "processes")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")


def run(args: argparse.Namespace) -> int:
    """Writes mock data and prints one line: rate, bytes, path; returns the exit code."""
    started_s = time.perf_counter()
    line = ProgressLine("mock", args.n)
    catalog = write_mock(
        args.out,
        num_objects=args.n,
        seed=args.seed,
        jobs=num_jobs(args.jobs),
        planting=Planting(
            shares=parse_shares(args.plant), deaf_band=args.deaf_band, only_band=args.only_band
        ),
        progress=lambda n: line.update(n, n * MANTIS_SHRIMP.sample_nbytes),
    )
    line.close(args.n, args.n * MANTIS_SHRIMP.sample_nbytes)
    seconds = time.perf_counter() - started_s
    nbytes = sum(path.stat().st_size for path in args.out.rglob("*") if path.is_file())
    if args.json:
        summary = {
            "catalog": str(catalog),
            "objects": args.n,
            "bytes": nbytes,
            "seconds": round(seconds, 3),
            "objects_per_s": round(args.n / seconds, 1),
        }
        print(json.dumps(summary))
    else:
        print(
            f"wrote {args.n} objects ({bytes_text(nbytes)}) in {seconds:.1f} s, "
            f"{args.n / seconds:.0f} objects/s: {catalog}"
        )
    return 0
