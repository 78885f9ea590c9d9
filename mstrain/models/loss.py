"""Cross-entropy over bins of the target, with weights, as sums: the mean is taken over all ranks.

A mean of ranks' means is wrong as soon as ranks hold other numbers of samples or other weights. So
a loss is the pair (sum of weight times loss, sum of weights), and gradients are divided by the sum
of weights over all ranks after they were added up.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from msdata.plan.weighted import inverse_count_weights, inverse_counts, is_usable
from mstrain.config import LossConfig
from mstrain.models.heads import bin_edges, bin_of
from mstrain.models.target import Target
from mstrain.network_config import ModelConfig


def redshift_weights(
    label: NDArray[np.float64], config: LossConfig, upper: float, lower: float = 0.0
) -> Tensor:
    """Weight of each of even bins of the target.

    Args:
        label: float (samples,), of the whole split; what lies outside the bins counts not.
        config: `weighting` and `weight_bins` count.
        upper: upper end of the last bin.
        lower: lower end of the first.

    Returns:
        float32 (weight_bins,): 1 / count, with mean 1 over the split; 0 for empty bins.
    """
    return weights_of_bins(label, config, upper, lower).float()


def weights_of_bins(
    label: NDArray[np.float64], config: LossConfig, upper: float, lower: float = 0.0
) -> Tensor:
    """The weights of `redshift_weights` in float64, which `draw_weights` gives up to a factor."""
    if config.weighting == "none":
        return torch.ones(config.weight_bins, dtype=torch.float64)
    counts = inverse_counts(label, num_bins=config.weight_bins, upper=upper, lower=lower)
    weights = torch.from_numpy(counts)
    # The sum over the split is the number of filled bins.
    num_known = int(is_usable(label, upper, lower).sum())
    return weights * num_known / (weights > 0).sum().clamp_min(1)


def place_of(label: Tensor, num_bins: int, upper: float, lower: float = 0.0) -> Tensor:
    """The even bin of [lower, upper] that each label within lies in, int64; `upper` in the last."""
    return ((label - lower) / (upper - lower) * num_bins).long().clamp_max(num_bins - 1)


def draw_weights(
    label: NDArray[np.float64], config: LossConfig, upper: float, lower: float = 0.0
) -> NDArray[np.float64]:
    """Weight of each sample where the loader draws by weights.

    Args:
        label: float (samples,), of the whole split.
        config: `weight_bins` counts.
        upper: upper end of the last bin.
        lower: lower end of the first.

    Returns:
        float64 (samples,): 1 / count of the sample's bin; 0 where the label is outside
        of the bins or unknown.
    """
    return inverse_count_weights(label, num_bins=config.weight_bins, upper=upper, lower=lower)


class BinLoss(nn.Module):
    """Weighted cross-entropy of logits against labels.

    Args:
        loss: its settings.
        model: the bins.
        weights: float32 (weight_bins,) from `redshift_weights`; None weighs all samples alike.
    """

    edges: Tensor
    weights: Tensor | None

    def __init__(self, loss: LossConfig, model: ModelConfig, weights: Tensor | None = None) -> None:
        super().__init__()
        self._loss, self._model, self._target = loss, model, Target.of(model)
        self.register_buffer("edges", bin_edges(model), persistent=False)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """The loss as two sums.

        Args:
            logits: (B, num_bins).
            label: float64 (B,); samples outside of the bins, or NaN, have weight 0.

        Returns:
            Sum of weight times loss, which gradients flow through, and sum of weights; float32.
        """
        number = bin_of(label, self._model)
        weight = self._weight(label, number)
        log_p = functional.log_softmax(logits.float(), dim=1)
        if self._loss.label_width:
            chosen = (self.labels(label) * log_p).sum(1)
        else:
            chosen = log_p.gather(1, number.clamp_min(0)[:, None])[:, 0]
        smooth = self._loss.label_smoothing
        loss = -(1 - smooth) * chosen - smooth * log_p.mean(1)
        return (weight * loss).sum(), weight.sum()

    def _weight(self, label: Tensor, number: Tensor) -> Tensor:
        is_known = number >= 0
        if self.weights is None:
            return is_known.float()
        low, high = self._target.low, self._target.high
        z = torch.where(is_known, label.double(), low)
        place = place_of(z, len(self.weights), high, low)
        return torch.where(is_known, self.weights[place], 0.0)

    def targets(self, label: Tensor) -> Tensor:
        """What the logits of each label are compared with, spread and smoothed.

        Args:
            label: float64 (B,); what it gives for a label outside of the bins means nothing.

        Returns:
            Probabilities of the bins, float32 (B, num_bins).
        """
        if self._loss.label_width:
            chosen = self.labels(label)
        else:
            number = bin_of(label, self._model).clamp_min(0)
            chosen = functional.one_hot(number, self._model.num_bins).float()
        smooth = self._loss.label_smoothing
        return (1 - smooth) * chosen + smooth / self._model.num_bins

    def labels(self, label: Tensor) -> Tensor:
        """Gaussians around labels (B,), integrated over each bin: float32 (B, num_bins)."""
        z = label.double().nan_to_num().clamp(self._target.low, self._target.high)
        steps = (self.edges - z[:, None]) / (self._loss.label_width * 2**0.5)
        mass = torch.erf(steps).diff(dim=1)
        return (mass / mass.sum(1, keepdim=True)).float()
