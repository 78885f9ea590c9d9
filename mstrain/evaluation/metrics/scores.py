"""What is said of one object: point estimates of its density, and scores where the truth is known.

The names of the columns are those of the table of predictions of redshifts; tables of another
number have its name in them, and `as_of_redshift` takes it out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mstrain.evaluation.metrics import densities as piecewise
from mstrain.evaluation.metrics.densities import Densities, Floats
from mstrain.models.target import REDSHIFT_TARGET, Target

# The published results take the mean (arXiv:2501.09112), so it stands first.
POINT_ESTIMATES = ("z_mean", "z_median", "z_mode")
SPREADS = ("z_std", "z_q16", "z_q84")
SCORES = ("pit", "crps", "cde_loss", "log_likelihood")
# Where in its density the truth lies: no score, but the kind of a miss.
PLACES = ("hpd_level", "lower_peak")
# One standard deviation either side, for a Gaussian.
_QUANTILES = (0.5, 0.15865525393145707, 0.8413447460685429)


def point_estimates(densities: Densities) -> dict[str, Floats]:
    """Point estimates and spreads of densities.

    Returns:
        float64 (N,) for each of `POINT_ESTIMATES` and `SPREADS`.
    """
    found_NL = piecewise.quantiles(densities, _QUANTILES)
    return {
        "z_mean": piecewise.mean(densities),
        "z_median": found_NL[:, 0],
        "z_mode": piecewise.mode(densities),
        "z_std": piecewise.standard_deviation(densities),
        "z_q16": found_NL[:, 1],
        "z_q84": found_NL[:, 2],
    }


def scores(densities: Densities, redshift_N: NDArray[np.float64]) -> dict[str, Floats]:
    """Scores of densities against the truth.

    Args:
        densities: densities of N objects.
        redshift_N: float64 (N,), the truth, NaN where it is not known.

    Returns:
        float64 (N,) for each of `SCORES` and `PLACES`; NaN where the truth is.
    """
    is_known_N = np.isfinite(redshift_N)
    truth_N = np.where(is_known_N, redshift_N, densities.edges[0])
    found = {
        "pit": piecewise.cdf_at(densities, truth_N),
        "crps": piecewise.crps(densities, truth_N),
        "cde_loss": piecewise.cde_loss(densities, truth_N),
        "log_likelihood": piecewise.log_likelihood(densities, truth_N),
        "hpd_level": piecewise.highest_density_level(densities, truth_N),
        "lower_peak": piecewise.lower_peak(densities, truth_N),
    }
    return {name: np.where(is_known_N, values, np.nan) for name, values in found.items()}


def scaled_residual(
    estimate_N: Floats, truth_N: Floats, target: Target = REDSHIFT_TARGET
) -> Floats:
    """The residual d = (estimate - truth) / (1 + truth), float64 (N,); of other numbers plain."""
    return (estimate_N - truth_N) / target.scale(truth_N)


def as_of_redshift(columns: Mapping[str, NDArray[Any]], target: Target) -> dict[str, NDArray[Any]]:
    """Columns of a table by their own names, and by those that metrics and figures ask for."""
    names = ("redshift", *POINT_ESTIMATES, *SPREADS)
    found = {n: columns[target.public(n)] for n in names if target.public(n) in columns}
    return {**columns, **found}
