"""The augmenter: batches of cutouts in, batches of network input out.

`reference` (NumPy and OpenCV, on the CPU) defines what augmentation means; `dali` and `torch` do
the same on a GPU, or on the CPU, within the tolerance that docs/design/augment.md states.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from msdata.augment.backend import Augmenter
from msdata.augment.config import AugmentConfig
from msdata.augment.dali_augmenter import DaliAugmenter
from msdata.augment.geometry import make_geometries
from msdata.augment.reference import ReferenceAugmenter
from msdata.augment.spec import EARLY_NAME, Batch, make_spec
from msdata.augment.statistics import Statistics
from msdata.augment.torch_augmenter import TorchAugmenter
from msdata.errors import UsageError
from msdata.schema import Sample, Schema

BACKENDS = ("reference", "dali", "torch")
DTYPES = ("float32", "bfloat16")


def stream(
    batches: Iterable[Batch],
    augmenter: Augmenter,
    epoch: int | None = None,
    *,
    train: bool = True,
    ahead: int = 1,
) -> Iterator[tuple[Batch, dict[str, Any]]]:
    """Augments the next batches while the network works on this one.

    Args:
        batches: a loader that holds more than `ahead` batches, as it does by default if its
            `prefetch` is at least `ahead`.
        augmenter: augments the batches.
        epoch: keys the draws; None takes the loader's.
        train: False draws nothing.
        ahead: batches in flight beside the one handed out.

    Yields:
        A batch and its images.
    """
    if epoch is None:
        loader: Any = batches
        epoch = int(loader.state_dict()["epoch"])
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
        # Left early: batches in flight still read the loader's buffers.
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
    dtype: str = "float32",
    channels_last: bool = False,
    compiled: bool = False,
) -> Augmenter:
    """Makes an augmenter; use it in a `with` statement.

    Args:
        schema: the arrays of a sample.
        config: the augmentation.
        seed: keys the draws.
        batch_size: samples of the largest batch; shorter batches are accepted.
        statistics: the result of `read_statistics`, if scaling or noise need it.
        backend: "reference", "dali" or "torch".
        device_id: dali, torch: number of the GPU; None uses the CPU.
        threads: reference, dali: CPU threads; None means the cores this process may use, up to 8.
        dtype: torch: "float32" or "bfloat16", of the images.
        channels_last: torch: lay images out pixel by pixel, not channel by channel.
        compiled: torch: use `torch.compile`, which takes up to a minute at the first batch.

    Raises:
        UsageError: an option is out of range, or options contradict each other.
        MissingPackageError: DALI or torch is not installed.
    """
    if backend not in BACKENDS:
        raise UsageError(f"backend must be one of {', '.join(BACKENDS)}, got {backend!r}")
    if batch_size < 1 or (threads is not None and threads < 1):
        raise UsageError(
            f"batch_size and threads must be at least 1, got {batch_size} and {threads}"
        )
    if dtype not in DTYPES:
        raise UsageError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    spec = make_spec(schema, config, seed, statistics)
    if backend == "torch":
        return TorchAugmenter(
            spec,
            batch_size,
            device_id=device_id,
            dtype=dtype,
            channels_last=channels_last,
            compiled=compiled,
        )
    if dtype != "float32" or channels_last or compiled:
        raise UsageError("dtype, channels_last and compiled are options of backend 'torch' only")
    if backend == "dali":
        return DaliAugmenter(spec, batch_size, device_id=device_id, threads=threads)
    if device_id is not None:
        raise UsageError("the reference backend runs on the CPU; omit device_id")
    return ReferenceAugmenter(spec, batch_size, threads=threads)


def preview(
    samples: Sequence[Sample],
    schema: Schema,
    config: AugmentConfig,
    *,
    seed: int,
    epochs: Sequence[int] = (0,),
    statistics: Statistics | None = None,
) -> tuple[list[Sample], Schema]:
    """Augments samples to look at, as a training with this seed does in some epochs, unscaled.

    Args:
        samples: samples as `Split.__getitem__` returns them.
        schema: schema of their arrays.
        config: the augmentation; its scaling is left out.
        seed: keys the draws.
        epochs: key the draws: each gives another version of every sample.
        statistics: see `open_augmenter`; noise needs them.

    Returns:
        The samples with their images turned, cut and resampled, in flux, the versions of a sample
        after each other; and their schema.

    Raises:
        UsageError: the arrays are not images, or cannot be fused in this way.
    """
    config = replace(config, scaling="none")
    geometries = make_geometries(schema, config)
    batch = {g.name: np.stack([sample[g.name] for sample in samples]) for g in geometries}
    batch["sample_id"] = np.array([str(sample["sample_id"]) for sample in samples])
    size = len(samples)
    with open_augmenter(
        schema, config, seed=seed, batch_size=size, statistics=statistics
    ) as augmenter:
        drawn = [augmenter.run(batch, epoch) for epoch in epochs]
    if config.fusion == "early":
        ends = np.cumsum([len(g.bands) for g in geometries])[:-1].tolist()
        names = [g.name for g in geometries]
        split = (np.split(images[EARLY_NAME], ends, axis=1) for images in drawn)
        drawn = [dict(zip(names, parts, strict=True)) for parts in split]
    surveys = tuple(
        replace(
            schema[g.name],
            shape=drawn[0][g.name].shape[1:],
            dtype="<f4",
            pixel_scale_arcsec=g.pixel_scale_arcsec,
        )
        for g in geometries
    )
    turned = [
        {**sample, **{name: image[i] for name, image in images.items()}}
        for i, sample in enumerate(samples)
        for images in drawn
    ]
    return turned, Schema(name=schema.name, arrays=surveys)
