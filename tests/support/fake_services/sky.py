"""A mock sky: at every position the same galaxies, in nine bands, as a pure function of a seed.

The sky is cut into cells of about an arc minute; each holds one galaxy, drawn from a hash of the
seed and the cell. So any cutout is rendered without a catalog, neighbors included, and two
cutouts of one place agree. Profiles are elliptical Gaussians: enough to tell orientation, scale,
band and flux apart, cheap enough to render thousands in a test. For galaxies that look like some,
see `msdata.mock`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fake_services.grid import Grid

CELL_DEG = 1.0 / 60
# Galaxies are cut off where they are fainter than a millionth of their center.
_REACH_SIGMA = 5.5
_REACH_DEG = 15.0 / 3600
_BLUR_PIXELS = 0.6
_SIGMA_ARCSEC = (0.5, 1.6)
# Bluest first; a galaxy's color grows with its redshift, so that a network has something to learn.
BANDS = ("FUV", "NUV", "g", "r", "i", "z", "y", "W1", "W2")
# Flux in the survey's own pixel unit of a galaxy of magnitude 0 of this sky.
_SCALES = dict(zip(BANDS, (0.05, 0.2, 8e3, 12e3, 18e3, 9e3, 6e3, 300, 180), strict=True))

_Words = NDArray[np.uint64]
_Floats = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Galaxy:
    """One galaxy of the mock sky.

    Attributes:
        ra: right ascension, degrees.
        dec: declination, degrees.
        redshift: 0.02 to 1.
        brightness: factor on the flux of every band.
        sigma_arcsec: width along the major axis.
        axis_ratio: minor over major axis.
        angle: direction of the major axis, radians from north through east.
    """

    ra: float
    dec: float
    redshift: float
    brightness: float
    sigma_arcsec: float
    axis_ratio: float
    angle: float

    def flux(self, band: str) -> float:
        """Total flux in a band, in the survey's pixel unit."""
        place = BANDS.index(band) / (len(BANDS) - 1)
        return float(_SCALES[band] * self.brightness * np.exp(3 * (self.redshift - 0.5) * place))


def hash_words(*words: int | _Words) -> _Words:
    """Mixes integers into uniformly distributed 64-bit words.

    Args:
        words: integers or uint64 arrays that broadcast against each other.

    Source: the finalizer of SplitMix64; Steele, Lea & Flood 2014, "Fast splittable pseudorandom
        number generators".
    """
    mixed = np.asarray(0x9E3779B97F4A7C15, np.uint64)
    with np.errstate(over="ignore"):
        for word in words:
            if isinstance(word, int):
                word = np.asarray(word & 0xFFFFFFFFFFFFFFFF, np.uint64)
            mixed = (mixed ^ word) + np.uint64(0x9E3779B97F4A7C15)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed


def uniform(*words: int | _Words) -> _Floats:
    """Numbers in [0, 1) from the same mixture."""
    return np.asarray((hash_words(*words) >> np.uint64(11)) * 2.0**-53, np.float64)


def _cells_in_row(row: int) -> int:
    """Cells around the circle of a row, of about `CELL_DEG` on the sky."""
    return max(1, int(360 * np.cos(np.radians((row + 0.5) * CELL_DEG)) / CELL_DEG))


@functools.lru_cache(maxsize=4096)
def galaxy_of(seed: int, row: int, column: int) -> Galaxy:
    """The galaxy of one cell; `column` may lie beyond the circle and is wrapped."""
    count = _cells_in_row(row)
    column %= count
    draws = [float(uniform(seed, row, column, k)) for k in range(7)]
    low, high = _SIGMA_ARCSEC
    return Galaxy(
        ra=(column + 0.1 + 0.8 * draws[0]) * 360 / count,
        dec=(row + 0.1 + 0.8 * draws[1]) * CELL_DEG,
        redshift=0.02 + 0.98 * draws[2],
        brightness=10 ** (0.8 * draws[3]),
        sigma_arcsec=low + (high - low) * draws[4],
        axis_ratio=0.4 + 0.6 * draws[5],
        angle=float(np.pi * draws[6]),
    )


def galaxies_near(seed: int, ra: float, dec: float, radius_deg: float) -> Iterator[Galaxy]:
    """All galaxies whose light reaches a circle on the sky.

    Args:
        seed: the sky's.
        ra: center, degrees.
        dec: center, degrees.
        radius_deg: the circle's radius.
    """
    reach = radius_deg + _REACH_DEG
    for row in range(int((dec - reach) // CELL_DEG), int((dec + reach) // CELL_DEG) + 1):
        count = _cells_in_row(row)
        width = reach / max(np.cos(np.radians(row * CELL_DEG)), 1e-3)
        first = int((ra - width) * count // 360)
        last = min(int((ra + width) * count // 360), first + count - 1)
        for column in range(first, last + 1):
            yield galaxy_of(seed, row, column)


def render(seed: int, band: str, grid: Grid) -> _Floats:
    """Flux in each pixel of a grid.

    Args:
        seed: the sky's.
        band: one of `BANDS`.
        grid: the pixels on the sky.

    Returns:
        Float64 (height, width), in the survey's pixel unit.
    """
    image_HW = np.zeros((grid.height, grid.width))
    ra, dec = grid.position((grid.width - 1) / 2, (grid.height - 1) / 2)
    radius_deg = np.hypot(grid.width, grid.height) / 2 * grid.scale_arcsec / 3600
    for galaxy in galaxies_near(seed, float(ra), float(dec), float(radius_deg)):
        # Blurred by the pixel, so that the coarsest ones sample it.
        blur = _BLUR_PIXELS * grid.scale_arcsec
        sigmas = [float(np.hypot(s * galaxy.sigma_arcsec, blur)) for s in (1, galaxy.axis_ratio)]
        reach = int(_REACH_SIGMA * sigmas[0] / grid.scale_arcsec) + 1
        x, y = (round(v) for v in grid.pixel(galaxy.ra, galaxy.dec))
        left, right = max(x - reach, 0), min(x + reach + 1, grid.width)
        low, top = max(y - reach, 0), min(y + reach + 1, grid.height)
        if left < right and low < top:
            part = grid.cut(left, low, right - left, top - low)
            image_HW[low:top, left:right] += _profile(galaxy, band, part, sigmas)
    return image_HW


def _profile(galaxy: Galaxy, band: str, grid: Grid, sigmas_arcsec: Sequence[float]) -> _Floats:
    ra_HW, dec_HW = grid.sky()
    east = (ra_HW - galaxy.ra + 180) % 360 - 180
    east *= np.cos(np.radians(galaxy.dec)) * 3600
    north = (dec_HW - galaxy.dec) * 3600
    along = north * np.cos(galaxy.angle) + east * np.sin(galaxy.angle)
    across = east * np.cos(galaxy.angle) - north * np.sin(galaxy.angle)
    major, minor = sigmas_arcsec
    exponent = (along / major) ** 2 / 2 + (across / minor) ** 2 / 2
    area = 2 * np.pi * major * minor / grid.scale_arcsec**2
    return np.asarray(galaxy.flux(band) / area * np.exp(-exponent))
