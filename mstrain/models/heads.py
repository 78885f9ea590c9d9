"""From features to a density of redshift: bins on [0, z_max], and what their logits mean."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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
        redshift: float (B,); outside of [0, z_max], or NaN, there is no bin.
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


class BinHead(nn.Module):
    """Joins E(B-V) to pooled features and gives logits of the redshift bins.

    Args:
        num_features: of all encoders together.
        config: of the network.
    """

    # E(B-V) of a few hundredths becomes as large as a feature.
    _EBV_SCALE = 10.0

    def __init__(self, num_features: int, config: ModelConfig) -> None:
        super().__init__()
        self.has_ebv = config.ebv_column is not None
        num_in = num_features + self.has_ebv
        layers: list[nn.Module] = []
        if config.hidden:
            layers += [nn.Linear(num_in, config.hidden), nn.ReLU(inplace=True)]
            num_in = config.hidden
        self.layers = nn.Sequential(*layers, nn.Linear(num_in, config.num_bins))

    def forward(self, features: Tensor, ebv: Tensor | None) -> Tensor:
        """Logits.

        Args:
            features: (B, num_features).
            ebv: E(B-V) in magnitudes, (B,); needed where the network was made with it.

        Returns:
            (B, num_bins).
        """
        if self.has_ebv:
            assert ebv is not None, "this network was trained with E(B-V)"
            reddening = (ebv * self._EBV_SCALE).to(features.dtype)
            features = torch.cat([features, reddening[:, None]], dim=1)
        logits: Tensor = self.layers(features)
        return logits
