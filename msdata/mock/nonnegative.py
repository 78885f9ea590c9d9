"""Non-negative least squares, the one place of this package that needs SciPy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from msdata.errors import needing


def fit_nonnegative(
    design_NBT: NDArray[np.float64], target_NB: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Solves N small problems min |A x - b| with x >= 0.

    Args:
        design_NBT: float64 (N, B, T), one design matrix A per problem.
        target_NB: float64 (N, B), one right-hand side b per problem.

    Returns:
        float64 (N, T), the solutions.

    Raises:
        MissingPackageError: SciPy is not installed.

    Source:
        Lawson & Hanson 1974, Solving Least Squares Problems, chapter 23.
    """
    with needing("mock galaxies need SciPy", "mock"):
        from scipy.optimize import nnls
    return np.stack(
        [nnls(design, target)[0] for design, target in zip(design_NBT, target_NB, strict=True)]
    )
