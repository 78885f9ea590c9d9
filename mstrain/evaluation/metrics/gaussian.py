"""Scores of Gaussians in closed form, for catalogs that give a mean and an error.

It stands alone because the other metrics are of densities on bins. A Gaussian is not cut at
redshift 0, where the densities of a network end.
"""

from __future__ import annotations

import math

import numpy as np

from mstrain.evaluation.metrics.densities import Floats
from mstrain.evaluation.metrics.summary import import_special


def gaussian_scores(mean_N: Floats, sigma_N: Floats, truth_N: Floats) -> dict[str, Floats]:
    """PIT, CRPS and CDE loss of Gaussians.

    Args:
        mean_N: float64 (N,).
        sigma_N: float64 (N,), above 0.
        truth_N: float64 (N,).

    Returns:
        float64 (N,) each, as `scores` gives them of binned densities.

    Source: Gneiting et al. 2005, Monthly Weather Review 133, 1098, equation 5 (CRPS).
    """
    w_N = (truth_N - mean_N) / sigma_N
    cdf_N = np.asarray(import_special().ndtr(w_N), np.float64)
    pdf_N = np.exp(-(w_N**2) / 2) / math.sqrt(2 * math.pi)
    return {
        "pit": cdf_N,
        "crps": sigma_N * (w_N * (2 * cdf_N - 1) + 2 * pdf_N - 1 / math.sqrt(math.pi)),
        "cde_loss": (1 / (2 * math.sqrt(math.pi)) - 2 * pdf_N) / sigma_N,
    }
