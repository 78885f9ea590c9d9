"""The Kolmogorov-Smirnov test of values that should be uniform on [0, 1], such as PITs.

SciPy has it too, but evaluation on a cluster needs no SciPy for anything else. Tests hold the two
together to 1e-6.
"""

from __future__ import annotations

import math

import numpy as np

from mstrain.evaluation.metrics.densities import Floats

# Beyond these the series is good to 1e-6; the exact matrix grows with the number of objects.
_MAX_EXACT_COUNT = 3000
# P(D > d) is below 5e-16 from here on.
_CERTAIN = 18.0
_NUM_TERMS = 60


def kolmogorov_smirnov(values_N: Floats) -> tuple[float, float]:
    """Tests values against the uniform distribution on [0, 1], two-sided.

    Args:
        values_N: float64 (N,), N > 0.

    Returns:
        The statistic D, the largest distance between the two distribution functions, and the
        probability p of a larger one if the values were uniform and independent.
    """
    ordered_N = np.sort(values_N)
    count = len(ordered_N)
    steps_N = np.arange(count + 1) / count
    distance = max((steps_N[1:] - ordered_N).max(), (ordered_N - steps_N[:-1]).max())
    return float(distance), p_value(float(distance), count)


def p_value(distance: float, count: int) -> float:
    """Probability that D of `count` uniform values is larger than `distance`."""
    squared = count * distance * distance
    if squared > _CERTAIN:
        return 2 * math.exp(-2 * squared)
    if distance <= 0.5 / count:
        return 1.0
    cdf = _exact_cdf if count <= _MAX_EXACT_COUNT else _series_cdf
    return min(1.0, max(0.0, 1 - cdf(distance, count)))


def _exact_cdf(distance: float, count: int) -> float:
    """P(D < distance) as an entry of a matrix power.

    Source: Marsaglia, Tsang and Wang 2003, Journal of Statistical Software 8(18).
    """
    row = int(count * distance)
    size = 2 * row + 1
    rest = row + 1 - count * distance
    powers = rest ** np.arange(1, size + 1)
    matrix = np.tri(size, size, 1)
    matrix[:, 0] -= powers
    matrix[-1, :] -= powers[::-1]
    matrix[-1, 0] += max(2 * rest - 1, 0.0) ** size
    log_factorials = np.array([math.lgamma(i + 1) for i in range(size + 1)])
    order = np.maximum(np.subtract.outer(np.arange(size), np.arange(size)) + 1, 0)
    power, log_scale = _matrix_power(matrix * np.exp(-log_factorials[order]), count)
    log_scale += math.lgamma(count + 1) - count * math.log(count)
    return float(power[row, row]) * math.exp(log_scale)


def _matrix_power(matrix: Floats, exponent: int) -> tuple[Floats, float]:
    """The power divided by a scale, and the logarithm of the scale: it would overflow."""
    power, log_power = np.eye(len(matrix)), 0.0
    log_matrix = 0.0
    while exponent:
        if exponent & 1:
            power = power @ matrix
            log_power += log_matrix + math.log(power.max())
            power = power / power.max()
        matrix = matrix @ matrix
        log_matrix = 2 * log_matrix + math.log(matrix.max())
        matrix = matrix / matrix.max()
        exponent >>= 1
    return power, log_power


def _series_cdf(distance: float, count: int) -> float:
    """P(D < distance) up to terms of count^(-3/2).

    Source: Pelz and Good 1976, Journal of the Royal Statistical Society B 38, 152; as given by
    Simard and L'Ecuyer 2011, Journal of Statistical Software 39(11), section 2.
    """
    z = distance * math.sqrt(count)
    half = np.pi**2 * (np.arange(-_NUM_TERMS, _NUM_TERMS) + 0.5) ** 2
    whole = np.pi**2 * np.arange(-_NUM_TERMS, _NUM_TERMS + 1.0) ** 2
    half_decay, whole_decay = np.exp(-half / (2 * z * z)), np.exp(-whole / (2 * z * z))
    # All odd half-integers appear twice, with either sign.
    first = math.sqrt(2 * math.pi) / z * half_decay.sum() / 2
    unit = math.sqrt(math.pi / 2)
    second = unit / (6 * z**4) * ((half - z * z) * half_decay).sum()
    third_terms = 6 * z**6 + 2 * z**4 + (2 * z**4 - 5 * z**2) * half + (1 - 2 * z * z) * half**2
    third = unit / (72 * z**7) * (third_terms * half_decay).sum()
    third -= unit / (36 * z**3) * (whole * whole_decay).sum()
    return float(first + second / math.sqrt(count) + third / count)
