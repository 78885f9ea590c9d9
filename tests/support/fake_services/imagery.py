"""What the stand-in services have pictures of: pixels and headers by position.

Every function is pure, so a test asks for the pixels that a client must have got and compares bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fake_services import fitsfile
from fake_services.grid import Grid, SkyCell, Tile, centered
from fake_services.sky import hash_words, render, uniform

Image = NDArray[np.float32]

# Layer of the viewer -> its header's name, its bands as it names them, and ours.
LAYERS = {
    "galex": ("GALEX", {"n": "NUV", "f": "FUV"}),
    "unwise-neo7": ("unWISE", {"1": "W1", "2": "W2"}),
    "ls-dr10": ("LegacySurvey", {"g": "g", "r": "r", "i": "i", "z": "z"}),
}
# HiPS with FITS tiles -> our name of their band.
HIPS = {f"CDS/P/DESI-Legacy-Surveys/DR10/{band}": band for band in "griz"}
_NOISE = {"FUV": 1e-3, "NUV": 2e-3, "W1": 4.0, "W2": 6.0}
_PS1_NOISE = 8.0
_EXPOSURES_S = {"g": 43.0, "r": 40.0, "i": 45.0, "z": 30.0, "y": 30.0}
# Radius, in pixels, of the hole in a saturated star's core.
NAN_CORE_PIXELS = 5


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image and what its header says of it.

    Attributes:
        pixels: float32 (height, width).
        grid: its pixels on the sky.
    """

    pixels: Image
    grid: Grid


def _noise(seed: int, band: str, grid: Grid) -> NDArray[np.float64]:
    """Noise that belongs to the pixel of the sky, whatever the cutout."""
    y, x = np.mgrid[: grid.height, : grid.width]
    place = hash_words(seed, *(ord(c) for c in band), round(grid.ra * 1e6), round(grid.dec * 1e6))
    column = (x - round(grid.x * 2) // 2 + (1 << 20)).astype(np.uint64)
    row = (y - round(grid.y * 2) // 2 + (1 << 20)).astype(np.uint64)
    return (uniform(int(place), row, column) - 0.5) * _NOISE.get(band, _PS1_NOISE)


def _picture(seed: int, band: str, grid: Grid) -> Picture:
    image_HW = render(seed, band, grid) + _noise(seed, band, grid)
    return Picture(pixels=image_HW.astype(np.float32), grid=grid)


def stack_cutout(
    seed: int, cell: SkyCell, band: str, position: tuple[float, float], size: int
) -> Picture:
    """A PS1 stack about a position, as `fitscut` cuts it: pixels beyond the sky cell are NaN.

    Args:
        seed: the sky's.
        cell: the sky cell.
        band: g, r, i, z or y.
        position: right ascension and declination, degrees.
        size: side, pixels.

    Source: spacetelescope/fitscut, extract.c: the corner is floor(x - size / 2 + 0.5), so a
        position lies within half a pixel of the center of pixel size // 2, counted from 0.
    """
    x, y = cell.grid.pixel(*position)
    x0, y0 = int(np.floor(x - size / 2 + 0.5)), int(np.floor(y - size / 2 + 0.5))
    picture = _picture(seed, band, cell.grid.cut(x0, y0, size, size))
    columns, rows = x0 + np.arange(size), y0 + np.arange(size)
    pixels = picture.pixels.copy()
    pixels[:, (columns < 0) | (columns >= cell.grid.width)] = np.nan
    pixels[(rows < 0) | (rows >= cell.grid.height)] = np.nan
    return replace(picture, pixels=pixels)


def beyond_the_edge(picture: Picture) -> Picture:
    """The picture as a neighboring sky cell has it that ends in the middle of the cutout."""
    pixels = picture.pixels.copy()
    pixels[:, pixels.shape[1] // 2 + 3 :] = np.nan
    return replace(picture, pixels=pixels)


def with_nan_core(picture: Picture) -> Picture:
    """The picture with the hole that a saturated star leaves, off the center."""
    pixels = picture.pixels.copy()
    y, x = np.mgrid[: pixels.shape[0], : pixels.shape[1]]
    middle = pixels.shape[0] * 0.7
    pixels[np.hypot(x - middle, y - middle) < NAN_CORE_PIXELS] = np.nan
    return replace(picture, pixels=pixels)


def exposure_s(seed: int, cell: SkyCell, band: str) -> float:
    """Exposure time of a stack, seconds; it differs from cell to cell."""
    draw = float(uniform(seed, cell.projection, cell.number, ord(band)))
    return _EXPOSURES_S[band] * (16 + int(44 * draw))


def stack_file(picture: Picture, cell: SkyCell, band: str, seed: int) -> bytes:
    """The FITS file of a PS1 cutout."""
    seconds = exposure_s(seed, cell, band)
    cards = fitsfile.panstarrs_cards(picture.grid, band, cell.name, seconds)
    return fitsfile.image_file(picture.pixels, cards)


def viewer_cutout(
    seed: int, band: str, position: tuple[float, float], size: int, scale_arcsec: float
) -> Picture:
    """One band of the Legacy viewer's cutout, by our name of the band."""
    return _picture(seed, band, centered(*position, size, scale_arcsec))


def hips_cutout(
    seed: int, band: str, position: tuple[float, float], size: int, scale_arcsec: float
) -> Picture:
    """A cutout of hips2fits: the position half a pixel before the middle of an even size."""
    grid = centered(*position, size, scale_arcsec)
    return _picture(seed, band, replace(grid, x=size / 2 - 1, y=size / 2 - 1))


def coadd_cutout(
    seed: int, tile: Tile, band: str, position: tuple[float, float], size: int
) -> Picture:
    """An unWISE coadd about a position; it ends where the coadd ends."""
    x, y = tile.grid.pixel(*position)
    x0, y0 = int(np.floor(x - size / 2 + 0.5)), int(np.floor(y - size / 2 + 0.5))
    left, low = max(x0, 0), max(y0, 0)
    right, top = min(x0 + size, tile.grid.width), min(y0 + size, tile.grid.height)
    return _picture(seed, f"W{band}", tile.grid.cut(left, low, right - left, top - low))
