"""Where the pixels of an augmented image lie in the arrays: one affine map per sample and survey.

Coordinates: x along columns, y along rows, in pixels from the array's corner, so that the middle of
the first pixel is (0.5, 0.5) and the middle of an array of any size is half its size.

Pixel values stay surface brightness: counts per pixel of the survey's own grid. An output pixel
covers `flux_factor` of those, so flux = sum of output pixels * flux_factor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from msdata.augment.config import AugmentConfig
from msdata.augment.draws import Draws
from msdata.errors import UsageError
from msdata.schema import Schema, Survey

# Channels by wavelength, as in Mantis Shrimp's early fusion: NUV FUV g r i z y W1 W2.
_WAVELENGTH_ORDER = ("galex", "panstarrs", "unwise")
_TOLERANCE_PIXELS = 1e-6
# Pixels up to this size sample any PSF seen from the ground well: interpolating at one place per
# pixel loses or gains 0.2 % of a turned star's light. Coarser ones (unWISE) would lose up to 1.5 %;
# with 2, 3, 4 places along a side it is 0.7, 0.4, 0.1 %.
_WELL_SAMPLED_ARCSEC = 0.5
_COARSE_OVERSAMPLING = 4


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How one survey's array becomes an image.

    Attributes:
        name: the array.
        bands: its bands.
        size: (height, width) of the array.
        output_size: pixels along a side of the image.
        ratio: pixels of the array per pixel of the image, along a side; 1: the survey's own grid.
        oversampling: interpolated places along a side of an image pixel; the pixel is their mean.
        pixel_scale_arcsec: arcsec/pixel of the image; None if unknown.
    """

    name: str
    bands: tuple[str, ...]
    size: tuple[int, int]
    output_size: int
    ratio: float
    oversampling: int
    pixel_scale_arcsec: float | None

    @property
    def flux_factor(self) -> float:
        """Area of an image pixel in pixels of the array: flux = sum of the image times this."""
        return self.ratio**2

    @property
    def is_native(self) -> bool:
        """Whether pixels of the image are pixels of the array where nothing is turned obliquely."""
        return self.ratio == 1 and not any((n - self.output_size) % 2 for n in self.size)

    @property
    def sampled_size(self) -> int:
        """Places along a side of the image that are interpolated at."""
        return self.output_size * self.oversampling

    @property
    def crop(self) -> tuple[slice, slice]:
        """Rows and columns of the array that an image on the survey's own grid shows."""
        top, left = ((n - self.output_size) // 2 for n in self.size)
        return slice(top, top + self.output_size), slice(left, left + self.output_size)

    def matrices(self, draws: Draws) -> NDArray[np.float64]:
        """Maps from the places interpolated at to the array.

        Args:
            draws: of N samples.

        Returns:
            float64 (N, 2, 3): (x, y) in the array = matrix @ (x, y, 1) in an image of
            `sampled_size`, both from the corner.
        """
        spacing = self.ratio / self.oversampling
        linear = spacing * turns(draws)
        center_in = np.array([self.size[1], self.size[0]]) / 2
        shift = center_in - linear.sum(axis=2) * (self.sampled_size / 2)
        if 1 in (spacing, self.ratio):
            # Elsewhere places fall anywhere between pixels by themselves.
            shift += draws.phase[:, None]
        return np.concatenate([linear, shift[:, :, None]], axis=2)


def turns(draws: Draws) -> NDArray[np.float64]:
    """Where a point of the turned image was before.

    Quarter turns only move and negate entries, so they are exact.

    Returns:
        float64 (N, 2, 2): (x, y) before = matrix @ (x, y) after, both from the middle.
    """
    cosine, sine = np.cos(draws.angle_rad), np.sin(draws.angle_rad)
    quadrants = [(cosine, sine), (-sine, cosine), (-cosine, -sine), (sine, -cosine)]
    c = np.choose(draws.num_turns, [q[0] for q in quadrants])
    s = np.choose(draws.num_turns, [q[1] for q in quadrants])
    sign = np.where(draws.is_mirrored, -1.0, 1.0)
    # Counter-clockwise where y runs downwards: a quarter turn takes (x, y) from (-y, x).
    return np.stack([np.stack([sign * c, sign * -s], axis=1), np.stack([s, c], axis=1)], axis=1)


def make_geometries(schema: Schema, config: AugmentConfig) -> tuple[Geometry, ...]:
    """The geometry of each survey, in the order of channels.

    Raises:
        UsageError: a crop does not fit, a survey does not exist, or the grid needs a pixel scale
            that is unknown.
    """
    surveys = [_image(schema, name) for name in survey_names(schema, config)]
    unknown = [name for name in config.crops if name not in [s.name for s in surveys]]
    if unknown:
        raise UsageError(
            f"crops must name images in use ({', '.join(s.name for s in surveys)}), got "
            f"{', '.join(unknown)}"
        )
    if config.fusion == "late":
        geometries = [_geometry(survey, _crop(survey, config), 1.0) for survey in surveys]
    elif config.grid == "crops" or len(surveys) == 1:
        # A single survey needs no alignment: the size of its pixels does not matter.
        size = config.output_size
        geometries = [_geometry(s, size, _crop(s, config) / size) for s in surveys]
    else:
        geometries = _sky(surveys, config)
    for geometry in geometries:
        _check_fits(geometry, config)
    return tuple(geometries)


def survey_names(schema: Schema, config: AugmentConfig) -> tuple[str, ...]:
    """The arrays that are images, or those asked for, in the order of channels.

    Raises:
        UsageError: the schema has no image, or an image has its bands last.
    """
    for survey in schema.arrays:
        is_asked = config.surveys is None or survey.name in config.surveys
        if is_asked and survey.has_bands_last and survey.numpy_dtype.kind in "biuf":
            shape = "x".join(map(str, survey.shape))
            raise UsageError(
                f"array {survey.name!r} ({shape}) has its bands last, but networks take (bands, "
                "height, width): pack numpy.moveaxis(image, -1, 0), or leave the array out with "
                "augment.surveys"
            )
    if config.surveys is not None:
        return config.surveys
    images = [a.name for a in schema.arrays if len(a.shape) == 3 and a.numpy_dtype.kind in "biuf"]
    if not images:
        raise UsageError(
            f"none of {', '.join(schema.names)} is an image of shape (bands, height, width)"
        )
    known = [name for name in _WAVELENGTH_ORDER if name in images]
    return (*known, *(name for name in images if name not in known))


def band_names(survey: Survey) -> tuple[str, ...]:
    """Names of an image's bands; numbers if the schema has no names."""
    return survey.bands or tuple(str(i) for i in range(survey.shape[0]))


def _image(schema: Schema, name: str) -> Survey:
    if name not in schema.names:
        raise UsageError(f"cannot find array {name!r}; the schema has {', '.join(schema.names)}")
    survey = schema[name]
    if len(survey.shape) != 3 or survey.numpy_dtype.kind not in "biuf":
        raise UsageError(
            f"array {name!r} must hold real numbers in shape (bands, height, width), got "
            f"{survey.dtype} {survey.shape}"
        )
    return survey


def _crop(survey: Survey, config: AugmentConfig) -> int:
    if survey.name in config.crops:
        return config.crops[survey.name]
    side = min(survey.shape[1:])
    crop = int(side / math.sqrt(2) + _TOLERANCE_PIXELS)
    # Keep both middles aligned without a shift of half a pixel.
    return max(crop - (side - crop) % 2, 2 - side % 2)


def _geometry(survey: Survey, output_size: int, ratio: float) -> Geometry:
    scale = survey.pixel_scale_arcsec
    is_fine = scale is not None and scale <= _WELL_SAMPLED_ARCSEC
    return Geometry(
        name=survey.name,
        bands=band_names(survey),
        size=(survey.shape[1], survey.shape[2]),
        output_size=output_size,
        ratio=ratio,
        oversampling=math.ceil(
            ratio * (1 if is_fine else _COARSE_OVERSAMPLING) - _TOLERANCE_PIXELS
        ),
        pixel_scale_arcsec=None if scale is None else scale * ratio,
    )


def _sky(surveys: list[Survey], config: AugmentConfig) -> list[Geometry]:
    """All surveys on the pixels of the one with the finest, stretched to the output size."""
    scales = []
    for survey in surveys:
        if survey.pixel_scale_arcsec is None:
            raise UsageError(
                f"the pixel scale of {survey.name!r} is unknown, so its sky cannot be laid over "
                "the others'; use grid='crops', or pack with --pixel-scale"
            )
        scales.append(survey.pixel_scale_arcsec)
    finest = int(np.argmin(scales))
    zoom = _crop(surveys[finest], config) / config.output_size
    ratios = [scales[finest] / scale * zoom for scale in scales]
    return [_geometry(s, config.output_size, r) for s, r in zip(surveys, ratios, strict=True)]


def _check_fits(geometry: Geometry, config: AugmentConfig) -> None:
    """Raises UsageError where an image would show what the array does not hold."""
    field = geometry.output_size * geometry.ratio
    is_turned = config.rotation == "any"
    needed = field * (math.sqrt(2) if is_turned else 1)
    side = min(geometry.size)
    if needed > side + _TOLERANCE_PIXELS:
        why = " turned by any angle" if is_turned else ""
        raise UsageError(
            f"an image of {field:.6g} pixels of {geometry.name!r}{why} needs {needed:.6g}, the "
            f"array has {side}; choose a smaller crop"
            + (", or rotation='exact'" if is_turned else "")
        )
    if geometry.ratio == 1 and all((n - geometry.output_size) % 2 for n in geometry.size):
        raise UsageError(
            f"a crop of {geometry.output_size} pixels cannot lie in the middle of "
            f"{geometry.size[0]} x {geometry.size[1]} of {geometry.name!r} without a shift of half "
            f"a pixel; choose {geometry.output_size - 1} or {geometry.output_size + 1}"
        )
