"""What nine fluxes can tell of a redshift: Fisher information of mock galaxies, band by band.

The yardstick that a network's salience is laid beside, not nature: point sources at the depths of
the mock, spectra known but for their amplitude. Axes: N galaxies, B bands (in the order of BANDS),
T templates.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from msdata.mock import surveys
from msdata.mock.objects import mantis_id
from msdata.mock.photometry import BANDS, EXTINCTION_PER_EBV
from msdata.mock.population import Population, build_population, draw_galaxy
from msdata.schema import MANTIS_SHRIMP

Floats = NDArray[np.float64]

# Share of a flux that no measurement is better than.
FLOOR = 0.02
# Half of the step of derivatives; the templates' grid has steps of 0.005.
_HALF_STEP = 0.01
_GRID_STEP = 0.005


def lost_shares(flux_NB: Floats, slope_NB: Floats, error_NB: Floats) -> Floats:
    """Share of the information on z that goes with each band, at free amplitude; float64 (N, B).

    The information is sum(d^2/s^2) - sum(d f/s^2)^2 / sum(f^2/s^2), with d = df/dz.

    Args:
        flux_NB: float64 (N, B), f.
        slope_NB: float64 (N, B), d.
        error_NB: float64 (N, B), s, above 0.

    Source: Fisher matrix of z and the amplitude of Gaussian fluxes, marginalized by the Schur
    complement; Tegmark, Taylor and Heavens 1997, ApJ 480, 22, equation 15.
    """
    parts = [
        a * b / error_NB**2
        for a, b in ((slope_NB, slope_NB), (slope_NB, flux_NB), (flux_NB, flux_NB))
    ]
    slopes_N1, mixed_N1, fluxes_N1 = (part.sum(axis=1, keepdims=True) for part in parts)
    all_N1 = slopes_N1 - mixed_N1**2 / fluxes_N1
    without = (slopes_N1 - parts[0]) - (mixed_N1 - parts[1]) ** 2 / (fluxes_N1 - parts[2])
    return np.asarray(1 - without / all_N1, np.float64)


def flux_errors(flux_NB: Floats) -> Floats:
    """Errors of point-source fluxes at the depths of the mock, float64 (N, B), maggies.

    Args:
        flux_NB: float64 (N, B), maggies; GALEX counts its own photons.
    """
    noise_B, photon_B = np.zeros(len(BANDS)), np.zeros(len(BANDS))
    for band, depth in surveys.PANSTARRS_DEPTH_AB.items():
        noise_B[BANDS.index(band)] = 10 ** (-0.4 * depth) / 5
    exposure_s = surveys.GALEX_EXPOSURE_S[0][0]
    for band, background in surveys.GALEX_BACKGROUND_COUNT_S.items():
        fwhm = surveys.GALEX_PSF[band].fwhm_arcsec[0]
        noise = math.sqrt(background / exposure_s)
        at, per_count = BANDS.index(band), _maggies_per_count("galex", band)
        noise_B[at] = _matched(noise, fwhm, "galex") * per_count
        photon_B[at] = per_count / exposure_s
    for band, noise in surveys.UNWISE_NOISE_COUNT.items():
        fwhm = surveys.UNWISE_PSF[band].fwhm_arcsec[0]
        matched = _matched(noise, fwhm, "unwise")
        noise_B[BANDS.index(band)] = matched * _maggies_per_count("unwise", band)
    variance_NB = noise_B**2 + photon_B * flux_NB + (FLOOR * flux_NB) ** 2
    return np.asarray(np.sqrt(variance_NB), np.float64)


def _matched(noise: float, fwhm_arcsec: float, survey: str) -> float:
    """Error of a flux by a matched Gaussian filter, from the noise of a pixel."""
    scale = MANTIS_SHRIMP[survey].pixel_scale_arcsec
    assert scale is not None
    return noise * math.sqrt(4 * math.pi) * fwhm_arcsec / surveys.FWHM_PER_SIGMA / scale


def _maggies_per_count(survey: str, band: str) -> float:
    one = MANTIS_SHRIMP[survey]
    assert one.zero_points_ab is not None
    return float(10 ** (-0.4 * one.zero_points_ab[one.bands.index(band)]))


def mock_shares(sample_ids: Sequence[str], ebv_N: Floats, num_objects: int) -> Floats:
    """Shares of information that mock galaxies lose with each band, float64 (N, B).

    Args:
        sample_ids: of the mock's galaxies, made with seed 0 and nothing planted.
        ebv_N: float64 (N,), E(B-V) in magnitudes.
        num_objects: how many were made.

    Raises:
        KeyError: an id is not of this mock.
    """
    population = build_population()
    numbers = {f"{mantis_id(0, number):07d}": number for number in range(num_objects)}
    found = [_flux_and_slope(population, numbers[name]) for name in sample_ids]
    dimming_NB = 10 ** (-0.4 * EXTINCTION_PER_EBV * ebv_N[:, None])
    flux_NB, slope_NB = (np.stack(part) * dimming_NB for part in zip(*found, strict=True))
    return lost_shares(flux_NB, slope_NB, flux_errors(flux_NB))


def _flux_and_slope(population: Population, number: int) -> tuple[Floats, Floats]:
    """Fluxes of a mock galaxy and their derivatives by redshift, (B,) each, without dust."""
    # The first numbers of an object's stream draw its galaxy.
    galaxy = draw_galaxy(population, np.random.default_rng([0, number]))
    weights_T = population.galaxies.coefficient[galaxy.row]

    def fluxes_at(redshift: float) -> Floats:
        low = int(redshift / _GRID_STEP)
        share = redshift / _GRID_STEP - low
        grid_ZBT = population.template_flux
        flux_BT = (1 - share) * grid_ZBT[low] + share * grid_ZBT[low + 1]
        return np.asarray(flux_BT @ weights_T, np.float64)

    low = max(galaxy.redshift - _HALF_STEP, 0.0)
    high = min(galaxy.redshift + _HALF_STEP, (len(population.template_flux) - 2) * _GRID_STEP)
    slope_B = (fluxes_at(high) - fluxes_at(low)) / (high - low)
    at_r = BANDS.index("r")
    # The distance's part of the derivative is one of the amplitude, which is free.
    scale = galaxy.maggies[at_r] / fluxes_at(galaxy.redshift)[at_r]
    return galaxy.maggies, slope_B * scale
