"""Maps pixel values to the gray of a stamp: an asinh stretch whose range follows sky and noise.

Source: Lupton, Gunn and Szalay 1999, AJ 118, 1406, equation 3 (asinh magnitudes).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Counts that cannot be negative start at their smallest value instead.
BLACK_SIGMA = -1.0
# White is a bright pixel, but never so faint that noise alone fills the range.
WHITE_PERCENTILE = 99.8
MIN_WHITE_SIGMA = 8.0
# Linear up to about here, logarithmic beyond.
SOFTENING_SIGMA = 3.0
_MAD_TO_SIGMA = 1.4826
STRETCH_TEXT = (
    f"asinh stretch per stamp: black at median {BLACK_SIGMA:+g} sigma or the "
    f"smallest value, white at the {WHITE_PERCENTILE:g}th percentile (at least "
    f"{MIN_WHITE_SIGMA:+g} sigma), linear up to {SOFTENING_SIGMA:g} sigma; sigma from the median "
    "absolute deviation"
)


def stretch(image_HW: NDArray[Any]) -> NDArray[np.uint8]:
    """Computes the gray values of a stamp.

    Args:
        image_HW: (height, width) of real numbers; NaN and infinities are ignored.

    Returns:
        uint8 (height, width); 0 for pixels that are not finite; 128 everywhere in a constant stamp.
    """
    values = image_HW.astype(np.float64)
    is_finite = np.isfinite(values)
    finite = values[is_finite]
    if not finite.size:
        return np.zeros(values.shape, np.uint8)
    if finite.min() == finite.max():
        return np.where(is_finite, 128, 0).astype(np.uint8)
    sky, sigma = sky_and_noise(finite)
    bright = (float(np.percentile(finite, WHITE_PERCENTILE)) - sky) / sigma
    dark = max(BLACK_SIGMA, (float(finite.min()) - sky) / sigma)
    low, high = (
        np.arcsinh(limit / SOFTENING_SIGMA) for limit in (dark, max(MIN_WHITE_SIGMA, bright))
    )
    with np.errstate(invalid="ignore"):
        scaled = (np.arcsinh((values - sky) / sigma / SOFTENING_SIGMA) - low) / (high - low)
    gray: NDArray[np.uint8] = np.where(is_finite, np.clip(scaled, 0, 1) * 255, 0).astype(np.uint8)
    return gray


def sky_and_noise(finite: NDArray[np.float64]) -> tuple[float, float]:
    """Computes the median, and a standard deviation that bright pixels do not raise.

    Args:
        finite: pixels of any shape, without NaN or infinities.

    Returns:
        Both in the pixels' unit; the deviation is 0 only where all pixels are equal.
    """
    sky = _median(finite)
    sigma = _MAD_TO_SIGMA * _median(np.abs(finite - sky))
    if sigma == 0:
        # So few counts that most pixels are equal: use the spread of the faint pixels.
        faint = finite[finite <= np.percentile(finite, 95)]
        sigma = float(faint.std()) or float(finite.std())
    return sky, sigma


def _median(values: NDArray[np.float64]) -> float:
    """Computes what `numpy.median` does, in a third of its time for a thousand values."""
    half = values.size // 2
    first = half - 1 + values.size % 2
    lower, upper = np.partition(values, (first, half), None)[[first, half]]
    # Plus zero: of 0 and -0 any may lie in the middle.
    return float((lower + upper) / 2) + 0.0
