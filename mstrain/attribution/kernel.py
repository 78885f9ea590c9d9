"""The last layer's tangent kernel, in closed form: what a training object does to another's loss.

The gradient of an object's cross-entropy with respect to the last layer's weights and biases is
r x [h, 1], with r = p - y (the bins' probabilities minus the label's) and h what enters the layer.
So the product of the gradients of two objects is

    K_ij = (r_i . r_j) (h_i . h_j + 1),

and a step of gradient descent on j of rate e changes the loss of i by -e K_ij: j argues for the
label of i where K is positive, against it where it is negative.

Source: Pruthi et al. 2020, arXiv:2002.08484 (TracIn); Engel et al. 2023, arXiv:2305.14585.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mstrain.models.heads import bin_of
from mstrain.models.loss import BinLoss
from mstrain.network_config import ModelConfig

# Training objects at a time: 64 MB of kernel for a thousand queries.
_BLOCK = 16_384


def residuals(
    logits: Tensor, label: Tensor, loss: BinLoss, model: ModelConfig, *, has_stand_in: bool = False
) -> Tensor:
    """The gradient of each object's cross-entropy with respect to its logits.

    Args:
        logits: (B, num_bins).
        label: float64 (B,), NaN or outside of the bins where unknown.
        loss: the training's, which may spread or smooth labels; its weights do not count.
        model: the bins.
        has_stand_in: an unknown label is taken to be the density's mode; else its residual is 0.

    Returns:
        Probabilities minus those of the label, (B, num_bins) in the type of the logits.
    """
    probability = torch.softmax(logits, dim=1)
    is_known = (bin_of(label, model) >= 0)[:, None]
    wanted = loss.targets(label).to(probability)
    if not has_stand_in:
        return torch.where(is_known, probability - wanted, 0.0)
    mode = torch.nn.functional.one_hot(logits.argmax(dim=1), logits.shape[1]).to(probability)
    return probability - torch.where(is_known, wanted, mode)


def kernel_block(r_QK: Tensor, h_QD: Tensor, r_NK: Tensor, h_ND: Tensor) -> Tensor:
    """The kernel between two groups of objects, (Q, N).

    Args:
        r_QK: residuals of the first.
        h_QD: inputs of the last layer of the first.
        r_NK: residuals of the second.
        h_ND: inputs of the second.
    """
    return (r_QK @ r_NK.T) * (h_QD @ h_ND.T + 1)


def self_influence(r_NK: Tensor, h_ND: Tensor) -> Tensor:
    """The kernel of each object with itself, (N,): the squared norm of its gradient."""
    return r_NK.square().sum(dim=1) * (h_ND.square().sum(dim=1) + 1)


def strongest(
    query: tuple[NDArray[Any], NDArray[Any]],
    parts: Iterable[tuple[NDArray[Any], NDArray[Any]]],
    own_Q: NDArray[np.int64],
    count: int,
    device: torch.device | str = "cpu",
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The training objects that argue most for and most against each query.

    Args:
        query: residuals (Q, K) and inputs (Q, D).
        parts: residuals (n, K) and inputs (n, D), all training objects one part after the other;
            read once, in blocks.
        own_Q: int64 (Q,), row of the query itself among them, which does not count; -1 for none.
        count: objects wanted on each side.
        device: where products are computed.

    Returns:
        Kernel float32 and row int64, (2, Q, count') each: for, falling, then against, rising;
        count' is `count` or all training objects. NaN and -1 where there are fewer of that sign.
    """
    r_QK, h_QD = (torch.from_numpy(np.array(v, np.float32)).to(device) for v in query)
    own = torch.from_numpy(own_Q).to(device)[:, None]
    best = torch.zeros((2, len(r_QK), 0), device=device)
    row = torch.zeros((2, len(r_QK), 0), dtype=torch.int64, device=device)
    start = 0
    for r_part, h_part in parts:
        for first in range(0, len(r_part), _BLOCK):
            r_NK, h_ND = (
                torch.from_numpy(np.array(v[first : first + _BLOCK], np.float32))
                for v in (r_part, h_part)
            )
            kernel = kernel_block(r_QK, h_QD, r_NK.to(device), h_ND.to(device))
            here = torch.arange(start + first, start + first + len(r_NK), device=device)[None]
            signed = torch.stack([kernel, -kernel])
            signed = torch.where((here == own) | (signed <= 0), -torch.inf, signed)
            best = torch.cat([best, signed], dim=2)
            row = torch.cat([row, here.expand(signed.shape)], dim=2)
            best, place = torch.topk(best, min(count, best.shape[2]), dim=2)
            row = row.gather(2, place)
        start += len(r_part)
    best[1] *= -1
    is_found = torch.isfinite(best)
    value = torch.where(is_found, best, torch.nan).cpu().numpy()
    return value, torch.where(is_found, row, -1).cpu().numpy()
