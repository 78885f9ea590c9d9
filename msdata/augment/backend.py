"""The common part of the backends: check a batch and make its draws."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from msdata.augment.draws import Draws
from msdata.augment.spec import AugmentSpec, Batch, check_length
from msdata.errors import UsageError

Work = TypeVar("Work")


class Backend(ABC, Generic[Work]):
    """The front of a backend; see `Augmenter`.

    Args:
        spec: the augmentation.
        batch_size: samples of the largest batch.
    """

    def __init__(self, spec: AugmentSpec, batch_size: int) -> None:
        self._spec = spec
        self._batch_size = batch_size
        # Submitted batches whose results were not taken yet, in order.
        self._in_flight: deque[Work] = deque()
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
        """Augments one batch; see `Augmenter.run`."""
        if self._in_flight:
            raise UsageError("a submitted batch waits for its result; call result() first")
        self.submit(batch, epoch, train)
        return self.result()

    def submit(self, batch: Batch, epoch: int, train: bool = True) -> None:
        """Starts to augment a batch; see `Augmenter.submit`."""
        arrays = self._spec.arrays(batch)
        check_length(len(arrays[0]), self._batch_size)
        draws = self._spec.draws(batch, epoch, train)
        steps = self._spec.steps(batch)
        if all(step is None for step in steps):
            self.submit_draws(arrays, draws)
        else:
            self.submit_codes(arrays, draws, steps)

    @abstractmethod
    def submit_draws(self, arrays: list[NDArray[Any]], draws: Draws) -> None:
        """Starts to augment arrays with given draws.

        Args:
            arrays: (N, B, height, width) in the order of channels.
            draws: the draws of the N samples.
        """

    def submit_codes(
        self,
        arrays: list[NDArray[Any]],
        draws: Draws,
        steps: Sequence[NDArray[np.float32] | None],
    ) -> None:
        """Starts to augment the codes of records; only the `torch` backend does.

        Args:
            arrays: (N, B, height, width) in the order of channels: codes where there are steps.
            draws: the draws of the N samples.
            steps: float32 (N, B), or None for pixels.

        Raises:
            UsageError: the backend takes no codes.
        """
        names = [g.name for g, s in zip(self._spec.geometries, steps, strict=True) if s is not None]
        raise UsageError(
            f"the batch holds codes of {', '.join(names)}, not pixels; open the loader with "
            "decode=True, or the augmenter with backend='torch'"
        )

    def result(self) -> dict[str, Any]:
        """The images of the batch submitted first; see `Augmenter.result`."""
        if not self._in_flight:
            raise UsageError("cannot wait for a result: no batch was submitted")
        return self._finish(self._in_flight.popleft())

    @abstractmethod
    def _finish(self, work: Work) -> dict[str, Any]:
        """Waits for the images of a batch that was taken from the queue."""

    @abstractmethod
    def close(self) -> None:
        """Releases threads and memory."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
