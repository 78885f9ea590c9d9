"""The whole network: an encoder for each image that the augmenter gives, joined before the head.

Early fusion is one encoder over all bands on a common grid; late fusion is one per survey, each on
its own grid. Which it is follows from the images' shapes alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mstrain.models.resnet import ResNet
from mstrain.network_config import ModelConfig


class RedshiftNet(nn.Module):
    """Images and E(B-V) in, logits of redshift bins out.

    Args:
        shapes: (channels, height, width) of each image by its name, as the augmenter has them.
        config: settings of the network.
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
            ebv: E(B-V) in magnitudes, (B,), or (B, columns) where the network takes several; not
                looked at where it takes none.

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


class BinHead(nn.Module):
    """Joins E(B-V) to pooled features and gives logits of the redshift bins.

    Args:
        num_features: features of all encoders together.
        config: settings of the network.
    """

    # E(B-V) of a few hundredths becomes as large as a feature.
    _EBV_SCALE = 10.0

    def __init__(self, num_features: int, config: ModelConfig) -> None:
        super().__init__()
        self.num_ebv = len(config.reddening)
        num_in = num_features + self.num_ebv
        layers: list[nn.Module] = []
        if config.hidden:
            layers += [nn.Linear(num_in, config.hidden), nn.ReLU(inplace=True)]
            num_in = config.hidden
        self.layers = nn.Sequential(*layers, nn.Linear(num_in, config.num_bins))

    def forward(self, features: Tensor, ebv: Tensor | None) -> Tensor:
        """Logits, in float32 also under autocast: rounded to bf16, densities are off by up to 3 %.

        Args:
            features: (B, num_features).
            ebv: E(B-V) in magnitudes, (B,) or (B, columns); needed where the network was made with
                it.

        Returns:
            float32 (B, num_bins).
        """
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            if self.num_ebv:
                assert ebv is not None, "this network was trained with E(B-V)"
                reddening = (ebv * self._EBV_SCALE).float()
                reddening = reddening.reshape(-1, self.num_ebv)
                features = torch.cat([features, reddening], dim=1)
            logits: Tensor = self.layers(features)
        return logits
