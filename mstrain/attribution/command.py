"""`mstrain attribute`: suspect labels, and what a density rests on; it stands alone as commands do.

mstrain attribute RUN DATA --out-of-fold RUN-0 RUN-1 RUN-2 RUN-3 RUN-4
mstrain attribute RUN DATA --out DIR --for ID,ID
torchrun --nproc-per-node 4 -m mstrain.attribute RUN DATA
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

from msdata.core.text import table_lines
from mstrain.attribution.attribute import AttributionConfig, attribute_on_ranks
from mstrain.attribution.results import SUSPECTS, Attribution
from mstrain.distributed import run_joined
from mstrain.evaluation.command import add_network_arguments
from mstrain.models.model_file import results_folder
from mstrain.options import add_out, add_printed, add_run, parse_names


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `mstrain attribute`."""
    add_run(parser, has_model_files=True)
    parser.add_argument(
        "data", metavar="DATA", type=Path, help="the data set that the network was trained on"
    )
    add_out(parser, "tables and sheets")
    parser.add_argument(
        "--out-of-fold",
        metavar="RUN",
        type=Path,
        nargs="+",
        default=[],
        help="runs with data.fold=0/5 to 4/5: judge each object by the one that did not see it",
    )
    parser.add_argument(
        "--for",
        dest="asked",
        metavar="ID,ID",
        default="",
        help="show the training objects that argue for and against these objects' labels",
    )
    parser.add_argument(
        "--self",
        dest="by_self",
        action="store_true",
        help="rank suspects by self-influence (default: by margin, out of fold if given)",
    )
    parser.add_argument(
        "--top",
        type=int,
        default=AttributionConfig.top,
        help="suspects to list, and arguments on each side (default: %(default)s)",
    )
    add_network_arguments(parser, has_prior=False)
    add_printed(parser)


def run(args: argparse.Namespace) -> int:
    """Attributes; returns the exit code."""
    config = AttributionConfig(
        asked=tuple(dict.fromkeys(parse_names(args.asked))),
        by_self=args.by_self,
        top=args.top,
        out_of_fold=tuple(args.out_of_fold),
        checkpoint=args.checkpoint,
        has_any_pixels=args.any_pixels,
        batch_size=args.batch_size,
        is_quiet=args.quiet,
    )
    out = results_folder(args.out, args.run)
    return run_joined(
        args.device,
        lambda ranks: attribute_on_ranks(args.run, args.data, out, config, ranks),
        partial(_show, is_json=args.json),
    )


def _show(found: Attribution, *, is_json: bool) -> None:
    if is_json:
        print(json.dumps(found.as_dict(), allow_nan=False))
        return
    for rows in (found.suspects, found.arguments):
        if rows:
            cells = [[_cell(value) for value in row.values()] for row in rows]
            print("\n".join(table_lines(list(rows[0]), cells)) + "\n")
    print(
        f"{len(found.suspects):,} most suspect of {found.num_samples:,} training labels by "
        f"{found.ranked_by} in {found.folder / SUSPECTS}; {found.num_unlabeled:,} have no usable "
        "label and no rank"
    )
    for path in found.sheets:
        print(f"drew {path}")


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "-" if value is None else str(value)
