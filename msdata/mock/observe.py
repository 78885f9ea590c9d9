"""One field as Pan-STARRS, GALEX and unWISE would observe it: counts, noise, masks, gaps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from msdata.mock import surveys
from msdata.mock.field import SaturatedCore, Source
from msdata.mock.photometry import BANDS
from msdata.mock.render import Grid, Image, build_grid, draw_images, psf_transforms
from msdata.schema import MANTIS_SHRIMP, Survey

# Pixels of the periodic planes: a half to a quarter more than the cutouts, and quick to transform.
_PADDED = {"panstarrs": 216, "galex": 48, "unwise": 48}
# GALEX and unWISE pixels are half a PSF wide: too coarse to draw on.
_OVERSAMPLING = {"panstarrs": 1, "galex": 2, "unwise": 2}
_FIXED_PSFS = {"galex": surveys.GALEX_PSF, "unwise": surveys.UNWISE_PSF}
# The seeing of a stack varies by about a tenth from field to field.
_SEEING_SCATTER = 0.08


@dataclass(frozen=True, kw_only=True)
class Telescope:
    """How one survey sees a field.

    Attributes:
        survey: its array.
        grid: pixels of its cutout.
        psf: float32 (V, U) per band, Fourier transforms of the PSFs; none if the seeing varies.
    """

    survey: Survey
    grid: Grid
    psf: list[Image]


Telescopes = dict[str, Telescope]


def build_telescopes() -> Telescopes:
    """Computes grids and PSFs for the cutouts of `MANTIS_SHRIMP`, by name."""
    found = {}
    for survey in MANTIS_SHRIMP.arrays:
        assert survey.pixel_scale_arcsec is not None, survey.name
        grid = build_grid(
            survey.shape[1],
            _PADDED[survey.name],
            survey.pixel_scale_arcsec,
            oversampling=_OVERSAMPLING[survey.name],
        )
        fixed = _FIXED_PSFS.get(survey.name)
        psf = psf_transforms(grid, fixed, survey.bands) if fixed else []
        found[survey.name] = Telescope(survey=survey, grid=grid, psf=psf)
    return found


def to_counts(
    sources: Sequence[Source], bands: Sequence[str], zero_points_ab: Sequence[float]
) -> NDArray[np.float64]:
    """Counts (or counts/s) of sources in some bands.

    Args:
        sources: the S sources.
        bands: names of the B bands.
        zero_points_ab: AB magnitude of one count in each.

    Returns:
        float64 (S, B).
    """
    columns = [BANDS.index(band) for band in bands]
    maggies_SB = np.stack([source.maggies[columns] for source in sources])
    return np.asarray(maggies_SB * 10 ** (0.4 * np.asarray(zero_points_ab)), dtype=np.float64)


def _jitter(sources: Sequence[Source], grid: Grid, rng: np.random.Generator) -> list[Source]:
    """Moves the field by up to half a pixel: cutouts are cut at whole pixels."""
    dx, dy = rng.uniform(-0.5, 0.5, size=2) * grid.pixel_scale_arcsec
    return [replace(s, x_arcsec=s.x_arcsec + dx, y_arcsec=s.y_arcsec + dy) for s in sources]


def _without_noise(
    telescope: Telescope, sources: Sequence[Source], rng: np.random.Generator
) -> Image:
    """What a survey with fixed zero-points and PSFs sees of a field before its noise."""
    assert telescope.survey.zero_points_ab is not None
    jittered = _jitter(sources, telescope.grid, rng)
    counts_SB = to_counts(sources, telescope.survey.bands, telescope.survey.zero_points_ab)
    return draw_images(telescope.grid, jittered, counts_SB, telescope.psf)


def observe_panstarrs(
    telescope: Telescope,
    sources: Sequence[Source],
    core: SaturatedCore | None,
    exptime_s: float,
    rng: np.random.Generator,
) -> Image:
    """Observes a field with Pan-STARRS.

    Args:
        telescope: its grid.
        sources: the galaxy first, then the others.
        core: mask of a saturated star, if there is one.
        exptime_s: exposure of the stack; the zero-point is 25 + 2.5 log10(exptime_s).
        rng: random generator; it moves on.

    Returns:
        float32 (5, 170, 170), counts, grizy; NaN in the masked core. Noise is white: the
        correlation that resampling leaves in real stacks is not modeled.
    """
    grid, bands = telescope.grid, telescope.survey.bands
    jittered = _jitter(sources, grid, rng)
    counts_SB = to_counts(sources, bands, [25 + 2.5 * math.log10(exptime_s)] * len(bands))
    stretch = float(np.exp(rng.normal(0, _SEEING_SCATTER)))
    transforms = psf_transforms(grid, surveys.PANSTARRS_PSF, bands, stretch)
    image_BHW = draw_images(grid, jittered, counts_SB, transforms)
    sky_B = [surveys.panstarrs_noise_count(band, exptime_s) for band in bands]
    sky_B11 = np.array(sky_B, dtype=np.float32)[:, None, None]
    # The object's own photons, at about one electron per count.
    deviation_BHW = np.sqrt(sky_B11**2 + np.maximum(image_BHW, 0))
    image_BHW += deviation_BHW * rng.standard_normal(image_BHW.shape, dtype=np.float32)
    if core is not None:
        axis = (np.arange(grid.size) - (grid.size - 1) / 2) * grid.pixel_scale_arcsec
        x_W = axis - core.x_arcsec - (jittered[0].x_arcsec - sources[0].x_arcsec)
        y_H = axis - core.y_arcsec - (jittered[0].y_arcsec - sources[0].y_arcsec)
        distance_HW = np.hypot(y_H[:, None], x_W)
        for image_HW, radius in zip(image_BHW, core.radius_arcsec, strict=True):
            image_HW[distance_HW < radius] = np.nan
    return image_BHW


def observe_galex(
    telescope: Telescope, sources: Sequence[Source], rng: np.random.Generator
) -> Image:
    """Observes a field with GALEX: photons over background, divided by the exposure.

    Args:
        telescope: its grid and PSFs.
        sources: the galaxy first, then the others.
        rng: random generator; it moves on.

    Returns:
        float32 (2, 32, 32), counts/s, NUV and FUV. A band without coverage is exactly zero; in a
        shallow exposure many single pixels are zero as well, because no photon came.
    """
    bands = telescope.survey.bands
    rate_BHW = _without_noise(telescope, sources, rng)
    background = [surveys.GALEX_BACKGROUND_COUNT_S[band] for band in bands]
    rate_BHW += np.array(background, dtype=np.float32)[:, None, None]
    exposures, shares = zip(*surveys.GALEX_EXPOSURE_S, strict=True)
    typical_s = exposures[int(np.searchsorted(np.cumsum(shares)[:-1], rng.random(), side="right"))]
    exposure_s = typical_s * float(np.exp(rng.normal(0, 0.2)))
    image_BHW = (rng.poisson(np.maximum(rate_BHW, 0) * exposure_s) / exposure_s).astype(np.float32)
    chance = rng.random()
    if chance < surveys.GALEX_SHARE_WITHOUT_COVERAGE:
        image_BHW[:] = 0
    elif chance < surveys.GALEX_SHARE_WITHOUT_COVERAGE + surveys.GALEX_SHARE_WITHOUT_FUV:
        image_BHW[bands.index("FUV")] = 0
    return image_BHW


def observe_unwise(
    telescope: Telescope, sources: Sequence[Source], rng: np.random.Generator
) -> Image:
    """Observes a field with WISE, as the unWISE coadds show it.

    Args:
        telescope: its grid and PSFs.
        sources: the galaxy first, then the others.
        rng: random generator; it moves on.

    Returns:
        float32 (2, 32, 32), counts (Vega nanomaggies), W1 and W2, over a small background of
        sources too faint to be drawn.
    """
    image_BHW = _without_noise(telescope, sources, rng)
    num_exposures = surveys.UNWISE_NUM_EXPOSURES * float(np.exp(rng.normal(0, 0.3)))
    for image_HW, band in zip(image_BHW, telescope.survey.bands, strict=True):
        noise = surveys.UNWISE_NOISE_COUNT[band]
        deviation = noise * math.sqrt(surveys.UNWISE_NUM_EXPOSURES / num_exposures)
        background = noise * float(rng.uniform(0.5, 2.0))
        image_HW += np.float32(background)
        image_HW += np.float32(deviation) * rng.standard_normal(image_HW.shape, dtype=np.float32)
    return image_BHW
