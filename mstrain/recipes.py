"""Trainings by name: functions that return a configuration.

A recipe is a starting point; every setting can be replaced on the command line.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from msdata.augment import AugmentConfig
from msdata.errors import UsageError
from mstrain.config import (
    CheckpointConfig,
    ComputeConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)


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
        raise UsageError(f"recipe must be one of {', '.join(RECIPES)}, got {name!r}")
    return RECIPES[name]()


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
