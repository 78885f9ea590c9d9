"""`mstrain predict`: redshift densities of a data set, a list of positions, or one position.

mstrain predict RUN DATA OUT.parquet
mstrain predict RUN DATA OUT.hdf5
mstrain predict MODEL.msz POSITIONS.csv OUT.parquet
mstrain predict MODEL.msz --at "197.6144 +18.4381" --ebv-map MAP.fits --figure OUT.png
torchrun --nproc-per-node 4 -m mstrain.predict RUN DATA OUT.parquet
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from msdata.catalog.positions import (
    Positions,
    make_positions,
    parse_position,
    read_positions,
    with_reddening,
)
from msdata.core.files import write_whole
from msdata.core.output_file import PNG_MARK, check_output, make_folder
from msdata.errors import UsageError
from msdata.fetch.journal import Entry
from msdata.fetch.run import write_failed
from msdata.fetch.service import read_services
from mstrain.distributed import Ranks, run_joined
from mstrain.embedding.ood_fit import flags_of
from mstrain.evaluation.command import add_calibration, add_network_arguments
from mstrain.evaluation.prediction import PredictionConfig, check_suffix, predict_on_ranks
from mstrain.evaluation.predictions import MARK as PREDICTIONS_MARK
from mstrain.evaluation.report.canvas import check_installed
from mstrain.evaluation.run_info import open_run
from mstrain.options import add_columns, add_printed, add_run, add_split, parse_names
from mstrain.serving.figure import draw_position
from mstrain.serving.model import map_of, the_column
from mstrain.serving.positions import (
    PositionConfig,
    PredictedPositions,
    at_positions,
    predict_positions,
)

WHEN_INTERRUPTED = "no table was written: run the same command again"
_FAILED_MARK = b"sample_id,ra,dec,state,service,reason"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `mstrain predict`."""
    add_run(parser, has_model_files=True)
    parser.add_argument(
        "data",
        metavar="DATA",
        type=Path,
        nargs="?",
        help="folder that 'msdata pack' wrote, or a CSV, Parquet or FITS table of positions",
    )
    parser.add_argument(
        "out",
        metavar="OUT.parquet",
        type=Path,
        nargs="?",
        help="table to write; OUT.hdf5 is a file for qp",
    )
    add_split(parser, "predict", None)
    add_columns(parser)
    positions = parser.add_argument_group("positions", "cutouts are fetched at the services' rates")
    positions.add_argument(
        "--at",
        metavar="'RA DEC'",
        help="predict one position, in degrees or sexagesimal, and print the result",
    )
    positions.add_argument(
        "--ebv-map", metavar="MAP.fits", type=Path, help="HEALPix map of E(B-V) for the positions"
    )
    positions.add_argument(
        "--figure", metavar="OUT.png", type=Path, help="with --at: draw cutouts and density"
    )
    positions.add_argument("--id-column", help="the positions' column with their ids")
    positions.add_argument("--services", type=Path, help="TOML file with the services' settings")
    positions.add_argument("--contact", help="your address, for the services' operators")
    add_network_arguments(parser)
    add_calibration(parser)
    parser.add_argument(
        "--no-flags",
        action="store_true",
        help="leave out how odd objects are, which 'mstrain flag --keep RUN' fitted",
    )
    add_printed(parser)


def run(args: argparse.Namespace) -> int:
    """Predicts; returns the exit code."""
    if args.at is not None:
        return _run_at(args)
    if args.data is None or args.out is None:
        raise UsageError("predict needs DATA and OUT.parquet, or --at 'RA DEC'")
    if args.figure is not None:
        raise UsageError("--figure is for one position: give --at 'RA DEC' with it")
    if args.data.is_file():
        return _run_table(args)
    given = [n for n in ("ebv_map", "id_column", "services", "contact") if getattr(args, n)]
    if given and not args.data.exists():
        raise UsageError(f"{args.data} does not exist; check the path")
    if given:
        option = f"--{given[0].replace('_', '-')}"
        raise UsageError(f"{option} is for positions, got the data set {args.data}; leave it out")
    return _run_data(args)


def _run_data(args: argparse.Namespace) -> int:
    request = _request(args)

    def predict(ranks: Ranks) -> int | None:
        further = flags_of(args.run, request)
        num_samples = predict_on_ranks(args.run, args.data, args.out, request, ranks, further)
        return num_samples if ranks.is_first else None

    def show(num_samples: int) -> None:
        if args.json:
            print(json.dumps({"num_samples": num_samples, "predictions": str(args.out)}))
        else:
            print(f"predicted {num_samples:,} samples into {args.out}")

    return run_joined(args.device, predict, show)


def _request(args: argparse.Namespace, data_name: str | None = None) -> PredictionConfig:
    return PredictionConfig(
        split=args.split,
        columns=parse_names(args.columns),
        checkpoint=args.checkpoint,
        prior=args.prior,
        calibration=args.calibration,
        has_flags=not args.no_flags,
        has_any_pixels=args.any_pixels,
        batch_size=args.batch_size,
        data_name=data_name,
        is_quiet=args.quiet,
    )


def _run_table(args: argparse.Namespace) -> int:
    """Predicts a table of positions; returns 1 where some could not be."""
    if args.split is not None:
        raise UsageError(f"--split is for data sets, got the table {args.data}; leave it out")
    check_suffix(args.out)
    failed = args.out.with_name(f"{args.out.stem}-failed.csv")
    check_output(args.out, PREDICTIONS_MARK)
    check_output(failed, _FAILED_MARK)
    config = _config(args, str(args.data.absolute()))
    positions = _with_map(read_positions(args.data, id_column=args.id_column), args)
    make_folder(args.out.absolute().parent)

    def predict(ranks: Ranks) -> tuple[int, tuple[Entry, ...]] | None:
        return predict_positions(args.run, positions, args.out, config, ranks)

    failures: list[Entry] = []

    def show(found: tuple[int, tuple[Entry, ...]]) -> None:
        failures.extend(found[1])
        failed.unlink(missing_ok=True)
        if failures:
            write_failed(failed, failures)
        _show_table(args, positions.notes, found[0], len(failures), failed)

    return run_joined(args.device, predict, show) or int(bool(failures))


def _show_table(
    args: argparse.Namespace, notes: Sequence[str], count: int, num_failed: int, failed: Path
) -> None:
    if args.json:
        found = {"num_samples": count, "predictions": str(args.out), "num_failed": num_failed}
        print(json.dumps({**found, "failed": str(failed) if num_failed else None}))
    else:
        for note in notes:
            print(f"note: {note}")
        print(f"predicted {count:,} positions into {args.out}")
    if num_failed:
        print(
            f"mstrain predict: {num_failed:,} of {count + num_failed:,} positions could not be "
            f"predicted; {failed} says why",
            file=sys.stderr,
        )


def _run_at(args: argparse.Namespace) -> int:
    given = [name for name in ("data", "out", "split", "id_column") if getattr(args, name)]
    if given or args.columns:
        raise UsageError(
            "--at predicts one position and prints it, got DATA, OUT, --split, --columns or "
            "--id-column beside it; leave that out"
        )
    if args.figure is not None:
        if args.figure.suffix != ".png":
            raise UsageError(f"--figure must end in .png, got {args.figure}")
        check_installed()
        check_output(args.figure, PNG_MARK)
    positions = _with_map(make_positions([parse_position(args.at)]), args)
    config = _config(args, "positions")

    def show(found: PredictedPositions) -> None:
        if args.figure is not None:
            make_folder(args.figure.absolute().parent)
            write_whole(args.figure, draw_position(found.objects[0], found.edges, found.schema))
        _show_at(found, args)

    return run_joined(
        args.device, lambda ranks: at_positions(args.run, positions, config, ranks), show
    )


def _show_at(found: PredictedPositions, args: argparse.Namespace) -> None:
    one = found.objects[0]
    figure = None if args.figure is None else str(args.figure)
    if args.json:
        fields = {**one.as_dict(), "bin_edges": found.edges.tolist(), "figure": figure}
        print(json.dumps({**fields, "origin": dict(found.origin)}, allow_nan=False))
        return
    said = one.estimates
    each = one.ebv if isinstance(one.ebv, tuple) else () if one.ebv is None else (one.ebv,)
    dust = f", E(B-V) {' and '.join(f'{value:.4f}' for value in each)}" if each else ""
    print(f"{one.ra:.6f} {one.dec:+.6f}{dust}")
    print(
        f"z mean {said['z_mean']:.4f}, median {said['z_median']:.4f}, mode {said['z_mode']:.4f}; "
        f"68 %: {said['z_q16']:.4f} to {said['z_q84']:.4f}; prior {found.origin['prior']}"
    )
    if one.oddness:
        rest = "; ".join(f"{name} {value}" for name, value in one.oddness.items())
        print(f"unlike the training by: {rest}")
    print(f"bands without coverage: {', '.join(one.missing_bands) or 'none'}")
    filled, left = sum(one.num_filled.values()), sum(one.num_nan.values())
    print(f"NaN pixels filled: {filled:,}, left: {left:,}")
    if figure is not None:
        print(f"figure: {figure}")


def _config(args: argparse.Namespace, data_name: str) -> PositionConfig:
    return PositionConfig(
        prediction=_request(args, data_name),
        services=read_services(args.services),
        contact=args.contact,
    )


def _with_map(positions: Positions, args: argparse.Namespace) -> Positions:
    """The positions with the E(B-V) that the network takes, where a map is given."""
    if args.ebv_map is None:
        return positions
    columns = open_run(args.run, args.checkpoint).config.model.reddening
    if not columns:
        raise UsageError(f"the network of {args.run} takes no E(B-V); leave out --ebv-map")
    return with_reddening(positions, {the_column(columns): map_of(args.ebv_map)})
