"""What leaving out the most unusual objects gains: the risk-coverage curve, and where a flag pays.

Source: El-Yaniv and Wiener 2010, JMLR 11, 1605.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mstrain.evaluation.metrics.bootstrap import nmad
from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.metrics.estimates import Estimate, share_estimate
from mstrain.evaluation.metrics.summary import import_stats

# Shares of the objects, the most unusual, that may be flagged.
SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
# A flag is worth its name where outliers are so many times as frequent among the flagged.
LEAST_RATIO = 3.0
_MIN_FLAGGED = 10
_LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Cut:
    """A place where a flag may be put.

    Attributes:
        sigma: objects of at least that sigma are flagged.
        num_flagged: these objects.
        num_kept: all others.
        nmad: NMAD of the kept.
        eta_kept: share of outliers of the kept, with Wilson's interval.
        eta_flagged: share of outliers of the flagged, likewise.
        ratio: eta of the flagged to that of the kept, at a level that holds for all cuts together;
            infinite where no kept object is an outlier.
    """

    sigma: float
    num_flagged: int
    num_kept: int
    nmad: float
    eta_kept: Estimate
    eta_flagged: Estimate
    ratio: Estimate

    @property
    def pays(self) -> bool:
        """Whether outliers are 3 times as frequent among the flagged, beyond chance."""
        return self.ratio.value >= LEAST_RATIO and self.ratio.low > 1


def risk_coverage(sigma_N: Floats, residual_N: Floats, threshold: float) -> list[Cut]:
    """The curve at round shares of flagged objects.

    Args:
        sigma_N: float64 (N,).
        residual_N: float64 (N,), (z_mean - z) / (1 + z).
        threshold: outliers are off by at least that.

    Returns:
        Cuts, fewest flagged first; objects of equal sigma are on the same side. Cuts of fewer than
        10 objects are left out.

    Source: interval of a ratio of rates: Przyborowski and Wilenski 1940, Biometrika 31, 313.
    """
    ordered, count = np.sort(sigma_N)[::-1], len(sigma_N)
    wanted = {float(ordered[math.ceil(share * count) - 1]) for share in SHARES if count}
    places = [(sigma, sigma_N >= sigma) for sigma in sorted(wanted, reverse=True)]
    places = [(s, is_in) for s, is_in in places if _MIN_FLAGGED <= is_in.sum() < count]
    level = 1 - (1 - _LEVEL) / max(1, len(places))
    return [_cut(s, is_in, residual_N, threshold, level) for s, is_in in places]


def place_flag(cuts: Sequence[Cut]) -> Cut | None:
    """The cut that pays most surely: of the highest lower end of its ratio; None where none pays.

    The cut that flags most would flag half of all objects where few hold all the outliers.
    """
    return max((cut for cut in cuts if cut.pays), key=lambda cut: cut.ratio.low, default=None)


def _cut(
    sigma: float,
    is_flagged_N: NDArray[np.bool_],
    residual_N: Floats,
    threshold: float,
    level: float,
) -> Cut:
    is_outlier_N = np.abs(residual_N) >= threshold
    counts = [
        (int(is_outlier_N[part].sum()), int(part.sum())) for part in (is_flagged_N, ~is_flagged_N)
    ]
    flagged, kept = (share_estimate(a, n, _LEVEL) for a, n in counts)
    return Cut(
        sigma=sigma,
        num_flagged=counts[0][1],
        num_kept=counts[1][1],
        nmad=nmad(residual_N[~is_flagged_N]),
        eta_kept=kept,
        eta_flagged=flagged,
        ratio=_ratio(counts[0], counts[1], level),
    )


def _ratio(flagged: tuple[int, int], kept: tuple[int, int], level: float) -> Estimate:
    """Ratio of two shares of outliers, (outliers, objects) each; exact where outliers are rare."""
    (a, n), (b, m) = flagged, kept
    if not a + b:
        return Estimate(value=1.0, low=0.0, high=math.inf)
    # Of all outliers, the share among the flagged is n r / (n r + m).
    beta, tail = import_stats().beta, (1 - level) / 2
    low = float(beta.ppf(tail, a, b + 1)) if a else 0.0
    high = float(beta.isf(tail, a + 1, b)) if b else 1.0
    value, low, high = (
        share * m / ((1 - share) * n) if share < 1 else math.inf
        for share in (a / (a + b), low, high)
    )
    return Estimate(value=value, low=low, high=high)


def auroc(positive_P: Floats, negative_N: Floats) -> float:
    """Probability that a positive's score is above a negative's; equal ones count half.

    Source: Hanley and McNeil 1982, Radiology 143, 29.
    """
    ordered = np.sort(negative_N)
    below = np.searchsorted(ordered, positive_P, side="left")
    upto = np.searchsorted(ordered, positive_P, side="right")
    return float((below + upto).mean() / 2 / len(ordered))
