"""Galaxy light: Sersic laws as mixtures of Gaussians, and the sizes and shapes galaxies have.

A mixture of concentric Gaussians has an analytic Fourier transform, so a galaxy is drawn on the
frequencies of the image, multiplied by the PSF's transform and inverted once per band: no sampled
cusp, no convolution of images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msdata.mock.cosmology import arcsec_per_kpc
from msdata.mock.population import Galaxy
from msdata.mock.templates import fit_nonnegative

Floats = NDArray[np.float64]

# Gaussian widths of the mixtures, in half-light radii.
MIXTURE_SIGMA = np.geomspace(0.008, 5.0, 16)
_INDEX_GRID = np.linspace(0.5, 6.0, 23)


@dataclass(frozen=True, kw_only=True)
class Component:
    """One elliptical Sersic component.

    Attributes:
        share: part of the galaxy's light.
        half_light_arcsec: half-light radius along the major axis.
        axis_ratio: minor over major axis, 0 to 1.
        angle_rad: direction of the major axis, from +x towards +y.
        mixture: float64 (16,), light in each Gaussian of MIXTURE_SIGMA; the sum is 1.
    """

    share: float
    half_light_arcsec: float
    axis_ratio: float
    angle_rad: float
    mixture: Floats


def sersic_mixtures() -> Floats:
    """Fits a mixture of Gaussians to the Sersic law of each index of a grid.

    Returns:
        float64 (23, 16), the weights of MIXTURE_SIGMA for the indices 0.5, 0.75, ... 6; the sum of
        each row is 1.

    Raises:
        MissingPackageError: SciPy is not installed.

    Source:
        The idea: Hogg & Lang 2013, PASP 125, 719. The fit is ours: fixed widths, non-negative
        weights, least squares of the light in rings of equal log r. b_n: Ciotti & Bertin 1999,
        A&A 352, 447, equation 18.
    """
    radius = np.geomspace(0.01, 10.0, 150)
    gaussian_RK = np.exp(-0.5 * (radius[:, None] / MIXTURE_SIGMA) ** 2)
    gaussian_RK *= radius[:, None] ** 2 / (2 * math.pi * MIXTURE_SIGMA**2)
    targets = []
    for n in _INDEX_GRID:
        b = 2 * n - 1 / 3 + 4 / (405 * n) + 46 / (25_515 * n**2)
        total = 2 * math.pi * n * b ** (-2 * n) * math.gamma(2 * n)
        targets.append(np.exp(-b * radius ** (1 / n)) / total * radius**2)
    weights = fit_nonnegative(np.stack([gaussian_RK] * len(targets)), np.stack(targets))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float64)


def mixture_of_index(mixtures: Floats, index: float) -> Floats:
    """Interpolates the mixtures to a Sersic index.

    Args:
        mixtures: float64 (23, 16), of `sersic_mixtures`.
        index: Sersic index, taken as 0.5 to 6.

    Returns:
        float64 (16,), the weights of MIXTURE_SIGMA.
    """
    place = float(np.clip((index - 0.5) / 0.25, 0, len(_INDEX_GRID) - 1.001))
    low = int(place)
    share = place - low
    return np.asarray((1 - share) * mixtures[low] + share * mixtures[low + 1], dtype=np.float64)


def draw_half_light_kpc(galaxy: Galaxy, rng: np.random.Generator) -> float:
    """Draws a half-light radius (major axis) for a galaxy's mass, type and redshift.

    Source:
        van der Wel et al. 2014, ApJ 788, 28: early R = 5.6 (M/5e10)^0.75 (1+z)^-1.48 kpc above
        2e10 solar masses (flatter below), late R = 8.9 (M/5e10)^0.22 (1+z)^-0.75 kpc, with a
        scatter of 0.13 and 0.18 dex.
    """
    log_ratio = galaxy.log_mass - math.log10(5e10)
    log_growth = math.log10(1 + galaxy.redshift)
    if galaxy.early:
        knee = math.log10(2e10 / 5e10)
        slope_part = 0.75 * max(log_ratio, knee) + 0.2 * min(log_ratio - knee, 0.0)
        mean, scatter = math.log10(5.6) + slope_part - 1.48 * log_growth, 0.13
    else:
        mean, scatter = math.log10(8.9) + 0.22 * log_ratio - 0.75 * log_growth, 0.18
    return float(np.clip(10 ** rng.normal(mean, scatter), 0.3, 40.0))


def draw_components(
    galaxy: Galaxy, mixtures: Floats, rng: np.random.Generator
) -> tuple[Component, ...]:
    """Draws the shape of a galaxy: an elliptical, or a disc with a bulge.

    Early types are single Sersic laws of index about 4 and mean axis ratio 0.75; late types are
    discs (index 1, thickness 0.2, seen from a random direction) with a rounder, smaller bulge that
    has up to 60 % of the light.

    Args:
        galaxy: mass, type and redshift.
        mixtures: float64 (23, 16), of `sersic_mixtures`.
        rng: random generator; it moves on.

    Returns:
        One or two components; their shares sum to 1.

    Source:
        Axis ratios: Padilla & Strauss 2008, MNRAS 388, 1321. Indices and bulge shares: Simard et
        al. 2011, ApJS 196, 11, in round figures.
    """
    size_arcsec = draw_half_light_kpc(galaxy, rng) * arcsec_per_kpc(galaxy.redshift)
    if galaxy.early:
        elliptical = Component(
            share=1.0,
            half_light_arcsec=size_arcsec,
            axis_ratio=float(np.clip(rng.normal(0.75, 0.15), 0.3, 1.0)),
            angle_rad=float(rng.uniform(0, math.pi)),
            mixture=mixture_of_index(mixtures, 4.0 * 10 ** rng.normal(0, 0.1)),
        )
        return (elliptical,)
    angle = float(rng.uniform(0, math.pi))
    bulge_share = float(0.6 * rng.beta(1.2, 3.0))
    disc_ratio = math.sqrt(0.04 + 0.96 * rng.random() ** 2)
    disc = Component(
        share=1 - bulge_share,
        half_light_arcsec=size_arcsec,
        axis_ratio=disc_ratio,
        angle_rad=angle,
        mixture=mixture_of_index(mixtures, 1.0),
    )
    bulge = Component(
        share=bulge_share,
        half_light_arcsec=size_arcsec * float(rng.uniform(0.15, 0.35)),
        axis_ratio=math.sqrt(0.5 + 0.5 * disc_ratio**2),
        angle_rad=angle,
        mixture=mixture_of_index(mixtures, float(rng.uniform(2.0, 4.0))),
    )
    return disc, bulge
