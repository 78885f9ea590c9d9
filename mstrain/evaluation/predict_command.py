"""`mstrain predict`: densities, or class probabilities, for data without labels.

mstrain predict RUN DATA OUT.parquet
torchrun --nproc-per-node 4 -m mstrain.predict RUN DATA OUT.parquet
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mstrain.distributed import Ranks, run_joined
from mstrain.evaluation.command import add_network_arguments
from mstrain.evaluation.prediction import PredictionConfig, predict_on_ranks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `mstrain predict`."""
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a training (its --out)")
    parser.add_argument("data", metavar="DATA", type=Path, help="folder that 'msdata pack' wrote")
    parser.add_argument("out", metavar="OUT.parquet", type=Path, help="table to write")
    parser.add_argument("--split", help="split to predict (default: all that have samples)")
    parser.add_argument(
        "--columns", default="", help="comma-separated columns of the index to copy into the table"
    )
    add_network_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON only")


def run(args: argparse.Namespace) -> int:
    """Predicts; returns the exit code."""
    request = PredictionConfig(
        split=args.split,
        columns=tuple(name for name in args.columns.split(",") if name),
        checkpoint=args.checkpoint,
        prior=args.prior,
        has_any_pixels=args.any_pixels,
        batch_size=args.batch_size,
        is_quiet=args.quiet,
    )

    def predict(ranks: Ranks) -> int | None:
        num_samples = predict_on_ranks(args.run, args.data, args.out, request, ranks)
        return num_samples if ranks.is_first else None

    def show(num_samples: int) -> None:
        if args.json:
            print(json.dumps({"num_samples": num_samples, "predictions": str(args.out)}))
        else:
            print(f"predicted {num_samples:,} samples into {args.out}")

    return run_joined(args.device, predict, show)
