"""Bins of redshift on [0, z_max], and the density that their logits mean."""

from __future__ import annotations

import torch
from torch import Tensor

from mstrain.config import ModelConfig


def bin_edges(config: ModelConfig) -> Tensor:
    """Edges of the redshift bins.

    Args:
        config: `num_bins` and `z_max` count.

    Returns:
        float64 (num_bins + 1,), from 0 to z_max.
    """
    return torch.linspace(0, config.z_max, config.num_bins + 1, dtype=torch.float64)


def bin_of(redshift: Tensor, config: ModelConfig) -> Tensor:
    """The bin of each redshift.

    Args:
        redshift: float (B,); outside of [0, z_max], or NaN, has none.
        config: `num_bins` and `z_max` count.

    Returns:
        int64 (B,), -1 where there is none; z_max itself is in the last bin.
    """
    z = redshift.double()
    is_inside = (z >= 0) & (z <= config.z_max)
    number = (torch.where(is_inside, z, 0.0) * (config.num_bins / config.z_max)).long()
    return torch.where(is_inside, number.clamp_max(config.num_bins - 1), -1)


def density(logits: Tensor, config: ModelConfig, log_factor: Tensor | None = None) -> Tensor:
    """Probability density per unit of redshift, constant within a bin.

    Args:
        logits: (B, num_bins).
        config: `num_bins` and `z_max` count.
        log_factor: (num_bins,), of a `prior.TargetPrior`: what replaces the prior of a
            training with weights. None leaves the density under the prior of the training.

    Returns:
        float64 (B, num_bins); times the bin width, each row sums to 1.
    """
    logits = logits.double()
    if log_factor is not None:
        logits = logits + log_factor.to(logits)
    return torch.softmax(logits, dim=1) * (config.num_bins / config.z_max)
