"""Kinds of outlier: wrong by the point estimate, outside of the density's region, or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstrain.evaluation.metrics.bootstrap import BootstrapConfig
from mstrain.evaluation.metrics.estimates import (
    OUTLIER_THRESHOLDS,
    Columns,
    Estimate,
    share_estimate,
)
from mstrain.evaluation.metrics.scores import scaled_residual
from mstrain.models.target import REDSHIFT_TARGET, Target

OUTLIER_THRESHOLD = OUTLIER_THRESHOLDS[0]
REGION_LEVEL = 0.99
# Less than this beyond the valley is a bump of the softmax, not a second answer.
MIN_PEAK_MASS = 0.05
KINDS = {
    "confident": "confident and wrong",
    "two-peaked": "truth in the lower peak",
    "wide": "wide and wrong",
    "right": "right",
}


@dataclass(frozen=True, kw_only=True)
class Outliers:
    """Kinds of miss.

    Attributes:
        threshold: an object is wrong where |d| is at least this; None where a number has no such
            size, so that tables and kinds are empty.
        level: probability of the regions.
        central: objects by |d| < threshold, |d| >= threshold (rows) and truth inside, outside the
            central region (columns).
        highest: the same for the highest-density region.
        outside_central: share of truths outside of the central region; 1 - level if calibrated.
        outside_highest: the same for the highest-density region.
        kinds: number of objects of each of `KINDS`.
    """

    threshold: float | None
    level: float
    central: tuple[tuple[int, int], ...]
    highest: tuple[tuple[int, int], ...]
    outside_central: Estimate
    outside_highest: Estimate
    kinds: Mapping[str, int]


def kinds_of(columns: Columns) -> NDArray[np.object_]:
    """The kind of each object, a key of `KINDS`, for objects with known redshift.

    An object is right if |d| < 0.05. Of the others it is confident if the truth lies outside of the
    highest-density 99 % region, two-peaked if the truth lies in a lower peak of at least 5 % of the
    probability, and wide otherwise.

    Args:
        columns: (N,) each: "redshift", "z_mean", "hpd_level", "lower_peak".
    """
    residual_N = scaled_residual(np.asarray(columns["z_mean"]), np.asarray(columns["redshift"]))
    kind_N = np.full(len(residual_N), "wide", object)
    kind_N[np.asarray(columns["lower_peak"]) >= MIN_PEAK_MASS] = "two-peaked"
    kind_N[np.asarray(columns["hpd_level"]) > REGION_LEVEL] = "confident"
    kind_N[np.abs(residual_N) < OUTLIER_THRESHOLD] = "right"
    return kind_N


def count_outliers(
    known: Columns, config: BootstrapConfig, target: Target = REDSHIFT_TARGET
) -> Outliers:
    """Tables and kinds of objects with known labels.

    Args:
        known: (N,) each: "redshift", "z_mean", "pit", "hpd_level", "lower_peak"; N > 0, none NaN.
        config: level of the intervals.
        target: what the network tells.
    """
    is_out_of = {
        "central": np.abs(2 * known["pit"] - 1) > REGION_LEVEL,
        "highest": known["hpd_level"] > REGION_LEVEL,
    }
    shares: dict[str, Any] = {
        f"outside_{name}": share_estimate(int(is_out_N.sum()), len(is_out_N), config.level)
        for name, is_out_N in is_out_of.items()
    }
    tables: dict[str, Any] = {"central": (), "highest": ()}
    kinds: dict[str, int] = {}
    if target.thresholds:
        residual_N = scaled_residual(known["z_mean"], known["redshift"])
        is_wrong_N = np.abs(residual_N) >= OUTLIER_THRESHOLD
        for name, is_out_N in is_out_of.items():
            cells = np.bincount(2 * is_wrong_N + is_out_N, minlength=4).reshape(2, 2)
            tables[name] = tuple(map(tuple, cells.tolist()))
        kind_N = kinds_of(known)
        kinds = {kind: int((kind_N == kind).sum()) for kind in KINDS}
    threshold = OUTLIER_THRESHOLD if target.thresholds else None
    return Outliers(threshold=threshold, level=REGION_LEVEL, kinds=kinds, **tables, **shares)
