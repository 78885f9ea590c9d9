"""Pixel grids on the sky: gnomonic projections, PS1 sky cells and unWISE coadds of the mock sky.

Written without astropy, so that a test of the client's WCS has something independent to agree with.
The tessellations are simpler than the surveys' own, but named and oriented the same way: sky cells
overlap, and all cells of a projection share one tangent point.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

_Floats = NDArray[np.float64]

PS1_SCALE_ARCSEC = 0.25
PS1_CELL_PIXELS = 6240
_PS1_STEP_DEG = 0.4
_PS1_CELLS = 10
_PROJECTION_STEP_DEG = 4.0
UNWISE_SCALE_ARCSEC = 2.75
UNWISE_TILE_PIXELS = 2048
_TILE_STEP_DEG = 1.5


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A tangent-plane grid with north up and east left.

    Attributes:
        ra: tangent point, degrees.
        dec: tangent point, degrees.
        x: pixel of the tangent point, counted from 0, as floats.
        y: row of the tangent point, counted from 0; rows count northwards.
        scale_arcsec: pixel size.
        width: columns.
        height: rows.
    """

    ra: float
    dec: float
    x: float
    y: float
    scale_arcsec: float
    width: int
    height: int

    def cut(self, x0: int, y0: int, width: int, height: int) -> Grid:
        """The grid of a section that begins at pixel (x0, y0)."""
        return replace(self, x=self.x - x0, y=self.y - y0, width=width, height=height)

    def sky(self) -> tuple[_Floats, _Floats]:
        """Right ascension and declination of all pixels' centers, degrees, (height, width)."""
        y, x = np.mgrid[: self.height, : self.width]
        return self.position(x, y)

    def position(self, x: _Floats | float, y: _Floats | float) -> tuple[_Floats, _Floats]:
        """Right ascension and declination of pixels, degrees.

        Args:
            x: columns, counted from 0.
            y: rows.

        Source: Calabretta & Greisen 2002, A&A 395, 1077, section 5.1.3 (TAN).
        """
        step = np.radians(self.scale_arcsec / 3600)
        xi, eta = -(x - self.x) * step, (y - self.y) * step
        sin0, cos0 = np.sin(np.radians(self.dec)), np.cos(np.radians(self.dec))
        across = cos0 - eta * sin0
        ra = self.ra + np.degrees(np.arctan2(xi, across))
        dec = np.degrees(np.arctan2(sin0 + eta * cos0, np.hypot(xi, across)))
        return ra % 360, dec

    def pixel(self, ra: float, dec: float) -> tuple[float, float]:
        """Column and row of a position, counted from 0."""
        sin0, cos0 = np.sin(np.radians(self.dec)), np.cos(np.radians(self.dec))
        sin, cos = np.sin(np.radians(dec)), np.cos(np.radians(dec))
        turn = np.radians(ra - self.ra)
        depth = sin0 * sin + cos0 * cos * np.cos(turn)
        step = np.radians(self.scale_arcsec / 3600)
        xi = cos * np.sin(turn) / depth
        eta = (cos0 * sin - sin0 * cos * np.cos(turn)) / depth
        return float(self.x - xi / step), float(self.y + eta / step)


def centered(ra: float, dec: float, size: int, scale_arcsec: float) -> Grid:
    """The grid of the Legacy viewer: resampled, the position exactly in the middle."""
    middle = (size - 1) / 2
    return Grid(
        ra=ra, dec=dec, x=middle, y=middle, scale_arcsec=scale_arcsec, width=size, height=size
    )


@dataclass(frozen=True, kw_only=True)
class SkyCell:
    """A sky cell of the mock PS1 tessellation: its name's two numbers, and its pixels."""

    projection: int
    number: int
    grid: Grid

    @property
    def name(self) -> str:
        """Such as "1329.005"."""
        return f"{self.projection:04d}.{self.number:03d}"


def sky_cell(projection: int, number: int) -> SkyCell:
    """The sky cell of that name."""
    j, i = divmod(projection - 1000, 90)
    half = _PS1_CELLS // 2
    per_deg = 3600 / PS1_SCALE_ARCSEC
    row, column = divmod(number, _PS1_CELLS)
    x0 = (column - half + 0.5) * _PS1_STEP_DEG * per_deg - PS1_CELL_PIXELS / 2
    y0 = (row - half + 0.5) * _PS1_STEP_DEG * per_deg - PS1_CELL_PIXELS / 2
    grid = Grid(
        ra=i * _PROJECTION_STEP_DEG % 360,
        dec=j * _PROJECTION_STEP_DEG - 88,
        x=-float(round(x0)),
        y=-float(round(y0)),
        scale_arcsec=PS1_SCALE_ARCSEC,
        width=PS1_CELL_PIXELS,
        height=PS1_CELL_PIXELS,
    )
    return SkyCell(projection=projection, number=number, grid=grid)


def home_cell(ra: float, dec: float) -> SkyCell:
    """The sky cell whose center is nearest to a position."""
    j = round((dec + 88) / _PROJECTION_STEP_DEG)
    i = round(ra % 360 / _PROJECTION_STEP_DEG) % 90
    projection = 1000 + 90 * j + i
    plane = sky_cell(projection, 0).grid
    x, y = plane.pixel(ra, dec)
    step = _PS1_STEP_DEG * 3600 / PS1_SCALE_ARCSEC
    top = _PS1_CELLS - 1
    column = min(max(int((x - plane.x) // step) + _PS1_CELLS // 2, 0), top)
    row = min(max(int((y - plane.y) // step) + _PS1_CELLS // 2, 0), top)
    return sky_cell(projection, row * _PS1_CELLS + column)


@dataclass(frozen=True, kw_only=True)
class Tile:
    """An unWISE coadd: its name, such as "1497p015", and its pixels."""

    name: str
    grid: Grid


def tiles_at(ra: float, dec: float, margin_pixels: float) -> list[Tile]:
    """The coadds that a square about a position touches, by name.

    Args:
        ra: degrees.
        dec: degrees.
        margin_pixels: half the square's side.
    """
    found = []
    middle = round(dec / _TILE_STEP_DEG)
    for j in range(middle - 1, middle + 2):
        tile_dec = j * _TILE_STEP_DEG
        count = max(1, int(360 * np.cos(np.radians(tile_dec)) / _TILE_STEP_DEG))
        near = round(ra / 360 * count)
        for i in {k % count for k in range(near - 1, near + 2)}:
            tile = _tile(i * 360 / count, tile_dec)
            x, y = tile.grid.pixel(ra, dec)
            last = UNWISE_TILE_PIXELS - 1 + margin_pixels
            if -margin_pixels < x < last and -margin_pixels < y < last:
                found.append(tile)
    return sorted(found, key=lambda tile: tile.name)


def _tile(ra: float, dec: float) -> Tile:
    sign = "p" if dec >= 0 else "m"
    center = (UNWISE_TILE_PIXELS - 1) / 2
    return Tile(
        name=f"{round(ra * 10):04d}{sign}{round(abs(dec) * 10):03d}",
        grid=Grid(
            ra=ra,
            dec=dec,
            x=center,
            y=center,
            scale_arcsec=UNWISE_SCALE_ARCSEC,
            width=UNWISE_TILE_PIXELS,
            height=UNWISE_TILE_PIXELS,
        ),
    )
