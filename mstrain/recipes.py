"""Trainings by name: functions that return a configuration.

A recipe is a starting point; every setting can be replaced on the command line. `auto` makes one
that fits a data set.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import msdata
from msdata.augment import AugmentConfig
from msdata.augment.geometry import make_geometries, survey_names
from msdata.errors import UsageError
from mstrain.config import (
    CheckpointConfig,
    ComputeConfig,
    LogConfig,
    LossConfig,
    OptimConfig,
    TrainConfig,
)
from mstrain.models.labels import label_columns, resolve
from mstrain.models.target import Target
from mstrain.network_config import REDSHIFT, ModelConfig
from mstrain.overrides import apply_overrides, target_given

AUTO = "auto"
# Turned by any angle, 128 pixels keep a field of 90; smaller images would lose too much.
_LEAST_TURNED_PIXELS = 128
_MAX_GRID_PIXELS = 120
_AUTO_STEPS = 2000


def demo() -> TrainConfig:
    """Minutes on two cores: a narrow ResNet-10 on a coarse grid, for a thousand mock objects."""
    return TrainConfig(
        recipe="demo",
        epochs=30,
        batch_size=64,
        augment=AugmentConfig(
            fusion="early", scaling="asinh", output_size=32, crops={"panstarrs": 64}
        ),
        model=ModelConfig(depth=10, width=24, num_bins=80, hidden=128),
        loss=LossConfig(label_width=0.03),
        optim=OptimConfig(learning_rate=2e-3, weight_decay=1e-3, ema_decay=0.98),
        log=LogConfig(every_steps=20),
        checkpoint=CheckpointConfig(keep=1),
    )


def resnet18_early() -> TrainConfig:
    """ResNet-18 on nine bands of one grid, with the paper's grid, bins and scaling.

    Not with its weights of 1/count: `loss.weighting=inverse_count` has them.
    """
    return TrainConfig(
        recipe="resnet18_early",
        epochs=40,
        batch_size=256,
        compute=ComputeConfig(precision="bf16"),
    )


def resnet50_early() -> TrainConfig:
    """ResNet-50 on nine bands of one grid, at the paper's batch of 16 x 16."""
    early = resnet18_early()
    return replace(early, recipe="resnet50_early", model=replace(early.model, depth=50))


def resnet50_late() -> TrainConfig:
    """A ResNet-50 for each survey on its own grid, joined before the head."""
    early = resnet50_early()
    return replace(early, recipe="resnet50_late", augment=replace(early.augment, fusion="late"))


def resnet50_early_gpus() -> TrainConfig:
    """`resnet50_early` on several GPUs, 256 samples on each: with fewer they wait for their hosts.

    AdamW, since its step is a fused kernel; twice the warm-up, since the rate is scaled.
    """
    early = resnet50_early()
    optim = replace(early.optim, name="adamw", warmup=0.1)
    return replace(early, recipe="resnet50_early_gpus", batch_per_gpu=256, optim=optim)


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    recipe.__name__: recipe
    for recipe in (demo, resnet18_early, resnet50_early, resnet50_late, resnet50_early_gpus)
}


def find_recipe(name: str) -> TrainConfig:
    """The configuration of a recipe.

    Raises:
        UsageError: the name is unknown.
    """
    if name not in RECIPES:
        raise UsageError(f"recipe must be one of {', '.join((AUTO, *RECIPES))}, got {name!r}")
    return RECIPES[name]()


def config_for(
    recipe: str, settings: Sequence[str], data: Path, num_ranks: int
) -> tuple[TrainConfig, msdata.Dataset]:
    """The configuration that a command line asks for, and its data set.

    Args:
        recipe: name of a recipe, or "auto".
        settings: `key=value` each.
        data: the data set's folder.
        num_ranks: ranks that share a batch.

    Raises:
        UsageError: recipe, setting or data set are unknown, or do not fit.
    """
    if recipe == AUTO:
        opened = msdata.open(data)
        return apply_overrides(auto(opened, num_ranks, **target_given(settings)), settings), opened
    config = apply_overrides(find_recipe(recipe), settings)
    return config, msdata.open(data)


def auto(
    data: msdata.Dataset, num_ranks: int = 1, *, target: str | None = None, **model: Any
) -> TrainConfig:
    """Settings that fit a data set: its arrays, columns, labels and size.

    All images of the schema are taken, on one grid where their skies can be laid over each other,
    else each on its own; scaled by asinh from the noise of each band; turned by any angle, or by
    quarter turns where images are small. Bins of redshift end where 99.9 % of the redshifts do,
    those of another number hold all of the training split, classes have one each. E(B-V) is joined
    where every sample of every split has a plausible one.

    Args:
        data: with split "train" and a label.
        num_ranks: ranks that share a batch; the batch is a multiple.
        target: the column to learn; None takes `redshift`, or the only label there is.
        **model: further settings of the target: target_kind, target_min, target_max, classes.

    Returns:
        The configuration, a function of the data set and the ranks alone.

    Raises:
        UsageError: the data set has no image, no training sample, or not one label to choose.
    """
    num_samples = len(data.split("train")) if "train" in data.splits else 0
    if not num_samples:
        raise UsageError(
            f"{data.path} has no samples in split 'train'; pack it with --split 0.7,0.1,0.2"
        )
    is_small, is_large = num_samples < 5_000, num_samples >= 100_000
    batch_size = min(256, max(8, 1 << (num_samples // 32).bit_length()))
    batch_size = math.ceil(batch_size / num_ranks) * num_ranks
    num_bins = 80 if is_small else 400 if is_large else 200
    label = _label_of(data, target, num_bins, model)
    epochs = min(60, max(10, math.ceil(_AUTO_STEPS * batch_size / num_samples)))
    network = replace(
        label.model,
        depth=18 if is_large else 10,
        width=24 if is_small else 64,
        # Few samples per rank make poor statistics, and one alone none.
        norm="batch" if batch_size >= 64 else "group",
        ebv_column=_reddening_column(data, label.model.target),
        hidden=128 if is_small else 256,
    )
    return TrainConfig(
        recipe=AUTO,
        epochs=epochs,
        batch_size=batch_size,
        augment=_fitting_images(data),
        model=network,
        loss=label.loss,
        optim=OptimConfig(
            learning_rate=3e-4 if is_large else 1e-3,
            weight_decay=1e-4 if is_large else 1e-3,
            ema_decay=0.999 if is_large else 0.98,
        ),
        log=LogConfig(every_steps=20),
    )


def _label_of(
    data: msdata.Dataset, column: str | None, num_bins: int, model: Mapping[str, Any]
) -> TrainConfig:
    """Settings of target and loss alone."""
    labels = label_columns(data)
    if column is None:
        column = labels[0] if len(labels) == 1 else REDSHIFT
    if column not in data.columns and column == REDSHIFT:
        found = f"; or give model.target, one of {', '.join(labels)}" if labels else ""
        raise UsageError(
            f"{data.path} has no column 'redshift' to learn; pack it with a catalog that has one"
            f"{found}"
        )
    asked = ModelConfig(target=column, num_bins=num_bins, ebv_column=None, **model)
    if asked.kind_of_target == REDSHIFT:
        end = _redshift_end(data, column)
        width = LossConfig(label_width=end / num_bins)
        return TrainConfig(model=replace(asked, z_max=end), loss=width)
    resolved = resolve(TrainConfig(model=asked), data)
    if resolved.model.classes:
        return resolved
    target = Target.of(resolved.model)
    return replace(resolved, loss=LossConfig(label_width=(target.high - target.low) / num_bins))


def _redshift_end(data: msdata.Dataset, column: str) -> float:
    """Where bins end that hold 99.9 % of the redshifts of split "train", in steps of 0.05."""
    redshift = data.split("train").numbers(column)
    known = redshift[np.isfinite(redshift) & (redshift >= 0)]
    if not len(known):
        raise UsageError(
            f"no sample of split 'train' of {data.path} has a redshift >= 0; correct the catalog "
            "and pack again"
        )
    # A few quasars at the far end would stretch the bins of all galaxies.
    end = float(np.quantile(known, 0.999, method="higher" if len(known) < 1000 else "linear"))
    return max(1, math.ceil(end * 20 - 1e-9)) / 20


def _reddening_column(data: msdata.Dataset, target: str) -> str | None:
    """The column of E(B-V), if it has a plausible value for every sample."""
    usual = ModelConfig()
    column = usual.ebv_column
    if column in (None, target) or column not in data.columns:
        return None
    for name in data.splits:
        ebv = data.split(name).numbers(column)
        if not ((ebv >= usual.ebv_min) & (ebv <= usual.ebv_max)).all():
            return None
    return column


def _fitting_images(data: msdata.Dataset) -> AugmentConfig:
    """Which images, how large, on which grid."""
    schema = data.schema
    images = [schema[name] for name in survey_names(schema, AugmentConfig())]
    scales = [image.pixel_scale_arcsec for image in images]
    finest = images[int(np.argmin([math.inf if s is None else s for s in scales]))]
    is_turned = min(finest.shape[1:]) >= _LEAST_TURNED_PIXELS
    # Default crops fit any angle; without one the whole image is shown.
    crops = {} if is_turned else {image.name: min(image.shape[1:]) for image in images}
    late = AugmentConfig(
        fusion="late", scaling="asinh", rotation="any" if is_turned else "exact", crops=crops
    )
    if len(images) > 1 and None in scales:
        return late
    side = make_geometries(schema, late)[images.index(finest)].output_size
    early = replace(late, fusion="early", output_size=min(side, _MAX_GRID_PIXELS))
    try:
        make_geometries(schema, early)
    except UsageError:
        # Another survey shows less of the sky.
        return late
    return early


def for_ranks(config: TrainConfig, num_ranks: int) -> TrainConfig:
    """The configuration with the global batch that `batch_per_gpu` means on so many ranks.

    The learning rate is taken as that of `batch_size`, and scaled by the root of the batches'
    ratio, which keeps the noise of optimizers that divide by the root of the mean square gradient.
    The decay of the averaged weights is raised to the ratio's power, so that they average over as
    many samples. The warm-up stays the same share of the steps.

    Source: Malladi et al. 2022 (arXiv:2205.10287), the rule for the rate alone; Busbridge et al.
    2023 (arXiv:2307.13813) for the average.

    Args:
        config: settings of the run.
        num_ranks: ranks that share the batch.
    """
    if config.batch_per_gpu is None:
        return config
    batch_size = config.batch_per_gpu * num_ranks
    ratio = batch_size / config.batch_size
    optim = replace(
        config.optim,
        learning_rate=config.optim.learning_rate * math.sqrt(ratio),
        ema_decay=config.optim.ema_decay**ratio,
    )
    return replace(config, batch_size=batch_size, batch_per_gpu=None, optim=optim)
