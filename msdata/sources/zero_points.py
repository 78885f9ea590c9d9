"""AB zero-points of survey images, and the factor from their pixels to nanomaggies.

A nanomaggy is the flux of AB magnitude 22.5; of a source of f nanomaggies in all, the magnitude is
22.5 - 2.5 log10 f, in every band of every survey alike.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from msdata.errors import SampleError
from msdata.schema import Survey

if TYPE_CHECKING:
    from msdata.sources.fits_image import Photometry

NANOMAGGY = "nanomaggy"
NANOMAGGY_ZERO_POINT = 22.5
# AB minus Vega. Source: Jarrett et al. 2011, ApJ 735, 112, table 3, as unWISE's own catalogs
# take it: 22.5 + 2.699 and 22.5 + 3.339.
_AB_OF_VEGA = {"W1": 2.699, "W2": 3.339}
# Pan-STARRS' stacks are scaled to it. Source: Waters et al. 2020, ApJS 251, 4.
_PANSTARRS_ZERO_POINT = 25.0
# What TELESCOP, INSTRUME or SURVEY hold in files of each survey, in lower case.
_OWN_WORDS = {
    "panstarrs": ("ps1", "ps2", "gpc", "pan-starrs", "panstarrs", "pan starrs"),
    # The Legacy Survey's viewer writes its own name into them too.
    "galex": ("galex", "legacysurvey"),
    "unwise": ("wise", "legacysurvey"),
}
_UNKNOWN_ORIGINS = ("unknown", "none", "n/a")
_PER_SECOND = ("count/s", "counts/s", "count/sec", "counts/sec", "ct/s", "dn/s", "adu/s")
_COUNTS = ("count", "counts", "ct", "dn", "adu")
_NANOMAGGIES = ("nanomaggy", "nanomaggies", "nmgy", "nanomgy")


def zero_point_ab(survey: Survey, band: str, photometry: Photometry) -> float | None:
    """AB magnitude of a pixel value of 1, from the header first, else the survey's own.

    Pan-STARRS: FPA.ZP (25 where absent) + 2.5 log10(EXPTIME). GALEX: 20.08 (NUV), 18.82 (FUV) for
    counts per second; + 2.5 log10(EXPTIME) where BUNIT says counts. WISE: MAGZP + 2.699 (W1), 3.339
    (W2), else 25.199 and 25.839. Any survey: 22.5 where BUNIT says nanomaggies.

    Args:
        survey: the array, with zero-points where they are the same for all objects.
        band: one of its bands.
        photometry: what the header says.

    Returns:
        The magnitude; None where the header lacks the exposure time that it takes.

    Raises:
        SampleError: the unit is not one of flux per pixel, or the header names another survey.

    Source: Morrissey et al. 2007, ApJS 173, 682 (GALEX); Waters et al. 2020 (Pan-STARRS).
    """
    unit = photometry.unit
    if unit in _NANOMAGGIES:
        return NANOMAGGY_ZERO_POINT
    if unit and unit not in _PER_SECOND and unit not in _COUNTS:
        raise SampleError(f"its pixels' unit {unit!r} is neither counts nor nanomaggies")
    _check_origin(survey, photometry)
    if survey.name == "unwise" and photometry.vega_zero_point is not None:
        return photometry.vega_zero_point + _AB_OF_VEGA[band]
    if survey.zero_points_ab is not None:
        fixed = survey.zero_points_ab[survey.bands.index(band)]
        is_sum = unit in _COUNTS and survey.unit.endswith("/s")
        return _of_sum(fixed, photometry) if is_sum else fixed
    rate = photometry.zero_point if photometry.zero_point is not None else _PANSTARRS_ZERO_POINT
    return rate if unit in _PER_SECOND else _of_sum(rate, photometry)


def _check_origin(survey: Survey, photometry: Photometry) -> None:
    """Refuses a file whose header names others alone: it has another zero-point."""
    said = [(c, v) for c, v in photometry.origin if v.lower() not in _UNKNOWN_ORIGINS]
    own = _OWN_WORDS[survey.name]
    if said and not any(word in value.lower() for _, value in said for word in own):
        texts = ", ".join(f"{card} {value!r}" for card, value in said)
        raise SampleError(
            f"its header says {texts}, so it is not of {survey.name} and has another zero-point; "
            f"give files of {survey.name}, or convert it to nanomaggies and say so in BUNIT"
        )


def _of_sum(rate: float, photometry: Photometry) -> float | None:
    """Zero-point of what was counted in the whole exposure, from that of one second."""
    exposure = photometry.exposure_s
    return rate + 2.5 * math.log10(exposure) if exposure is not None and exposure > 0 else None


def nanomaggies_per_unit(zero_point: float) -> float:
    """Flux in nanomaggies of a pixel value of 1.

    Args:
        zero_point: AB magnitude of a pixel value of 1.
    """
    return float(10 ** (0.4 * (NANOMAGGY_ZERO_POINT - zero_point)))
