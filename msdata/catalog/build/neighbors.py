"""Pairs of positions within a small angle, and which of them to keep.

Positions are unit vectors in cells of the angle's size; the cells of three neighbors in one
direction have consecutive numbers, so pairs are found by sorting and bisection: no trigonometry at
the poles, no seam at right ascension 0, 5 million positions in some ten seconds.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from msdata.errors import UsageError

# Cells per side; 2 / 2^20 is the smallest cell, 0.4 arcsec.
_MAX_CELLS = 1 << 20
# Half of the neighbors: pairs are found from one end.
_ROWS = ((0, 1), (1, -1), (1, 0), (1, 1))

_Float = NDArray[np.float64]
_Int = NDArray[np.int64]


def unit_vectors(ra_deg: _Float, dec_deg: _Float) -> _Float:
    """Directions on the sky.

    Args:
        ra_deg: float64 (n,).
        dec_deg: float64 (n,).

    Returns:
        float64 (n, 3).
    """
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    xyz = np.empty((len(ra), 3))
    xyz[:, 0] = np.cos(dec) * np.cos(ra)
    xyz[:, 1] = np.cos(dec) * np.sin(ra)
    xyz[:, 2] = np.sin(dec)
    return xyz


def close_pairs(ra_deg: _Float, dec_deg: _Float, angle_arcsec: float) -> _Int:
    """All pairs of positions at most an angle apart.

    Args:
        ra_deg: float64 (n,).
        dec_deg: float64 (n,).
        angle_arcsec: from 1 to 3600.

    Returns:
        int64 (pairs, 2), each pair once, the smaller number first, sorted.

    Raises:
        UsageError: the angle is out of range.
    """
    if not 1 <= angle_arcsec <= 3600:
        raise UsageError(f"the separation must be 1 to 3600 arcsec, got {angle_arcsec:g}")
    chord = 2 * math.sin(math.radians(angle_arcsec / 3600) / 2)
    xyz = unit_vectors(ra_deg, dec_deg)
    # A little wider, so that rounding never puts a pair two cells apart.
    cell = chord * 1.001
    indices = np.floor((xyz + 1) / cell).astype(np.int64) + 1
    assert indices.size == 0 or indices.max() < _MAX_CELLS
    keys = (indices[:, 0] * _MAX_CELLS + indices[:, 1]) * _MAX_CELLS + indices[:, 2]
    del indices
    order = np.argsort(keys, kind="stable")
    keys, xyz = keys[order], xyz[order]
    found = [_pairs_within(xyz, *_ranges(keys, 0, 1, is_own=True), chord)]
    for dx, dy in _ROWS:
        shift = (dx * _MAX_CELLS + dy) * _MAX_CELLS
        found.append(_pairs_within(xyz, *_ranges(keys, shift - 1, shift + 1), chord))
    pairs = np.sort(order[np.concatenate(found)], axis=1)
    return np.asarray(pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))])


def _ranges(keys: _Int, low: int, high: int, *, is_own: bool = False) -> tuple[_Int, _Int]:
    """For each position the range of those whose keys are `low` to `high` more than its own."""
    stop = np.searchsorted(keys, keys + high, side="right")
    if is_own:
        return np.arange(1, len(keys) + 1), stop
    return np.searchsorted(keys, keys + low, side="left"), stop


def _pairs_within(xyz: _Float, start: _Int, stop: _Int, chord: float) -> _Int:
    """Pairs (i, j), j in [start[i], stop[i]), at most the chord apart."""
    first = np.flatnonzero(stop > start)
    counts = (stop - start)[first]
    i = np.repeat(first, counts)
    steps = np.arange(len(i)) - np.repeat(np.cumsum(counts) - counts, counts)
    j = np.repeat(start[first], counts) + steps
    is_close = ((xyz[i] - xyz[j]) ** 2).sum(axis=1) <= chord * chord
    return np.stack([i[is_close], j[is_close]], axis=1)


def keep_best(num: int, pairs: _Int) -> NDArray[np.bool_]:
    """Which positions to keep, so that no pair is left.

    From the best to the worst, each is kept that is not close to one already kept. So a position is
    dropped if, and only if, a better one that is kept is close to it. Of a chain of three, both
    ends are kept where the middle one is not the best.

    Args:
        num: positions; the smaller its number, the better one is.
        pairs: int64 (pairs, 2), the smaller number first.

    Returns:
        bool (num,).
    """
    is_kept = np.ones(num, bool)
    is_open = np.zeros(num, bool)
    is_open[pairs] = True
    left = pairs
    while len(left):
        # Whatever is the worse one of no pair that is left is kept; what is close to it is not.
        is_worse = np.zeros(num, bool)
        is_worse[left[:, 1]] = True
        is_best = is_open & ~is_worse
        dropped = left[is_best[left[:, 0]], 1]
        is_kept[dropped] = False
        is_open &= ~is_best
        is_open[dropped] = False
        left = left[is_open[left[:, 0]] & is_open[left[:, 1]]]
    return is_kept
