"""Evaluation of a trained network on all ranks: predictions, metrics, report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
from mstrain.evaluation.calibration import NONE
from mstrain.evaluation.calibration_table import CALIBRATION_WARNING, calibration_table
from mstrain.evaluation.inference import (
    DEFAULT_BATCH,
    check_batch_size,
    check_columns,
    predict_to,
)
from mstrain.evaluation.metrics.binning import round_edges
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.metrics.estimates import Columns
from mstrain.evaluation.metrics.summary import Summary, check_scipy, summarize
from mstrain.evaluation.metrics.uncertainty import Uncertainty, assess
from mstrain.evaluation.predictions import MARK as PREDICTIONS_MARK
from mstrain.evaluation.predictions import Predictions, read_predictions
from mstrain.evaluation.report.assemble import assemble
from mstrain.evaluation.report.canvas import check_installed
from mstrain.evaluation.report.page import MARK as PAGE_MARK
from mstrain.evaluation.report.page import (
    page_with_section,
    render_page,
    section_body,
    with_kept_sections,
)
from mstrain.evaluation.report.wording import TextTable
from mstrain.evaluation.run_info import TrainedRun, check_data, find_prior, open_run
from mstrain.evaluation.variants import Variant, find_calibrations
from mstrain.models.prior import AS_TRAINED, NATURAL
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
        calibration: "none", "global" or "local", see `mstrain calibrate`.
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
    calibration: str = NONE
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
        other_calibrations: likewise by the run's other calibrations, by their names.
        calibration_notes: sentences on them.
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
    other_calibrations: Mapping[str, Summary] = field(default_factory=dict)
    calibration_notes: tuple[str, ...] = ()

    @property
    def calibration_table(self) -> TextTable | None:
        """All calibrations side by side; None where the run has none."""
        found = {self.origin["calibration"]: self.summary, **self.other_calibrations}
        return calibration_table(found, self.origin["calibration"])

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
            "other_calibrations": {n: s.as_dict() for n, s in self.other_calibrations.items()},
            "calibration_notes": list(self.calibration_notes),
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
    variants, notes = _variants(trained, split.dataset, config)
    others = predict_to(
        table,
        trained,
        [split],
        ranks,
        variants=variants,
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
            _conclude(
                read_predictions(table),
                list(zip(variants[1:], others, strict=True)),
                trained,
                split,
                config,
                (magnitude or why_not, notes),
            )
        )
    )
    return made[0]


def _variants(
    trained: TrainedRun, data: msdata.Dataset, config: EvaluationConfig
) -> tuple[list[Variant], list[str]]:
    """The densities that were asked for, then what stands beside them; and notes.

    Beside them stand the network's own prior and the natural one where they differ, and the run's
    other calibrations; each is of one prior, so beside one stands no other prior.

    Raises:
        UsageError: see `find_prior` and `find_calibrations`.
    """
    names = []
    if config.calibration != NONE:
        pass
    elif trained.config.loss.weighting != "none":
        names = [AS_TRAINED, NATURAL]
    elif config.prior not in (NATURAL, AS_TRAINED):
        names = [NATURAL]
    prior = find_prior(trained, config.prior)
    found, notes = find_calibrations(trained, data, prior, config.calibration)
    others = [find_prior(trained, name) for name in names if name != config.prior]
    return [found[0], *(Variant(prior=p) for p in others), *found[1:]], notes


def _check(run: Path, data: Path, out: Path, config: EvaluationConfig) -> list[str]:
    """Refuses what cannot end well, before hours of computing; gives `pixel_differences`."""
    check_scipy()
    if config.has_report:
        check_installed()
    trained, opened = open_run(run, config.checkpoint), msdata.open(data)
    check_data(trained, opened, [config.split])
    _variants(trained, opened, config)
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
    others: Sequence[tuple[Variant, Columns]],
    trained: TrainedRun,
    split: Split,
    config: EvaluationConfig,
    told: tuple[str, Sequence[str]],
) -> Evaluation:
    """Metrics and report of a finished table.

    `told`: the column of the magnitude, or why there is none; and notes on calibrations.
    """
    magnitude, notes = told
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
    asked = predictions.origin["prior"]
    beside = [(v, summarize(scored, config.bootstrap, binned_by={})) for v, scored in others]
    result = Evaluation(
        summary=summary,
        other_priors={v.prior.name: s for v, s in beside if v.prior.name != asked},
        other_calibrations={v.calibration_name: s for v, s in beside if v.prior.name == asked},
        calibration_notes=tuple(notes),
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
        old = result.report.read_text(encoding="utf-8") if result.report.exists() else None
        page = with_kept_sections(old, _with_calibrations(page, result))
        write_whole(result.report, page.encode())
    return result


def _with_calibrations(page: str, result: Evaluation) -> str:
    """The page with a section of the run's calibrations, if it has some."""
    shown, notes = result.calibration_table, result.calibration_notes
    if shown is None and not notes:
        return page
    body = section_body([CALIBRATION_WARNING, *notes], [] if shown is None else [shown], [])
    return page_with_section(page, "recalibration", "Recalibration", body)


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
