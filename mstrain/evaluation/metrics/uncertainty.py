"""Where a network is unsure, and whether it knows: widths against errors, calibration in groups.

With d = (z_mean - z) / (1 + z) and the width s = z_std / (1 + z), calibrated densities have
RMS d = RMS s in any group of objects that is not chosen by the truth ("spread and skill").
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstrain.evaluation.metrics.binning import MIN_BIN_COUNT
from mstrain.evaluation.metrics.bootstrap import BootstrapConfig, bootstrap, nmad
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.metrics.estimates import (
    COVERAGE_LEVELS,
    Columns,
    Estimate,
    coverage_name,
    estimate_of,
    share_estimate,
)
from mstrain.evaluation.metrics.outliers import Outliers, count_outliers
from mstrain.evaluation.metrics.scores import scaled_residual
from mstrain.evaluation.metrics.summary import import_stats, uniformity
from mstrain.models.target import REDSHIFT_TARGET, Target

NUM_PIT_BINS = 10
# Bins of |2 PIT - 1| from which the interval of ECA is resampled.
_NUM_ECA_BINS = 1000


@dataclass(frozen=True, kw_only=True, eq=False)
class Grouping:
    """Objects by one quantity.

    Attributes:
        name: what was asked for, such as "magnitude".
        column: the column that holds it.
        labels: a name per group.
        group: int64 (N,), number of each object's group; -1 for objects in none.
        values: float64 (N,), the quantity, NaN where unknown; None for text.
    """

    name: str
    column: str
    labels: Sequence[str]
    group: NDArray[np.int64]
    values: Floats | None


@dataclass(frozen=True, kw_only=True)
class Group:
    """One group's widths, errors and calibration.

    Attributes:
        label: the bin or the value.
        num_samples: objects in it.
        metrics: "width" and "width_quantile" (medians of z_std / (1 + z) and of
            (z_q84 - z_q16) / 2 / (1 + z)), "spread" (RMS of s), "skill" (RMS of d), "nmad" and
            "coverage_0.68"; empty where there are fewer than 10 objects.
        pit_ks: Kolmogorov-Smirnov statistic of the PITs; None where metrics are empty.
        pit_ks_p: its probability if the densities were right; None likewise.
        pit_counts: objects in ten equal bins of PIT.
    """

    label: str
    num_samples: int
    metrics: Mapping[str, Estimate] = field(default_factory=dict)
    pit_ks: float | None = None
    pit_ks_p: float | None = None
    pit_counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Variable:
    """How width and error depend on one quantity.

    Attributes:
        name: what was asked for.
        column: the column that holds it.
        is_text: groups are values, not bins.
        num_left_out: objects without a value, or outside of the edges.
        slope: of skill against spread through the origin, over groups; 1 if calibrated, 2 if the
            densities are half as wide as they should be; None without a group of 10 objects.
        breusch_pagan: n R^2 of d^2 regressed on the quantity.
        breusch_pagan_p: its probability if the error did not depend on the quantity.
        degrees: degrees of freedom: 1 for numbers, groups - 1 for text.
        groups: those that hold an object.
    """

    name: str
    column: str
    is_text: bool
    num_left_out: int
    slope: Estimate | None
    breusch_pagan: float
    breusch_pagan_p: float
    degrees: int
    groups: tuple[Group, ...]


@dataclass(frozen=True, kw_only=True)
class Uncertainty:
    """What densities know of their own errors.

    Attributes:
        eca: expected calibration accuracy, see `calibration_accuracy`.
        outliers: kinds of miss.
        variables: by each quantity that was asked for.
    """

    eca: Estimate
    outliers: Outliers
    variables: tuple[Variable, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain dict for JSON."""
        return asdict(self)


def assess(
    columns: Columns,
    groupings: Sequence[Grouping],
    config: BootstrapConfig,
    target: Target = REDSHIFT_TARGET,
) -> Uncertainty:
    """Widths, errors and kinds of miss of a table of predictions.

    Args:
        columns: (N,) each: "redshift" (NaN where unknown, at least one is not), the point
            estimates, spreads, "pit" and places of the truth.
        groupings: of the same N objects.
        config: how intervals are made.
        target: what the network tells.
    """
    is_known_N = np.isfinite(np.asarray(columns["redshift"], np.float64))
    names = ("redshift", "z_mean", "z_std", "z_q16", "z_q84", "pit", "hpd_level", "lower_peak")
    known = {name: np.asarray(columns[name], np.float64)[is_known_N] for name in names}
    return Uncertainty(
        eca=accuracy_estimate(known["pit"], config),
        outliers=count_outliers(known, config, target),
        variables=tuple(
            _variable(
                known,
                replace(
                    grouping,
                    group=grouping.group[is_known_N],
                    values=None if grouping.values is None else grouping.values[is_known_N],
                ),
                config,
                target,
            )
            for grouping in groupings
        ),
    )


def calibration_accuracy(pit_N: Floats) -> float:
    """Expected calibration accuracy: 1 - the integral over a of |C(a) - a|, 1 if calibrated.

    C(a) is the share of objects whose central interval of probability a holds the truth, a step
    function of the sorted |2 PIT - 1|, so the integral is exact. It cannot fall below 1/2.

    Source: the curve is that of Kuleshov, Fenner and Ermon 2018 (arXiv:1807.00263); no source
    defines "ECA", so this definition is ours.
    """
    level_N = np.sort(np.abs(2 * np.asarray(pit_N, np.float64) - 1))
    start_E = np.concatenate([[0.0], level_N])
    end_E = np.concatenate([level_N, [1.0]])
    share_E = np.arange(len(level_N) + 1) / len(level_N)

    def integral(to_E: Floats) -> Floats:
        offset_E = to_E - share_E
        return np.asarray(offset_E * np.abs(offset_E) / 2)

    return 1 - float((integral(end_E) - integral(start_E)).sum())


def breusch_pagan(residual_N: Floats, grouping: Grouping) -> tuple[float, float, int]:
    """Whether the variance of residuals depends on a quantity: n R^2 of d^2 on it.

    Args:
        residual_N: float64 (N,), d.
        grouping: numbers enter linearly, text as one constant per value; objects in no group are
            left out.

    Returns:
        The statistic, its probability under a constant variance (chi^2), degrees of freedom; a
        quantity or a d^2 that does not vary gives 0, 1.

    Source: Breusch and Pagan 1979, Econometrica 47, 1287, as studentized by Koenker 1981, Journal
    of Econometrics 17, 107.
    """
    is_in_N = grouping.group >= 0
    square_N, group_N = residual_N[is_in_N] ** 2, grouping.group[is_in_N]
    count_G = np.bincount(group_N)
    degrees = 1 if grouping.values is not None else max(int((count_G > 0).sum()) - 1, 0)
    if not degrees or not len(square_N):
        return 0.0, 1.0, degrees
    square_N = square_N - square_N.mean()
    total = float(square_N @ square_N)
    if grouping.values is not None:
        value_N = grouping.values[is_in_N]
        value_N = value_N - value_N.mean()
        scale = float(value_N @ value_N)
        explained = float(value_N @ square_N) ** 2 / scale if scale > 0 else 0.0
    else:
        sum_G = np.bincount(group_N, square_N)
        explained = float((sum_G**2 / np.maximum(count_G, 1)).sum())
    statistic = len(square_N) * explained / total if total > 0 else 0.0
    return statistic, float(import_stats().chi2.sf(statistic, degrees)), degrees


def accuracy_estimate(pit_N: Floats, config: BootstrapConfig) -> Estimate:
    """ECA, and an interval that holds the truth at least as often as its level says.

    Two curves C and C' differ in ECA by at most the integral of |C - C'|, so its quantile over
    replicates is the half-width. Percentiles of the replicates' ECA would lie below the value:
    noise moves the curve away from the diagonal. Sums of Poisson(1) weights are Poisson, so a
    histogram is resampled for all objects.
    """
    count_K, _ = np.histogram(np.abs(2 * pit_N - 1), bins=_NUM_ECA_BINS, range=(0, 1))
    drawn_RK = np.random.default_rng(config.seed).poisson(
        count_K, (config.num_replicates, _NUM_ECA_BINS)
    )
    share_RK = drawn_RK.cumsum(axis=1) / np.maximum(drawn_RK.sum(axis=1, keepdims=True), 1)
    distance_R = np.abs(share_RK - count_K.cumsum() / len(pit_N)).mean(axis=1)
    half, value = float(np.quantile(distance_R, config.level)), calibration_accuracy(pit_N)
    return Estimate(value=value, low=max(value - half, 0.5), high=min(value + half, 1.0))


def _variable(
    known: Columns, grouping: Grouping, config: BootstrapConfig, target: Target
) -> Variable:
    truth_N, scale_N = known["redshift"], target.scale(known["redshift"])
    residual_N = scaled_residual(known["z_mean"], truth_N, target)
    of_object = {
        "residual": residual_N,
        "width": known["z_std"] / scale_N,
        "width_quantile": (known["z_q84"] - known["z_q16"]) / 2 / scale_N,
        "pit": known["pit"],
    }
    groups, squares = [], []
    for number, label in enumerate(grouping.labels):
        is_in_N = grouping.group == number
        if not is_in_N.any():
            continue
        inside = {name: values[is_in_N] for name, values in of_object.items()}
        # With one seed, groups of equal size would have equal weights, and errors that add up.
        group, square_R2 = _group(label, inside, replace(config, seed=config.seed + number))
        groups.append(group)
        if square_R2 is not None:
            squares.append((group.num_samples, square_R2))
    statistic, p_value, degrees = breusch_pagan(residual_N, grouping)
    return Variable(
        name=grouping.name,
        column=grouping.column,
        is_text=grouping.values is None,
        num_left_out=int((grouping.group < 0).sum()),
        slope=_slope(groups, squares, config),
        breusch_pagan=statistic,
        breusch_pagan_p=p_value,
        degrees=degrees,
        groups=tuple(groups),
    )


def _group(
    label: str, inside: Mapping[str, Floats], config: BootstrapConfig
) -> tuple[Group, Floats | None]:
    """One group, and replicates of mean d^2 and s^2 where it is large enough, (R, 2)."""
    pit_N, residual_N, width_N = inside["pit"], inside["residual"], inside["width"]
    count_K, _ = np.histogram(pit_N, bins=NUM_PIT_BINS, range=(0, 1))
    few = Group(label=label, num_samples=len(pit_N), pit_counts=tuple(count_K.tolist()))
    if len(pit_N) < MIN_BIN_COUNT:
        return few, None
    level = COVERAGE_LEVELS[0]
    squares = {"skill": residual_N**2, "spread": width_N**2}
    found = bootstrap(squares, residual_N, config)
    metrics = {n: _median(inside[n], config.level) for n in ("width", "width_quantile")}
    for (name, values_N), means_R in zip(squares.items(), found.means.T, strict=True):
        metrics[name] = estimate_of(math.sqrt(values_N.mean()), np.sqrt(means_R), config)
    num_covered = int((np.abs(pit_N - 0.5) <= level / 2).sum())
    metrics[coverage_name(level)] = share_estimate(num_covered, len(pit_N), config.level)
    metrics["nmad"] = estimate_of(nmad(residual_N), found.nmads, config)
    statistic, p_value = uniformity(pit_N)
    return replace(few, metrics=metrics, pit_ks=statistic, pit_ks_p=p_value), found.means


def _median(values_N: Floats, level: float) -> Estimate:
    """The median with the distribution-free interval of order statistics.

    Source: David and Nagaraja 2003, Order Statistics, section 7.1.
    """
    ordered_N, count = np.sort(values_N), len(values_N)
    half = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(count) / 2
    first = max(math.floor(count / 2 - half), 0)
    last = min(math.ceil(count / 2 + half), count - 1)
    low, high = float(ordered_N[first]), float(ordered_N[last])
    return Estimate(value=float(np.median(values_N)), low=low, high=high)


def _slope(
    groups: Sequence[Group], squares: Sequence[tuple[int, Floats]], config: BootstrapConfig
) -> Estimate | None:
    """Least squares of skill on spread through the origin, weighted by objects."""
    shown = [(g.num_samples, g.metrics) for g in groups if g.metrics]
    bottom = sum(n * m["spread"].value ** 2 for n, m in shown)
    if not bottom:
        return None
    top = sum(n * m["spread"].value * m["skill"].value for n, m in shown)
    top_R = sum(n * np.sqrt(found.prod(axis=1)) for n, found in squares)
    replicates_R = top_R / sum(n * found[:, 1] for n, found in squares)
    return estimate_of(top / bottom, np.asarray(replicates_R), config)
