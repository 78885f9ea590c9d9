"""Residual networks for images of any number of channels; written here, without torchvision.

Source: He et al. 2016 (arXiv:1512.03385), table 1. The stride of a bottleneck stands at its 3x3
convolution (Goyal et al. 2017, arXiv:1706.02677, footnote 3), and each residual branch begins as
zero (ibid., section 5.1).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from mstrain.models.norms import make_norm

# Depth -> (whether blocks are bottlenecks, blocks in each stage). 10 is for CPUs and small data.
LAYOUTS: dict[int, tuple[bool, tuple[int, ...]]] = {
    10: (False, (1, 1, 1, 1)),
    18: (False, (2, 2, 2, 2)),
    34: (False, (3, 4, 6, 3)),
    50: (True, (3, 4, 6, 3)),
}
_EXPANSION = 4


def _convolution(num_in: int, num_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(num_in, num_out, size, stride, padding=size // 2, bias=False)


class SubsamplingConv2d(nn.Conv2d):
    """A 1x1 convolution of every other pixel; parameters and results are those of `nn.Conv2d`.

    On a CPU the pixels are picked first: oneDNN's own strided 1x1 convolutions, of channels-last
    images whose number of channels is not a multiple of 16, write past their memory in the backward
    pass (torch 2.13: the training crashes, or hangs).
    """

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """(B, channels out, H / stride, W / stride), rounded up."""
        if image_BCHW.device.type != "cpu":
            return super().forward(image_BCHW)
        rows, columns = self.stride
        picked_BCHW = image_BCHW[:, :, ::rows, ::columns]
        return functional.conv2d(picked_BCHW, self.weight, self.bias)


def _shortcut(num_in: int, num_out: int, stride: int, norm: str) -> nn.Module:
    if num_in == num_out and stride == 1:
        return nn.Identity()
    kind = nn.Conv2d if stride == 1 else SubsamplingConv2d
    convolution = kind(num_in, num_out, 1, stride, bias=False)
    return nn.Sequential(convolution, make_norm(norm, num_out))


class ResidualBlock(nn.Module):
    """Convolutions beside a shortcut: two of 3x3; in a bottleneck a 1x1, a 3x3 and a 1x1.

    Args:
        num_in: channels that come in.
        width: channels of the 3x3 convolutions.
        stride: stride of the first 3x3 convolution.
        norm: kind of normalization, see `mstrain.models.norms.make_norm`.
        is_bottleneck: four times `width` channels go out, not `width`.

    Attributes:
        num_out: channels that go out.
    """

    def __init__(
        self, num_in: int, width: int, stride: int, norm: str, *, is_bottleneck: bool
    ) -> None:
        super().__init__()
        self.num_out = width * _EXPANSION if is_bottleneck else width
        # Channels in and out, size and stride of each convolution.
        shapes = [(num_in, width, 3, stride), (width, width, 3, 1)]
        if is_bottleneck:
            shapes = [(num_in, width, 1, 1), (width, width, 3, stride), (width, self.num_out, 1, 1)]
        layers: list[nn.Module] = []
        for shape in shapes:
            layers += [_convolution(*shape), make_norm(norm, shape[1]), nn.ReLU(inplace=True)]
        self.branch = nn.Sequential(*layers[:-1])
        self.shortcut = _shortcut(num_in, self.num_out, stride, norm)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """The block's output, (B, num_out, H / stride, W / stride)."""
        result: Tensor = self.activation(self.branch(image_BCHW) + self.shortcut(image_BCHW))
        return result


class ResNet(nn.Module):
    """Images in, features out: stem, four stages, mean over the map.

    Args:
        num_channels: channels of the images.
        depth: one of `LAYOUTS`.
        width: channels of the first stage; each later stage doubles them.
        norm: kind of normalization, see `mstrain.models.norms.make_norm`.
        is_small: a 3x3 stem without stride and pooling, for small images.

    Attributes:
        num_features: features of the output.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        depth: int = 18,
        width: int = 64,
        norm: str = "batch",
        is_small: bool = False,
    ) -> None:
        super().__init__()
        is_bottleneck, layout = LAYOUTS[depth]
        self.stem = _stem(num_channels, width, norm, is_small=is_small)
        stages, self.num_features = [], width
        for number, num_blocks in enumerate(layout):
            blocks: list[nn.Module] = []
            for stride in [1 if number == 0 else 2] + [1] * (num_blocks - 1):
                shape = (self.num_features, width << number, stride)
                block = ResidualBlock(*shape, norm, is_bottleneck=is_bottleneck)
                self.num_features = block.num_out
                blocks.append(block)
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        _initialize(self)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Features.

        Args:
            image_BCHW: float (B, num_channels, H, W).

        Returns:
            (B, num_features).
        """
        features: Tensor = self.stages(self.stem(image_BCHW)).mean((2, 3))
        return features


def _stem(num_channels: int, width: int, norm: str, *, is_small: bool) -> nn.Module:
    shape = (3, 1) if is_small else (7, 2)
    layers = [_convolution(num_channels, width, *shape), make_norm(norm, width)]
    pooling = [] if is_small else [nn.MaxPool2d(3, stride=2, padding=1)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True), *pooling)


def _initialize(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, ResidualBlock):
            last = module.branch[-1]
            assert isinstance(last, nn.BatchNorm2d | nn.GroupNorm)
            nn.init.zeros_(last.weight)
