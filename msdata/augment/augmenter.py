"""Batches of cutouts in, batches of network input out: what the backends have in common.

`reference` (NumPy and OpenCV, on the CPU) says what augmentation means; `dali` does the same on a
GPU, or on the CPU, to within the tolerance that DESIGN.md states.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any, Protocol

from msdata.augment.config import AugmentConfig
from msdata.augment.dali_augmenter import DaliAugmenter
from msdata.augment.recipe import Batch, make_recipe
from msdata.augment.reference import ReferenceAugmenter
from msdata.augment.statistics import Statistics
from msdata.errors import UsageError
from msdata.schema import Schema

BACKENDS = ("reference", "dali")


class Augmenter(Protocol):
    """What every backend is; a context manager."""

    @property
    def shapes(self) -> dict[str, tuple[int, int, int]]:
        """Shape (channels, height, width) of each image of a sample, by name."""

    @property
    def num_channels(self) -> dict[str, int]:
        """Channels of each image, by name."""

    @property
    def flux_factors(self) -> dict[str, float]:
        """By survey: flux in counts = sum of an unscaled image times this."""

    def run(self, batch: Batch, epoch: int, train: bool = True) -> dict[str, Any]:
        """Augments one batch and waits for it.

        Args:
            batch: of the loader: the schema's arrays (n, ...) and `sample_id` (n,).
            epoch: what the draws are keyed with, beside seed and ids.
            train: False for no draws at all; see `draws.no_draws`.

        Returns:
            float32 (n, channels, height, width) by name, with DLPack; see `shapes`. They are
            not written over while somebody holds them. On a GPU that is until kernels which read
            them have *run*, not until they are queued: let go only after an event behind them.

        Raises:
            UsageError: the batch is not of the schema, or longer than it was said to be.
        """

    def submit(self, batch: Batch, epoch: int, train: bool = True) -> None:
        """Begins to augment a batch, which must not change until its `result` is there."""

    def result(self) -> dict[str, Any]:
        """The images of the batch that was submitted first of those not asked for yet."""

    def close(self) -> None:
        """Gives threads and memory back."""

    def __enter__(self) -> Augmenter: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def stream(
    batches: Iterable[Batch],
    augmenter: Augmenter,
    epoch: int,
    *,
    train: bool = True,
    ahead: int = 1,
) -> Iterator[tuple[Batch, dict[str, Any]]]:
    """Augments the next batches while the network is at work on this one.

    Args:
        batches: a loader that holds more than `ahead` batches, as it does of itself where its
            `prefetch` is at least `ahead`.
        augmenter: what augments them.
        epoch: what the draws are keyed with.
        train: False for no draws.
        ahead: batches under way beside the one handed out.

    Yields:
        A batch and its images.
    """
    waiting: list[Batch] = []
    try:
        for batch in batches:
            augmenter.submit(batch, epoch, train)
            waiting.append(batch)
            if len(waiting) > ahead:
                images = augmenter.result()
                yield waiting.pop(0), images
        while waiting:
            images = augmenter.result()
            yield waiting.pop(0), images
    finally:
        # Left early: what is under way still reads the loader's buffers.
        for _ in waiting:
            augmenter.result()


def open_augmenter(
    schema: Schema,
    config: AugmentConfig,
    *,
    seed: int,
    batch_size: int,
    statistics: Statistics | None = None,
    backend: str = "reference",
    device_id: int | None = None,
    threads: int | None = None,
) -> Augmenter:
    """Makes an augmenter; use it in a `with` statement.

    Args:
        schema: the arrays of a sample.
        config: what is done to them.
        seed: of the draws.
        batch_size: samples of the largest batch; shorter ones are taken too.
        statistics: what `read_statistics` gave, where scaling or noise need it.
        backend: "reference" or "dali".
        device_id: dali: number of the GPU; None for the CPU.
        threads: CPU threads; None means the cores this process may use, up to 8.

    Raises:
        UsageError: an option makes no sense, or they do not go together.
        MissingPackageError: DALI is not installed.
    """
    if backend not in BACKENDS:
        raise UsageError(f"backend {backend!r} is none of {', '.join(BACKENDS)}")
    if batch_size < 1 or (threads is not None and threads < 1):
        raise UsageError(f"batch_size {batch_size} and threads {threads} must be at least 1")
    recipe = make_recipe(schema, config, seed, statistics)
    if backend == "dali":
        return DaliAugmenter(recipe, batch_size, device_id=device_id, threads=threads)
    if device_id is not None:
        raise UsageError("the reference backend runs on the CPU; leave device_id out")
    return ReferenceAugmenter(recipe, batch_size, threads=threads)
