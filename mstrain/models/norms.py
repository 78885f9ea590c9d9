"""Normalization layers, and batch statistics over all ranks.

`torch.nn.SyncBatchNorm` refuses CPU tensors, so on CPU ranks the statistics are summed here, by an
all-reduce that gradients flow through. Every rank may hold another number of samples, or none.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_MAX_GROUPS = 32


def make_norm(kind: str, num_features: int) -> nn.Module:
    """A layer that normalizes images (B, C, H, W).

    Args:
        kind: "batch" or "group".
        num_features: C.
    """
    if kind == "group":
        return nn.GroupNorm(math.gcd(_MAX_GROUPS, num_features), num_features)
    return nn.BatchNorm2d(num_features)


class _SumOverRanks(torch.autograd.Function):
    """All-reduce by sum. Each rank's loss depends on the sum, so gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = values.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


def sum_over_ranks(values: Tensor, group: Any = None) -> Tensor:
    """The sum of a tensor over all ranks, which gradients flow through.

    Args:
        values: a tensor of equal shape on every rank.
        group: process group; None means all ranks.
    """
    summed: Tensor = _SumOverRanks.apply(values, group)  # type: ignore[no-untyped-call]
    return summed


class RankBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with the statistics of all ranks' samples, on any device.

    Parameters, buffers and results are those of `torch.nn.BatchNorm2d` on the whole batch.

    Source: Ioffe & Szegedy 2015 (arXiv:1502.03167), algorithm 1; the running variance is the
    unbiased one, as in `torch.nn.BatchNorm2d`.

    Args:
        num_features: channels.
        eps: beside the variance.
        momentum: momentum of the running statistics.
        group: process group; None means all ranks.
    """

    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, group: Any = None
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.group = group

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Normalizes; statistics are computed in float32 whatever comes in."""
        if not self.training:
            return super().forward(image_BCHW)
        x = image_BCHW.float()
        count = x.new_tensor([x.numel() // self.num_features])
        total = sum_over_ranks(torch.cat([x.sum((0, 2, 3)), count]), self.group)
        num_values = total[-1].detach().clamp_min(1)
        mean = total[:-1] / num_values
        # A second pass, because a difference of large sums would lose the variance of flat images.
        centered = x - mean[:, None, None]
        squares = sum_over_ranks(centered.square().sum((0, 2, 3)), self.group)
        variance = squares / num_values
        self._update(mean.detach(), squares.detach() / (num_values - 1).clamp_min(1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        result = torch.addcmul(self.bias[:, None, None], centered, scale[:, None, None])
        return result.to(image_BCHW.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)


class DeviceSyncBatchNorm(nn.SyncBatchNorm):
    """`torch.nn.SyncBatchNorm`, also where a rank's share of the last batch is empty.

    Under autocast torch's own (2.11 to 2.13) has a rank without samples take part with zeros of the
    images' half precision, while the others send float32: they wait for each other for ever.
    """

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Normalizes; where there is nothing, takes part in the sums of the others."""
        if image_BCHW.numel():
            return super().forward(image_BCHW)
        return super().forward(image_BCHW.float()).to(image_BCHW.dtype)


def synchronize_norms(model: nn.Module, device: torch.device, group: Any = None) -> nn.Module:
    """The network with batch statistics over all ranks.

    Args:
        model: its `BatchNorm2d` layers are replaced; parameters and buffers stay the same objects.
        device: where it runs: `DeviceSyncBatchNorm` on a GPU, `RankBatchNorm2d` elsewhere.
        group: process group; None means all ranks.

    Returns:
        The network, changed.
    """
    for module in model.modules():
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, _over_ranks(child, device, group))
    return model


def _over_ranks(norm: nn.BatchNorm2d, device: torch.device, group: Any) -> nn.Module:
    assert norm.momentum is not None
    new: RankBatchNorm2d | DeviceSyncBatchNorm
    if device.type == "cuda":
        new = DeviceSyncBatchNorm(norm.num_features, norm.eps, norm.momentum, process_group=group)
    else:
        new = RankBatchNorm2d(norm.num_features, norm.eps, norm.momentum, group)
    new.weight, new.bias = norm.weight, norm.bias
    new.running_mean, new.running_var = norm.running_mean, norm.running_var
    new.num_batches_tracked = norm.num_batches_tracked
    new.train(norm.training)
    return new
