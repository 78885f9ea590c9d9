"""Metrics in bins of redshift, magnitude, or whatever else a table has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstrain.evaluation.metrics.bootstrap import BootstrapConfig
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.metrics.estimates import Columns, Estimate, metrics_of
from mstrain.evaluation.metrics.scores import POINT_ESTIMATES
from mstrain.models.target import REDSHIFT_TARGET, Target

# An interval from fewer objects would be about the objects, not about the network.
MIN_BIN_COUNT = 10


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Metrics of the objects in one bin.

    Attributes:
        low: lower edge, included.
        high: upper edge, excluded.
        num_samples: objects in it.
        metrics: by name; empty where there are fewer than 10 objects.
    """

    low: float
    high: float
    num_samples: int
    metrics: Mapping[str, Estimate]


@dataclass(frozen=True, kw_only=True)
class Binning:
    """Metrics in bins of one quantity.

    Attributes:
        name: what is binned, such as "redshift".
        column: the column it was taken from; None where it was not.
        skipped: why bins are missing; empty where there are some.
        bins: those that hold an object, ascending.
    """

    name: str
    column: str | None
    skipped: str = ""
    bins: tuple[Bin, ...] = ()


def metrics_in_bins(
    columns: Columns,
    name: str,
    column: str,
    edges: Floats,
    config: BootstrapConfig,
    target: Target = REDSHIFT_TARGET,
) -> Binning:
    """Metrics of the mean of the density, and of the densities, in each bin.

    Args:
        columns: see `metrics_of`.
        name: the quantity's name.
        column: the column that holds it; objects that are NaN or outside the edges are left out.
        edges: float64 (bins + 1,), ascending.
        config: how intervals are made.
        target: see `metrics_of`.
    """
    values_N = np.asarray(columns[column], np.float64)
    bin_N = np.searchsorted(edges, values_N, side="right") - 1
    bins = []
    for number, (low, high) in enumerate(pairwise(edges)):
        is_in_N = bin_N == number
        count = int(is_in_N.sum())
        if not count:
            continue
        metrics = metrics_inside(columns, is_in_N, config, target)
        bins.append(Bin(low=float(low), high=float(high), num_samples=count, metrics=metrics))
    return Binning(name=name, column=column, bins=tuple(bins))


def metrics_inside(
    columns: Columns, is_in_N: NDArray[np.bool_], config: BootstrapConfig, target: Target
) -> dict[str, Estimate]:
    """Metrics of chosen objects, see `metrics_in_bins`; empty where they are fewer than 10."""
    if is_in_N.sum() < MIN_BIN_COUNT:
        return {}
    inside = {name: np.asarray(values)[is_in_N] for name, values in columns.items()}
    return metrics_of(
        inside, config, estimate=POINT_ESTIMATES[0], has_densities=True, target=target
    )


def round_edges(values_N: NDArray[Any], max_bins: int = 10) -> Floats:
    """Edges at round numbers that enclose all values, at most `max_bins` + 1 of them.

    Args:
        values_N: (N,); what is not finite counts for nothing, but one value must.
        max_bins: bins wanted at most.

    Returns:
        float64 (bins + 1,); the last lies above the largest value, as bins exclude their end.
    """
    finite = np.asarray(values_N, np.float64)
    finite = finite[np.isfinite(finite)]
    low, high = float(finite.min()), float(finite.max())
    span = max(high - low, 1e-6)
    power = 10.0 ** np.floor(np.log10(span / max_bins))
    for factor in (1, 2, 2.5, 5, 10, 20, 50, 100):
        step = factor * power
        first, last = np.floor(low / step), np.floor(high / step) + 1
        if last - first <= max_bins:
            # Multiples of the step keep 0.3 from becoming 0.30000000000000004.
            edges: Floats = np.round(np.arange(first, last + 1) * step, 9)
            return edges
    raise AssertionError(f"no step for {low} to {high}")
