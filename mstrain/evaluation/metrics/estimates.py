"""Metrics of a set of objects, each with its interval.

With d = (estimate - truth) / (1 + truth), for other numbers than redshifts d = estimate - truth,
and RMSE in place of eta: bias is the mean of d, NMAD 1.4826 median|d - median d|,
eta the share of |d| >= t. An eta says nothing without its t: the published 17.53 % are for
t = 0.05 (arXiv:2501.09112), most other papers take 0.15.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstrain.evaluation.metrics.bootstrap import (
    BootstrapConfig,
    bootstrap,
    nmad,
    percentile_interval,
    wilson_interval,
)
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.metrics.scores import SCORES, scaled_residual
from mstrain.models.target import REDSHIFT_TARGET, Target

OUTLIER_THRESHOLDS = REDSHIFT_TARGET.thresholds
COVERAGE_LEVELS = (0.68, 0.90, 0.95)

Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A metric with its interval.

    Attributes:
        value: metric of the objects as they are.
        low: lower end of the interval.
        high: upper end.
    """

    value: float
    low: float
    high: float


def outlier_name(threshold: float) -> str:
    """Key of the share of |d| >= threshold; the threshold is part of the name on purpose."""
    return f"eta_{threshold:g}"


def coverage_name(level: float) -> str:
    """Key of the share of objects whose truth lies in the central interval of that probability."""
    return f"coverage_{level:g}"


def point_metrics(target: Target) -> tuple[str, ...]:
    """Names of the metrics of a point estimate."""
    return ("bias", "nmad", *map(outlier_name, target.thresholds)) + (
        () if target.thresholds else ("rmse",)
    )


def metrics_of(
    columns: Columns,
    config: BootstrapConfig,
    *,
    estimate: str,
    has_densities: bool = False,
    target: Target = REDSHIFT_TARGET,
) -> dict[str, Estimate]:
    """Metrics of objects.

    Args:
        columns: (N,) each: "redshift", the point estimates and the scores; N > 0, nothing NaN.
        config: how intervals are made.
        estimate: bias, nmad and eta of this point estimate.
        has_densities: also the metrics of densities, from the same resamplings.
        target: what d is, and which outliers there are.
    """
    residual_N = scaled_residual(columns[estimate], columns["redshift"], target)
    averaged = point_averages(residual_N, target)
    averaged |= density_averages(columns) if has_densities else {}
    replicates = bootstrap(averaged, residual_N, config)
    found = {
        name: metric_estimate(name, float(values_N.mean()), means_R, len(values_N), config)
        for (name, values_N), means_R in zip(averaged.items(), replicates.means.T, strict=True)
    }
    found["nmad"] = estimate_of(nmad(residual_N), replicates.nmads, config)
    if (mean := found.get("rmse")) is not None:
        value, low, high = np.sqrt([mean.value, mean.low, mean.high]).tolist()
        found["rmse"] = Estimate(value=value, low=low, high=high)
    return {name: found[name] for name in dict.fromkeys(("bias", "nmad", *found))}


def point_averages(residual_N: Floats, target: Target = REDSHIFT_TARGET) -> dict[str, Floats]:
    """Quantities of a point estimate whose means are metrics, float64 (N,) each.

    Args:
        residual_N: float64 (N,), d of each object.
        target: whose outliers; "rmse" is the square of what it will be.
    """
    size_N = np.abs(residual_N)
    shares = {outlier_name(t): (size_N >= t).astype(np.float64) for t in target.thresholds}
    return {"bias": residual_N, **shares} | ({} if shares else {"rmse": residual_N**2})


def density_averages(columns: Columns) -> dict[str, Floats]:
    """Quantities of the densities whose means are metrics, float64 (N,) each.

    Args:
        columns: the scores.
    """
    averaged = {name: np.asarray(columns[name], np.float64) for name in SCORES if name != "pit"}
    off_center_N = np.abs(np.asarray(columns["pit"], np.float64) - 0.5)
    for level in COVERAGE_LEVELS:
        averaged[coverage_name(level)] = (off_center_N <= level / 2).astype(np.float64)
    return averaged


def estimate_of(value: float, replicates_R: Floats, config: BootstrapConfig) -> Estimate:
    """A metric with the central interval of its replicates, float64 (R,)."""
    low, high = percentile_interval(replicates_R, config.level)
    return Estimate(value=value, low=low, high=high)


def share_estimate(count: float, total: int, level: float) -> Estimate:
    """A share of objects with Wilson's interval."""
    low, high = wilson_interval(count / total, total, level)
    return Estimate(value=count / total, low=low, high=high)


def metric_estimate(
    name: str, value: float, replicates_R: Floats, total: int, config: BootstrapConfig
) -> Estimate:
    """As `estimate_of`, but Wilson's interval of shares of 0 or 1 of so many objects.

    Replicates of such a share do not vary, as if it were certain.
    """
    if name.startswith(("eta", "coverage")) and value in (0.0, 1.0):
        return share_estimate(value * total, total, config.level)
    return estimate_of(value, replicates_R, config)
