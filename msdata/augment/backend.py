"""The interface and the common part of the backends: check a batch and make its draws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from msdata.augment.draws import Draws
from msdata.augment.spec import AugmentSpec, Batch
from msdata.errors import UsageError

# The quantization steps of each array, float32 (N, B); None where it holds pixels.
Steps = Sequence[NDArray[np.float32] | None]


class Augmenter(ABC):
    """Turns batches of cutouts into batches of network input; a context manager.

    Args:
        spec: the augmentation.
        batch_size: samples of the largest batch.
    """

    takes_codes = False

    def __init__(self, spec: AugmentSpec, batch_size: int) -> None:
        self._spec = spec
        self._batch_size = batch_size
        # Submitted batches whose results were not taken yet, in order.
        self._in_flight: deque[Any] = deque()
        self._is_closed = False

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Shape (channels, height, width) of each image per sample, by name."""
        return self._spec.shapes

    @property
    def num_channels(self) -> dict[str, int]:
        """Channels of each image, by name."""
        return {name: shape[0] for name, shape in self.shapes.items()}

    @property
    def flux_factors(self) -> dict[str, float]:
        """By survey: flux in counts = sum of an unscaled image times this."""
        return {g.name: g.flux_factor for g in self._spec.geometries}

    def run(self, batch: Batch, epoch: int, train: bool = True) -> dict[str, Any]:
        """Augments one batch and waits for it.

        Args:
            batch: a batch of the loader: the schema's arrays (n, ...) and `sample_id` (n,).
            epoch: keys the draws, with seed and ids.
            train: False draws nothing; see `draws.no_draws`.

        Returns:
            float32 (n, channels, height, width) by name, with DLPack; see `shapes`. They are
            not overwritten while a reference is held. On a GPU hold those of `dali` until kernels
            that read them have *run*, not until they are queued: release them after an event
            behind them. Those of `torch` are tensors of the calling thread's current stream.

        Raises:
            UsageError: the batch does not fit the schema, or exceeds `batch_size`.
        """
        if self._in_flight:
            raise UsageError("a submitted batch waits for its result; call result() first")
        self.submit(batch, epoch, train)
        return self.result()

    def submit(self, batch: Batch, epoch: int, train: bool = True) -> None:
        """Starts to augment a batch, which must not change until `result` returns its images."""
        if self._is_closed:
            raise UsageError("the augmenter was closed; open a new one")
        arrays = self._spec.arrays(batch)
        if len(arrays[0]) > self._batch_size:
            raise UsageError(
                f"a batch must have at most the augmenter's batch_size, {self._batch_size} "
                f"samples, got {len(arrays[0])}; open the augmenter with the loader's batch_size"
            )
        draws = self._spec.draws(batch, epoch, train)
        steps = self._spec.steps(batch)
        coded = [g.name for g, s in zip(self._spec.geometries, steps, strict=True) if s is not None]
        if coded and not self.takes_codes:
            raise UsageError(
                f"the batch holds codes of {', '.join(coded)}, not pixels; open the loader with "
                "decode=True, or the augmenter with backend='torch'"
            )
        self.submit_draws(arrays, draws, steps)

    @abstractmethod
    def submit_draws(self, arrays: list[NDArray[Any]], draws: Draws, steps: Steps = ()) -> None:
        """Starts to augment arrays with given draws.

        Args:
            arrays: (N, B, height, width) in the order of channels.
            draws: the draws of the N samples; `dali` and `torch` interpolate all of them, or none.
            steps: one per array where some hold codes of records, which only `torch` takes.
        """

    def result(self) -> dict[str, Any]:
        """Waits for the oldest submitted batch and returns its images."""
        if not self._in_flight:
            raise UsageError("cannot wait for a result: no batch was submitted")
        return self._finish(self._in_flight.popleft())

    @abstractmethod
    def _finish(self, work: Any) -> dict[str, Any]:
        """Waits for the images of a batch that was taken from the queue."""

    @abstractmethod
    def close(self) -> None:
        """Releases threads and memory."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *of_error: object) -> None:
        self.close()
