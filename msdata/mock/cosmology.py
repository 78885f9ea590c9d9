"""Distances in the flat LCDM universe of the mock galaxies: H0 = 70 km/s/Mpc, Omega_m = 0.3."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SPEED_OF_LIGHT_KM_S = 299_792.458
HUBBLE_KM_S_MPC = 70.0
OMEGA_MATTER = 0.3
ARCSEC_PER_RADIAN = 206_264.806

# Fine enough for a relative error of the comoving distance below 1e-6.
_GRID_REDSHIFT = np.linspace(0.0, 2.0, 2001)
_EXPANSION = np.sqrt(OMEGA_MATTER * (1 + _GRID_REDSHIFT) ** 3 + 1 - OMEGA_MATTER)
_STEPS = 0.5 * (1 / _EXPANSION[1:] + 1 / _EXPANSION[:-1]) * np.diff(_GRID_REDSHIFT)
_GRID_COMOVING_MPC = (
    SPEED_OF_LIGHT_KM_S / HUBBLE_KM_S_MPC * np.concatenate([[0.0], np.cumsum(_STEPS)])
)


def luminosity_distance_mpc(redshift: NDArray[np.float64]) -> NDArray[np.float64]:
    """Luminosity distance.

    Args:
        redshift: float64, any shape, 0 <= z <= 2.

    Returns:
        float64, the same shape, in Mpc.

    Source:
        Hogg 1999, arXiv:astro-ph/9905116, equations 15 and 21.
    """
    comoving = np.interp(redshift, _GRID_REDSHIFT, _GRID_COMOVING_MPC)
    return np.asarray(comoving * (1 + redshift), dtype=np.float64)


def arcsec_per_kpc(redshift: float) -> float:
    """Angle that one physical kpc spans at a redshift, in arcsec.

    Source:
        Hogg 1999, equation 18: the angular diameter distance is D_L / (1 + z)^2.
    """
    distance_mpc = float(luminosity_distance_mpc(np.asarray(redshift)))
    return ARCSEC_PER_RADIAN * (1 + redshift) ** 2 / (distance_mpc * 1e3)
