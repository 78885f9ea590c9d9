"""What an evaluation is asked for, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from msdata.errors import UsageError
from mstrain.checks import check_batch_size
from mstrain.evaluation.calibration import CALIBRATIONS, NONE
from mstrain.evaluation.inference import DEFAULT_BATCH
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig
from mstrain.evaluation.metrics.classes import ClassSummary
from mstrain.evaluation.metrics.summary import Summary
from mstrain.evaluation.metrics.uncertainty import Uncertainty
from mstrain.evaluation.report.wording import TextTable, prior_table
from mstrain.models.prior import NATURAL
from mstrain.models.target import REDSHIFT_TARGET, Target

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
    other_calibrations: Mapping[str, Summary] = field(default_factory=dict)
    calibration_notes: tuple[str, ...] = ()
    target: Target = REDSHIFT_TARGET

    @property
    def calibration_table(self) -> TextTable | None:
        """All calibrations side by side; None where the run has none."""
        if isinstance(self.summary, ClassSummary):
            return None
        asked = self.origin["calibration"]
        found = {asked: self.summary, **self.other_calibrations}
        first, *others = [name for name in CALIBRATIONS if name in found]
        table = prior_table(first, found[first], {name: found[name] for name in others})
        caption = (
            "Recalibration side by side (CDE loss may be better, NMAD and eta may be worse); point "
            f"estimates: mean; everything else is shown by calibration {asked}"
        )
        return None if table is None else replace(table, caption=caption)

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
            **({} if self.uncertainty is None else {"uncertainty": self.uncertainty.as_dict()}),
            "files": {name: str(path) for name, path in files.items() if path is not None},
        }
