"""Checks a FITS answer before it counts, and cuts the stamp out of it.

Content, length, shape, band, pixel scale, the position's place, unit: each answer is held against
what was asked for, since the services clamp sizes, ignore unknown names and apologize in plain text
without saying so in the status.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msdata.errors import SampleError, naming
from msdata.fetch.failures import RefusedError, SpoiledError
from msdata.schema import Survey
from msdata.sources.fits_image import Plane, read_planes
from msdata.sources.stamp import SCALE_TOLERANCE, Placement, cut_stamp, whole_pixel_turn
from msdata.sources.survey_file import SurveyFile
from msdata.sources.zero_points import zero_point_ab

# What services say under HTTP 200 of things they will never have.
_FINAL_TEXTS = re.compile(r"no such layer|no overlap|cannot open|outside|not found", re.IGNORECASE)
# Positions are rounded on their way: in a query, in a header's decimals.
_ROUNDING_PIXELS = 0.02
_ZERO_POINT_TOLERANCE = 2e-3


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What an image must be.

    Attributes:
        survey: array that it is for.
        position: right ascension and declination, degrees.
        size: pixels of a side that were asked for.
        center: pixel, counted from 0, within half a pixel of which the position must lie; None
            where the service does not promise one.
        rules: the survey file that the array is of; None for those of `MANTIS_SHRIMP`.
    """

    survey: Survey
    position: tuple[float, float]
    size: int
    center: float | None
    rules: SurveyFile | None = None


@dataclass(frozen=True, kw_only=True)
class Band:
    """One band's stamp.

    Attributes:
        pixels: float32 (size, size) of the schema.
        zero_point: AB magnitude of a pixel value of 1.
        num_nan: NaN pixels in it.
        offset_pixels: from the stamp's center to the position, (columns, rows).
        tilt_deg: angle from the columns' direction to north.
    """

    pixels: NDArray[np.float32]
    zero_point: float
    num_nan: int
    offset_pixels: tuple[float, float] = (0.0, 0.0)
    tilt_deg: float = 0.0


def start_of(content: bytes) -> str:
    """The start of an answer that is a text, in one line."""
    return " ".join(content[:300].decode("ascii", "replace").split())[:80]


def fits_planes(content: bytes, most_nbytes: int) -> list[Plane]:
    """The images of a FITS answer.

    Args:
        content: the answer.
        most_nbytes: limit of its unpacked size; a few bytes can stand for gigabytes.

    Raises:
        RefusedError: it is a text that says there is none.
        SpoiledError: it is not FITS, or truncated, or empty.
    """
    if content[:6] != b"SIMPLE" and content[:2] != b"\x1f\x8b":
        text = start_of(content)
        kind = RefusedError if _FINAL_TEXTS.search(text) else SpoiledError
        raise kind(f"it sent no FITS but the text {text!r}")
    try:
        return read_planes(content, most_nbytes)
    except SampleError as error:
        raise SpoiledError(f"its FITS cannot be used: {error}") from error


def planes_by_band(
    planes: Sequence[Plane], survey: Survey, words: Mapping[str, str]
) -> dict[str, Plane]:
    """Assigns images to bands by what their header says, never by their order.

    Args:
        planes: the images of one answer.
        survey: whose bands are wanted.
        words: the service's names of the bands, in lower case, and the survey's.

    Returns:
        A plane for each of the survey's bands.

    Raises:
        RefusedError: a band is missing, is there twice, was not asked for, or is not named.
    """
    found: dict[str, Plane] = {}
    for plane in planes:
        band = words.get(plane.band or "")
        if band is None:
            said = "an image without a band's name" if plane.band is None else f"band {plane.band}"
            raise RefusedError(f"it sent {said}; wanted are {', '.join(survey.bands)}")
        if band in found:
            raise RefusedError(f"it sent band {band} twice")
        found[band] = plane
    missing = [band for band in survey.bands if band not in found]
    if missing:
        raise RefusedError(f"it sent no band {', '.join(missing)}, only {', '.join(found)}")
    return found


def band_stamp(plane: Plane, band: str, wanted: Wanted) -> Band:
    """Checks an image and cuts the schema's stamp out of it, pixel for pixel.

    Args:
        plane: the image.
        band: which of the survey's it is.
        wanted: what it must be.

    Raises:
        RefusedError: it is not that.
    """
    height, width = plane.pixels.shape
    size = wanted.size
    if (height, width) != (size, size) and wanted.center is not None:
        raise RefusedError(f"band {band} has {width}x{height} pixels, asked for were {size}x{size}")
    placement = _located(plane, band, wanted)
    if wanted.center is not None:
        off = max(abs(placement.x - wanted.center), abs(placement.y - wanted.center))
        if not off <= 0.5 + _ROUNDING_PIXELS:
            raise RefusedError(
                f"band {band} has the position {off:.2f} pixels from its center, more than half a "
                "pixel"
            )
    with naming(f"band {band}", RefusedError):
        scale = _scale(wanted.survey)
        stamp = cut_stamp(plane.pixels, placement, wanted.survey.shape[1], scale)
    with np.errstate(over="ignore"):
        pixels = stamp.pixels.astype(np.float32)
    num_nan = int(np.count_nonzero(np.isnan(pixels)))
    if num_nan == pixels.size:
        raise RefusedError(f"band {band} is NaN throughout")
    if bool(np.isinf(pixels).any()):
        raise RefusedError(f"band {band} holds infinite pixels")
    return Band(
        pixels=pixels,
        zero_point=_zero_point(plane, band, wanted),
        num_nan=num_nan,
        offset_pixels=stamp.offset_pixels,
        tilt_deg=stamp.tilt_deg,
    )


def _scale(survey: Survey) -> float:
    assert survey.pixel_scale_arcsec is not None
    return survey.pixel_scale_arcsec


def _located(plane: Plane, band: str, wanted: Wanted) -> Placement:
    with naming(f"band {band}", RefusedError):
        placement = plane.grid.locate(*wanted.position)
    scale = _scale(wanted.survey)
    if whole_pixel_turn(placement, scale) is None:
        found = placement.pixel_scale_arcsec
        if abs(found / scale - 1) > SCALE_TOLERANCE:
            raise RefusedError(f"band {band} has {found:.4f} arcsec per pixel instead of {scale:g}")
        raise RefusedError(f"band {band} leans by {placement.tilt_deg:.1f} degrees against north")
    return placement


def _zero_point(plane: Plane, band: str, wanted: Wanted) -> float:
    """The header's zero-point, or the survey's; refuses a unit that the schema does not mean."""
    survey = wanted.survey
    with naming(f"band {band}", RefusedError):
        if wanted.rules is not None:
            return wanted.rules.zero_point_ab(band, plane.photometry)
        found = zero_point_ab(survey, band, plane.photometry)
    if found is None or not math.isfinite(found):
        fault = plane.photometry.exposure_fault
        raise RefusedError(f"band {band} {fault}, so its unit is unknown")
    if survey.zero_points_ab is not None:
        promised = survey.zero_points_ab[survey.bands.index(band)]
        if abs(found - promised) > _ZERO_POINT_TOLERANCE:
            raise RefusedError(
                f"band {band} has the AB zero-point {found:.3f}, the schema means {promised:g}"
            )
    return found
