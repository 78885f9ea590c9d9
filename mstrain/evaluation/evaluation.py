"""Evaluation (predictions, metrics, report) and prediction (the table alone), on all ranks."""

from __future__ import annotations

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
from mstrain.data.magnitudes import find_magnitude, sane_magnitudes
from mstrain.data.pixels import check_pixels
from mstrain.distributed import Ranks
from mstrain.evaluation.bin_by import computed_columns, find_columns, make_groupings
from mstrain.evaluation.inference import DEFAULT_BATCH, check_columns, predict_to
from mstrain.evaluation.metrics.binning import round_edges
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.metrics.estimates import Columns
from mstrain.evaluation.metrics.summary import Summary, check_scipy, summarize
from mstrain.evaluation.metrics.uncertainty import Uncertainty, assess
from mstrain.evaluation.predictions import MARK as PREDICTIONS_MARK
from mstrain.evaluation.predictions import Predictions, check_suffix, read_predictions
from mstrain.evaluation.report.assemble import assemble
from mstrain.evaluation.report.canvas import check_installed
from mstrain.evaluation.report.page import MARK as PAGE_MARK
from mstrain.evaluation.report.page import render_page
from mstrain.evaluation.run_info import TrainedRun, check_data, find_prior, open_run
from mstrain.models.prior import AS_TRAINED, NATURAL, TargetPrior
from mstrain.overrides import settings_of
from mstrain.training.metrics_log import read_journal

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is evaluated, and how.

    Attributes:
        split: name of the split.
        checkpoint: "best" or "last".
        prior: "natural", "as-trained", or a CSV file, see `mstrain.models.prior.target_prior`.
        has_any_pixels: take pixels of another kind than the training's.
        batch_size: samples per rank at a time; not the global `batch_size` of a training.
        magnitude_column: column of the index; None takes the r magnitude if there is one.
        redshift_edges: edges of the redshift bins; empty chooses round numbers.
        magnitude_edges: edges of the magnitude bins; empty chooses round numbers.
        bin_by: quantities to show widths, errors and calibration by: "magnitude", columns of the
            index, point estimates or spreads.
        bootstrap: how intervals are made.
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
    bin_by: tuple[str, ...] = ()
    bootstrap: BootstrapConfig = field(default_factory=BootstrapConfig)
    has_report: bool = True
    is_quiet: bool = False

    def __post_init__(self) -> None:
        _check_batch_size(self.batch_size)
        for name in ("redshift", "magnitude"):
            edges = getattr(self, f"{name}_edges")
            if edges and (len(edges) < 2 or not (np.diff(edges) > 0).all()):
                raise UsageError(
                    f"--{name}-edges must be two or more ascending numbers, such as 0,0.5,1, got "
                    f"{','.join(map(str, edges))}"
                )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What came of an evaluation.

    Attributes:
        summary: the metrics.
        other_priors: metrics without bins under other priors, by their names.
        uncertainty: widths against errors, and the kinds of outlier.
        origin: what was evaluated on what.
        predictions: the table's file.
        metrics: the JSON file.
        report: the HTML file; None where none was asked for.
    """

    summary: Summary
    other_priors: Mapping[str, Summary]
    uncertainty: Uncertainty
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
            "uncertainty": self.uncertainty.as_dict(),
            "files": {name: str(path) for name, path in files.items() if path is not None},
        }


def evaluate_on_ranks(
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
        columns=_index_columns(split, config),
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
    check_scipy()
    if config.has_report:
        check_installed()
    trained, opened = open_run(run, config.checkpoint), msdata.open(data)
    check_data(trained, opened, [config.split])
    _priors(trained, config.prior)
    for name, mark in result_marks(config).items():
        check_output(out / name, mark)
    split = opened.split(config.split)
    check_columns(_index_columns(split, config))
    if split.redshift is None or not np.isfinite(split.redshift).any():
        raise DataError(
            f"no sample of split {split.name!r} of {data} has a redshift, so there is nothing to "
            "compare with; 'mstrain predict' needs none"
        )
    differences = check_pixels(trained, opened, [config.split], is_told=config.has_any_pixels)
    make_folder(out)
    return differences


def _index_columns(split: Split, config: EvaluationConfig) -> list[str]:
    """Columns of the index that the table takes over.

    Raises:
        UsageError: the magnitude, or a column to bin by, is not there.
    """
    magnitude, why_not = find_magnitude(split, config.magnitude_column)
    found = find_columns(split, config.bin_by, magnitude, why_not).values()
    names = [] if magnitude is None else [magnitude]
    return list(dict.fromkeys([*names, *(n for n in found if n not in computed_columns())]))


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
    edges = _edges(predictions.columns, config, magnitude)
    summary = summarize(
        predictions.columns,
        config.bootstrap,
        binned_by=edges,
        skipped={} if "magnitude" in edges else {"magnitude": magnitude},
    )
    names = find_columns(split, config.bin_by, edges.get("magnitude", (None,))[0], magnitude)
    groupings = make_groupings(split, predictions.columns, names, dict(edges.values()))
    uncertainty = assess(predictions.columns, groupings, config.bootstrap)
    folder = predictions.path.parent
    result = Evaluation(
        summary=summary,
        other_priors={
            name: summarize(scored, config.bootstrap, binned_by={})
            for name, scored in others.items()
        },
        uncertainty=uncertainty,
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
                uncertainty=uncertainty,
                journal=read_journal(trained.path),
                settings=dict(settings_of(trained.config)),
                trained_on=trained.fingerprint,
            )
        )
        write_whole(result.report, page.encode())
    return result


def _edges(
    columns: Columns, config: EvaluationConfig, magnitude: str
) -> dict[str, tuple[str, Floats]]:
    """Column and edges of the bins of redshift and magnitude, or why there is none."""
    known = np.isfinite(columns["redshift"])
    # Twenty objects per bin, so that its intervals say something.
    max_bins = int(np.clip(int(known.sum()) // 20, 4, 10))
    edges = config.redshift_edges or round_edges(columns["redshift"], max_bins)
    binned_by = {"redshift": ("redshift", np.array(edges))}
    if magnitude in columns:
        found = sane_magnitudes(columns[magnitude][known])
        edges = config.magnitude_edges or (
            round_edges(found, max_bins) if len(found) else (0.0, 1.0)
        )
        binned_by["magnitude"] = (magnitude, np.array(edges))
    return binned_by


@dataclass(frozen=True, kw_only=True)
class PredictionConfig:
    """What is predicted, and how.

    Attributes:
        split: name of the split; None takes all that have samples, in order.
        columns: columns of the index to copy.
        checkpoint: "best" or "last".
        prior: "natural", "as-trained", or a CSV file, see `mstrain.models.prior.target_prior`.
        has_any_pixels: take pixels of another kind than the training's.
        batch_size: samples per rank at a time.
        data_name: what the table's metadata call the data; None means the data set's folder.
        is_quiet: show no progress.
    """

    split: str | None = None
    columns: tuple[str, ...] = ()
    checkpoint: str = "best"
    prior: str = NATURAL
    has_any_pixels: bool = False
    batch_size: int = DEFAULT_BATCH
    data_name: str | None = None
    is_quiet: bool = False

    def __post_init__(self) -> None:
        _check_batch_size(self.batch_size)


def predict_on_ranks(
    run: Path, data: Path, out: Path, config: PredictionConfig, ranks: Ranks
) -> int:
    """Writes a table of predictions; all ranks call it.

    Args:
        run: the run's folder.
        data: the data set's folder.
        out: the table's file.
        config: what and how.
        ranks: this rank among the others.

    Returns:
        Samples predicted.

    Raises:
        UsageError: the run, the data or the options do not go together.
        DataError: something is damaged, or the network gives no densities.
        StorageError: the file system refused.
    """
    differences = ranks.on_first(lambda: _check_prediction(run, data, out, config))
    opened, trained = msdata.open(data), open_run(run, config.checkpoint)
    splits = [opened.split(name) for name in _splits(opened, config.split)]
    predict_to(
        out,
        trained,
        splits,
        ranks,
        priors=[find_prior(trained, config.prior)],
        columns=config.columns,
        pixel_differences=differences or (),
        data_name=config.data_name,
        batch_size=config.batch_size,
        is_quiet=config.is_quiet,
    )
    return sum(map(len, splits))


def _check_prediction(run: Path, data: Path, out: Path, config: PredictionConfig) -> list[str]:
    """Refuses what cannot end well, before hours of computing; gives `pixel_differences`."""
    check_suffix(out)
    trained, opened = open_run(run, config.checkpoint), msdata.open(data)
    splits = _splits(opened, config.split)
    check_data(trained, opened, splits)
    check_output(out, PREDICTIONS_MARK)
    find_prior(trained, config.prior)
    unknown = [name for name in config.columns if name not in opened.columns]
    if unknown:
        raise UsageError(
            f"{data} has no column {', '.join(unknown)}; it has {', '.join(opened.columns)}"
        )
    check_columns(config.columns)
    differences = check_pixels(trained, opened, splits, is_told=config.has_any_pixels)
    make_folder(out.absolute().parent)
    return differences


def _splits(data: msdata.Dataset, asked: str | None) -> list[str]:
    """The split that was asked for, or all that have samples."""
    if asked is not None:
        return [asked]
    return [name for name in data.splits if len(data.split(name))]


def _check_batch_size(batch_size: int) -> None:
    """Raises UsageError where the samples of a rank at a time are fewer than one."""
    if batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {batch_size}")
