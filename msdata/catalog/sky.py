"""Positions on the sky that lie close to each other, within one table and between two.

Unit vectors and chords: nothing is special at the poles or at right ascension 0. The only file with
SciPy's trees, so it stands alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import needing

_Float = NDArray[np.float64]


def close_pairs(ra_deg: _Float, dec_deg: _Float, angle_arcsec: float) -> NDArray[np.int64]:
    """All pairs of positions at most an angle apart; 2 million positions take 2 s.

    Args:
        ra_deg: float64 (n,).
        dec_deg: float64 (n,).
        angle_arcsec: the angle.

    Returns:
        int64 (pairs, 2), each pair once, the smaller number first, sorted.

    Raises:
        MissingPackageError: SciPy is not installed.
    """
    found = sky_tree(ra_deg, dec_deg).query_pairs(_chord(angle_arcsec), output_type="ndarray")
    pairs = np.sort(found, axis=1)
    return np.asarray(pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))], np.int64)


def sky_tree(ra_deg: _Float, dec_deg: _Float) -> Any:
    """A tree of positions, for `neighbors`.

    Args:
        ra_deg: float64 (n,), finite.
        dec_deg: float64 (n,), finite.

    Raises:
        MissingPackageError: SciPy is not installed.
    """
    with needing("to compare positions needs SciPy", "catalog"):
        from scipy.spatial import cKDTree
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    return cKDTree(
        np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=1)
    )


def neighbors(left: Any, right: Any, angle_arcsec: float) -> tuple[NDArray[np.int64], _Float]:
    """All pairs of a position of one tree and one of another, at most an angle apart.

    Args:
        left: from `sky_tree`.
        right: from `sky_tree`.
        angle_arcsec: the angle.

    Returns:
        int64 (pairs, 2), numbers in both, sorted; and float64 (pairs,), arcsec between them.
    """
    found = left.sparse_distance_matrix(right, _chord(angle_arcsec), output_type="ndarray")
    found = found[np.lexsort((found["j"], found["i"]))]
    pairs = np.stack([found["i"], found["j"]], axis=1).astype(np.int64)
    return pairs, np.degrees(2 * np.arcsin(found["v"] / 2)) * 3600


def _chord(angle_arcsec: float) -> float:
    return 2 * math.sin(math.radians(angle_arcsec / 3600) / 2)
