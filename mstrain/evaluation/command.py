"""`mstrain evaluate`: a run and a data set in; predictions, metrics and a report out.

mstrain evaluate RUN DATA --split test
torchrun --nproc-per-node 4 -m mstrain.evaluate RUN DATA --split test
"""

from __future__ import annotations

import argparse
import json
from functools import partial

from msdata.errors import UsageError
from mstrain.data.pixels import ANYWAY
from mstrain.distributed import run_joined
from mstrain.evaluation.calibration import CALIBRATIONS, NONE
from mstrain.evaluation.evaluation import evaluate_on_ranks
from mstrain.evaluation.inference import DEFAULT_BATCH
from mstrain.evaluation.metrics.bootstrap import DEFAULT_REPLICATES, BootstrapConfig
from mstrain.evaluation.metrics.classes import ClassSummary
from mstrain.evaluation.report.classes import class_summary_text
from mstrain.evaluation.report.unsure import uncertainty_text
from mstrain.evaluation.report.wording import prior_table, summary_text, tables_text
from mstrain.evaluation.results import Evaluation, EvaluationConfig
from mstrain.models.model_file import results_folder
from mstrain.models.prior import AS_TRAINED, NATURAL
from mstrain.options import (
    add_data,
    add_device,
    add_edges,
    add_out,
    add_printed,
    add_run,
    add_split,
    parse_names,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `mstrain evaluate`."""
    add_run(parser, has_model_files=True)
    add_data(parser)
    add_split(parser, "evaluate")
    add_out(parser, "predictions, metrics and report")
    add_network_arguments(parser)
    parser.add_argument(
        "--magnitude-column", metavar="NAME", help="bin by this column (default: the r magnitude)"
    )
    parser.add_argument(
        "--bin-by",
        metavar="A,B,...",
        default="",
        help="show widths, errors and calibration by redshift, magnitude, or any columns of the "
        "index; a text column has a bin per value",
    )
    add_edges(parser, "redshift", "magnitude")
    add_bootstrap(parser)
    add_calibration(parser)
    add_printed(parser, report="report.html")


def add_network_arguments(
    parser: argparse.ArgumentParser,
    checkpoints: tuple[str, ...] = ("best", "last"),
    *,
    has_prior: bool = True,
) -> None:
    """Declares the options of all commands that run a trained network."""
    parser.add_argument(
        "--checkpoint",
        choices=checkpoints,
        default="best",
        help="weights to use (default: %(default)s)",
    )
    if has_prior:
        parser.add_argument(
            "--prior",
            metavar=f"{NATURAL}|{AS_TRAINED}|FILE.csv",
            default=NATURAL,
            help="distribution of redshifts that densities assume: the training sample's "
            "(default), as the training's weights made it, or a table of z_low, z_high, count",
        )
    parser.add_argument(
        ANYWAY,
        action="store_true",
        help="accept pixels whose dtype, unit, zero-point or statistics differ from the training's",
    )
    add_device(parser)
    parser.add_argument(
        "--batch-size",
        type=int,
        default=DEFAULT_BATCH,
        help="samples per rank at a time (default: %(default)s)",
    )
    parser.add_argument("--quiet", action="store_true", help="print no progress")


def add_bootstrap(
    parser: argparse.ArgumentParser, *, of: str = "bootstrap", replicates: int = DEFAULT_REPLICATES
) -> None:
    """Declares the options of intervals; `of` is what the seed is for."""
    parser.add_argument(
        "--replicates",
        type=int,
        default=replicates,
        help="replicates of the bootstrap (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help=f"seed of the {of} (default: %(default)s)"
    )


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """Declares the option of commands that may recalibrate densities."""
    parser.add_argument(
        "--calibration",
        choices=CALIBRATIONS,
        default=NONE,
        help="recalibrate densities by what 'mstrain calibrate' fitted (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Evaluates; returns the exit code."""
    config = EvaluationConfig(
        split=args.split,
        checkpoint=args.checkpoint,
        prior=args.prior,
        calibration=args.calibration,
        has_any_pixels=args.any_pixels,
        batch_size=args.batch_size,
        magnitude_column=args.magnitude_column,
        redshift_edges=parse_edges("--redshift-edges", args.redshift_edges),
        magnitude_edges=parse_edges("--magnitude-edges", args.magnitude_edges),
        bin_by=parse_names(args.bin_by),
        bootstrap=BootstrapConfig(num_replicates=args.replicates, seed=args.seed),
        has_report=not args.no_report,
        is_quiet=args.quiet,
    )
    out = results_folder(args.out, args.run)
    return run_joined(
        args.device,
        lambda ranks: evaluate_on_ranks(args.run, args.data, out, config, ranks),
        partial(_show, is_json=args.json),
    )


def parse_edges(option: str, text: str) -> tuple[float, ...]:
    """Numbers with commas between.

    Raises:
        UsageError: a word is not a number.
    """
    try:
        return tuple(float(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise UsageError(f"{option} must be numbers such as 0,0.5,1, got {text}") from None


def evaluation_text(result: Evaluation) -> str:
    """The metrics in tables."""
    summary, others, prior = result.summary, result.other_priors, result.origin["prior"]
    priors = prior_table(prior, summary, others)
    if isinstance(summary, ClassSummary):
        return class_summary_text(summary, priors)
    text = summary_text(summary, priors, result.target)
    if (calibrations := result.calibration_table) is not None:
        text += f"\n\n{tables_text([calibrations])}"
    assert result.uncertainty is not None
    level = summary.bootstrap.level
    return f"{text}\n\n{uncertainty_text(result.uncertainty, level, result.target)}"


def _show(result: Evaluation, *, is_json: bool) -> None:
    if is_json:
        print(json.dumps(result.as_dict(), allow_nan=False))
        return
    print(
        f"{result.origin['recipe']}, {result.origin['checkpoint']} checkpoint (step "
        f"{result.origin['step']:,}), on split {result.origin['splits'][0]} of "
        f"{result.origin['data']}: {result.summary.num_samples:,} objects\n"
    )
    print(evaluation_text(result))
    for note in result.calibration_notes:
        print(f"note: {note}")
    print(f"\npredictions: {result.predictions}\nmetrics:     {result.metrics}")
    if result.report is not None:
        print(f"report:      {result.report}")
