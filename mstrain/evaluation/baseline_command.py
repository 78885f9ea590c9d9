"""`mstrain baseline`: a network beside nearest neighbors in colors of the same cutouts.

It stands alone: the options of a command have a file of their own, as those of `predict` do.

mstrain evaluate RUN DATA
mstrain baseline RUN DATA
"""

from __future__ import annotations

import argparse
import json

from mstrain.evaluation.baseline import BaselineConfig, baseline_table, run_baseline
from mstrain.evaluation.command import add_bootstrap
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig
from mstrain.evaluation.report.wording import printable
from mstrain.options import add_data, add_out, add_printed, add_run, add_split

_REPLICATES = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `mstrain baseline`."""
    add_run(parser)
    add_data(parser)
    add_split(parser, "compare on")
    add_out(parser, "the evaluation, which gets the results")
    parser.add_argument(
        "--neighbors",
        type=int,
        default=10,
        metavar="K",
        help="training objects whose median redshift is the estimate (default: %(default)s)",
    )
    parser.add_argument(
        "--objects",
        type=int,
        default=20_000,
        metavar="N",
        help="objects to take of each split at most, drawn uniformly (default: %(default)s)",
    )
    add_bootstrap(parser, of="draws and the bootstrap", replicates=_REPLICATES)
    add_printed(parser, report="report.html", is_quiet_known=True)


def run(args: argparse.Namespace) -> int:
    """Compares; returns the exit code."""
    config = BaselineConfig(
        split=args.split,
        num_neighbors=args.neighbors,
        max_objects=args.objects,
        bootstrap=BootstrapConfig(num_replicates=args.replicates, seed=args.seed),
        has_report=not args.no_report,
        is_quiet=args.quiet,
    )
    found = run_baseline(args.run, args.data, args.out or args.run, config)
    if args.json:
        print(json.dumps(found.result, allow_nan=False))
        return 0
    table = baseline_table(found.result)
    print(f"{printable(table.caption)}\n{table.as_text()}\n\nmetrics: {found.json_path}")
    if found.report is not None:
        print(f"report:  {found.report}")
    return 0
