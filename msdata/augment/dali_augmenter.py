"""The `dali` backend: batches through DALI pipelines, on a GPU or on the CPU.

The CPU reads arrays from the loader's ring without a copy. On the way to the GPU they are copied
once, from page-locked memory, while the network and the batch before are computed.
"""

from __future__ import annotations

from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from msdata.augment.backend import Augmenter, Steps
from msdata.augment.dali import Lane, NoiseBank, as_frames, as_samples
from msdata.augment.draws import Draws
from msdata.augment.pinning import PinnedBuffers
from msdata.augment.spec import (
    AugmentSpec,
    blur_pixels,
    default_threads,
    is_blurred,
    noise_bank,
    noise_starts,
)

# Batches in flight, each in its own pipeline: one is copied while another is turned. Deeper queues
# inside one pipeline would start with batches that do not exist yet.
_NUM_LANES = 2


@dataclass(kw_only=True)
class _Job:
    """A submitted batch."""

    arrays: list[NDArray[Any]]
    draws: Draws
    lane: Lane | None = None
    # Memory that DALI reads without a copy, held until it has.
    inputs: dict[str, Any] | None = None

    @property
    def is_interpolated(self) -> bool:
        """Whether pixels lie between those of the arrays; in all of a batch, or in none."""
        return bool(self.draws.is_interpolated.any())


class DaliAugmenter(Augmenter):
    """The `dali` backend; see `Augmenter`.

    Images are DALI tensors, which `torch.from_dlpack` takes without a copy and which stay unchanged
    while a reference is held. An empty batch gives empty NumPy arrays.

    Args:
        spec: the augmentation.
        batch_size: samples of the largest batch.
        device_id: number of the GPU; None for the CPU.
        threads: CPU threads; None means the cores this process may use, up to 8.

    Raises:
        MissingPackageError: DALI is not installed.
        UsageError: DALI cannot use the GPU.
    """

    def __init__(
        self,
        spec: AugmentSpec,
        batch_size: int,
        *,
        device_id: int | None = None,
        threads: int | None = None,
    ) -> None:
        super().__init__(spec, batch_size)
        self._device_id = device_id
        self._num_threads = threads or default_threads()
        self._free: dict[bool, deque[Lane]] = {}
        # Make the pipelines first: they detect a missing GPU and raise a clear error.
        self._lanes_of(is_interpolated=spec.config.rotation == "any")
        self._bank = None
        if spec.config.noise:
            self._bank = NoiseBank(noise_bank(spec.seed), device_id)
        self._pinned = None if device_id is None else PinnedBuffers(device_id)

    def submit_draws(self, arrays: list[NDArray[Any]], draws: Draws, steps: Steps = ()) -> None:
        """Starts to augment arrays; see `Augmenter.submit_draws`."""
        contiguous = [np.ascontiguousarray(array) for array in arrays]
        self._in_flight.append(_Job(arrays=contiguous, draws=draws))
        self._start_pending()

    def _start_pending(self) -> None:
        """Starts jobs in order while lanes are free."""
        for job in self._in_flight:
            if job.lane is None and len(job.draws) and not self._start(job):
                return

    def _start(self, job: _Job) -> bool:
        """Starts a job if a lane is free; returns whether one was."""
        lanes = self._lanes_of(is_interpolated=job.is_interpolated)
        if not lanes:
            return False
        with nullcontext() if self._pinned is None else self._pinned.current():
            job.inputs = self._inputs(job, lanes[0])
            lanes[0].start(job.inputs)
        job.lane = lanes.popleft()
        return True

    def _lanes_of(self, *, is_interpolated: bool) -> deque[Lane]:
        if is_interpolated not in self._free:
            self._free[is_interpolated] = deque(
                Lane(
                    self._spec,
                    self._batch_size,
                    is_interpolated=is_interpolated,
                    device_id=self._device_id,
                    num_threads=self._num_threads,
                )
                for _ in range(_NUM_LANES)
            )
        return self._free[is_interpolated]

    def _inputs(self, job: _Job, lane: Lane) -> dict[str, Any]:
        """The inputs of a pipeline for one batch, by name."""
        spec, draws = self._spec, job.draws
        inputs: dict[str, Any] = {}
        for k, (geometry, array) in enumerate(zip(lane.geometries, job.arrays, strict=True)):
            is_pinned = self._pinned is not None and self._pinned.pin(array)
            inputs[f"image_{k}"] = as_frames(array, is_pinned=is_pinned)
            inputs[f"matrix_{k}"] = as_samples(geometry.matrices(draws).astype(np.float32))
            if is_blurred(geometry, spec.config.psf_blur_arcsec):
                pixels = blur_pixels(geometry, draws)
                inputs[f"blur_{k}"] = as_samples(pixels.astype(np.float32))
        starts = noise_starts(spec, draws)
        # 1 for bands that stay, 0 for those that are dropped.
        kept = np.ones((len(draws), spec.num_bands), np.float32)
        if draws.is_dropped.size:
            kept -= draws.is_dropped
        for k, members in enumerate(spec.members):
            channels = slice(
                spec.channel_slices[members[0]].start, spec.channel_slices[members[-1]].stop
            )
            if self._bank is not None:
                noise = spec.noise_of(draws)[:, channels].astype(np.float32)
                inputs[f"noise_{k}"] = as_samples(noise[:, :, None, None])
                # What is added to a sample's surveys follows each other in the bank.
                place = starts[members[0]].astype(np.int32)
                inputs[f"place_{k}"] = as_samples(place[:, None])
            if spec.config.band_dropout:
                inputs[f"kept_{k}"] = as_samples(kept[:, channels, None, None])
        if self._bank is not None:
            inputs["bank"] = self._bank.repeated(len(draws))
        return inputs

    def _finish(self, job: _Job) -> dict[str, Any]:
        if not len(job.draws):
            return {name: np.empty((0, *shape), np.float32) for name, shape in self.shapes.items()}
        if job.lane is None:
            # It failed to start when it was submitted: raise that error again.
            self._start(job)
        images = self._outputs(job)
        self._start_pending()
        return dict(zip(self.shapes, images, strict=True))

    def _outputs(self, job: _Job) -> list[Any]:
        """Waits for a job that was started."""
        assert job.lane is not None
        try:
            return job.lane.outputs()
        finally:
            self._lanes_of(is_interpolated=job.is_interpolated).append(job.lane)

    def close(self) -> None:
        """Waits for batches in flight, then releases pipelines and page locks."""
        self._is_closed = True
        try:
            for job in self._in_flight:
                if job.lane is not None:
                    self._outputs(job)
        finally:
            self._in_flight.clear()
            self._free.clear()
            if self._pinned is not None:
                self._pinned.close()
