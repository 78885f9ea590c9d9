"""Metrics and report of a finished table of predictions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from msdata.core.files import write_whole
from msdata.dataset.dataset import Split
from mstrain.data.columns import find_magnitude, sane_magnitudes
from mstrain.evaluation.bin_by import find_columns, make_groupings
from mstrain.evaluation.calibration_table import CALIBRATION_WARNING
from mstrain.evaluation.metrics.binning import round_edges
from mstrain.evaluation.metrics.classes import summarize_classes
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.metrics.estimates import Columns
from mstrain.evaluation.metrics.scores import as_of_redshift
from mstrain.evaluation.metrics.summary import summarize
from mstrain.evaluation.metrics.uncertainty import Grouping, assess
from mstrain.evaluation.predictions import Predictions
from mstrain.evaluation.report.assemble import assemble, assemble_classes, class_columns
from mstrain.evaluation.report.classes import render_class_page
from mstrain.evaluation.report.page import (
    page_with_section,
    render_page,
    section_body,
    with_kept_sections,
)
from mstrain.evaluation.results import Evaluation, EvaluationConfig
from mstrain.evaluation.run_info import TrainedRun
from mstrain.evaluation.variants import Variant
from mstrain.models.target import Target
from mstrain.overrides import settings_of
from mstrain.training.metrics_log import read_journal


def conclude(
    predictions: Predictions,
    others: Sequence[tuple[Variant, Columns]],
    trained: TrainedRun,
    split: Split,
    config: EvaluationConfig,
    notes: Sequence[str],
) -> Evaluation:
    """Measures a finished table, and writes metrics and report.

    Args:
        predictions: the table.
        others: other densities of the same objects, and their scores.
        trained: the run.
        split: the split of the table.
        config: what and how.
        notes: sentences on the run's calibrations.

    Raises:
        UsageError: a column to bin by is not there.
        DataError: a sample is damaged.
        StorageError: the file system refused.
    """
    if trained.target.classes:
        return _conclude_classes(predictions, others, trained, split, config)
    return _conclude_densities(predictions, others, trained, split, config, notes)


def _conclude_densities(
    predictions: Predictions,
    others: Sequence[tuple[Variant, Columns]],
    trained: TrainedRun,
    split: Split,
    config: EvaluationConfig,
    notes: Sequence[str],
) -> Evaluation:
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
    names = find_columns(split, config.bin_by, column, magnitude, target=target)
    groupings = make_groupings(split, known, names, dict(edges.values()), target)
    asked = predictions.origin["prior"]
    beside = [
        (v, summarize(scored, config.bootstrap, binned_by={}, target=target))
        for v, scored in others
    ]
    uncertainty = assess(known, groupings, config.bootstrap, target)
    other_priors = {v.prior.name: s for v, s in beside if v.prior.name != asked}
    result = Evaluation(
        summary=summary,
        other_priors=other_priors,
        other_calibrations={v.calibration_name: s for v, s in beside if v.prior.name == asked},
        calibration_notes=tuple(notes),
        uncertainty=uncertainty,
        target=target,
        **_files(predictions, split, config),
    )

    def draw() -> str:
        content = assemble(
            predictions,
            summary,
            split,
            other_priors=other_priors,
            uncertainty=uncertainty,
            journal=read_journal(trained.path),
            settings=dict(settings_of(trained.config)),
            trained_on=trained.fingerprint,
            target=target,
        )
        return _with_calibrations(render_page(content), result)

    _write(result, draw)
    return result


def _conclude_classes(
    predictions: Predictions,
    others: Sequence[tuple[Variant, Columns]],
    trained: TrainedRun,
    split: Split,
    config: EvaluationConfig,
) -> Evaluation:
    names, told, target = trained.target.classes, config.bootstrap, trained.target
    columns = class_columns(predictions, split, target)
    groupings: list[Grouping] = []
    if config.bin_by:
        magnitude, why_not = find_magnitude(split, config.magnitude_column)
        found = find_columns(split, config.bin_by, magnitude, why_not, target=target)
        edges = config.magnitude_edges
        asked = {magnitude: np.array(edges)} if magnitude is not None and edges else {}
        groupings = make_groupings(split, {"redshift": columns["truth"]}, found, asked, target)
    summary = summarize_classes(columns, names, told, groupings)
    other_priors = {v.prior.name: summarize_classes(scored, names, told) for v, scored in others}
    result = Evaluation(
        summary=summary,
        other_priors=other_priors,
        uncertainty=None,
        target=trained.target,
        **_files(predictions, split, config),
    )

    def draw() -> str:
        content = assemble_classes(
            predictions,
            summary,
            split,
            trained.target,
            other_priors=other_priors,
            journal=read_journal(trained.path),
            settings=dict(settings_of(trained.config)),
            trained_on=trained.fingerprint,
        )
        return render_class_page(content)

    _write(result, draw)
    return result


def _files(predictions: Predictions, split: Split, config: EvaluationConfig) -> dict[str, Any]:
    """Fields of `Evaluation` that say what was evaluated, and where it is."""
    folder = predictions.path.parent
    return {
        "origin": dict(predictions.origin),
        "predictions": predictions.path,
        "metrics": folder / f"evaluation-{split.name}.json",
        "report": folder / "report.html" if config.has_report else None,
    }


def _write(result: Evaluation, draw: Callable[[], str]) -> None:
    """Writes the metrics, then the page that `draw` makes."""
    content = json.dumps(result.as_dict(), indent=1, allow_nan=False)
    write_whole(result.metrics, content.encode() + b"\n")
    if result.report is not None:
        old = result.report.read_text(encoding="utf-8") if result.report.exists() else None
        write_whole(result.report, with_kept_sections(old, draw()).encode())


def _with_calibrations(page: str, result: Evaluation) -> str:
    """The page with a section of the run's calibrations, if it has some."""
    shown, notes = result.calibration_table, result.calibration_notes
    if shown is None and not notes:
        return page
    body = section_body([CALIBRATION_WARNING, *notes], [] if shown is None else [shown], [])
    return page_with_section(page, "recalibration", "Recalibration", body)


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
