"""Cuts a stamp of a survey's shape out of an image, around a position on the sky. NumPy only.

A stamp's rows run from south to north and its columns from east to west, as in most surveys' FITS
files: drawn with the first row at the bottom, north is up and east is left.

Two ways. Where the image has the wanted pixel scale and its axes lie along the sky's, whole pixels
are taken, turned or mirrored where the image is: every pixel keeps its bits, and the position lies
within half a pixel of the stamp's center; within a pixel where the image is not larger than the
stamp, since `fitscut` puts a position next to the middle of an even size. Otherwise each pixel of
the stamp takes from every pixel of the image the share of its flux that it covers: flux is kept to
rounding, the position lies exactly in the center, and noise of neighboring pixels becomes
correlated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import SampleError

# Half a percent of 170 pixels moves the outermost by less than half a pixel.
SCALE_TOLERANCE = 0.005
# Far from the center of its projection a sky cell's columns lean against the meridian, in
# Pan-STARRS by a few degrees. Resampling would cost more than it cures: networks are trained on
# turned images anyhow.
TILT_TOLERANCE_DEG = 5.0
# Positions on the edge between two pixels differ by rounding from one machine to another.
_TIE = 1e-6

_Float = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a position lies in an image, and how the image lies on the sky there.

    Attributes:
        x: column of the position, 0 in the middle of the first.
        y: row of the position, 0 in the middle of the first.
        sky_per_pixel: float64 (2, 2), arcsec; rows east, north, columns x, y: what a step of one
            pixel is on the sky.
    """

    x: float
    y: float
    sky_per_pixel: _Float

    @property
    def pixel_scale_arcsec(self) -> float:
        """Side of a square of a pixel's area."""
        return float(np.sqrt(abs(np.linalg.det(self.sky_per_pixel))))

    @property
    def tilt_deg(self) -> float:
        """Angle from the rows' direction to north, towards east."""
        east, north = self.sky_per_pixel[:, 1]
        return float(np.degrees(np.arctan2(east, north)))


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """A stamp.

    Attributes:
        pixels: (size, size), of the image's dtype where whole pixels were taken, else float64.
        offset_pixels: from the stamp's center to the position, (columns, rows).
        is_resampled: whether pixels were mixed.
        tilt_deg: angle from the stamp's columns to north, towards east.
    """

    pixels: NDArray[Any]
    offset_pixels: tuple[float, float]
    is_resampled: bool
    tilt_deg: float = 0.0


def apart(one: Stamp, other: Stamp) -> tuple[float, float]:
    """How far two stamps around a position are from showing the same sky in each pixel.

    Returns:
        Pixels, along the axis where it is more; and degrees.
    """
    off = np.subtract(one.offset_pixels, other.offset_pixels)
    return float(np.abs(off).max()), abs(one.tilt_deg - other.tilt_deg)


def cut_stamp(
    image: NDArray[Any], placement: Placement, size: int, pixel_scale_arcsec: float
) -> Stamp:
    """Cuts a square stamp around a position; see the module for how.

    Args:
        image: (height, width), flux per pixel. Not changed.
        placement: the position in it.
        size: pixels of a side of the stamp.
        pixel_scale_arcsec: of the stamp.

    Raises:
        SampleError: the image does not hold the whole stamp.
    """
    turn = whole_pixel_turn(placement, pixel_scale_arcsec)
    if turn is not None:
        return _take(image, placement, size, turn)
    return _resample(image, placement, size, pixel_scale_arcsec)


def whole_pixel_turn(placement: Placement, pixel_scale_arcsec: float) -> NDArray[np.int64] | None:
    """The quarter turn or mirroring that makes the image's grid the stamp's, if one does.

    Returns:
        int64 (2, 2), a step in the image (x, y) for each step in the stamp (column, row); None
        where pixel scales differ by more than `SCALE_TOLERANCE`, or axes by more than
        `TILT_TOLERANCE_DEG`.
    """
    step = _image_step(placement, pixel_scale_arcsec)
    turn = np.rint(step).astype(np.int64)
    if not np.array_equal(np.abs(turn).sum(axis=0), [1, 1]) or abs(np.linalg.det(turn)) < 0.5:
        return None
    lengths = np.hypot(*step)
    if np.any(np.abs(lengths - 1) > SCALE_TOLERANCE):
        return None
    cosines = (turn * step).sum(axis=0) / lengths
    return turn if np.all(cosines >= np.cos(np.radians(TILT_TOLERANCE_DEG))) else None


def _image_step(placement: Placement, pixel_scale_arcsec: float) -> _Float:
    """Steps in the image for one step of the stamp: a column is west, a row is north."""
    wanted = pixel_scale_arcsec * np.diag([-1.0, 1.0])
    return np.asarray(np.linalg.solve(placement.sky_per_pixel, wanted))


def _take(image: NDArray[Any], placement: Placement, size: int, turn: NDArray[np.int64]) -> Stamp:
    half = (size - 1) / 2
    # Offsets of the stamp's first pixel from its center, along the image's axes.
    corner = np.array([placement.x, placement.y]) - half
    low = np.floor(corner + 0.5 - _TIE).astype(int)
    if image.shape == (size, size) and np.abs(low).max() == 1:
        low[:] = 0
    x, y = (int(v) for v in low)
    _check_inside(image, (x, y), (x + size - 1, y + size - 1), size)
    cut = image[y : y + size, x : x + size]
    if turn[0, 0] == 0:
        cut = cut.T
    # A step of the stamp's column goes along the image's x, or along y after transposing.
    along_columns = turn[0, 0] + turn[1, 0]
    along_rows = turn[0, 1] + turn[1, 1]
    cut = cut[:: int(along_rows), :: int(along_columns)]
    offset = turn.T @ (corner - low)
    east, north = placement.sky_per_pixel @ turn[:, 1]
    return Stamp(
        pixels=np.ascontiguousarray(cut),
        offset_pixels=(float(offset[0]), float(offset[1])),
        is_resampled=False,
        tilt_deg=float(np.degrees(np.arctan2(east, north))),
    )


def _check_inside(
    image: NDArray[Any], low: tuple[float, float], high: tuple[float, float], size: int
) -> None:
    height, width = image.shape
    short = max(-low[0], -low[1], high[0] - (width - 1), high[1] - (height - 1))
    if short > 0:
        raise SampleError(
            f"its image of {width}x{height} pixels ends {int(np.ceil(short))} pixels before the "
            f"stamp of {size}x{size} around the position does"
        )


def _resample(
    image: NDArray[Any], placement: Placement, size: int, pixel_scale_arcsec: float
) -> Stamp:
    step = _image_step(placement, pixel_scale_arcsec)
    reach = np.abs(step).sum(axis=1) * size / 2 - _TIE
    center = np.array([placement.x, placement.y])
    low, high = np.floor(center - reach + 0.5), np.ceil(center + reach - 0.5)
    _check_inside(image, (low[0], low[1]), (high[0], high[1]), size)
    steps = np.arange(size) - (size - 1) / 2
    column, row = np.meshgrid(steps, steps)
    # Corners of each stamp pixel in the image, in order around it.
    around = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    corners = step @ around.T
    x = placement.x + step[0, 0] * column + step[0, 1] * row
    y = placement.y + step[1, 0] * column + step[1, 1] * row
    first_x = np.floor(x + corners[0].min() + 0.5).astype(int)
    first_y = np.floor(y + corners[1].min() + 0.5).astype(int)
    num_x, num_y = (int(np.ceil(np.ptp(c) - 1e-9)) + 1 for c in corners)
    pixels = np.zeros((size, size))
    for dy in range(num_y):
        for dx in range(num_x):
            at_x, at_y = first_x + dx, first_y + dy
            share = _overlap(x - at_x + 0.5, y - at_y + 0.5, corners)
            inside_x = np.clip(at_x, 0, image.shape[1] - 1)
            inside_y = np.clip(at_y, 0, image.shape[0] - 1)
            # A NaN that is not touched must not spread.
            pixels += np.where(share > 1e-12, share * image[inside_y, inside_x], 0.0)
    return Stamp(pixels=pixels, offset_pixels=(0.0, 0.0), is_resampled=True)


def _overlap(x: _Float, y: _Float, corners: _Float) -> _Float:
    """Area that parallelograms have in common with the unit square [0, 1] x [0, 1].

    Args:
        x: their centers.
        y: their centers.
        corners: float64 (2, 4), the corners around a center, in order.

    Returns:
        Areas. The boundary integral of the part inside: along each edge, clipped to the square's
        columns, the height below it that lies in the square.
    """
    area = np.zeros_like(x)
    for k in range(4):
        (ax, bx), (ay, by) = corners[:, [k, (k + 1) % 4]]
        area += _below_edge(x + ax, y + ay, bx - ax, by - ay)
    return np.asarray(np.abs(area))


def _below_edge(x: _Float, y: _Float, run: float, rise: float) -> _Float:
    """Signed area inside the unit square below the edges from (x, y) to (x + run, y + rise)."""
    if abs(run) < 1e-12:
        return np.zeros_like(x)
    slope = rise / run
    start, stop = np.clip(x, 0, 1), np.clip(x + run, 0, 1)
    low, high = y + slope * (start - x), y + slope * (stop - x)
    if abs(slope) < 1e-9:
        return np.asarray(np.clip((low + high) / 2, 0, 1) * (stop - start))
    return np.asarray((_clipped_integral(high) - _clipped_integral(low)) / slope)


def _clipped_integral(y: _Float) -> _Float:
    """Antiderivative of clip(y, 0, 1)."""
    inside = np.clip(y, 0, 1)
    return np.asarray(inside * inside / 2 + np.maximum(y - 1, 0))
