"""What stands in the field besides the galaxy: neighbors, stars, now and then a bright star."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msdata.mock.photometry import redden
from msdata.mock.population import Population, draw_field_galaxy, draw_magnitude
from msdata.mock.profiles import Component, draw_components

Floats = NDArray[np.float64]

# Half the side of the widest cutout, unWISE: 32 pixels of 2.75 arcsec.
HALF_SIDE_ARCSEC = 44.0
_SQUARE_DEGREES = (2 * HALF_SIDE_ARCSEC / 3600) ** 2
# A square degree away from the Galactic plane: galaxies with 17 < r < 22.5 (Yasuda et al. 2001, AJ
# 122, 1104), stars with 13.5 < r < 21.5 (Juric et al. 2008, ApJ 673, 864), in round figures.
_GALAXIES_PER_SQUARE_DEGREE = 11_000
_STARS_PER_SQUARE_DEGREE = 2_500
# Share of the objects with a saturated star in the Pan-STARRS cutout: ours, to have enough of them.
BRIGHT_STAR_SHARE = 0.04
_SATURATION_MAG = 13.5


@dataclass(frozen=True, kw_only=True)
class Source:
    """Something that shines.

    Attributes:
        maggies: float64 (9,), AB fluxes as observed, dust included.
        x_arcsec: offset from the galaxy along columns.
        y_arcsec: offset from the galaxy along rows.
        components: its shape; empty for a point.
    """

    maggies: Floats
    x_arcsec: float
    y_arcsec: float
    components: tuple[Component, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SaturatedCore:
    """The core of a bright star, which Pan-STARRS masks with NaN.

    Attributes:
        x_arcsec: offset from the galaxy along columns.
        y_arcsec: offset from the galaxy along rows.
        radius_arcsec: radius of the mask in each of grizy.
    """

    x_arcsec: float
    y_arcsec: float
    radius_arcsec: tuple[float, ...]


def draw_neighbors(
    population: Population, mixtures: Floats, ebv: float, rng: np.random.Generator
) -> list[Source]:
    """Draws the galaxies and faint stars of a field, at random places.

    Args:
        population: the real galaxies and the colors of stars.
        mixtures: float64 (23, 16), of `sersic_mixtures`.
        ebv: Galactic E(B-V), which dims the stars as well.
        rng: random generator; it moves on.
    """
    sources = []
    for _ in range(rng.poisson(_GALAXIES_PER_SQUARE_DEGREE * _SQUARE_DEGREES)):
        galaxy = draw_field_galaxy(population, rng)
        x_arcsec, y_arcsec = _draw_place(rng)
        sources.append(
            Source(
                maggies=redden(galaxy.maggies, ebv),
                x_arcsec=x_arcsec,
                y_arcsec=y_arcsec,
                components=draw_components(galaxy, mixtures, rng),
            )
        )
    for _ in range(rng.poisson(_STARS_PER_SQUARE_DEGREE * _SQUARE_DEGREES)):
        magnitude = draw_magnitude(rng, brightest=_SATURATION_MAG, faintest=21.5, slope=0.13)
        x_arcsec, y_arcsec = _draw_place(rng)
        maggies = redden(_draw_star(population, magnitude, rng), ebv)
        sources.append(Source(maggies=maggies, x_arcsec=x_arcsec, y_arcsec=y_arcsec))
    return sources


def draw_bright_star(
    population: Population, ebv: float, rng: np.random.Generator
) -> tuple[tuple[Source, ...], SaturatedCore | None]:
    """Draws a saturated star near the galaxy; most fields have none: () and None.

    The mask's radius follows the magnitude, 0.8 arcsec at 13.5 and 2.5 arcsec at 9.7 (above that
    the mask covers more than 1 % of the Pan-STARRS cutout, and `msdata pack` rejects the object),
    with a little scatter from band to band.
    """
    if rng.random() >= BRIGHT_STAR_SHARE:
        return (), None
    magnitude = draw_magnitude(rng, brightest=8.5, faintest=_SATURATION_MAG, slope=0.2)
    distance, angle = float(rng.uniform(7.0, 19.0)), float(rng.uniform(0, 2 * math.pi))
    x_arcsec, y_arcsec = distance * math.cos(angle), distance * math.sin(angle)
    source = Source(
        maggies=redden(_draw_star(population, magnitude, rng), ebv),
        x_arcsec=x_arcsec,
        y_arcsec=y_arcsec,
    )
    radius = 0.8 * 10 ** (0.13 * (_SATURATION_MAG - magnitude))
    radii = tuple(float(radius * rng.uniform(0.85, 1.1)) for _ in range(5))
    return (source,), SaturatedCore(x_arcsec=x_arcsec, y_arcsec=y_arcsec, radius_arcsec=radii)


def _draw_place(rng: np.random.Generator) -> tuple[float, float]:
    x_arcsec, y_arcsec = rng.uniform(-HALF_SIDE_ARCSEC, HALF_SIDE_ARCSEC, size=2)
    return float(x_arcsec), float(y_arcsec)


def _draw_star(population: Population, magnitude_r: float, rng: np.random.Generator) -> Floats:
    # Cool dwarfs outnumber hot ones: the square of a uniform number favors the cool end.
    kind = int(len(population.star_flux) * rng.random() ** 2)
    return np.asarray(population.star_flux[kind] * 10 ** (-0.4 * magnitude_r), dtype=np.float64)
