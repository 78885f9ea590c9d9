"""Evaluation of a trained network on all ranks: predictions, metrics, report."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

import msdata
from msdata.core.files import write_whole
from msdata.core.output_file import check_output, make_folder
from msdata.dataset.dataset import Split
from msdata.errors import UsageError
from mstrain.data.magnitudes import find_magnitude, sane_magnitudes
from mstrain.data.pixels import check_pixels
from mstrain.distributed import Ranks
from mstrain.evaluation.bin_by import computed_columns, find_columns, make_groupings
from mstrain.evaluation.inference import DEFAULT_BATCH, check_columns, predict_to
from mstrain.evaluation.metrics.binning import round_edges
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig
from mstrain.evaluation.metrics.classes import ClassSummary, summarize_classes
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.metrics.estimates import Columns
from mstrain.evaluation.metrics.scores import as_of_redshift
from mstrain.evaluation.metrics.summary import Summary, check_scipy, summarize
from mstrain.evaluation.metrics.uncertainty import Uncertainty, assess
from mstrain.evaluation.predictions import MARK as PREDICTIONS_MARK
from mstrain.evaluation.predictions import Predictions, read_predictions
from mstrain.evaluation.report.assemble import assemble, assemble_classes, class_columns
from mstrain.evaluation.report.canvas import check_installed
from mstrain.evaluation.report.classes import render_class_page
from mstrain.evaluation.report.page import MARK as PAGE_MARK
from mstrain.evaluation.report.page import render_page
from mstrain.evaluation.run_info import (
    TrainedRun,
    check_data,
    check_labels,
    find_prior,
    open_run,
)
from mstrain.models.prior import AS_TRAINED, NATURAL, TargetPrior
from mstrain.models.target import REDSHIFT_TARGET, Target
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
        check_batch_size(self.batch_size)
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
        uncertainty: widths against errors, and the kinds of outlier; None of classes.
        origin: what was evaluated on what.
        predictions: the table's file.
        metrics: the JSON file.
        report: the HTML file; None where none was asked for.
        target: what the network tells.
    """

    summary: Summary | ClassSummary
    other_priors: Mapping[str, Summary] | Mapping[str, ClassSummary]
    uncertainty: Uncertainty | None
    origin: dict[str, Any]
    predictions: Path
    metrics: Path
    report: Path | None
    target: Target = REDSHIFT_TARGET

    def as_dict(self) -> dict[str, Any]:
        """Plain dict, the content of the JSON file."""
        files = {"predictions": self.predictions, "metrics": self.metrics, "report": self.report}
        return {
            "format_version": FORMAT_VERSION,
            "origin": self.origin,
            "metrics": self.summary.as_dict(),
            "other_priors": {name: s.as_dict() for name, s in self.other_priors.items()},
            **({} if self.uncertainty is None else {"uncertainty": self.uncertainty.as_dict()}),
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
    target = trained.target
    table = out / f"predictions-{split.name}.parquet"
    others = predict_to(
        table,
        trained,
        [split],
        ranks,
        priors=_priors(trained, config.prior),
        columns=_index_columns(split, config, target),
        pixel_differences=differences or (),
        batch_size=config.batch_size,
        is_quiet=config.is_quiet,
    )
    if not ranks.is_first:
        ranks.on_first(lambda: None)
        return None
    made: list[Evaluation] = []
    conclude = _conclude_classes if target.classes else _conclude
    ranks.on_first(
        lambda: made.append(conclude(read_predictions(table), others, trained, split, config))
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
    _check_options(trained, config)
    _priors(trained, config.prior)
    for name, mark in result_marks(config).items():
        check_output(out / name, mark)
    split = opened.split(config.split)
    check_columns(_index_columns(split, config, trained.target), trained.target)
    check_labels(trained, split)
    differences = check_pixels(trained, opened, [config.split], is_told=config.has_any_pixels)
    make_folder(out)
    return differences


def _check_options(trained: TrainedRun, config: EvaluationConfig) -> None:
    """Refuses options that say nothing of what the network tells."""
    target = trained.target
    given: dict[str, object] = {}
    if not target.is_redshift:
        given["--redshift-edges"] = config.redshift_edges
    if target.classes:
        given["--bin-by"] = config.bin_by
        given["--magnitude-edges"] = config.magnitude_edges
        given["--magnitude-column"] = config.magnitude_column
    for option, value in given.items():
        if value:
            kind = "classes of " if target.classes else ""
            raise UsageError(
                f"{option} must be left out: the network of {trained.path} tells {kind}"
                f"{target.column}, {'no density' if target.classes else 'no redshift'}"
            )


def _index_columns(split: Split, config: EvaluationConfig, target: Target) -> list[str]:
    """Columns of the index that the table takes over.

    Raises:
        UsageError: the magnitude, or a column to bin by, is not there.
    """
    if target.classes:
        return []
    magnitude, why_not = find_magnitude(split, config.magnitude_column)
    found = find_columns(split, config.bin_by, magnitude, why_not, target).values()
    names = [] if magnitude is None else [magnitude]
    return list(dict.fromkeys([*names, *(n for n in found if n not in computed_columns(target))]))


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
) -> Evaluation:
    """Metrics and report of a finished table of densities."""
    target = trained.target
    column, why_not = find_magnitude(split, config.magnitude_column)
    magnitude = column or why_not
    if magnitude in predictions.columns:
        # Numbers, whatever type the index has them in; the table has the rows of the split.
        columns = {**predictions.columns, magnitude: split.numbers(magnitude)}
        predictions = replace(predictions, columns=columns)
    known = as_of_redshift(predictions.columns, target)
    edges = _edges(known, config, magnitude, target)
    summary = summarize(
        known,
        config.bootstrap,
        binned_by=edges,
        skipped={} if "magnitude" in edges else {"magnitude": magnitude},
        target=target,
    )
    column = edges.get("magnitude", (None,))[0]
    names = find_columns(split, config.bin_by, column, magnitude, target)
    groupings = make_groupings(split, known, names, dict(edges.values()), target)
    uncertainty = assess(known, groupings, config.bootstrap, target)
    folder = predictions.path.parent
    others_told = {
        name: summarize(scored, config.bootstrap, binned_by={}, target=target)
        for name, scored in others.items()
    }
    result = Evaluation(
        summary=summary,
        other_priors=others_told,
        uncertainty=uncertainty,
        origin=dict(predictions.origin),
        predictions=predictions.path,
        metrics=folder / f"evaluation-{split.name}.json",
        report=folder / "report.html" if config.has_report else None,
        target=trained.target,
    )

    def draw() -> str:
        content = assemble(
            predictions,
            summary,
            split,
            other_priors=others_told,
            uncertainty=uncertainty,
            journal=read_journal(trained.path),
            settings=dict(settings_of(trained.config)),
            trained_on=trained.fingerprint,
            target=target,
        )
        return render_page(content)

    _write(result, draw)
    return result


def _write(result: Evaluation, draw: Callable[[], str]) -> None:
    """Writes the metrics, then the page that `draw` makes."""
    content = json.dumps(result.as_dict(), indent=1, allow_nan=False)
    write_whole(result.metrics, content.encode() + b"\n")
    if result.report is not None:
        write_whole(result.report, draw().encode())


def _conclude_classes(
    predictions: Predictions,
    others: Mapping[str, Columns],
    trained: TrainedRun,
    split: Split,
    config: EvaluationConfig,
) -> Evaluation:
    """Metrics and report of a finished table of classes."""
    names, told = trained.target.classes, config.bootstrap
    summary = summarize_classes(class_columns(predictions, split, trained.target), names, told)
    folder = predictions.path.parent
    other_summaries = {n: summarize_classes(found, names, told) for n, found in others.items()}
    result = Evaluation(
        summary=summary,
        other_priors=other_summaries,
        uncertainty=None,
        origin=dict(predictions.origin),
        predictions=predictions.path,
        metrics=folder / f"evaluation-{split.name}.json",
        report=folder / "report.html" if config.has_report else None,
        target=trained.target,
    )

    def draw() -> str:
        content = assemble_classes(
            predictions,
            summary,
            split,
            trained.target,
            other_priors=other_summaries,
            journal=read_journal(trained.path),
            settings=dict(settings_of(trained.config)),
            trained_on=trained.fingerprint,
        )
        return render_class_page(content)

    _write(result, draw)
    return result


def _edges(
    columns: Columns, config: EvaluationConfig, magnitude: str, target: Target
) -> dict[str, tuple[str, Floats]]:
    """Column and edges of the bins of the label and of magnitude."""
    known = np.isfinite(columns["redshift"])
    # Twenty objects per bin, so that its intervals say something.
    max_bins = int(np.clip(int(known.sum()) // 20, 4, 10))
    edges = config.redshift_edges or round_edges(columns["redshift"], max_bins)
    binned_by = {target.noun: (target.public("redshift"), np.array(edges))}
    if magnitude in columns:
        found = sane_magnitudes(columns[magnitude][known])
        edges = config.magnitude_edges or (
            round_edges(found, max_bins) if len(found) else (0.0, 1.0)
        )
        binned_by["magnitude"] = (magnitude, np.array(edges))
    return binned_by


def check_batch_size(batch_size: int) -> None:
    """Raises UsageError where the samples of a rank at a time are fewer than one."""
    if batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {batch_size}")
