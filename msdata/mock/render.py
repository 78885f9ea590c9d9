"""From sources to pixels: drawn on the Fourier plane, with each band's PSF, then observed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msdata.mock.field import Source
from msdata.mock.profiles import MIXTURE_SIGMA, Component
from msdata.mock.surveys import Psf

Image = NDArray[np.float32]

# Array suffixes: B bands, H rows, W columns, V and U frequencies along rows and columns.


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A cutout's pixels and the frequencies they are drawn on.

    Attributes:
        size: pixels along a side.
        padded: pixels along a side of the periodic plane, so that light that leaves the cutout
            does not come in on the other side.
        oversampling: points drawn along the side of a pixel, of which the middle of the pixel is
            kept: a PSF of about two pixels would ring if it were drawn pixel by pixel.
        pixel_scale_arcsec: pixel size.
        frequency_v: float32 (V,), radian/arcsec along rows.
        frequency_u: float32 (U,), radian/arcsec along columns, none negative.
        frequency: float32 (V, U), their length.
    """

    size: int
    padded: int
    oversampling: int
    pixel_scale_arcsec: float
    frequency_v: Image
    frequency_u: Image
    frequency: Image


def build_grid(size: int, padded: int, pixel_scale_arcsec: float, *, oversampling: int = 1) -> Grid:
    """Computes the frequencies of a cutout of `size` pixels on a plane of `padded` pixels."""
    num_points, step_arcsec = padded * oversampling, pixel_scale_arcsec / oversampling
    v = 2 * math.pi * np.fft.fftfreq(num_points, step_arcsec)
    u = 2 * math.pi * np.fft.rfftfreq(num_points, step_arcsec)
    return Grid(
        size=size,
        padded=padded,
        oversampling=oversampling,
        pixel_scale_arcsec=pixel_scale_arcsec,
        frequency_v=v.astype(np.float32),
        frequency_u=u.astype(np.float32),
        frequency=np.hypot(v[:, None], u).astype(np.float32),
    )


def shape_transform(grid: Grid, component: Component) -> Image:
    """Fourier transform of a Sersic component of unit flux at the origin.

    Args:
        grid: the cutout.
        component: size, shape and mixture.

    Returns:
        float32 (V, U); real, because the shape is symmetric about its center.
    """
    cosine, sine = math.cos(component.angle_rad), math.sin(component.angle_rad)
    v, u = grid.frequency_v[:, None], grid.frequency_u[None, :]
    major = np.float32(component.half_light_arcsec)
    minor = np.float32(component.half_light_arcsec * component.axis_ratio)
    squared_VU = ((u * cosine + v * sine) * major) ** 2 + ((v * cosine - u * sine) * minor) ** 2
    # Parts far below a pixel are points: their transform is 1 to better than a thousandth.
    narrow = 0.5 * MIXTURE_SIGMA**2 * float(squared_VU.max()) < 2e-3
    result_VU = np.full_like(squared_VU, component.mixture[narrow].sum())
    for sigma, weight in zip(MIXTURE_SIGMA[~narrow], component.mixture[~narrow], strict=True):
        if weight > 1e-4:
            result_VU += np.float32(weight) * np.exp(np.float32(-0.5 * sigma**2) * squared_VU)
    return result_VU


def draw_images(
    grid: Grid, sources: Sequence[Source], counts: NDArray[np.float64], transforms: Sequence[Image]
) -> Image:
    """Draws sources as a telescope without noise would see them.

    Args:
        grid: the cutout; offset 0 is its center.
        sources: what shines; sources beyond the padded plane are left out.
        counts: float64 (S, B), counts of each source in each band.
        transforms: the Fourier transform of each band's PSF, float32 (V, U).

    Returns:
        float32 (B, H, W), counts.
    """
    plane_BVU = np.zeros((len(transforms), *grid.frequency.shape), dtype=np.complex64)
    reach_arcsec = grid.padded / 2 * grid.pixel_scale_arcsec
    for source, count_B in zip(sources, counts, strict=True):
        if max(abs(source.x_arcsec), abs(source.y_arcsec)) >= reach_arcsec:
            continue
        light_VU = _source_transform(grid, source)
        for plane_VU, count in zip(plane_BVU, count_B, strict=True):
            plane_VU += light_VU * np.float32(count)
    step = grid.oversampling
    num_points, stop = grid.padded * step, grid.size * step
    image_BHW = np.empty((len(transforms), grid.size, grid.size), dtype=np.float32)
    for image_HW, plane_VU, transform_VU in zip(image_BHW, plane_BVU, transforms, strict=True):
        plane_VU *= transform_VU
        full = np.fft.irfft2(plane_VU, s=(num_points, num_points))
        image_HW[:] = full[:stop:step, :stop:step]
        image_HW *= step**2
    return image_BHW


def _source_transform(grid: Grid, source: Source) -> NDArray[np.complex64]:
    center_arcsec = (grid.size - 1) / 2 * grid.pixel_scale_arcsec
    phase_V = np.exp(-1j * grid.frequency_v * (source.y_arcsec + center_arcsec))
    phase_U = np.exp(-1j * grid.frequency_u * (source.x_arcsec + center_arcsec))
    phase_VU: NDArray[np.complex64] = (phase_V[:, None] * phase_U).astype(np.complex64)
    if not source.components:
        return phase_VU
    shape_VU = np.zeros_like(grid.frequency)
    for component in source.components:
        shape_VU += np.float32(component.share) * shape_transform(grid, component)
    phase_VU *= shape_VU
    return phase_VU


def psf_transforms(
    grid: Grid, psfs: dict[str, Psf], bands: Sequence[str], stretch: float = 1.0
) -> list[Image]:
    """Fourier transforms of the PSFs of some bands on a cutout's frequencies."""
    return [psfs[band].transform(grid.frequency, stretch=stretch) for band in bands]
