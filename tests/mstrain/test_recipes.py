"""The recipes of the paper's networks as they are, but for the batch: a few steps on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import msdata
from mstrain.config import TrainConfig
from mstrain.data.batches import (
    EpochEnd,
    evaluation_batches,
    make_augmenter,
    make_loader,
    training_stream,
)
from mstrain.distributed import Ranks
from mstrain.overrides import apply_overrides
from mstrain.recipes import find_recipe
from mstrain.training.run import loss_weights
from mstrain.training.train_step import TrainStep

NUM_STEPS = 2
# Parameters of ResNet-50 without its last layer, of its stem for three channels, and what the head
# of 400 bins takes: 256 units from the features and E(B-V).
RESNET50, STEM = 23_508_032, 3 * 64 * 7 * 7


def a_few_steps(config: TrainConfig, galaxies: Path) -> tuple[TrainStep, list[float]]:
    """Trains as `mstrain train` does, without writing checkpoints of a gigabyte."""
    split = msdata.open(galaxies).split("train")
    ranks = Ranks(topology=msdata.Topology(), device=torch.device("cpu"))
    with make_loader(split, config, ranks) as loader, make_augmenter(split, config, ranks) as made:
        weights = loss_weights(split, config, Silent())
        train_step = TrainStep(config, made.shapes, ranks, weights=weights, num_steps=10)
        losses = []
        stream = training_stream(loader, made, config, ranks.device)
        for batch, _ in zip(stream, range(NUM_STEPS), strict=False):
            assert not isinstance(batch, EpochEnd)
            train_step.add(batch)
            losses.append(train_step.step(len(losses)).loss)
        stream.close()
    return train_step, losses


class Silent:
    """A journal that nobody reads."""

    def say(self, text: str) -> None:
        pass


@pytest.mark.parametrize(
    ("name", "encoders"),
    [
        ("resnet50_early", {"image": (9, 120)}),
        ("resnet50_late", {"galex": (2, 22), "panstarrs": (5, 120), "unwise": (2, 22)}),
    ],
)
def test_a_recipe_trains_and_predicts(name: str, encoders: dict, galaxies: Path) -> None:
    config = apply_overrides(find_recipe(name), ["batch_size=4", "data.threads=1"])
    train_step, losses = a_few_steps(config, galaxies)
    model = train_step.model
    assert set(model.encoders) == set(encoders)
    for image, (channels, _) in encoders.items():
        encoder = model.encoders[image]
        stem = 64 * channels * (9 if encoders[image][1] < 64 else 49)
        assert sum(p.numel() for p in encoder.parameters()) == RESNET50 - STEM + stem
    # 400 bins that nothing is known of.
    assert losses[0] == pytest.approx(torch.log(torch.tensor(400.0)).item(), abs=0.5)
    assert all(torch.isfinite(torch.tensor(losses)))
    assert losses[0] != losses[1]
    batch = next(evaluation_batches(msdata.open(galaxies), "val", config))
    for image, (channels, side) in encoders.items():
        assert batch.images[image].shape == (len(batch), channels, side, side)
    sums = train_step.validation_sums(batch)
    assert sums[1] == len(batch)
    assert torch.isfinite(sums).all()
