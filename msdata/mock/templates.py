"""The real part of the mock: kcorrect's five spectra and its catalog of SDSS galaxies.

The catalog (10,000 galaxies of the SDSS main sample with 2MASS magnitudes) gives redshifts,
positions, dust and fluxes; a non-negative fit of the five spectra to the fluxes of each galaxy
gives its spectrum from 600 A to 320 um, and so its fluxes in bands that SDSS does not have. Only
data files of the kcorrect package are read; its code is not run.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.errors import MissingPackageError, needing
from msdata.mock.cosmology import luminosity_distance_mpc
from msdata.mock.photometry import band_fluxes, load_passbands

Floats = NDArray[np.float64]

# Array suffixes: N galaxies, B bands, T templates, W wavelengths, Z redshifts.

_FIT_BANDS = (*(f"sdss2010-{b}" for b in "ugriz"), *(f"twomass-{b}" for b in ("J", "H", "Ks")))
# SDSS to AB (Blanton & Roweis 2007, AJ 133, 734, section 2.3), 2MASS Vega to AB (there, table 1).
_SDSS_TO_AB = np.array([-0.036, 0.012, 0.010, 0.028, 0.040])
_2MASS_TO_AB = np.array([0.91, 1.39, 1.85])
# A_JHK / A_r of Schlegel, Finkbeiner & Davis 1998, ApJ 500, 525, table 6, as is SDSS's EXTINCTION.
_JHK_OF_R = np.array([0.902, 0.576, 0.367]) / 2.751
_R_PER_EBV = 2.751
# Fractional errors: the templates' own mismatch; the 2MASS magnitudes have another aperture.
_FIT_ERROR = np.array([0.08, 0.03, 0.03, 0.03, 0.04, 0.15, 0.15, 0.15])


@dataclass(frozen=True, kw_only=True)
class Templates:
    """Five spectra of stellar populations of 1 solar mass formed, at 10 pc.

    Attributes:
        wavelength: float64 (W,), Angstrom, rest frame, 600 A to 320 um.
        flux: float64 (T, W), erg/s/cm^2/A.
        remaining_mass: float64 (T,), solar masses still in stars.
    """

    wavelength: Floats
    flux: Floats
    remaining_mass: Floats


@dataclass(frozen=True, kw_only=True)
class GalaxyCatalog:
    """Real galaxies, as seen from where they are.

    Attributes:
        redshift: float64 (N,).
        coefficient: float64 (N, T), the weight of each template in the observed spectrum.
        log_mass: float64 (N,), log10 of the stellar mass in solar masses.
        ra: float64 (N,), degrees.
        dec: float64 (N,), degrees.
        ebv: float64 (N,), E(B-V) of Schlegel, Finkbeiner & Davis 1998, magnitudes.
    """

    redshift: Floats
    coefficient: Floats
    log_mass: Floats
    ra: Floats
    dec: Floats
    ebv: Floats


def _open_fits(name: str) -> Any:
    """Opens a data file of kcorrect."""
    # Finding is not importing: kcorrect's __init__ pulls in matplotlib, a second of start-up.
    spec = find_spec("kcorrect")
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackageError(
            "mock galaxies need kcorrect's templates and catalog, and kcorrect is absent; "
            "run: pip install 'msdata[mock]'"
        )
    # Imported here because the processes that draw objects import this module, never read FITS,
    # and would start half a second later.
    from astropy.io import fits

    return fits.open(Path(spec.submodule_search_locations[0]) / "data" / name)


def load_templates() -> Templates:
    """Reads kcorrect's five default templates.

    Raises:
        MissingPackageError: kcorrect is not installed.

    Source:
        Blanton & Roweis 2007, AJ 133, 734, section 3.
    """
    with _open_fits("templates/kcorrect-default-v4.fits") as hdus:
        table = hdus["FLUX"].data
        return Templates(
            wavelength=np.array(table["wave"][0], dtype=np.float64),
            flux=np.array(table["flux"][0], dtype=np.float64),
            remaining_mass=np.array(hdus["MREMAIN"].data, dtype=np.float64),
        )


def load_galaxies(templates: Templates) -> GalaxyCatalog:
    """Reads kcorrect's SDSS galaxies and fits the templates to each.

    Args:
        templates: the five spectra.

    Returns:
        The galaxies whose redshift and fluxes are sound, in the file's order.

    Raises:
        MissingPackageError: kcorrect, speclite or SciPy is not installed.
    """
    with _open_fits("test/gst_tests_small.fits") as hdus:
        table = hdus[1].data
        columns = {n: np.array(table[n], dtype=np.float64) for n in table.names}
    magnitude_r = 22.5 - 2.5 * np.log10(np.maximum(columns["PETROFLUX"][:, 2], 1e-9))
    sound = (columns["Z"] > 0.005) & (magnitude_r < 18.5) & (columns["MODELFLUX"][:, 1:] > 0).all(1)
    sound &= (columns["J_M_EXT"] > 0) & (columns["H_M_EXT"] > 0) & (columns["K_M_EXT"] > 0)
    columns = {name: values[sound] for name, values in columns.items()}
    maggies_NB = _unreddened_maggies(columns)
    coefficient_NT = _fit(templates, columns["Z"], maggies_NB)
    # Coefficients are solar masses formed if the galaxy were at 10 pc.
    mass_N = coefficient_NT @ templates.remaining_mass
    mass_N *= (luminosity_distance_mpc(columns["Z"]) * 1e5) ** 2
    return GalaxyCatalog(
        redshift=columns["Z"],
        coefficient=coefficient_NT,
        log_mass=np.log10(mass_N),
        ra=columns["RA"],
        dec=columns["DEC"],
        ebv=columns["EXTINCTION"][:, 2] / _R_PER_EBV,
    )


def fit_nonnegative(
    design_NBT: NDArray[np.float64], target_NB: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Solves N small problems min |A x - b| with x >= 0.

    Args:
        design_NBT: float64 (N, B, T), one design matrix A per problem.
        target_NB: float64 (N, B), one right-hand side b per problem.

    Returns:
        float64 (N, T), the solutions.

    Raises:
        MissingPackageError: SciPy is not installed.

    Source:
        Lawson & Hanson 1974, Solving Least Squares Problems, chapter 23.
    """
    with needing("mock galaxies need SciPy", "mock"):
        from scipy.optimize import nnls
    return np.stack(
        [nnls(design, target)[0] for design, target in zip(design_NBT, target_NB, strict=True)]
    )


def _unreddened_maggies(columns: dict[str, Floats]) -> Floats:
    """AB fluxes (N, 8) in ugrizJHK: model colors, scaled to the Petrosian flux in r."""
    extinction_r = columns["EXTINCTION"][:, 2:3]
    total = np.clip(columns["PETROFLUX"][:, 2:3] / columns["MODELFLUX"][:, 2:3], 0.5, 2.0)
    sdss = np.maximum(columns["MODELFLUX"], 0.0) * 1e-9 * total
    sdss = sdss * 10 ** (0.4 * (columns["EXTINCTION"] - _SDSS_TO_AB))
    vega = np.stack([columns[f"{b}_M_EXT"] for b in "JHK"], axis=1)
    twomass = 10 ** (-0.4 * (vega + _2MASS_TO_AB - extinction_r * _JHK_OF_R))
    return np.concatenate([sdss, twomass], axis=1)


def _fit(templates: Templates, redshift_N: Floats, maggies_NB: Floats) -> Floats:
    """Coefficients (N, T) of the templates that come closest to the fluxes, relatively."""
    grid_Z = np.linspace(0.0, 0.6, 241)
    flux_ZBT = band_fluxes(templates.wavelength, templates.flux, load_passbands(_FIT_BANDS), grid_Z)
    place = np.clip(redshift_N / grid_Z[1], 0, len(grid_Z) - 1.001)
    low = place.astype(np.int64)
    share = (place - low)[:, None, None]
    design_NBT = (1 - share) * flux_ZBT[low] + share * flux_ZBT[low + 1]
    # A u flux of zero gets the error it would have at a tenth of the g flux.
    error_NB = _FIT_ERROR * np.maximum(maggies_NB, 0.1 * maggies_NB[:, 1:2])
    # Columns of like size: NNLS compares them with a fixed tolerance.
    scale_T = flux_ZBT[:, 2].mean(axis=0)
    design_NBT = design_NBT / scale_T * (maggies_NB[:, 2:3] / error_NB)[:, :, None]
    coefficient_NT = fit_nonnegative(design_NBT, maggies_NB / error_NB)
    return np.asarray(coefficient_NT * maggies_NB[:, 2:3] / scale_T, dtype=np.float64)
