"""`mstrain evaluate`: a run and a data set in; predictions, metrics and a report out.

mstrain evaluate RUN DATA --split test
torchrun --nproc-per-node 4 -m mstrain.evaluate RUN DATA --split test
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import msdata
from msdata.core.files import write_whole
from msdata.core.output_file import check_output, make_folder
from msdata.dataset.dataset import Split
from msdata.errors import DataError, UsageError
from msdata.topology import from_env
from mstrain.data.magnitudes import find_magnitude, sane_magnitudes
from mstrain.data.pixels import ANYWAY, check_pixels
from mstrain.distributed import FirstRankError, Ranks, choose_device, joined_ranks, set_threads
from mstrain.evaluation.inference import DEFAULT_BATCH, check_columns, predict_to
from mstrain.evaluation.metrics.binning import round_edges
from mstrain.evaluation.metrics.bootstrap import DEFAULT_REPLICATES, BootstrapConfig
from mstrain.evaluation.metrics.estimates import Columns
from mstrain.evaluation.metrics.summary import Summary, summarise
from mstrain.evaluation.predictions import MARK as PREDICTIONS_MARK
from mstrain.evaluation.predictions import Predictions, read_predictions
from mstrain.evaluation.report.assemble import assemble
from mstrain.evaluation.report.canvas import check_installed
from mstrain.evaluation.report.page import MARK as PAGE_MARK
from mstrain.evaluation.report.page import render_page
from mstrain.evaluation.report.wording import prior_table, summary_text
from mstrain.evaluation.run_info import TrainedRun, check_data, find_prior, open_run
from mstrain.models.prior import AS_TRAINED, NATURAL, TargetPrior
from mstrain.overrides import settings_of
from mstrain.training.metrics_log import read_journal

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is evaluated, and how.

    Attributes:
        split: of the data set.
        checkpoint: "best" or "last".
        prior: "natural", "as-trained", or a CSV file, see `mstrain.models.prior.target_prior`.
        has_any_pixels: take pixels of another kind than the training's.
        batch_size: samples of a rank at a time.
        magnitude_column: of the index; None takes the r magnitude where there is one.
        redshift_edges: of the bins; empty chooses round ones.
        magnitude_edges: the same for the magnitude.
        bootstrap: of the intervals.
        has_report: also draw the report.
        is_quiet: show no progress.
    """

    split: str = "test"
    checkpoint: str = "best"
    prior: str = NATURAL
    has_any_pixels: bool = False
    batch_size: int = DEFAULT_BATCH
    magnitude_column: str | None = None
    redshift_edges: tuple[float, ...] = ()
    magnitude_edges: tuple[float, ...] = ()
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)
    has_report: bool = True
    is_quiet: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError(f"--batch-size {self.batch_size} makes no sense; give at least 1")
        for name in ("redshift", "magnitude"):
            edges = getattr(self, f"{name}_edges")
            if edges and (len(edges) < 2 or not (np.diff(edges) > 0).all()):
                raise UsageError(
                    f"--{name}-edges {','.join(map(str, edges))} do not ascend; give two or more "
                    "numbers, such as 0,0.5,1"
                )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of `mstrain evaluate`."""
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a training (its --out)")
    parser.add_argument("data", metavar="DATA", type=Path, help="folder that 'msdata pack' wrote")
    parser.add_argument("--split", default="test", help="which split; %(default)s")
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="where predictions, metrics and report go; RUN"
    )
    add_network_arguments(parser)
    parser.add_argument("--magnitude-column", metavar="NAME", help="for bins; default: r magnitude")
    for name in ("redshift", "magnitude"):
        parser.add_argument(
            f"--{name}-edges", metavar="A,B,...", default="", help="of the bins; round numbers"
        )
    parser.add_argument(
        "--replicates", type=int, default=DEFAULT_REPLICATES, help="of the bootstrap; %(default)s"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap; %(default)s")
    parser.add_argument("--no-report", action="store_true", help="leave report.html out")
    parser.add_argument("--json", action="store_true", help="print JSON alone")


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of all commands that run a trained network."""
    parser.add_argument(
        "--checkpoint", choices=("best", "last"), default="best", help="%(default)s"
    )
    parser.add_argument(
        "--prior",
        metavar=f"{NATURAL}|{AS_TRAINED}|FILE.csv",
        default=NATURAL,
        help="distribution of redshifts that densities assume: the training sample's (default), "
        "as the training's weights made it, or a table of z_low, z_high, count",
    )
    parser.add_argument(
        ANYWAY,
        action="store_true",
        help="take pixels whose dtype, unit, zero-point or statistics are not the training's",
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument(
        "--batch-size", type=int, default=DEFAULT_BATCH, help="samples of a rank; %(default)s"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")


def run(args: argparse.Namespace) -> int:
    """Evaluates; returns the exit code."""
    config = EvaluationConfig(
        split=args.split,
        checkpoint=args.checkpoint,
        prior=args.prior,
        has_any_pixels=args.any_pixels,
        batch_size=args.batch_size,
        magnitude_column=args.magnitude_column,
        redshift_edges=parse_edges("--redshift-edges", args.redshift_edges),
        magnitude_edges=parse_edges("--magnitude-edges", args.magnitude_edges),
        bootstrap=BootstrapConfig(num_replicates=args.replicates, seed=args.seed),
        has_report=not args.no_report,
        is_quiet=args.quiet,
    )
    topology = from_env()
    device = choose_device(args.device, topology)
    set_threads(None, topology)
    try:
        with joined_ranks(topology, device) as ranks:
            result = evaluate(args.run, args.data, args.out or args.run, config, ranks)
    except FirstRankError as error:
        # The first rank says it for all.
        return error.code
    if result is not None:
        _show(result, is_json=args.json)
    return 0


def parse_edges(option: str, text: str) -> tuple[float, ...]:
    """Numbers with commas between.

    Raises:
        UsageError: they are none.
    """
    try:
        return tuple(float(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise UsageError(f"{option} {text} are no numbers; give some such as 0,0.5,1") from None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What came of an evaluation.

    Attributes:
        summary: the metrics.
        other_priors: the same, but for bins, under other priors, by their names.
        origin: what was evaluated on what.
        predictions: the table's file.
        metrics: the JSON file.
        report: the HTML file; None where none was asked for.
    """

    summary: Summary
    other_priors: Mapping[str, Summary]
    origin: dict[str, Any]
    predictions: Path
    metrics: Path
    report: Path | None

    @property
    def all_priors(self) -> tuple[str, Summary, Mapping[str, Summary]]:
        """Name and metrics of the prior that was asked for, and the others."""
        return self.origin["prior"], self.summary, self.other_priors

    def as_dict(self) -> dict[str, Any]:
        """Plain dict, the content of the JSON file."""
        files = {"predictions": self.predictions, "metrics": self.metrics, "report": self.report}
        return {
            "format_version": FORMAT_VERSION,
            "origin": self.origin,
            "metrics": self.summary.as_dict(),
            "other_priors": {name: s.as_dict() for name, s in self.other_priors.items()},
            "files": {name: str(path) for name, path in files.items() if path is not None},
        }


def evaluate(
    run: Path, data: Path, out: Path, config: EvaluationConfig, ranks: Ranks
) -> Evaluation | None:
    """Evaluates a run on a split; all ranks call it.

    Args:
        run: the run's folder.
        data: the data set's folder.
        out: the folder of the results; made if it is not there.
        config: what and how.
        ranks: this rank among the others.

    Returns:
        The result on the first rank, None on the others.

    Raises:
        UsageError: the run, the data or the options do not go together.
        DataError: something is damaged, or the network gives no densities.
        StorageError: the file system refused.
    """
    differences = ranks.on_first(lambda: _check(run, data, out, config))
    trained, split = open_run(run, config.checkpoint), msdata.open(data).split(config.split)
    magnitude, why_not = find_magnitude(split, config.magnitude_column)
    table = out / f"predictions-{split.name}.parquet"
    others = predict_to(
        table,
        trained,
        [split],
        ranks,
        priors=_priors(trained, config.prior),
        columns=[] if magnitude is None else [magnitude],
        pixel_differences=differences or (),
        batch_size=config.batch_size,
        is_quiet=config.is_quiet,
    )
    if not ranks.is_first:
        ranks.on_first(lambda: None)
        return None
    made: list[Evaluation] = []
    ranks.on_first(
        lambda: made.append(
            _conclude(read_predictions(table), others, trained, split, config, magnitude or why_not)
        )
    )
    return made[0]


def _priors(trained: TrainedRun, asked: str) -> list[TargetPrior]:
    """The prior that was asked for, then the network's own and the natural one where they differ.

    Raises:
        UsageError: see `find_prior`.
    """
    names = [asked]
    if trained.config.loss.weighting != "none":
        names += [AS_TRAINED, NATURAL]
    elif asked not in (NATURAL, AS_TRAINED):
        names += [NATURAL]
    return [find_prior(trained, name) for name in dict.fromkeys(names)]


def _check(run: Path, data: Path, out: Path, config: EvaluationConfig) -> list[str]:
    """Refuses what cannot end well, before hours of computing; gives `pixel_differences`."""
    if config.has_report:
        check_installed()
    trained, opened = open_run(run, config.checkpoint), msdata.open(data)
    check_data(trained, opened, [config.split])
    _priors(trained, config.prior)
    for name, mark in result_marks(config).items():
        check_output(out / name, mark)
    split = opened.split(config.split)
    magnitude, _ = find_magnitude(split, config.magnitude_column)
    check_columns([] if magnitude is None else [magnitude])
    if split.redshift is None or not np.isfinite(split.redshift).any():
        raise DataError(
            f"no sample of split {split.name!r} of {data} has a redshift, so there is nothing to "
            "compare with; 'mstrain predict' needs none"
        )
    differences = check_pixels(trained, opened, [config.split], is_told=config.has_any_pixels)
    make_folder(out)
    return differences


def result_marks(config: EvaluationConfig) -> dict[str, bytes]:
    """What tells the files of an evaluation from others, by name."""
    marks = {f"predictions-{config.split}.parquet": PREDICTIONS_MARK}
    marks[f"evaluation-{config.split}.json"] = b'"origin": {'
    return {**marks, "report.html": PAGE_MARK} if config.has_report else marks


def _conclude(
    predictions: Predictions,
    others: Mapping[str, Columns],
    trained: TrainedRun,
    split: Split,
    config: EvaluationConfig,
    magnitude: str,
) -> Evaluation:
    """Metrics and report of a finished table; `magnitude` is its column, or why there is none."""
    if magnitude in predictions.columns:
        # Numbers, whatever type the index has them in; the table has the rows of the split.
        columns = {**predictions.columns, magnitude: split.numbers(magnitude)}
        predictions = replace(predictions, columns=columns)
    summary = _summary(predictions.columns, config, magnitude)
    folder = predictions.path.parent
    result = Evaluation(
        summary=summary,
        other_priors={
            name: summarise(scored, config.bootstrap, binned_by={})
            for name, scored in others.items()
        },
        origin=dict(predictions.origin),
        predictions=predictions.path,
        metrics=folder / f"evaluation-{split.name}.json",
        report=folder / "report.html" if config.has_report else None,
    )
    content = json.dumps(result.as_dict(), indent=1, allow_nan=False)
    write_whole(result.metrics, content.encode() + b"\n")
    if result.report is not None:
        page = render_page(
            assemble(
                predictions,
                summary,
                split,
                other_priors=result.other_priors,
                journal=read_journal(trained.path),
                settings=dict(settings_of(trained.config)),
                trained_on=trained.fingerprint,
            )
        )
        write_whole(result.report, page.encode())
    return result


def _summary(columns: Columns, config: EvaluationConfig, magnitude: str) -> Summary:
    """The metrics; `magnitude` is a column, or why there is none."""
    has_magnitude = magnitude in columns
    known = np.isfinite(columns["redshift"])
    # Twenty objects a bin, so that its intervals say something.
    max_bins = int(np.clip(int(known.sum()) // 20, 4, 10))
    edges = config.redshift_edges or round_edges(columns["redshift"], max_bins)
    binned_by = {"redshift": ("redshift", np.array(edges))}
    if has_magnitude:
        found = sane_magnitudes(columns[magnitude][known])
        edges = config.magnitude_edges or (
            round_edges(found, max_bins) if len(found) else (0.0, 1.0)
        )
        binned_by["magnitude"] = (magnitude, np.array(edges))
    return summarise(
        columns,
        config.bootstrap,
        binned_by=binned_by,
        skipped={} if has_magnitude else {"magnitude": magnitude},
    )


def _show(result: Evaluation, *, is_json: bool) -> None:
    if is_json:
        print(json.dumps(result.as_dict(), allow_nan=False))
        return
    print(
        f"{result.origin['recipe']}, {result.origin['checkpoint']} checkpoint (step "
        f"{result.origin['step']:,}), on split {result.origin['splits'][0]} of "
        f"{result.origin['data']}: {result.summary.num_samples:,} objects\n"
    )
    print(summary_text(result.summary, prior_table(*result.all_priors)))
    print(f"\npredictions: {result.predictions}\nmetrics:     {result.metrics}")
    if result.report is not None:
        print(f"report:      {result.report}")
