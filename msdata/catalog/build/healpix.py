"""Which HEALPix pixel a position lies in, for both orders of pixels.

Source: Gorski et al. 2005, ApJ 622, 759, section 5 and equations 4 to 21.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from msdata.errors import UsageError

_Float = NDArray[np.float64]
_Int = NDArray[np.int64]

# Of the twelve base faces: the ring of the southernmost corner and the column, in units of nside
# and of half a face.
_FACE_RING = np.array([2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4])
_FACE_COLUMN = np.array([1, 3, 5, 7, 0, 2, 4, 6, 1, 3, 5, 7])


def nside_of(num_pixels: int) -> int:
    """The resolution of a map of the whole sky.

    Raises:
        UsageError: no map has that many pixels.
    """
    nside = math.isqrt(num_pixels // 12)
    if 12 * nside * nside != num_pixels or nside < 1 or nside & (nside - 1):
        raise UsageError(
            f"a HEALPix map of the whole sky must have 12 nside^2 pixels, got {num_pixels:,}"
        )
    return nside


def pixel_of(nside: int, lon_deg: _Float, lat_deg: _Float, *, is_nested: bool) -> _Int:
    """Numbers of the pixels that positions lie in.

    Args:
        nside: pixels along a side of a base face, a power of two.
        lon_deg: float64 (n,), in the map's frame.
        lat_deg: float64 (n,).
        is_nested: the order of the map's pixels; else by rings.

    Returns:
        int64 (n,).
    """
    face, x, y = _face_place(nside, lon_deg, lat_deg)
    if is_nested:
        return np.asarray(face * nside * nside + _spread(x) + 2 * _spread(y))
    return _ring_number(nside, face, x, y)


def _face_place(nside: int, lon_deg: _Float, lat_deg: _Float) -> tuple[_Int, _Int, _Int]:
    """Base face, and place on it along its north-eastern and north-western edge."""
    z = np.sin(np.radians(lat_deg))
    quarter = np.mod(lon_deg, 360.0) / 90.0
    face, x, y = (np.empty(len(z), np.int64) for _ in range(3))
    is_belt = np.abs(z) <= 2 / 3
    for rows, place in ((is_belt, _belt_place), (~is_belt, _cap_place)):
        lat = np.asarray(lat_deg)[rows]
        face[rows], x[rows], y[rows] = place(nside, quarter[rows], z[rows], lat)
    return face, x, y


def _belt_place(nside: int, quarter: _Float, z: _Float, lat_deg: _Float) -> tuple[_Int, _Int, _Int]:
    along, across = nside * (0.5 + quarter), nside * z * 0.75
    rising = np.floor(along - across).astype(np.int64)
    falling = np.floor(along + across).astype(np.int64)
    face_rising, face_falling = rising // nside, falling // nside
    is_south, is_north = face_falling < face_rising, face_rising < face_falling
    face = np.where(is_north, face_rising & 3, (face_falling & 3) + np.where(is_south, 8, 4))
    return face, falling & (nside - 1), nside - (rising & (nside - 1)) - 1


def _cap_place(nside: int, quarter: _Float, z: _Float, lat_deg: _Float) -> tuple[_Int, _Int, _Int]:
    number = np.minimum(quarter.astype(np.int64), 3)
    part = quarter - number
    # 1 - |z| loses digits at the poles; the half angle does not.
    root = nside * np.sqrt(6.0) * np.sin(np.radians(90 - np.abs(lat_deg)) / 2)
    near = np.minimum((part * root).astype(np.int64), nside - 1)
    far = np.minimum(((1 - part) * root).astype(np.int64), nside - 1)
    is_north = z >= 0
    x = np.where(is_north, nside - far - 1, near)
    y = np.where(is_north, nside - near - 1, far)
    return np.where(is_north, number, number + 8), x, y


def _spread(values: _Int) -> _Int:
    """Puts a zero between neighboring bits."""
    spread = values.copy()
    for shift, mask in (
        *((16, 0x0000FFFF0000FFFF), (8, 0x00FF00FF00FF00FF), (4, 0x0F0F0F0F0F0F0F0F)),
        *((2, 0x3333333333333333), (1, 0x5555555555555555)),
    ):
        spread = (spread | (spread << shift)) & mask
    return spread


def _ring_number(nside: int, face: _Int, x: _Int, y: _Int) -> _Int:
    ring = _FACE_RING[face] * nside - x - y - 1
    north, south = ring, 4 * nside - ring
    in_north, in_south = ring < nside, ring > 3 * nside
    # Quarter of the pixels of the ring, and the number of the ring's first pixel.
    quarter = np.where(in_north, north, np.where(in_south, south, nside))
    first = np.where(
        in_north,
        2 * north * (north - 1),
        np.where(
            in_south,
            12 * nside * nside - 2 * (south + 1) * south,
            2 * nside * (nside - 1) + (ring - nside) * 4 * nside,
        ),
    )
    # In the belt every second ring begins half a pixel further east.
    shift = np.where(in_north | in_south, 0, (ring - nside) & 1)
    column = (_FACE_COLUMN[face] * quarter + x - y + 1 + shift) // 2
    column = np.where(column > 4 * quarter, column - 4 * quarter, column)
    column = np.where(column < 1, column + 4 * quarter, column)
    return np.asarray(first + column - 1)
