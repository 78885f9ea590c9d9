"""Augmented cutouts as samples, to be looked at: what the network sees, before it is scaled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from msdata.augment.augmenter import open_augmenter
from msdata.augment.config import AugmentConfig
from msdata.augment.geometry import make_geometries
from msdata.augment.recipe import EARLY_NAME
from msdata.schema import Sample, Schema


def preview(
    samples: Sequence[Sample], schema: Schema, fusion: str, *, seed: int, epoch: int = 0
) -> tuple[list[Sample], Schema]:
    """Augments samples as a training with that seed does in that epoch.

    Args:
        samples: what `Split.__getitem__` gives.
        schema: of their arrays.
        fusion: "early" or "late".
        seed: of the draws.
        epoch: of the draws.

    Returns:
        The samples with their images turned, cut and resampled, in flux; and the schema of those.

    Raises:
        UsageError: the arrays are no images that can be augmented so.
    """
    config = AugmentConfig(fusion=fusion, scaling="none")
    geometries = make_geometries(schema, config)
    batch = {g.name: np.stack([sample[g.name] for sample in samples]) for g in geometries}
    batch["sample_id"] = np.array([str(sample["sample_id"]) for sample in samples])
    with open_augmenter(schema, config, seed=seed, batch_size=len(samples)) as augmenter:
        images = augmenter.run(batch, epoch)
    if fusion == "early":
        ends = np.cumsum([len(g.bands) for g in geometries])[:-1]
        parts = np.split(images[EARLY_NAME], ends.tolist(), axis=1)
        images = {g.name: part for g, part in zip(geometries, parts, strict=True)}
    surveys = tuple(
        replace(
            schema[g.name],
            shape=images[g.name].shape[1:],
            dtype="<f4",
            pixel_scale_arcsec=g.pixel_scale_arcsec,
        )
        for g in geometries
    )
    turned = [
        {**sample, **{name: image[i] for name, image in images.items()}}
        for i, sample in enumerate(samples)
    ]
    return turned, Schema(name=schema.name, arrays=surveys)
