"""The command `msdata filters`: passbands, and the redshifts at which features cross them.

It stands alone since a command's module holds the options of one command.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict

from msdata.errors import UsageError
from msdata.mock.filters import find_crossings, load_filters


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `msdata filters`."""
    parser.add_argument(
        "--z-max", type=float, default=1.6, metavar="Z", help="greatest redshift (default: 1.6)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON only")


def run(args: argparse.Namespace) -> int:
    """Prints the tables; returns the exit code."""
    if not (math.isfinite(args.z_max) and args.z_max > 0):
        raise UsageError(f"--z-max must be > 0, got {args.z_max:g}")
    filters = load_filters()
    crossings = find_crossings(filters, args.z_max)
    if args.json:
        found = {"filters": filters, "crossings": crossings}
        print(json.dumps(found, default=asdict))
        return 0
    print(f"{'band':6}{'filter':14}{'from [A]':>10}{'to [A]':>10}{'mean [A]':>10}")
    for one in filters:
        edges = f"{one.low_angstrom:10.0f}{one.high_angstrom:10.0f}{one.effective_angstrom:10.0f}"
        print(f"{one.band:6}{one.name:14}{edges}")
    print(f"\n{'feature':14}{'band':6}{'z from':>8}{'z to':>8}")
    for crossing in crossings:
        place = f"{crossing.z_low:8.2f}{crossing.z_high:8.2f}"
        print(f"{crossing.feature:14}{crossing.band:6}{place}")
    return 0
