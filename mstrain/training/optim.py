"""Optimizers, the learning rate as a function of the step, and averaged weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mstrain.config import OptimConfig

# Of a parameter's state: plain numbers, as tensors.
_HOST_NUMBERS = ("step", "mu_product")


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer, with weight decay for kernels and matrices only.

    Source: NAdam, Dozat 2016 (ICLR workshop); AdamW, Loshchilov & Hutter 2019 (arXiv:1711.05101).

    Args:
        model: whose parameters.
        config: its settings.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
    }
    if config.name == "adamw":
        return torch.optim.AdamW(groups, **options)
    return torch.optim.NAdam(groups, decoupled_weight_decay=True, **options)


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Takes up an optimizer's state; the numbers in it stay on the host.

    `load_state_dict` moves NAdam's to the parameters' GPU, and each step would then wait for the
    GPU once per parameter to read them.

    Args:
        optimizer: an optimizer of the same parameters.
        saved: its `state_dict`, on any device.
    """
    optimizer.load_state_dict(dict(saved))
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    places = [place for group in saved["param_groups"] for place in group["params"]]
    for parameter, place in zip(parameters, places, strict=True):
        for name, value in saved["state"].get(place, {}).items():
            if name in _HOST_NUMBERS:
                optimizer.state[parameter][name] = value.detach().cpu().clone()


def learning_rate(step: int, num_steps: int, config: OptimConfig) -> float:
    """The rate of a step: a linear rise, then half a cosine.

    A function of the step alone: nothing of a schedule has to be kept in a checkpoint but the step.

    Source: Loshchilov & Hutter 2017 (arXiv:1608.03983), equation 5, with one period.

    Args:
        step: from 0.
        num_steps: optimizer steps of the whole training.
        config: `learning_rate`, `warmup` and `final_rate` count.
    """
    num_warmup = math.ceil(config.warmup * num_steps)
    if step < num_warmup:
        return config.learning_rate * (step + 1) / num_warmup
    done = min(1.0, (step - num_warmup) / max(1, num_steps - num_warmup))
    falling = 0.5 * (1 + math.cos(math.pi * done))
    return config.learning_rate * (config.final_rate + (1 - config.final_rate) * falling)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Has the next step made with this rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class AveragedModel:
    """An exponential moving average of a network's weights, and of its batch statistics.

    Args:
        model: the network; it is copied.
        decay: share of the average that a step keeps; less at the beginning, where the average
            would else remember the initial weights.

    Attributes:
        model: the average, ready to be evaluated.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._decay = decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Takes in the weights after a step, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        mine, new = self.model.state_dict(), model.state_dict()
        floats = [n for n, value in mine.items() if value.is_floating_point()]
        torch._foreach_lerp_([mine[n] for n in floats], [new[n] for n in floats], 1 - decay)
        for name in mine.keys() - set(floats):
            mine[name].copy_(new[name])
