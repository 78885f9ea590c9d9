"""Optimizers, the learning rate as a function of the step, and averaged weights."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from mstrain.config import OptimConfig

# How the arithmetic is done is the machine's, not the checkpoint's.
_OF_DEVICE = ("fused", "foreach", "capturable")
# Key of a group's factor of the rate, and the stage in a parameter's name; the stem has no number.
_FACTOR = "rate_factor"
_STAGE = re.compile(r"encoders\.[^.]+\.(?:stem|stages\.(\d))\.")


def make_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimizer, with weight decay for kernels and matrices only, and a rate for each stage.

    On a GPU AdamW is a few fused kernels, which a CUDA graph may hold. NAdam has none such; it
    reads its numbers on the host.

    Source: NAdam, Dozat 2016 (ICLR workshop); AdamW, Loshchilov & Hutter 2019 (arXiv:1711.05101);
    rates by stage, Bao et al. 2022 (arXiv:2106.08254), appendix H.

    Args:
        model: whose parameters.
        config: its settings.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = []
    for factor, members in _by_rate(model, config.layer_decay).items():
        kernels, others = [p for p in members if p.ndim > 1], [p for p in members if p.ndim <= 1]
        groups += [
            {"params": kernels, "weight_decay": config.weight_decay, _FACTOR: factor},
            {"params": others, "weight_decay": 0.0, _FACTOR: factor},
        ]
    options: dict[str, Any] = {
        "lr": config.learning_rate,
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
    }
    if config.name == "adamw":
        if parameters[0].device.type == "cuda":
            options |= {"fused": True, "capturable": True}
        return torch.optim.AdamW(groups, **options)
    return torch.optim.NAdam(groups, decoupled_weight_decay=True, **options)


def _by_rate(model: nn.Module, decay: float) -> dict[float, list[nn.Parameter]]:
    """Parameters by the factor of their rate: decay^depth, from the head (0) to the stem (5)."""
    found: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        stage = _STAGE.match(name)
        depth = 0 if stage is None else 5 if stage[1] is None else 4 - int(stage[1])
        if parameter.requires_grad:
            found.setdefault(decay**depth, []).append(parameter)
    return found


def load_optimizer(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> None:
    """Takes up an optimizer's `state_dict`, from whatever device.

    `load_state_dict` moves NAdam's numbers to the parameters' GPU, and each step would then wait
    for the GPU once per parameter to read them.
    """
    groups: list[dict[str, Any]] = [
        {n: group.get(n) if n in _OF_DEVICE else value for n, value in old.items()}
        for old, group in zip(saved["param_groups"], optimizer.param_groups, strict=True)
    ]
    optimizer.load_state_dict({**saved, "param_groups": groups})
    for group, old in zip(optimizer.param_groups, groups, strict=True):
        for parameter, place in zip(group["params"], old["params"], strict=True):
            value = saved["state"].get(place, {}).get("mu_product")
            if value is not None and not group["capturable"]:
                optimizer.state[parameter]["mu_product"] = value.detach().cpu().clone()


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
    """Has the next step made with this rate, times the factor of each stage."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(_FACTOR, 1.0)


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
        # Made once: the tensors of both networks stay the same objects.
        mine, new = self.model.state_dict(), model.state_dict()
        pairs = [(mine[name], new[name]) for name in mine]
        self._weights = [p for p in pairs if p[0].is_floating_point()]
        self._counts = [p for p in pairs if not p[0].is_floating_point()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the network's weights after a step, counted from 0."""
        decay = min(self._decay, (1 + step) / (10 + step))
        mine, new = zip(*self._weights, strict=True)
        torch._foreach_lerp_(mine, new, 1 - decay)
        if self._counts:
            mine, new = zip(*self._counts, strict=True)
            torch._foreach_copy_(mine, new)
