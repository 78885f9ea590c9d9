"""`mstrain perceive`: which bands, surveys and parts of the images a trained network listens to.

mstrain perceive RUN DATA --split test
torchrun --nproc-per-node 4 -m mstrain.perceive RUN DATA --split test
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from mstrain.distributed import run_joined
from mstrain.evaluation.command import add_bootstrap, add_network_arguments, parse_edges
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig
from mstrain.models.model_file import results_folder
from mstrain.options import add_data, add_edges, add_out, add_printed, add_split
from mstrain.perception.exchange import LEVELS, MASKS, WITHIN, PerceptionConfig
from mstrain.perception.perceive import Perception, perceive_on_ranks
from mstrain.perception.section import tables_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `mstrain perceive`."""
    parser.add_argument(
        "runs", metavar="RUN", type=Path, nargs="+", help="folders of trainings, side by side"
    )
    add_data(parser)
    add_split(parser, "take")
    add_out(parser, default="the first RUN")
    parser.add_argument(
        "--permutations",
        type=int,
        default=4,
        metavar="K",
        help="partners that each sample takes pixels from (default: %(default)s)",
    )
    for name, choices, text in (
        ("--within", WITHIN, "exchange only among neighbors in this quantity"),
        ("--level", LEVELS, "exchange pixels, or the features of late fusion's encoders"),
    ):
        shown = f"{text} (default: %(default)s)"
        parser.add_argument(name, choices=choices, default=choices[0], help=shown)
    parser.add_argument(
        "--mask",
        choices=MASKS,
        default="none",
        help="exchange only the central disc of half a side's diameter, or only the rest "
        "(default: the whole image)",
    )
    add_edges(parser, "redshift")
    parser.add_argument(
        "--magnitude-column", metavar="NAME", help="for --within magnitude (default: r magnitude)"
    )
    add_bootstrap(parser, of="exchange and bootstrap")
    add_network_arguments(parser, checkpoints=("best", "last", "all"))
    add_printed(parser, report="report.html")


def run(args: argparse.Namespace) -> int:
    """Perceives; returns the exit code."""
    config = PerceptionConfig(
        split=args.split,
        checkpoint=args.checkpoint,
        prior=args.prior,
        has_any_pixels=args.any_pixels,
        num_permutations=args.permutations,
        within=args.within,
        level=args.level,
        mask=args.mask,
        magnitude_column=args.magnitude_column,
        redshift_edges=parse_edges("--redshift-edges", args.redshift_edges),
        group_size=args.batch_size,
        seed=args.seed,
        bootstrap=BootstrapConfig(num_replicates=args.replicates, seed=args.seed),
        has_report=not args.no_report,
        is_quiet=args.quiet,
    )
    out = results_folder(args.out, args.runs[0])
    return run_joined(
        args.device,
        lambda ranks: perceive_on_ranks(args.runs, args.data, out, config, ranks),
        partial(_show, is_json=args.json),
    )


def _show(found: Perception, *, is_json: bool) -> None:
    if is_json:
        print(json.dumps(found.result, allow_nan=False))
        return
    for table in tables_of(found.result):
        print(f"{table.caption}\n{table.as_text()}\n")
    for run in found.result["perception"]["runs"]:
        if run["note"]:
            print(f"{run['origin']['run']}: {run['note']}")
    print(f"scores:  {found.json_path}")
    for path in found.tables:
        print(f"table:   {path}")
    if found.report is not None:
        print(f"report:  {found.report}")
