"""Normalization layers, and batch statistics over all ranks.

Every rank may hold another number of samples, or none. `torch.nn.SyncBatchNorm` has the host wait
for the GPU three times per layer to leave out such ranks, refuses CPU tensors, and under autocast
has a rank without samples take part with half as many bytes as the others.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

_MAX_GROUPS = 32
# Samples of a rank that has none, since the kernel divides by those of the first rank: a product
# with it is far below rounding, and its inverse is finite.
_NONE = 1e-30


def make_norm(kind: str, num_features: int) -> nn.Module:
    """A layer, "batch" or "group", that normalizes images (B, num_features, H, W)."""
    if kind == "group":
        return nn.GroupNorm(math.gcd(_MAX_GROUPS, num_features), num_features)
    return nn.BatchNorm2d(num_features)


class _CudaKernels:
    """Those of `torch.nn.SyncBatchNorm`: one pass over an image each, in either layout."""

    measure = staticmethod(torch.batch_norm_stats)
    combine = staticmethod(torch.batch_norm_gather_stats_with_counts)
    normalize = staticmethod(torch.batch_norm_elemt)
    reduce = staticmethod(torch.batch_norm_backward_reduce)
    differentiate = staticmethod(torch.batch_norm_backward_elemt)


class _PlainKernels:
    """The same functions for any device, in float32."""

    @staticmethod
    def measure(x_BCHW: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """Mean and inverse standard deviation of each channel."""
        variance, mean = torch.var_mean(x_BCHW, (0, 2, 3), correction=0)
        return mean, torch.rsqrt(variance + eps)

    @staticmethod
    def combine(
        x_BCHW: Tensor,
        mean_RC: Tensor,
        inverse_RC: Tensor,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
        counts: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The same of all ranks' values together; updates the running statistics."""
        total = counts.sum()
        share_R1 = (counts / total)[:, None]
        mean = (share_R1 * mean_RC).sum(0)
        square_RC = inverse_RC**-2 - eps + (mean_RC - mean).square()
        variance = (share_R1 * square_RC).sum(0).clamp_min(0)
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * (total / (total - 1).clamp_min(1)), momentum)
        return mean, torch.rsqrt(variance + eps)

    @staticmethod
    def normalize(
        x_BCHW: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, eps: float
    ) -> Tensor:
        """The layer's result."""
        scale = weight * inverse
        return torch.addcmul(_wide(bias), x_BCHW - _wide(mean), _wide(scale))

    @staticmethod
    def reduce(
        gradient_BCHW: Tensor, x_BCHW: Tensor, mean: Tensor, inverse: Tensor, *_: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Sums of the gradient, and of it times x less its mean; weight's and bias's gradient."""
        total = gradient_BCHW.sum((0, 2, 3))
        product = (gradient_BCHW * (x_BCHW - _wide(mean))).sum((0, 2, 3))
        return total, product, product * inverse, total

    @staticmethod
    def differentiate(
        gradient_BCHW: Tensor,
        x_BCHW: Tensor,
        mean: Tensor,
        inverse: Tensor,
        weight: Tensor,
        total: Tensor,
        product: Tensor,
        counts: Tensor,
    ) -> Tensor:
        """The gradient of x, from sums over all ranks."""
        num_values = counts.sum()
        slope = _wide(inverse.square() * product / num_values)
        centered = gradient_BCHW - _wide(total / num_values)
        return (centered - (x_BCHW - _wide(mean)) * slope) * _wide(weight * inverse)


def _wide(values_C: Tensor) -> Tensor:
    return values_C[:, None, None]


class _BatchNormOverRanks(torch.autograd.Function):
    """Batch norm over all ranks: one collective forward, one backward, no wait."""

    @staticmethod
    def forward(
        ctx: Any, x_BCHW: Tensor, weight: Tensor, bias: Tensor, norm: RankBatchNorm2d
    ) -> Tensor:
        assert norm.momentum is not None
        assert norm.running_mean is not None and norm.running_var is not None
        kernels = ctx.kernels = _kernels_of(x_BCHW)
        num_channels, ctx.group = x_BCHW.shape[1], norm.group
        x_BCHW = x_BCHW.contiguous(memory_format=_layout_of(x_BCHW))
        own = _own_statistics(x_BCHW, weight, norm.eps)
        mean_RC, inverse_RC, counts_R1 = torch.split(
            _gathered(own, norm.group), num_channels, dim=1
        )
        mean, inverse = kernels.combine(
            x_BCHW,
            mean_RC,
            inverse_RC,
            norm.running_mean,
            norm.running_var,
            norm.momentum,
            norm.eps,
            counts_R1.reshape(-1),
        )
        ctx.save_for_backward(x_BCHW, weight, mean, inverse, counts_R1.reshape(-1).int())
        if not x_BCHW.numel():
            return torch.empty_like(x_BCHW)
        return kernels.normalize(x_BCHW, weight, bias, mean, inverse, norm.eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x_BCHW, weight, mean, inverse, counts = ctx.saved_tensors
        gradient_BCHW = gradients[0].contiguous(memory_format=_layout_of(x_BCHW))
        num_channels = x_BCHW.shape[1]
        if not x_BCHW.numel():
            nothing = torch.zeros_like(weight)
            dist.all_reduce(weight.new_zeros(2 * num_channels), group=ctx.group)
            return torch.empty_like(x_BCHW), nothing, nothing, None
        total, product, of_weight, of_bias = ctx.kernels.reduce(
            gradient_BCHW, x_BCHW, mean, inverse, weight, True, True, True
        )
        sums = torch.cat([total, product])
        dist.all_reduce(sums, group=ctx.group)
        total, product = torch.split(sums, num_channels)
        of_x = ctx.kernels.differentiate(
            gradient_BCHW, x_BCHW, mean, inverse, weight, total, product, counts
        )
        return of_x, of_weight, of_bias, None


def _kernels_of(image: Tensor) -> type[_CudaKernels] | type[_PlainKernels]:
    return _CudaKernels if image.device.type == "cuda" else _PlainKernels


def _layout_of(image: Tensor) -> torch.memory_format:
    """Channels last where the image has it; both kernels want x and its gradient in one layout."""
    is_last = image.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


def _own_statistics(x_BCHW: Tensor, weight: Tensor, eps: float) -> Tensor:
    """This rank's mean, inverse standard deviation and number of values: float32 (2 C + 1,)."""
    num_channels = len(weight)
    # A number that is copied to a GPU would be waited for; one that is filled in is not.
    if x_BCHW.numel():
        count = weight.new_full((1,), x_BCHW.numel() // num_channels)
        return torch.cat([*_kernels_of(x_BCHW).measure(x_BCHW, eps), count])
    none = weight.new_full((1,), _NONE)
    return torch.cat([torch.zeros_like(weight), torch.ones_like(weight), none])


def _gathered(own: Tensor, group: Any) -> Tensor:
    """What each rank has of a vector, a row per rank."""
    rows = own.new_empty((dist.get_world_size(group), len(own)))
    # Newer torches have renamed it.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    gather(rows.view(-1), own, group=group)
    return rows


class RankBatchNorm2d(nn.BatchNorm2d):
    """Batch norm with the statistics of all ranks' samples, on any device.

    Parameters, buffers and results are those of `torch.nn.BatchNorm2d` on the whole batch.

    Source: Ioffe & Szegedy 2015 (arXiv:1502.03167), algorithm 1; the running variance is the
    unbiased one, as in `torch.nn.BatchNorm2d`. Ranks are joined as in Chan et al. 1983 (The
    American Statistician 37, 242).

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
        # The collectives cannot be compiled; a compiled network is cut here. Said here, since it
        # imports the compiler, which takes as long as torch itself.
        self._normalize: Any = torch.compiler.disable(  # type: ignore[no-untyped-call]
            _normalize_over_ranks
        )

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Normalizes; statistics are computed in float32 whatever comes in."""
        if not self.training:
            return super().forward(image_BCHW)
        normalized: Tensor = self._normalize(self, image_BCHW)
        return normalized


def _normalize_over_ranks(norm: RankBatchNorm2d, image_BCHW: Tensor) -> Tensor:
    assert norm.num_batches_tracked is not None
    norm.num_batches_tracked.add_(1)
    is_plain = _kernels_of(image_BCHW) is _PlainKernels
    x_BCHW = image_BCHW.float() if is_plain else image_BCHW
    result: Tensor = _BatchNormOverRanks.apply(  # type: ignore[no-untyped-call]
        x_BCHW, norm.weight, norm.bias, norm
    )
    return result.to(image_BCHW.dtype)


def synchronize_norms(model: nn.Module, group: Any = None) -> nn.Module:
    """The network with batch statistics over all ranks.

    Args:
        model: its `BatchNorm2d` layers are replaced; parameters and buffers stay the same objects.
        group: process group; None means all ranks.

    Returns:
        The network, changed.
    """
    for module in model.modules():
        for name, child in list(module.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(module, name, _over_ranks(child, group))
    return model


def _over_ranks(norm: nn.BatchNorm2d, group: Any) -> nn.Module:
    assert norm.momentum is not None
    new = RankBatchNorm2d(norm.num_features, norm.eps, norm.momentum, group)
    new.weight, new.bias = norm.weight, norm.bias
    new.running_mean, new.running_var = norm.running_mean, norm.running_var
    new.num_batches_tracked = norm.num_batches_tracked
    new.train(norm.training)
    return new
