"""Metrics of several rows on the same objects, resampled together.

A replicate gives each object one weight in all rows, so what rows have in common drops out of their
differences: a row against itself differs by exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstrain.evaluation.metrics.bootstrap import (
    BootstrapConfig,
    nmad,
    resample,
    weighted_means,
    weighted_nmads,
)
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.metrics.estimates import (
    Estimate,
    estimate_of,
    metric_estimate,
    point_averages,
    point_metrics,
)
from mstrain.evaluation.metrics.scores import scaled_residual
from mstrain.evaluation.metrics.uncertainty import accuracy_estimate, calibration_accuracy
from mstrain.models.target import REDSHIFT_TARGET

ECA = "eca"
# Of tables 3 to 5: point metrics, then those of densities.
METRICS = (*point_metrics(REDSHIFT_TARGET), ECA, "crps", "cde_loss")
# Weights of a piece of the work in memory, and levels at which the curve of ECA is resampled.
_PIECE_WEIGHTS = 2_000_000
_NUM_LEVELS = 500


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """A network or a catalog.

    Attributes:
        name: what it is called.
        what: where it is from, and what its estimate is.
        estimate: float64 (N,), NaN where there is none.
        error: float64 (N,), standard deviation of a Gaussian; None for a row without.
        scores: "pit", "crps", "cde_loss", float64 (N,) each; empty for point estimates alone.
    """

    name: str
    what: str
    estimate: Floats
    error: Floats | None = None
    scores: Mapping[str, Floats] = field(default_factory=dict)

    def of(self, is_in_N: NDArray[np.bool_]) -> Row:
        """The row for some of its objects."""
        return replace(
            self,
            estimate=self.estimate[is_in_N],
            error=None if self.error is None else self.error[is_in_N],
            scores={name: values[is_in_N] for name, values in self.scores.items()},
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """Metrics of all rows on one sample.

    Attributes:
        num_samples: objects, the same in every row.
        what: where each row is from.
        metrics: by row and metric; those of densities are absent for point estimates alone.
        differences: row minus the first row, by later row and metric.
        truth: float64 (N,), redshifts.
        residuals: float64 (N,) by row, (estimate - z) / (1 + z).
    """

    num_samples: int
    what: Mapping[str, str]
    metrics: Mapping[str, Mapping[str, Estimate]]
    differences: Mapping[str, Mapping[str, Estimate]]
    truth: Floats
    residuals: Mapping[str, Floats]

    def as_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""

        def plain(found: Mapping[str, Mapping[str, Estimate]]) -> dict[str, Any]:
            return {row: {n: asdict(e) for n, e in of.items()} for row, of in found.items()}

        return {
            "num_samples": self.num_samples,
            "rows": dict(self.what),
            "metrics": plain(self.metrics),
            "differences": plain(self.differences),
        }


def score_rows(rows: Sequence[Row], truth_N: Floats, config: BootstrapConfig) -> Scored:
    """Metrics and paired differences.

    Args:
        rows: of the same N objects, all finite; the first is what others are compared with.
        truth_N: float64 (N,), redshifts.
        config: how intervals are made.
    """
    residuals = {row.name: scaled_residual(row.estimate, truth_N) for row in rows}
    values = {row.name: _values(row, residuals[row.name]) for row in rows}
    measures = {row.name: _measure(row, residuals[row.name]) for row in rows}
    replicates = resample(
        lambda weights_RN: {
            (name, metric): found_R
            for name, measure in measures.items()
            for metric, found_R in measure(weights_RN).items()
        },
        len(truth_N),
        config,
        _PIECE_WEIGHTS,
    )
    metrics, differences = {}, {}
    for row in rows:
        metrics[row.name] = {
            name: metric_estimate(name, value, replicates[row.name, name], len(truth_N), config)
            for name, value in values[row.name].items()
        }
        if ECA in metrics[row.name]:
            metrics[row.name][ECA] = accuracy_estimate(row.scores["pit"], config)
    first = rows[0].name
    for row in rows[1:]:
        differences[row.name] = {
            name: estimate_of(
                value - values[first][name],
                replicates[row.name, name] - replicates[first, name],
                config,
            )
            for name, value in values[row.name].items()
            if name in values[first]
        }
    return Scored(
        num_samples=len(truth_N),
        what={row.name: row.what for row in rows},
        metrics=metrics,
        differences=differences,
        truth=truth_N,
        residuals=residuals,
    )


def _averages(row: Row, residual_N: Floats) -> dict[str, Floats]:
    """What the metrics that are means are means of."""
    of_densities = {n: row.scores[n] for n in ("crps", "cde_loss") if n in row.scores}
    return point_averages(residual_N) | of_densities


def _values(row: Row, residual_N: Floats) -> dict[str, float]:
    found = {name: float(v.mean()) for name, v in _averages(row, residual_N).items()}
    found["nmad"] = nmad(residual_N)
    if row.scores:
        found[ECA] = calibration_accuracy(row.scores["pit"])
    return {name: found[name] for name in METRICS if name in found}


def _measure(row: Row, residual_N: Floats) -> Callable[[NDArray[np.uint8]], dict[str, Floats]]:
    """Gives the metrics of a row, float64 (R,) each, under weights uint8 (R, N) of the objects."""
    averages = _averages(row, residual_N)
    values_NM = np.stack(list(averages.values()), axis=1)
    order_N = np.argsort(residual_N, kind="stable")
    sorted_N = residual_N[order_N]
    levels_L = (np.arange(_NUM_LEVELS) + 0.5) / _NUM_LEVELS
    if row.scores:
        level_N = np.abs(2 * row.scores["pit"] - 1)
        level_order_N = np.argsort(level_N, kind="stable")
        below_L = np.searchsorted(level_N[level_order_N], levels_L, side="right")

    def measure(weights_RN: NDArray[np.uint8]) -> dict[str, Floats]:
        found = dict(zip(averages, weighted_means(weights_RN, values_NM).T, strict=True))
        found["nmad"] = weighted_nmads(weights_RN[:, order_N], sorted_N)
        if row.scores:
            cumulative_RE = np.zeros((len(weights_RN), len(residual_N) + 1))
            np.cumsum(weights_RN[:, level_order_N], axis=1, out=cumulative_RE[:, 1:])
            share_RL = cumulative_RE[:, below_L] / cumulative_RE[:, -1:]
            found[ECA] = 1 - np.abs(share_RL - levels_L).mean(axis=1)
        return found

    return measure
