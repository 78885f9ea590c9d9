"""The `torch` backend: what `reference` computes, in tensor operations on a GPU or on the CPU.

Beside `dali` it needs torch alone, writes bfloat16 and channels-last images where asked to, decodes
the codes of a coded data set on the device, and can be compiled into few kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.augment.backend import Augmenter, Steps
from msdata.augment.draws import Draws
from msdata.augment.spec import AugmentSpec, blur_pixels, is_blurred, noise_starts


def parameters(spec: AugmentSpec, draws: Draws, steps: Steps) -> dict[str, NDArray[Any]]:
    """All numbers that differ between samples, which go to the device as one block.

    Args:
        spec: the augmentation.
        draws: the draws of N samples.
        steps: (N, B) of each survey whose array holds codes.

    Returns:
        (N, ...) by name; what is not drawn is left out. "map" takes the places of an image, from
        its middle, to those of the array as `grid_sample` counts them, from -1 to 1.
    """
    found: dict[str, NDArray[Any]] = {}
    geometries = spec.geometries_of(is_interpolated=bool(draws.is_interpolated.any()))
    for k, (geometry, step) in enumerate(zip(geometries, steps, strict=True)):
        matrices = geometry.matrices(draws)
        middle = matrices[:, :, 2] + matrices[:, :, :2].sum(axis=2) * (geometry.sampled_size / 2)
        scale = 2 / np.array([geometry.size[1], geometry.size[0]])
        found[f"map_{k}"] = np.concatenate(
            [matrices[:, :, :2] * scale[:, None], (middle * scale - 1)[:, :, None]], axis=2
        )
        if is_blurred(geometry, spec.config.psf_blur_arcsec) and draws.blur_arcsec.any():
            found[f"blur_{k}"] = blur_pixels(geometry, draws)
        if step is not None:
            found[f"step_{k}"] = step
    if spec.noise_sigmas and draws.noise.any():
        found["noise"] = spec.noise_of(draws)
        # Below 2**24, so that float32 holds it.
        found["noise_start"] = noise_starts(spec, draws)[0]
    if draws.is_dropped.any():
        found["kept"] = ~draws.is_dropped
    return found


@dataclass(frozen=True, kw_only=True)
class _Job:
    """A submitted batch: its images, when they are done, and memory that is read until then."""

    images: dict[str, Any]
    moment: Any = None
    held: Sequence[NDArray[Any]] = ()


class TorchAugmenter(Augmenter):
    """The `torch` backend; see `Augmenter`.

    Images are tensors. On a GPU they may be used on the stream that is current in the thread that
    calls `result`. On the CPU torch's own threads work (`torch.set_num_threads`).

    Args:
        spec: the augmentation.
        batch_size: samples of the largest batch.
        device_id: number of the GPU; None for the CPU.
        dtype: "float32" or "bfloat16", of the images.
        channels_last: whether images lie in memory pixel by pixel, not channel by channel.
        compiled: run through `torch.compile`, which joins operations into few kernels.

    Raises:
        UsageError: torch does not see the GPU, or the dtype is another one.
    """

    takes_codes = True

    def __init__(
        self,
        spec: AugmentSpec,
        batch_size: int,
        *,
        device_id: int | None = None,
        dtype: str = "float32",
        channels_last: bool = False,
        compiled: bool = False,
    ) -> None:
        super().__init__(spec, batch_size)
        from msdata.augment.torch_images import ImageFunction, open_queue

        self._queue = open_queue(device_id)
        # Its constants, too, are made on the stream that reads them.
        with self._queue.current():
            function = ImageFunction(
                spec, self._queue.device, dtype=dtype, channels_last=channels_last
            )
        self._empty = function.empty
        self._function = function.compiled() if compiled else function

    def submit_draws(self, arrays: list[NDArray[Any]], draws: Draws, steps: Steps = ()) -> None:
        """Starts to augment arrays; see `Augmenter.submit_draws`."""
        if not len(draws):
            self._in_flight.append(
                _Job(images={name: self._empty((0, *shape)) for name, shape in self.shapes.items()})
            )
            return
        held = [_readable(array) for array in arrays]
        given = parameters(self._spec, draws, steps or [None] * len(arrays))
        block = np.concatenate(
            [np.asarray(v, np.float32).reshape(len(draws), -1) for v in given.values()], axis=1
        )
        with self._queue.current():
            images = self._function(
                [self._queue.sent(array) for array in held],
                self._queue.sent(block),
                tuple((name, values.shape[1:]) for name, values in given.items()),
                is_interpolated=bool(draws.is_interpolated.any()),
            )
            moment = self._queue.mark()
        self._in_flight.append(_Job(images=images, moment=moment, held=held))

    def _finish(self, work: _Job) -> dict[str, Any]:
        if work.held:
            self._queue.handed_over(work.images, work.moment)
        return work.images

    def close(self) -> None:
        """Waits for batches in flight, then releases page locks."""
        if not self._is_closed:
            self._is_closed = True
            self._queue.close()
        self._in_flight.clear()


def _readable(array: NDArray[Any]) -> NDArray[Any]:
    """An array as torch takes it without a warning: contiguous, writable, of a type it knows."""
    if array.dtype.byteorder == ">" or (array.dtype.kind == "u" and array.dtype.itemsize > 1):
        array = array.astype(np.float32)
    return np.require(array, requirements=["C", "W"])
