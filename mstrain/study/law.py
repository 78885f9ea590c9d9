"""The law of an error with the number of training samples: a n^-b + c.

Apart from the effects because it is another question: not whether arms differ, but how an error
shrinks. Legend: S seeds, A arms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstrain.evaluation.metrics.summary import import_stats

Floats = NDArray[np.float64]
_NUM_FLOORS, _NUM_RESAMPLINGS = 400, 1000


def fit_law(num_A: Floats, error_SA: Floats, level: float = 0.95) -> dict[str, Any]:
    """Fits a n^-b by seed, and a n^-b + c to the means.

    Args:
        num_A: float64 (A,), numbers of training samples, at least three different ones.
        error_SA: float64 (S, A), errors > 0; at least two seeds.
        level: probability of the intervals.

    Returns:
        `exponent` b and `factor` a of the power law, means over seeds of fits in logarithms, with
        `low` and `high` by Student's t; `halving`, by what n grows until the error is half;
        `floor` c, with an interval from resampled seeds, `exponent_above_floor` likewise, and
        `worst`, the largest relative distance of a mean from the power law.
    """
    x_A, y_SA = np.log(num_A), np.log(error_SA)
    slope_S, offset_S = _lines(x_A, y_SA)
    quantile = float(import_stats().t(len(slope_S) - 1).ppf((1 + level) / 2))

    def told(values_S: Floats) -> dict[str, float]:
        mean, error = values_S.mean(), values_S.std(ddof=1) / np.sqrt(len(values_S))
        ends = mean - quantile * error, mean + quantile * error
        return {"value": float(mean), "low": float(ends[0]), "high": float(ends[1])}

    random = np.random.default_rng(0)
    chosen_RS = random.integers(0, len(error_SA), (_NUM_RESAMPLINGS, len(error_SA)))
    means_RA = np.concatenate([error_SA.mean(axis=0)[None], error_SA[chosen_RS].mean(axis=1)])
    exponent_R, floor_R = _with_floor(x_A, means_RA)
    share = (1 - level) / 2

    def resampled(values_R: Floats) -> dict[str, float]:
        low, high = np.quantile(values_R[1:], [share, 1 - share]).tolist()
        return {"value": float(values_R[0]), "low": low, "high": high}

    law_A = np.exp(offset_S.mean() + slope_S.mean() * x_A)
    exponent = told(-slope_S)
    return {
        "num_seeds": len(error_SA),
        "num_samples": [float(n) for n in num_A],
        "exponent": exponent,
        "factor": float(np.exp(offset_S.mean())),
        "halving": 2 ** (1 / exponent["value"]) if exponent["value"] > 0 else None,
        "floor": resampled(floor_R),
        "exponent_above_floor": resampled(exponent_R),
        "worst": float(np.abs(error_SA.mean(axis=0) / law_A - 1).max()),
    }


def _lines(x_A: Floats, y_SA: Floats) -> tuple[Floats, Floats]:
    """Slopes and offsets of the lines of least squares, float64 (S,) each."""
    off_A = x_A - x_A.mean()
    slope_S = (y_SA @ off_A) / (off_A @ off_A)
    return slope_S, y_SA.mean(axis=1) - slope_S * x_A.mean()


def _with_floor(x_A: Floats, mean_RA: Floats) -> tuple[Floats, Floats]:
    """Exponents and floors of a n^-b + c, float64 (R,) each, by a search over c in [0, least)."""
    best_R = np.full(len(mean_RA), np.inf)
    exponent_R, floor_R = np.zeros(len(mean_RA)), np.zeros(len(mean_RA))
    for share in np.linspace(0, 0.999, _NUM_FLOORS):
        c_R = share * mean_RA.min(axis=1)
        y_RA = np.log(mean_RA - c_R[:, None])
        slope_R, offset_R = _lines(x_A, y_RA)
        fitted_RA = np.exp(offset_R[:, None] + slope_R[:, None] * x_A) + c_R[:, None]
        miss_R = (np.log(fitted_RA / mean_RA) ** 2).sum(axis=1)
        is_better = miss_R < best_R
        best_R = np.where(is_better, miss_R, best_R)
        exponent_R = np.where(is_better, -slope_R, exponent_R)
        floor_R = np.where(is_better, c_R, floor_R)
    return exponent_R, floor_R
