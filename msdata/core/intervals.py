"""Wilson's interval of a fraction; it stands alone since catalogs and metrics both need it."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson_interval(share: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a fraction, for fractions of 0 and 1, whose replicates do not vary at all.

    Args:
        share: the fraction found.
        count: number of objects.
        level: probability of the interval.

    Source: Wilson 1927, JASA 22, 209.
    """
    z = NormalDist().inv_cdf((1 + level) / 2)
    scale = 1 / (1 + z * z / count)
    center = scale * (share + z * z / (2 * count))
    half = scale * z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    # Rounding would leave the ends a hair inside.
    low = center - half if share > 0 else 0.0
    high = center + half if share < 1 else 1.0
    return low, high
