"""The whole network: an encoder for each image that the augmenter gives, joined before the head.

Early fusion is one encoder over all bands on a common grid; late fusion is one a survey, each on
its own grid. Which it is follows from the images' shapes alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mstrain.config import ModelConfig
from mstrain.models.heads import BinHead
from mstrain.models.resnet import ResNet


class RedshiftNet(nn.Module):
    """Images and E(B-V) in, logits of redshift bins out.

    Args:
        shapes: (channels, height, width) of each image by its name, as the augmenter has them.
        config: of the network.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], config: ModelConfig) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {name: _encoder(shape, config) for name, shape in shapes.items()}
        )
        num_features = sum(e.num_features for e in self.encoders.values())  # type: ignore[misc]
        self.head = BinHead(num_features, config)

    def forward(self, batch: Mapping[str, Tensor], ebv: Tensor | None = None) -> Tensor:
        """Logits.

        Args:
            batch: images (B, C, H, W) by name.
            ebv: E(B-V) in magnitudes, (B,); not looked at where the network takes none.

        Returns:
            (B, num_bins).
        """
        features = [encoder(batch[name]) for name, encoder in self.encoders.items()]
        logits: Tensor = self.head(torch.cat(features, dim=1), ebv)
        return logits


def _encoder(shape: tuple[int, ...], config: ModelConfig) -> ResNet:
    return ResNet(
        shape[0],
        depth=config.depth,
        width=config.width,
        norm=config.norm,
        is_small=min(shape[1:]) < config.small_stem_below,
    )
