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

_CALIBRATION_WARNING = (
    "A recalibration makes the PITs uniform and may better CDE loss and CRPS; NMAD and the shares "
    "of outliers of the mean may get worse with it, as upstream found. Compare the columns before "
    "you choose one; none is applied unless --calibration asks for it."
)


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
    measure = _measure_classes if trained.target.classes else _measure_densities
    found, draw = measure(predictions, others, trained, split, config)
    folder = predictions.path.parent
    result = Evaluation(
        **found,
        origin=dict(predictions.origin),
        predictions=predictions.path,
        metrics=folder / f"evaluation-{split.name}.json",
        report=folder / "report.html" if config.has_report else None,
        calibration_notes=tuple(notes),
        target=trained.target,
    )
    content = json.dumps(result.as_dict(), indent=1, allow_nan=False)
    write_whole(result.metrics, content.encode() + b"\n")
    if result.report is not None:
        old = result.report.read_text(encoding="utf-8") if result.report.exists() else None
        page = with_kept_sections(old, _with_calibrations(draw(), result))
        write_whole(result.report, page.encode())
    return result


def _measure_densities(
    predictions: Predictions,
    others: Sequence[tuple[Variant, Columns]],
    trained: TrainedRun,
    split: Split,
    config: EvaluationConfig,
) -> tuple[dict[str, Any], Callable[[], str]]:
    """Metrics, as fields of `Evaluation`, and what draws the page."""
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
    beside = [
        (v, summarize(scored, config.bootstrap, binned_by={}, target=target))
        for v, scored in others
    ]
    asked = predictions.origin["prior"]
    shown: dict[str, Any] = {
        "other_priors": {v.prior.name: s for v, s in beside if v.prior.name != asked},
        "uncertainty": assess(known, groupings, config.bootstrap, target),
    }
    calibrations = {v.calibration_name: s for v, s in beside if v.prior.name == asked}
    return (
        {"summary": summary, "other_calibrations": calibrations, **shown},
        lambda: render_page(assemble(predictions, summary, split, trained, **shown)),
    )


def _measure_classes(
    predictions: Predictions,
    others: Sequence[tuple[Variant, Columns]],
    trained: TrainedRun,
    split: Split,
    config: EvaluationConfig,
) -> tuple[dict[str, Any], Callable[[], str]]:
    """As `_measure_densities`."""
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
    priors = {v.prior.name: summarize_classes(scored, names, told) for v, scored in others}
    return (
        {"summary": summary, "other_priors": priors, "uncertainty": None},
        lambda: render_class_page(
            assemble_classes(predictions, summary, split, trained, other_priors=priors)
        ),
    )


def _with_calibrations(page: str, result: Evaluation) -> str:
    """The page with a section of the run's calibrations, if it has some."""
    shown, notes = result.calibration_table, result.calibration_notes
    if shown is None and not notes:
        return page
    body = section_body([_CALIBRATION_WARNING, *notes], [] if shown is None else [shown], [])
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
