"""Metrics of several rows on the same objects, resampled together.

A replicate gives each object one weight in all rows, so what rows have in common drops out of their
differences: a row against itself differs by exactly 0.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstrain.evaluation.metrics.bootstrap import (
    BootstrapConfig,
    nmad,
    percentile_interval,
    poisson_weights,
    weighted_nmads,
    wilson_interval,
)
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.metrics.estimates import Estimate, point_averages, point_metrics
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

    def with_scores(self, scores: Mapping[str, Floats]) -> Row:
        """The row with scores of its densities."""
        return replace(self, scores=scores)


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
    replicates = _replicates(rows, residuals, config)
    metrics, differences = {}, {}
    for row in rows:
        metrics[row.name] = {
            name: _estimate(name, value, replicates[row.name][name], len(truth_N), config)
            for name, value in values[row.name].items()
        }
        if ECA in metrics[row.name]:
            metrics[row.name][ECA] = accuracy_estimate(row.scores["pit"], config)
    first = rows[0].name
    for row in rows[1:]:
        shared = [name for name in values[row.name] if name in values[first]]
        differences[row.name] = {
            name: _difference(
                values[row.name][name] - values[first][name],
                replicates[row.name][name] - replicates[first][name],
                config,
            )
            for name in shared
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


def _replicates(
    rows: Sequence[Row], residuals: Mapping[str, Floats], config: BootstrapConfig
) -> dict[str, dict[str, Floats]]:
    """Metrics of each row in each replicate, float64 (R,); the same for any number of threads."""
    size = len(rows[0].estimate)
    prepared = [_Prepared(row, residuals[row.name]) for row in rows]
    per_piece = max(1, _PIECE_WEIGHTS // size)
    sizes = [
        min(per_piece, config.num_replicates - start)
        for start in range(0, config.num_replicates, per_piece)
    ]
    seeds = np.random.SeedSequence(config.seed).spawn(len(sizes))

    def piece(count: int, seed: np.random.SeedSequence) -> list[dict[str, Floats]]:
        random = np.random.Generator(np.random.SFC64(seed))
        weights_RN = poisson_weights(random, count, size)
        return [one.resample(weights_RN) for one in prepared]

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        pieces = list(threads.map(piece, sizes, seeds))
    return {
        row.name: {
            name: np.concatenate([found[k][name] for found in pieces]) for name in pieces[0][k]
        }
        for k, row in enumerate(rows)
    }


class _Prepared:
    """A row, sorted for weighted medians and curves."""

    def __init__(self, row: Row, residual_N: Floats) -> None:
        averages = _averages(row, residual_N)
        self._names = list(averages)
        self._values_NM = np.stack(list(averages.values()), axis=1)
        self._order_N = np.argsort(residual_N, kind="stable")
        self._sorted_N = residual_N[self._order_N]
        self._level_order_N: NDArray[np.int64] | None = None
        if row.scores:
            level_N = np.abs(2 * row.scores["pit"] - 1)
            self._level_order_N = np.argsort(level_N, kind="stable")
            levels_L = (np.arange(_NUM_LEVELS) + 0.5) / _NUM_LEVELS
            below_L = np.searchsorted(level_N[self._level_order_N], levels_L, side="right")
            self._below_L, self._levels_L = below_L, levels_L

    def resample(self, weights_RN: NDArray[np.uint8]) -> dict[str, Floats]:
        """The metrics under weights of the objects, float64 (R,) each."""
        weights = weights_RN.astype(np.float64)
        total_R = weights.sum(axis=1)
        means_RM = (weights @ self._values_NM) / total_R[:, None]
        found = {name: means_RM[:, m] for m, name in enumerate(self._names)}
        found["nmad"] = weighted_nmads(weights_RN[:, self._order_N], self._sorted_N)
        if self._level_order_N is not None:
            cumulative_RE = np.zeros((len(weights), weights.shape[1] + 1))
            np.cumsum(weights[:, self._level_order_N], axis=1, out=cumulative_RE[:, 1:])
            share_RL = cumulative_RE[:, self._below_L] / total_R[:, None]
            found[ECA] = 1 - np.abs(share_RL - self._levels_L).mean(axis=1)
        return found


def _estimate(
    name: str, value: float, replicates_R: Floats, count: int, config: BootstrapConfig
) -> Estimate:
    low, high = percentile_interval(replicates_R, config.level)
    # Replicates of a share of 0 or 1 do not vary, as if it were certain.
    if name.startswith("eta") and value in (0.0, 1.0):
        low, high = wilson_interval(value, count, config.level)
    return Estimate(value=value, low=low, high=high)


def _difference(value: float, replicates_R: Floats, config: BootstrapConfig) -> Estimate:
    low, high = percentile_interval(replicates_R, config.level)
    return Estimate(value=value, low=low, high=high)
