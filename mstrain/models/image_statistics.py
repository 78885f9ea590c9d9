"""Brightness of the middle and the noise around it, of each channel as the network sees it.

It stands alone as an embedding without a network: nothing here is learned, so it also tells what a
network was trained to ignore.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

# Outer radii of the disc and two rings, in sides of the image, and the least that hold pixels of
# small images; all that is farther out is sky.
_RADII = (1 / 16, 1 / 8, 1 / 4)
_LEAST_PIXELS = (0.75, 1.6, 2.3)
NUM_OF_CHANNEL = len(_RADII) + 2
# Embeddings are float16.
_LARGEST = 65_504.0


def image_statistics(images: Mapping[str, Tensor]) -> Tensor:
    """Means of a central disc, of two rings and of the rest, and the rest's standard deviation.

    Args:
        images: (B, C, H, W) by name.

    Returns:
        float32 (B, 5 x channels), images one after the other, of each the channels' first
        statistic, then their second; limited to what float16 holds.
    """
    found = []
    for image_BCHW in images.values():
        zone_HW = _zones(image_BCHW)
        parts = [image_BCHW[:, :, zone_HW == n].float() for n in range(len(_RADII) + 1)]
        # Images of four pixels a side have no sky.
        parts = [part if part.shape[2] else part.new_zeros(*part.shape[:2], 1) for part in parts]
        found += [part.mean(dim=2) for part in parts]
        found.append(parts[-1].std(dim=2, correction=0))
    return torch.cat(found, dim=1).clamp(-_LARGEST, _LARGEST)


def _zones(image_BCHW: Tensor) -> Tensor:
    """Number of each pixel's zone, int (H, W), from the middle."""
    height, width = image_BCHW.shape[-2:]
    y_H, x_W = (torch.arange(n, device=image_BCHW.device) - (n - 1) / 2 for n in (height, width))
    side = min(height, width)
    radii = [max(r * side, least) for r, least in zip(_RADII, _LEAST_PIXELS, strict=True)]
    limits = torch.tensor(radii, device=image_BCHW.device)
    return torch.bucketize(torch.sqrt(y_H[:, None] ** 2 + x_W**2), limits)
