"""`mstrain calibrate`: fits what recalibrates densities; it stands alone as every command does.

mstrain calibrate RUN DATA
torchrun --nproc-per-node 4 -m mstrain.calibrate RUN DATA
"""

from __future__ import annotations

import argparse
import json
from functools import partial

from mstrain.calibration.calibrate import (
    CUTOUTS,
    Calibrated,
    CalibrationConfig,
    calibrate_on_ranks,
)
from mstrain.distributed import run_joined
from mstrain.evaluation.command import add_network_arguments
from mstrain.options import add_data, add_printed, add_run, add_split, parse_names

# A twentieth of them in each corner of the global map.
_FEW = 1000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `mstrain calibrate`."""
    add_run(parser)
    add_data(parser)
    add_split(parser, "fit on", "val")
    parser.add_argument(
        "--by",
        metavar="A,B,...",
        default=CUTOUTS,
        help="features of the local calibration: cutouts (brightness of each channel), columns of "
        "numbers of the index, z_mean, z_std, ... (default: %(default)s)",
    )
    parser.add_argument("--only-global", action="store_true", help="fit no local calibration")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the fit (default: %(default)s)"
    )
    add_network_arguments(parser)
    add_printed(parser)


def run(args: argparse.Namespace) -> int:
    """Fits the calibrations; returns the exit code."""
    config = CalibrationConfig(
        split=args.split,
        checkpoint=args.checkpoint,
        prior=args.prior,
        by=tuple(dict.fromkeys(parse_names(args.by))),
        has_local=not args.only_global,
        has_any_pixels=args.any_pixels,
        batch_size=args.batch_size,
        seed=args.seed,
        is_quiet=args.quiet,
    )
    return run_joined(
        args.device,
        lambda ranks: calibrate_on_ranks(args.run, args.data, config, ranks),
        partial(_show, is_json=args.json),
    )


def _show(found: Calibrated, *, is_json: bool) -> None:
    if is_json:
        print(json.dumps(found.as_dict(), allow_nan=False))
        return
    print(f"fitted on {found.num_samples:,} objects; KS statistic of their own PITs:")
    for name, value in found.pit_ks.items():
        print(f"  {name:<8}{value:.4f}" + ("" if name == "none" else f"  {found.files[name]}"))
    print(
        "compare them on another split: 'mstrain evaluate' shows all side by side, and applies one"
    )
    print("only where --calibration names it")
