"""The whole network: an encoder for each image that the augmenter gives, joined before the head.

Early fusion is one encoder over all bands on a common grid; late fusion is one per survey, each on
its own grid. Which it is follows from the images' shapes alone.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from msdata.errors import UsageError
from mstrain.models.image_statistics import NUM_OF_CHANNEL, image_statistics
from mstrain.models.resnet import ResNet
from mstrain.network_config import ModelConfig

FEATURES, HIDDEN, PIXELS = LAYERS = ("features", "hidden", "pixels")


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
        self.num_features: int = sum(e.num_features for e in self.encoders.values())  # type: ignore[misc]
        self.head = BinHead(self.num_features, config)
        self.num_channels = sum(shape[0] for shape in shapes.values())

    def forward(self, batch: Mapping[str, Tensor], ebv: Tensor | None = None) -> Tensor:
        """Logits.

        Args:
            batch: images (B, C, H, W) by name.
            ebv: E(B-V) in magnitudes, (B,), or (B, columns) where the network takes several; not
                looked at where it takes none.

        Returns:
            (B, num_bins).
        """
        logits: Tensor = self.head(self.pooled(batch), ebv)
        return logits

    def embed(
        self,
        batch: Mapping[str, Tensor],
        ebv: Tensor | None = None,
        layer: str = FEATURES,
        features: Tensor | None = None,
    ) -> Tensor:
        """What the network makes of images before it says anything of redshift.

        Args:
            batch: images (B, C, H, W) by name.
            ebv: E(B-V) in magnitudes, (B,); the hidden layer sees it.
            layer: "features", pooled, of all encoders; "hidden", the layer before the logits; or
                "pixels", the images' `image_statistics`; see `check_layer`.
            features: the images' `pooled` features, where they are known.

        Returns:
            float32 (B, `embedding_size(layer)`).
        """
        if layer == PIXELS:
            return image_statistics(batch)
        features = self.pooled(batch) if features is None else features
        # What enters the last layer is the hidden one, after its ReLU.
        return features.float() if layer == FEATURES else self.head.last_layer(features, ebv)[0]

    def last_layer(
        self, batch: Mapping[str, Tensor], ebv: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What enters the last linear layer, float32 (B, D), and the logits that it makes of it."""
        return self.head.last_layer(self.pooled(batch), ebv)

    def embedding_size(self, layer: str) -> int:
        """Values that `embed` gives per object."""
        if layer == HIDDEN:
            return self.head.num_hidden
        if layer == PIXELS:
            return NUM_OF_CHANNEL * self.num_channels
        return self.num_features

    def pooled(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Pooled features of all encoders, (B, F), which the head takes."""
        features = [encoder(batch[name]) for name, encoder in self.encoders.items()]
        return torch.cat(features, dim=1)


def _encoder(shape: tuple[int, ...], config: ModelConfig) -> ResNet:
    return ResNet(
        shape[0],
        depth=config.depth,
        width=config.width,
        norm=config.norm,
        is_small=min(shape[1:]) < config.small_stem_below,
    )


def check_layer(layer: str, config: ModelConfig) -> None:
    """Raises UsageError unless networks of a configuration have a layer to embed by."""
    if layer not in LAYERS:
        raise UsageError(f"layer must be one of {', '.join(LAYERS)}, got {layer!r}")
    if layer == HIDDEN and not config.hidden:
        raise UsageError(
            "the network has no hidden layer (model.hidden=0), got layer 'hidden'; give 'features'"
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
        self.num_hidden = config.hidden
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
            logits: Tensor = self.layers(self._joined(features, ebv))
        return logits

    def last_layer(self, features: Tensor, ebv: Tensor | None) -> tuple[Tensor, Tensor]:
        """What enters the last layer, float32 (B, D), and the logits; arguments as of `forward`."""
        with torch.autocast(features.device.type, enabled=False):
            entering: Tensor = self.layers[:-1](self._joined(features, ebv))
            logits: Tensor = self.layers[-1](entering)
        return entering, logits

    def _joined(self, features: Tensor, ebv: Tensor | None) -> Tensor:
        features = features.float()
        if self.num_ebv:
            assert ebv is not None, "this network was trained with E(B-V)"
            reddening = (ebv * self._EBV_SCALE).float().reshape(-1, self.num_ebv)
            features = torch.cat([features, reddening], dim=1)
        return features
