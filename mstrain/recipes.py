"""Trainings by name: functions that return a configuration.

A recipe is a starting point; every setting can be replaced on the command line.
"""

from __future__ import annotations

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


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    recipe.__name__: recipe for recipe in (demo, resnet18_early, resnet50_early, resnet50_late)
}


def find_recipe(name: str) -> TrainConfig:
    """The configuration of a recipe.

    Raises:
        UsageError: the name is unknown.
    """
    if name not in RECIPES:
        raise UsageError(f"recipe must be one of {', '.join(RECIPES)}, got {name!r}")
    return RECIPES[name]()
