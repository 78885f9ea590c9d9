"""Bins of the target, and the density that their logits mean."""

from __future__ import annotations

import torch
from torch import Tensor

from mstrain.models.target import Target
from mstrain.network_config import ModelConfig


def bin_edges(config: ModelConfig) -> Tensor:
    """Edges of the bins.

    Args:
        config: `num_bins` and the target count.

    Returns:
        float64 (num_bins + 1,), such as from 0 to z_max.
    """
    target = Target.of(config)
    return torch.linspace(target.low, target.high, config.num_bins + 1, dtype=torch.float64)


def bin_of(label: Tensor, config: ModelConfig) -> Tensor:
    """The bin of each label.

    Args:
        label: float (B,); outside of the bins, or NaN, has none.
        config: `num_bins` and the target count.

    Returns:
        int64 (B,), -1 where there is none; the upper end itself is in the last bin.
    """
    target = Target.of(config)
    z = label.double()
    is_inside = (z >= target.low) & (z <= target.high)
    per_unit = config.num_bins / (target.high - target.low)
    number = (torch.where(is_inside, z - target.low, 0.0) * per_unit).long()
    return torch.where(is_inside, number.clamp_max(config.num_bins - 1), -1)


def density(logits: Tensor, config: ModelConfig, log_factor: Tensor | None = None) -> Tensor:
    """Probability density per unit of the target, constant within a bin; of classes probabilities.

    Args:
        logits: (B, num_bins).
        config: `num_bins` and the target count.
        log_factor: (num_bins,), of a `prior.TargetPrior`: what replaces the prior of a
            training with weights. None leaves the density under the prior of the training.

    Returns:
        float64 (B, num_bins); times the bin width, each row sums to 1.
    """
    logits = logits.double()
    if log_factor is not None:
        logits = logits + log_factor.to(logits)
    target = Target.of(config)
    return torch.softmax(logits, dim=1) * (config.num_bins / (target.high - target.low))


def crps(logits: Tensor, label: Tensor, config: ModelConfig) -> Tensor:
    """CRPS of each density against its label, exact for densities constant in each bin.

    Args:
        logits: (B, num_bins).
        label: float (B,), within the bins; what lies outside of them gives a number of no use.
        config: `num_bins` and the target count.

    Returns:
        float64 (B,), in units of the target.

    Source: Matheson and Winkler 1976 (Management Science 22, 1087).
    """
    edges = bin_edges(config).to(logits.device)
    width = edges[1] - edges[0]
    mass = torch.softmax(logits.double(), dim=1)
    right = mass.cumsum(dim=1)
    left = right - mass
    # Share of each bin that lies below the label: 1 before its bin, 0 behind.
    below = ((label.double()[:, None] - edges[:-1]) / width).clamp(0, 1)
    here = left + below * mass

    def squares(a: Tensor, b: Tensor) -> Tensor:
        return (a * a + a * b + b * b) / 3

    parts = below * squares(left, here) + (1 - below) * squares(1 - here, 1 - right)
    return width * parts.sum(dim=1)
