"""`mstrain predict`: redshift densities for data whose redshifts nobody knows.

mstrain predict RUN DATA OUT.parquet
torchrun --nproc-per-node 4 -m mstrain.predict RUN DATA OUT.parquet
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import msdata
from msdata.core.output_file import check_output, make_folder
from msdata.errors import UsageError
from msdata.topology import from_env
from mstrain.data.pixels import check_pixels
from mstrain.distributed import FirstRankError, choose_device, joined_ranks, set_threads
from mstrain.evaluation.command import add_network_arguments
from mstrain.evaluation.inference import check_columns, predict_to
from mstrain.evaluation.predictions import MARK as PREDICTIONS_MARK
from mstrain.evaluation.run_info import check_data, find_prior, open_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `mstrain predict`."""
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a training (its --out)")
    parser.add_argument("data", metavar="DATA", type=Path, help="folder that 'msdata pack' wrote")
    parser.add_argument("out", metavar="OUT.parquet", type=Path, help="table of predictions")
    parser.add_argument("--split", help="which split; default: all that have samples")
    parser.add_argument(
        "--columns", default="", help="columns of the index to take over, with commas between"
    )
    add_network_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON alone")


def run(args: argparse.Namespace) -> int:
    """Predicts; returns the exit code."""
    if args.out.suffix != ".parquet":
        raise UsageError(f"{args.out} is no .parquet; name the table so")
    if args.batch_size < 1:
        raise UsageError(f"--batch-size {args.batch_size} makes no sense; give at least 1")
    topology = from_env()
    device = choose_device(args.device, topology)
    set_threads(None, topology)
    try:
        with joined_ranks(topology, device) as ranks:
            differences = ranks.on_first(lambda: _check(args))
            data = msdata.open(args.data)
            splits = [data.split(name) for name in _splits(data, args.split)]
            trained = open_run(args.run, args.checkpoint)
            predict_to(
                args.out,
                trained,
                splits,
                ranks,
                priors=[find_prior(trained, args.prior)],
                columns=_columns(args),
                pixel_differences=differences or (),
                batch_size=args.batch_size,
                is_quiet=args.quiet,
            )
    except FirstRankError as error:
        # The first rank says it for all.
        return error.code
    if ranks.is_first:
        num_samples = sum(map(len, splits))
        if args.json:
            print(json.dumps({"num_samples": num_samples, "predictions": str(args.out)}))
        else:
            print(f"predicted {num_samples:,} samples into {args.out}")
    return 0


def _check(args: argparse.Namespace) -> list[str]:
    """Refuses what cannot end well, before hours of computing; gives `pixel_differences`."""
    trained, data = open_run(args.run, args.checkpoint), msdata.open(args.data)
    check_data(trained, data, _splits(data, args.split))
    check_output(args.out, PREDICTIONS_MARK)
    find_prior(trained, args.prior)
    unknown = [name for name in _columns(args) if name not in data.columns]
    if unknown:
        raise UsageError(
            f"{args.data} has no column {', '.join(unknown)}; it has {', '.join(data.columns)}"
        )
    check_columns(_columns(args))
    splits = _splits(data, args.split)
    differences = check_pixels(trained, data, splits, is_told=args.any_pixels)
    make_folder(args.out.absolute().parent)
    return differences


def _splits(data: msdata.Dataset, asked: str | None) -> list[str]:
    """The split that was asked for, or all that have samples."""
    if asked is not None:
        return [asked]
    return [name for name in data.splits if len(data.split(name))]


def _columns(args: argparse.Namespace) -> list[str]:
    return [name for name in args.columns.split(",") if name]
