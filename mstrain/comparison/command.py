"""`mstrain compare`: networks and catalogs on the same objects; it stands alone as commands do.

mstrain compare RUN-A RUN-B --column photoz_strm:photoz_strm_err --sample 'mgs=mag_r<17.8'
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mstrain.comparison.compare import Comparison, compare
from mstrain.comparison.section import differences_table, metrics_table, published_table
from mstrain.evaluation.command import add_bootstrap, parse_edges
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig
from mstrain.options import add_edges, add_out, add_printed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `mstrain compare`."""
    parser.add_argument(
        "tables",
        metavar="RUN|PREDICTIONS.parquet",
        type=Path,
        nargs="+",
        help="runs that 'mstrain evaluate' has measured, or its tables; the first is compared with",
    )
    parser.add_argument(
        "--split", default="test", help="RUN's predictions for it (default: %(default)s)"
    )
    parser.add_argument(
        "--column",
        metavar="NAME[:ERROR]",
        action="append",
        default=[],
        help="a catalog's redshifts, of the tables or the data set's index; with an error they "
        "count as Gaussians (may be repeated)",
    )
    parser.add_argument(
        "--sample",
        metavar="NAME=EXPRESSION",
        action="append",
        default=[],
        help="objects to compare on, such as 'mgs=petroMag_r-extinction_r<17.8', or all (default); "
        "may be repeated",
    )
    parser.add_argument(
        "--data",
        metavar="DATA",
        type=Path,
        help="data set with the columns (default: the one that was predicted)",
    )
    add_out(parser, default="the first table's")
    add_edges(parser, "redshift")
    add_bootstrap(parser)
    add_printed(parser, report="compare.html")


def run(args: argparse.Namespace) -> int:
    """Compares; returns the exit code."""
    how = BootstrapConfig(num_replicates=args.replicates, seed=args.seed)
    found = compare(
        args.tables,
        args.out,
        columns=tuple(args.column),
        samples=tuple(args.sample),
        split=args.split,
        data=args.data,
        redshift_edges=parse_edges("--redshift-edges", args.redshift_edges),
        bootstrap=how,
        has_report=not args.no_report,
    )
    if args.json:
        print(found.json_path.read_text(encoding="utf-8"), end="")
    else:
        _show(found, how.level)
    return 0


def _show(found: Comparison, level: float) -> None:
    for name, scored in found.samples.items():
        for table in (metrics_table(name, scored), differences_table(name, scored, level)):
            if table is not None:
                print(f"{table.caption}\n{table.as_text()}\n")
    published = published_table()
    print(f"{published.caption}\n{published.as_text()}\n")
    for note in found.notes:
        print(f"note: {note}")
    print(f"metrics:     {found.json_path}")
    if found.report is not None:
        print(f"report:      {found.report}")
