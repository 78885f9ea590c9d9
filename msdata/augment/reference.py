"""The definition of augmentation, in NumPy and OpenCV; fast enough to train on the CPU.

Order: NaN to 0, one affine map with bilinear interpolation, blur, noise, scaling, dropout. Each
thread takes a few samples; OpenCV and NumPy release the GIL. Legend: N samples, B bands.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.augment.backend import Augmenter, Steps
from msdata.augment.draws import Draws
from msdata.augment.geometry import Geometry
from msdata.augment.scaling import column
from msdata.augment.spec import (
    AugmentSpec,
    blur_scale,
    blur_window,
    default_threads,
    is_blurred,
    noise_bank,
    noise_starts,
)
from msdata.errors import MissingPackageError

Image = NDArray[np.float32]
# The images of a batch, and the tasks that compute them.
_InFlight = tuple[dict[str, Image], list[Future[None]]]

_MIN_SAMPLES_PER_TASK = 4


class ReferenceAugmenter(Augmenter):
    """The `reference` backend; see `Augmenter`.

    Args:
        spec: the augmentation.
        batch_size: samples of the largest batch.
        threads: threads; None means the cores this process may use, up to 8.
    """

    def __init__(self, spec: AugmentSpec, batch_size: int, *, threads: int | None = None) -> None:
        _check_opencv()
        super().__init__(spec, batch_size)
        self._bank = noise_bank(spec.seed) if spec.config.noise else None
        self._num_threads = threads or default_threads()
        self._executor = ThreadPoolExecutor(self._num_threads, "msdata-augment")

    def submit_draws(self, arrays: list[NDArray[Any]], draws: Draws, steps: Steps = ()) -> None:
        """Starts to augment arrays; see `Augmenter.submit_draws`."""
        num_samples = len(draws)
        images = {
            name: np.empty((num_samples, *shape), np.float32) for name, shape in self.shapes.items()
        }
        work = _Work(self._spec, arrays, draws, images, self._bank)
        step = max(_MIN_SAMPLES_PER_TASK, -(-num_samples // (4 * self._num_threads)))
        futures = [
            self._executor.submit(work.run, start, min(start + step, num_samples))
            for start in range(0, num_samples, step)
        ]
        self._in_flight.append((images, futures))

    def _finish(self, work: _InFlight) -> dict[str, Image]:
        images, futures = work
        for future in futures:
            future.result()
        return images

    def close(self) -> None:
        """Ends the threads after their current tasks."""
        self._is_closed = True
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._in_flight.clear()


class _Work:
    """One batch in flight: its arrays, draws and outputs."""

    def __init__(
        self,
        spec: AugmentSpec,
        arrays: list[NDArray[Any]],
        draws: Draws,
        images: dict[str, Image],
        bank: Image | None,
    ) -> None:
        self._spec = spec
        self._arrays = arrays
        self._draws = draws
        self._bank = bank
        self._matrices = [opencv_matrices(g.matrices(draws)) for g in spec.geometries]
        self._is_interpolated = draws.is_interpolated
        self._outputs = _outputs_by_survey(spec, images)
        self._noise_starts = noise_starts(spec, draws, 0 if bank is None else len(bank))

    def run(self, start: int, stop: int) -> None:
        """Augments the samples [start, stop)."""
        for i in range(start, stop):
            for survey in range(len(self._arrays)):
                self._augment(survey, i)

    def _augment(self, survey: int, i: int) -> None:
        geometry, draws = self._spec.geometries[survey], self._draws
        array_BHW = self._arrays[survey][i]
        out_BHW = self._outputs[survey][i]
        self._resample(survey, i, np.asarray(array_BHW, np.float32), out_BHW)
        if not np.isfinite(out_BHW).all():
            finite_BHW = np.where(np.isfinite(array_BHW), array_BHW, 0).astype(np.float32)
            self._resample(survey, i, finite_BHW, out_BHW)
        largest_arcsec = self._spec.config.psf_blur_arcsec
        if is_blurred(geometry, largest_arcsec) and draws.blur_arcsec[i] > 0:
            scale = blur_scale(geometry)
            _blur(out_BHW, draws.blur_arcsec[i] / scale, largest_arcsec / scale)
        if self._bank is not None and draws.noise[i] > 0:
            begin = self._noise_starts[survey][i]
            noise_BHW = self._bank[begin : begin + out_BHW.size].reshape(out_BHW.shape)
            sigmas = np.array(self._spec.noise_sigmas[survey]) * draws.noise[i]
            out_BHW += noise_BHW * column(sigmas.tolist())
        self._spec.curves[survey].apply(out_BHW)
        if draws.is_dropped.size:
            out_BHW[draws.is_dropped[i, self._spec.channel_slices[survey]]] = 0

    def _resample(self, survey: int, i: int, array_BHW: Image, out_BHW: Image) -> None:
        """Applies the affine map; where only whole pixels move, copies them."""
        geometry = self._spec.geometries[survey]
        if self._is_interpolated[i]:
            _warp(array_BHW, self._matrices[survey][i], geometry, out_BHW)
            return
        straight_BHW = array_BHW[:, *geometry.crop]
        if not geometry.is_native:
            straight_BHW = interpolate_straight(array_BHW, geometry)
        mirrored = straight_BHW[..., ::-1] if self._draws.is_mirrored[i] else straight_BHW
        out_BHW[:] = np.rot90(mirrored, self._draws.num_turns[i], axes=(1, 2))


def _outputs_by_survey(spec: AugmentSpec, images: dict[str, Image]) -> list[Image]:
    """The part of the images that each survey's bands fill."""
    if spec.config.fusion == "late":
        return list(images.values())
    (image_NCHW,) = images.values()
    return [image_NCHW[:, channels] for channels in spec.channel_slices]


def opencv_matrices(matrices_N23: NDArray[np.float64]) -> NDArray[np.float64]:
    """Maps in OpenCV's convention: the middle of the first pixel is (0, 0), not (0.5, 0.5)."""
    shifted = matrices_N23.copy()
    shifted[..., 2] += 0.5 * matrices_N23[..., :2].sum(axis=-1) - 0.5
    return shifted


def interpolate_straight(array_BHW: Image, geometry: Geometry) -> Image:
    """An image that is neither mirrored nor turned, the same from left or right to the last bit.

    Returns:
        float32 (bands, output_size, output_size).
    """
    rows_BHW = _interpolate(array_BHW.astype(np.float64), 1, geometry)
    image_BHW = _interpolate(rows_BHW, 2, geometry)
    size, places = geometry.output_size, geometry.oversampling
    if places > 1:
        image_BHW = image_BHW.reshape(-1, size, places, size, places).mean(axis=(2, 4))
    return image_BHW.astype(np.float32)


def _interpolate(array: NDArray[np.float64], axis: int, geometry: Geometry) -> NDArray[np.float64]:
    """Linear interpolation along one axis."""
    length = array.shape[axis]
    step = geometry.ratio / geometry.oversampling
    count = geometry.sampled_size
    place = (length - 1) / 2 + (np.arange(count) - (count - 1) / 2) * step
    low = np.clip(np.floor(place).astype(np.int64), 0, length - 2)
    share = np.clip(place - low, 0, 1)
    share = share.reshape(-1, *(1,) * (array.ndim - axis - 1))
    below, above = array.take(low, axis), array.take(low + 1, axis)
    mixed: NDArray[np.float64] = below * (1 - share) + above * share
    return mixed


def _warp(
    array_BHW: Image, matrix_23: NDArray[np.float64], geometry: Geometry, out_BHW: Image
) -> None:
    """Bilinear interpolation, band by band, straight into the batch."""
    import cv2

    sampled = (geometry.sampled_size, geometry.sampled_size)
    size = (geometry.output_size, geometry.output_size)
    for array_HW, out_HW in zip(array_BHW, out_BHW, strict=True):
        places_HW = cv2.warpAffine(
            array_HW,
            matrix_23,
            sampled,
            dst=out_HW if sampled == size else None,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        if sampled != size:
            cv2.resize(places_HW, size, dst=out_HW, interpolation=cv2.INTER_AREA)


def _blur(image_BHW: Image, sigma_pixels: float, largest_pixels: float) -> None:
    import cv2

    window = blur_window(largest_pixels)
    for image_HW in image_BHW:
        cv2.GaussianBlur(
            image_HW,
            (window, window),
            sigma_pixels,
            dst=image_HW,
            borderType=cv2.BORDER_REFLECT_101,
        )


def _check_opencv() -> None:
    """Raises MissingPackageError where OpenCV rounds places to 1/32 pixel, as it did up to 4.13."""
    import cv2

    ramp = np.tile(np.arange(8, dtype=np.float32), (8, 1))
    matrix = np.array([[1.0, 0.0, 1 / 128], [0.0, 1.0, 0.0]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    found = cv2.warpAffine(ramp, matrix, (4, 4), flags=flags)
    if abs(float(found[1, 1]) - 1 - 1 / 128) > 1e-4:
        raise MissingPackageError(
            f"OpenCV {cv2.__version__} rounds the places it interpolates at to 1/32 pixel, which "
            "loses flux; run pip install 'opencv-python-headless>=5'"
        )
