"""AB fluxes of spectra through the nine passbands, and what Galactic dust takes from them.

Fluxes are in maggies: 1 maggie is AB magnitude 0. Integrals are over photons, as CCDs and the
microchannel plates of GALEX count them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msdata.errors import needing

Floats = NDArray[np.float64]

# Array suffixes: Z redshifts, B bands, T spectra (templates), W wavelengths.

BANDS = ("FUV", "NUV", "g", "r", "i", "z", "y", "W1", "W2")
_SPECLITE_NAMES = {
    "FUV": "galex-fuv",
    "NUV": "galex-nuv",
    **{band: f"panstarrs-{band}" for band in "grizy"},
    "W1": "wise2010-W1",
    "W2": "wise2010-W2",
}

# A_band / E(B-V) for dust with R_V = 3.1. PS1: Schlafly & Finkbeiner 2011, ApJ 737, 103, table 6.
# GALEX: Wyder et al. 2007, ApJS 173, 293. WISE: after Yuan, Liu & Xiang 2013, MNRAS 430, 2188; so
# small that a tenth more or less changes nothing.
EXTINCTION_PER_EBV = np.array([8.24, 8.20, 3.172, 2.271, 1.682, 1.322, 1.087, 0.18, 0.16])

_SPEED_OF_LIGHT_ANGSTROM_S = 2.997_924_58e18
# 3631 Jy in erg/s/cm^2/Hz.
_AB_FLUX_DENSITY = 3.631e-20
# Narrower than the templates' own steps, so that emission lines keep their flux.
_LOG_STEP = 0.0005


@dataclass(frozen=True, kw_only=True)
class Passband:
    """A filter's response on a grid that is even in the logarithm of the wavelength.

    Attributes:
        name: the filter's name in speclite.
        wavelength_angstrom: float64 (W,), increasing.
        photon_weight: float64 (W,); the sum of flux density (erg/s/cm^2/A) times this is maggies.
    """

    name: str
    wavelength_angstrom: Floats
    photon_weight: Floats


def load_passbands(names: tuple[str, ...] = BANDS) -> tuple[Passband, ...]:
    """Reads passbands from speclite.

    Args:
        names: our names of bands, or speclite's own ("sdss2010-u").

    Returns:
        The passbands, in the order asked for.

    Raises:
        MissingPackageError: speclite is not installed.
    """
    with needing("mock photometry needs speclite", "mock"):
        from speclite import filters
    passbands = []
    for name in names:
        response = filters.load_filter(_SPECLITE_NAMES.get(name, name))
        passbands.append(_even_grid(response.name, response.wavelength, response.response))
    return tuple(passbands)


def _even_grid(name: str, wavelength: Floats, response: Floats) -> Passband:
    log_wavelength = np.arange(np.log(wavelength[0]), np.log(wavelength[-1]), _LOG_STEP)
    grid = np.exp(log_wavelength)
    # Photons: integral of f_lambda * lambda * R dlambda, with dlambda = lambda dlog(lambda).
    weight = grid**2 * np.interp(grid, wavelength, response)
    reference = _AB_FLUX_DENSITY * _SPEED_OF_LIGHT_ANGSTROM_S / grid**2
    return Passband(
        name=name, wavelength_angstrom=grid, photon_weight=weight / np.sum(weight * reference)
    )


def band_fluxes(
    wavelength_W: Floats, flux_TW: Floats, passbands: tuple[Passband, ...], redshift_Z: Floats
) -> Floats:
    """Fluxes of redshifted spectra; the bolometric flux is kept, so no distance enters.

    Args:
        wavelength_W: float64 (W,), rest frame, Angstrom, increasing.
        flux_TW: float64 (T, W), erg/s/cm^2/A. Outside the wavelengths given it counts as zero;
            blueward of 600 A interstellar hydrogen leaves none.
        passbands: the B passbands.
        redshift_Z: float64 (Z,).

    Returns:
        float64 (Z, B, T), maggies. Times (D_L(z0)/D_L(z))^2 it is what an observer sees of a galaxy
        moved from z0 to z.

    Source:
        Hogg et al. 2002, arXiv:astro-ph/0210394, equations 2 and 7.
    """
    fluxes = np.empty((len(redshift_Z), len(passbands), len(flux_TW)))
    for b, passband in enumerate(passbands):
        rest_ZW = passband.wavelength_angstrom / (1 + redshift_Z[:, None])
        for t, flux_W in enumerate(flux_TW):
            seen_ZW = np.interp(rest_ZW, wavelength_W, flux_W, left=0.0, right=0.0)
            fluxes[:, b, t] = (seen_ZW * passband.photon_weight).sum(axis=1) / (1 + redshift_Z)
    return fluxes


def redden(maggies_B: Floats, ebv: float) -> Floats:
    """Dims fluxes by Galactic dust.

    Args:
        maggies_B: float64 (9,), in the order of BANDS.
        ebv: E(B-V) in magnitudes.

    Returns:
        float64 (9,), maggies.
    """
    return np.asarray(maggies_B * 10 ** (-0.4 * EXTINCTION_PER_EBV * ebv), dtype=np.float64)


def star_colors(
    temperature_kelvin: Floats, passbands: tuple[Passband, ...], reference: str = "r"
) -> Floats:
    """Fluxes of black bodies, in units of the flux in one band.

    A black body lacks the lines and the ultraviolet blanketing of a real star, but suffices as a
    field object with about the right color.

    Args:
        temperature_kelvin: float64 (T,).
        passbands: the nine passbands, in the order of BANDS.
        reference: the band whose flux is 1.

    Returns:
        float64 (T, 9).
    """
    wavelength = np.geomspace(1000.0, 60_000.0, 2000)
    exponent = 1.438_776_9e8 / (wavelength * temperature_kelvin[:, None])
    planck_TW = wavelength**-5.0 / np.expm1(exponent)
    flux_TB = band_fluxes(wavelength, planck_TW, passbands, np.zeros(1))[0].T
    return np.asarray(flux_TB / flux_TB[:, [BANDS.index(reference)]], dtype=np.float64)
