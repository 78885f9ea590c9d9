"""The fixed part of an augmentation: geometry, curves, noise, names and shapes of the images."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.augment.config import AugmentConfig
from msdata.augment.draws import Draws, draw, no_draws
from msdata.augment.geometry import Geometry, make_geometries
from msdata.augment.scaling import Curve, bands_of, make_curve
from msdata.augment.statistics import Statistics
from msdata.errors import UsageError
from msdata.schema import Schema

# The one image of early fusion.
EARLY_NAME = "image"
# Normal numbers that noise is taken from, 16 MiB: a sample uses 130,000 from a drawn place on.
_NOISE_BANK_SIZE = 1 << 22

_MAX_DEFAULT_THREADS = 8
# A blur below a tenth of a pixel changes no pixel by more than a few thousandths.
_MIN_BLUR_PIXELS = 0.1
# No blur: a kernel of this width has one entry that is not 0.
_NO_BLUR_PIXELS = 1e-3
# The kernel reaches this many standard deviations of the largest blur that is drawn.
_BLUR_REACH_SIGMA = 3.0

Batch = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class AugmentSpec:
    """All values that are fixed before the first batch.

    Attributes:
        config: the augmentation.
        seed: keys the draws.
        geometries: one per survey, in the order of channels.
        curves: one scaling per survey.
        noise_sigmas: sky noise of each survey's bands; empty without noise.
        dtypes: one per survey's array.
    """

    config: AugmentConfig
    seed: int
    geometries: tuple[Geometry, ...]
    curves: tuple[Curve, ...]
    noise_sigmas: tuple[tuple[float, ...], ...]
    dtypes: tuple[np.dtype[Any], ...]

    @property
    def num_bands(self) -> int:
        """Bands of all surveys."""
        return sum(len(g.bands) for g in self.geometries)

    def geometries_of(self, *, is_interpolated: bool) -> tuple[Geometry, ...]:
        """The geometries of a batch: one place per pixel where whole pixels are only moved."""
        if is_interpolated:
            return self.geometries
        return tuple(replace(g, oversampling=1) if g.is_native else g for g in self.geometries)

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Shape (channels, height, width) of each image per sample, by name."""
        if self.config.fusion == "early":
            size = self.config.output_size
            return {EARLY_NAME: (self.num_bands, size, size)}
        return {g.name: (len(g.bands), g.output_size, g.output_size) for g in self.geometries}

    @property
    def members(self) -> list[range]:
        """Numbers of the surveys that each image shows."""
        count = len(self.geometries)
        if self.config.fusion == "early":
            return [range(count)]
        return [range(k, k + 1) for k in range(count)]

    def noise_of(self, draws: Draws) -> NDArray[np.float64]:
        """Standard deviation of the noise of each channel, float64 (N, channels)."""
        noise: NDArray[np.float64] = draws.noise[:, None] * np.array(sum(self.noise_sigmas, ()))
        return noise

    @property
    def channel_slices(self) -> list[slice]:
        """The channels of each survey among all."""
        ends = np.cumsum([len(g.bands) for g in self.geometries]).tolist()
        return [slice(e - len(g.bands), e) for e, g in zip(ends, self.geometries, strict=True)]

    @property
    def noise_sizes(self) -> list[int]:
        """Normal numbers that the image of each survey takes."""
        return [len(g.bands) * g.output_size**2 for g in self.geometries]

    def draws(self, batch: Batch, epoch: int, train: bool) -> Draws:
        """The draws of a batch's samples.

        Raises:
            UsageError: the batch has no ids, which key the draws.
        """
        num_samples = len(batch[self.geometries[0].name])
        if not train:
            return no_draws(num_samples, self.config)
        if "sample_id" not in batch:
            raise UsageError("the batch has no sample_id, which keys the draws")
        ids = batch["sample_id"]
        if len(ids) != num_samples:
            raise UsageError(f"the batch has {len(ids)} ids for {num_samples} samples")
        return draw(
            self.seed,
            epoch,
            ids,
            self.config,
            num_channels=self.num_bands,
            repeats=batch.get("repeat"),
        )

    def arrays(self, batch: Batch) -> list[NDArray[Any]]:
        """The batch's arrays in the order of channels.

        Raises:
            UsageError: an array is absent, or has another shape than the schema.
        """
        arrays = []
        for geometry in self.geometries:
            if geometry.name not in batch:
                raise UsageError(f"the batch has no array {geometry.name!r}")
            array = np.asarray(batch[geometry.name])
            wanted = (len(geometry.bands), *geometry.size)
            if array.shape[1:] != wanted or len(array) != len(batch[self.geometries[0].name]):
                raise UsageError(
                    f"array {geometry.name!r} of the batch must have shape (samples, "
                    f"{', '.join(map(str, wanted))}), got {array.shape}"
                )
            arrays.append(array)
        return arrays

    def steps(self, batch: Batch) -> list[NDArray[np.float32] | None]:
        """The quantization steps, float32 (N, B), of arrays that hold codes; None for pixels."""
        names = [g.name for g in self.geometries]
        return [
            np.asarray(batch[f"{name}_step"], np.float32)
            if f"{name}_step" in batch and dtype.kind == "f" and batch[name].dtype.kind == "i"
            else None
            for name, dtype in zip(names, self.dtypes, strict=True)
        ]


def make_spec(
    schema: Schema, config: AugmentConfig, seed: int, statistics: Statistics | None
) -> AugmentSpec:
    """Computes all values that are fixed before the first batch.

    Raises:
        UsageError: config and schema contradict each other, or statistics are missing.
    """
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise UsageError(f"seed must be an integer of at least 0, got {seed!r}")
    geometries = make_geometries(schema, config)
    for geometry in geometries:
        _check_blur(geometry, config.psf_blur_arcsec)
    sigmas: list[tuple[float, ...]] = []
    if config.noise:
        sigmas = [tuple(b.sky_sigma for b in bands_of(g, statistics, "noise")) for g in geometries]
    return AugmentSpec(
        config=config,
        seed=seed,
        geometries=geometries,
        curves=tuple(make_curve(config.scaling, g, statistics) for g in geometries),
        noise_sigmas=tuple(sigmas),
        dtypes=tuple(schema[g.name].numpy_dtype for g in geometries),
    )


def noise_bank(seed: int) -> NDArray[np.float32]:
    """Normal numbers that noise is taken from, float32 (2**22,); equal for equal seeds."""
    return np.random.Generator(np.random.Philox(seed)).standard_normal(_NOISE_BANK_SIZE, np.float32)


def noise_starts(
    spec: AugmentSpec, draws: Draws, bank_size: int = _NOISE_BANK_SIZE
) -> list[NDArray[np.int64]]:
    """Where in the bank the noise of each survey starts.

    Returns:
        int64 (N,) per survey; a sample's surveys follow each other.
    """
    sizes = spec.noise_sizes
    if bank_size and bank_size < sum(sizes):
        raise UsageError(
            f"images of {sum(sizes)} pixels need more than {bank_size} numbers of noise"
        )
    first = (draws.noise_place * max(bank_size - sum(sizes), 0)).astype(np.int64)
    return [first + before for before in np.cumsum([0, *sizes[:-1]]).tolist()]


def blur_scale(geometry: Geometry) -> float:
    """Arcsec/pixel of the image.

    Raises:
        UsageError: the pixel scale is unknown.
    """
    if geometry.pixel_scale_arcsec is None:
        raise UsageError(
            f"cannot blur {geometry.name!r} by arcsec: its pixel scale is unknown; pack with "
            "--pixel-scale, or leave psf_blur_arcsec at 0"
        )
    return geometry.pixel_scale_arcsec


def is_blurred(geometry: Geometry, largest_arcsec: float) -> bool:
    """Whether the largest blur is visible on a survey's pixels."""
    return bool(largest_arcsec) and largest_arcsec / blur_scale(geometry) >= _MIN_BLUR_PIXELS


def blur_pixels(geometry: Geometry, draws: Draws) -> NDArray[np.float64]:
    """Each sample's blur in pixels, float64 (N,); never 0, which has no kernel."""
    return np.maximum(draws.blur_arcsec / blur_scale(geometry), _NO_BLUR_PIXELS)


def _check_blur(geometry: Geometry, largest_arcsec: float) -> None:
    """Raises UsageError for a blur whose kernel is wider than an image."""
    if not is_blurred(geometry, largest_arcsec):
        return
    scale = blur_scale(geometry)
    largest = geometry.output_size * scale / _BLUR_REACH_SIGMA
    if largest_arcsec > largest:
        raise UsageError(
            f"psf_blur_arcsec={largest_arcsec:g} leaves nothing of {geometry.name!r}, whose image "
            f"is {geometry.output_size * scale:.3g} arcsec wide; give at most {largest:.3g}"
        )


def blur_window(largest_pixels: float) -> int:
    """Pixels along a side of the kernel, odd, for the largest blur."""
    return 2 * max(1, math.ceil(_BLUR_REACH_SIGMA * largest_pixels)) + 1


def default_threads() -> int:
    """The number of cores that this process may use, at most 8."""
    return min(_MAX_DEFAULT_THREADS, len(os.sched_getaffinity(0)))
