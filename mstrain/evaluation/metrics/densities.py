"""Integrals of densities that are constant in each bin, in closed form: nothing is sampled.

Axes: N objects, K bins, E = K + 1 edges, L levels. Redshifts outside the edges are taken as they
are: the density is 0 there, and its CDF 0 below and 1 above.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import DataError, UsageError

Floats = NDArray[np.float64]
# Softmax in float32, or even bfloat16, is normalized to far better than this.
_MAX_INTEGRAL_ERROR = 1e-2
# One object to which the density gives nothing would make a mean minus infinity.
LIKELIHOOD_FLOOR = 1e-10


@dataclass(frozen=True, kw_only=True, eq=False)
class Densities:
    """Densities of N objects on common bins; make them with `make_densities`.

    Attributes:
        edges: float64 (K + 1,), ascending bin edges in redshift.
        values: float64 (N, K), per unit redshift, integrating to one.
    """

    edges: Floats
    values: Floats

    @cached_property
    def widths(self) -> Floats:
        """float64 (K,), widths of the bins."""
        return np.diff(self.edges)

    @cached_property
    def centers(self) -> Floats:
        """float64 (K,), centers of the bins."""
        return (self.edges[:-1] + self.edges[1:]) / 2

    @cached_property
    def masses(self) -> Floats:
        """float64 (N, K), probability in each bin."""
        return self.values * self.widths

    @cached_property
    def cdf(self) -> Floats:
        """float64 (N, K + 1), cumulative probability at the edges, from 0 to 1."""
        cdf_NE = np.zeros((len(self), len(self.edges)))
        np.cumsum(self.masses, axis=1, out=cdf_NE[:, 1:])
        # Rounding must not leave a PIT above one.
        np.minimum(cdf_NE, 1.0, out=cdf_NE)
        cdf_NE[:, -1] = 1.0
        return cdf_NE

    def __len__(self) -> int:
        return len(self.values)


def make_densities(density_NK: NDArray[Any], edges_E: NDArray[Any]) -> Densities:
    """Densities from what a network or a file gives; brings small rounding errors to order.

    Args:
        density_NK: (N, K) of any float type, per unit redshift.
        edges_E: (K + 1,), ascending.

    Returns:
        The same in float64, divided by their integrals.

    Raises:
        UsageError: the shapes do not fit, or the edges do not ascend.
        DataError: a density is negative, not finite, or does not integrate to one.
    """
    edges_E = np.asarray(edges_E, np.float64)
    density_NK = np.asarray(density_NK, np.float64)
    if density_NK.ndim != 2 or edges_E.shape != (density_NK.shape[1] + 1,):
        raise UsageError(
            f"densities of shape {density_NK.shape} do not fit {edges_E.shape} bin edges; they "
            "need one value for each of the bins"
        )
    width_K = np.diff(edges_E)
    if not (width_K > 0).all():
        raise UsageError("the bin edges must ascend; sort them and drop duplicates")
    integral_N = density_NK @ width_K
    is_bad = ~(np.abs(integral_N - 1) <= _MAX_INTEGRAL_ERROR) | (density_NK < 0).any(axis=1)
    if is_bad.any():
        row = int(np.flatnonzero(is_bad)[0])
        raise DataError(
            f"{int(is_bad.sum())} of {len(is_bad)} densities are invalid: row {row} has the "
            f"integral {integral_N[row]:g} and the smallest value {density_NK[row].min():g}; if "
            "a network gave them, its training has diverged: take an earlier checkpoint"
        )
    return Densities(edges=edges_E, values=density_NK / integral_N[:, None])


def mean(densities: Densities) -> Floats:
    """Expected redshift of each density, float64 (N,)."""
    mean_N: Floats = densities.masses @ densities.centers
    return mean_N


def standard_deviation(densities: Densities) -> Floats:
    """Standard deviation of each density, float64 (N,); a bin's own width counts too."""
    offset_NK = densities.centers - mean(densities)[:, None]
    second_NK = offset_NK**2 + densities.widths**2 / 12
    variance_N = np.einsum("nk,nk->n", densities.masses, second_NK)
    return np.asarray(np.sqrt(variance_N))


def mode(densities: Densities) -> Floats:
    """Center of the bin of highest density, the first of equals, float64 (N,)."""
    mode_N: Floats = densities.centers[densities.values.argmax(axis=1)]
    return mode_N


def quantiles(densities: Densities, levels: tuple[float, ...]) -> Floats:
    """Redshifts below which the given probabilities lie.

    Args:
        densities: densities of N objects.
        levels: L numbers between 0 and 1, both excluded.

    Returns:
        float64 (N, L); where a gap in the density makes several right, the smallest.

    Raises:
        UsageError: a level is not between 0 and 1.
    """
    if not all(0 < level < 1 for level in levels):
        raise UsageError(f"levels of quantiles must be between 0 and 1, got {levels}")
    rows = np.arange(len(densities))
    found_NL = np.empty((len(densities), len(levels)))
    for column, level in enumerate(levels):
        bin_N = (densities.cdf[:, 1:] < level).sum(axis=1)
        below_N = densities.cdf[rows, bin_N]
        within_N = densities.cdf[rows, bin_N + 1] - below_N
        share_N = np.clip((level - below_N) / within_N, 0, 1)
        found_NL[:, column] = densities.edges[bin_N] + share_N * densities.widths[bin_N]
    return found_NL


def median(densities: Densities) -> Floats:
    """Median of each density, float64 (N,)."""
    return quantiles(densities, (0.5,))[:, 0]


def density_at(densities: Densities, redshift_N: Floats) -> Floats:
    """Density of each object at its redshift, float64 (N,); a bin has its lower edge."""
    bin_N, is_inside_N = _bins_of(densities, redshift_N)
    return np.where(is_inside_N, densities.values[np.arange(len(densities)), bin_N], 0.0)


def cdf_at(densities: Densities, redshift_N: Floats) -> Floats:
    """Probability below each object's redshift, float64 (N,): with the true one the PIT."""
    bin_N, _ = _bins_of(densities, redshift_N)
    rows = np.arange(len(densities))
    share_N = np.clip((redshift_N - densities.edges[bin_N]) / densities.widths[bin_N], 0, 1)
    below_N, above_N = densities.cdf[rows, bin_N], densities.cdf[rows, bin_N + 1]
    return below_N + share_N * (above_N - below_N)


def crps(densities: Densities, redshift_N: Floats) -> Floats:
    """Continuous ranked probability score: the integral of (CDF - step at the truth)^2.

    Args:
        densities: densities of N objects.
        redshift_N: float64 (N,), the truths; outside of the edges their distance from them counts.

    Returns:
        float64 (N,), in units of redshift.

    Source: Matheson and Winkler 1976, Management Science 22, 1087; Gneiting and Raftery 2007,
    JASA 102, 359, equation 20. Between the edges it is the integral of CDF^2, less twice that of
    the CDF above the truth, plus the distance from there to the last edge; in a bin the CDF is
    linear, so CDF^2 integrates to width (a^2 + ab + b^2) / 3 between the values a and b.
    """
    bin_N, _ = _bins_of(densities, redshift_N)
    rows = np.arange(len(densities))
    below_NK, above_NK = densities.cdf[:, :-1], densities.cdf[:, 1:]
    square_N = (below_NK**2 + below_NK * above_NK + above_NK**2) @ densities.widths / 3
    # Integral of the CDF up to each bin's upper edge, and from the truth to its bin's.
    area_NK = np.cumsum((below_NK + above_NK) * (densities.widths / 2), axis=1)
    upper_N = densities.edges[bin_N + 1]
    inside_N = np.clip(redshift_N, densities.edges[bin_N], upper_N)
    pit_N = cdf_at(densities, redshift_N)
    rest_N = (upper_N - inside_N) * (pit_N + above_NK[rows, bin_N]) / 2
    right_N = area_NK[:, -1] - area_NK[rows, bin_N] + rest_N
    last = densities.edges[-1]
    found_N: Floats = square_N - 2 * right_N + (last - inside_N) + np.abs(redshift_N - inside_N)
    return found_N


def cde_loss(densities: Densities, redshift_N: Floats) -> Floats:
    """Loss of a conditional density estimate: the integral of p^2, minus 2 p(truth).

    Returns:
        float64 (N,), per unit redshift; its mean is an estimate up to a constant of the squared
        distance to the true densities, and the smaller the better.

    Source: Izbicki and Lee 2017, Electronic Journal of Statistics 11, 2800, equation 7
    (arXiv:1704.08095).
    """
    squared_N: Floats = np.einsum("nk,nk->n", densities.values, densities.masses)
    return squared_N - 2 * density_at(densities, redshift_N)


def log_likelihood(densities: Densities, redshift_N: Floats) -> Floats:
    """Natural logarithm of the density at the truth, float64 (N,), floored at 1e-10."""
    return np.log(np.maximum(density_at(densities, redshift_N), LIKELIHOOD_FLOOR))


def highest_density_level(densities: Densities, redshift_N: Floats) -> Floats:
    """Probability of the smallest region that has each object's redshift on its border.

    With the true redshifts it is uniform for calibrated densities, as the PIT is: the share of
    objects above 0.99 is that of truths outside of their highest-density 99 % regions.

    Args:
        densities: densities of N objects.
        redshift_N: float64 (N,); outside of the edges the level is 1.

    Returns:
        float64 (N,), the probability of bins of larger density, and of the part of the redshift's
        own bin that lies on the side of the mode. Bins of equal density count in ascending order.

    Source: Hyndman 1996, The American Statistician 50, 120.
    """
    bin_N, is_inside_N = _bins_of(densities, redshift_N)
    rows, number_K = np.arange(len(densities)), np.arange(len(densities.widths))
    own_N1 = densities.values[rows, bin_N][:, None]
    is_tied_before_NK = (densities.values == own_N1) & (number_K < bin_N[:, None])
    is_above_NK = (densities.values > own_N1) | is_tied_before_NK
    above_N = np.where(is_above_NK, densities.masses, 0.0).sum(axis=1)
    share_N = np.clip((redshift_N - densities.edges[bin_N]) / densities.widths[bin_N], 0, 1)
    share_N = np.where(bin_N < densities.values.argmax(axis=1), 1 - share_N, share_N)
    level_N = np.minimum(above_N + share_N * densities.masses[rows, bin_N], 1.0)
    return np.where(is_inside_N, level_N, 1.0)


def lower_peak(densities: Densities, redshift_N: Floats) -> Floats:
    """Probability of the lower peak that holds each object's redshift.

    A redshift lies in a lower peak if the density falls, somewhere between the mode and it, to half
    of its value at the redshift or less; the peak begins at the lowest point between.

    Returns:
        float64 (N,), 0 where the redshift lies in the highest peak, or where the density is 0.
    """
    bin_N, is_inside_N = _bins_of(densities, redshift_N)
    rows, number_K = np.arange(len(densities)), np.arange(len(densities.widths))
    mode_N = densities.values.argmax(axis=1)
    first_N1, last_N1 = np.minimum(bin_N, mode_N)[:, None], np.maximum(bin_N, mode_N)[:, None]
    is_between_NK = (number_K >= first_N1) & (number_K <= last_N1)
    lowest_N = np.where(is_between_NK, densities.values, np.inf).argmin(axis=1)
    own_N, valley_N = densities.values[rows, bin_N], densities.values[rows, lowest_N]
    mass_N = np.where(
        bin_N > mode_N, 1 - densities.cdf[rows, lowest_N + 1], densities.cdf[rows, lowest_N]
    )
    return np.where(is_inside_N & (own_N > 0) & (2 * valley_N <= own_N), mass_N, 0.0)


def _bins_of(
    densities: Densities, redshift_N: Floats
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """The bin of each redshift, the nearest one where it lies outside, and whether it is inside."""
    edges_E = densities.edges
    bin_N = np.searchsorted(edges_E, redshift_N, side="right") - 1
    is_inside_N = (redshift_N >= edges_E[0]) & (redshift_N <= edges_E[-1])
    return np.clip(bin_N, 0, len(edges_E) - 2).astype(np.int64), is_inside_N
