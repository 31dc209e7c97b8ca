"""MobileNetV2 (Sandler et al., arXiv:1801.04381), a baseline of the ShuffleNet V2 paper's table 8.

Module and state-dict names are torchvision's (``features.N``, ``classifier.1``), so its checkpoints load as
they are.
"""

import torch
from torch import Tensor, nn

from shufflectl.models.layers import Residual, depthwise_conv, pointwise_conv, spatial_conv
from shufflectl.models.staged import Staged

__all__ = ["InvertedResidual", "MobileNetV2", "build"]

_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)  # table 2: expansion, output channels, repetitions, stride of the first


def _conv_bn_relu6(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU6(inplace=True))


class InvertedResidual(nn.Module):
    """The bottleneck (table 1, figure 4d): expand, depthwise, project without a ReLU; residual where it fits.

    ``[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]``.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        stride: Stride of the depthwise convolution; with 1 and equal channels there is a residual connection.
        expansion: Channels of the depthwise convolution, as a multiple of ``inputs``.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [] if expansion == 1 else [_conv_bn_relu6(pointwise_conv(inputs, hidden))]
        self.conv = nn.Sequential(
            *expand,
            _conv_bn_relu6(depthwise_conv(hidden, stride)),
            pointwise_conv(hidden, outputs),
            nn.BatchNorm2d(outputs),
        )
        self.residual = Residual() if stride == 1 and inputs == outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the unit's output."""
        out: Tensor = self.conv(x)
        return out if self.residual is None else self.residual(x, out)


class MobileNetV2(Staged):
    """The network of table 2, ``[N, 3, H, W] -> [N, num_classes]``, or feature maps: see `Staged`.

    Args:
        width: Width multiplier; above 1 it also widens the last convolution.
        num_classes: Width of the classifier.
    """

    chain = tuple(f"features.{index}" for index in range(2 + sum(stage[2] for stage in _STAGES)))
    stages = ("features.1", "features.3", "features.6", "features.13", "features.17")

    def __init__(self, width: float, num_classes: int) -> None:
        super().__init__()
        channels = _round(32 * width)
        features: list[nn.Module] = [_conv_bn_relu6(spatial_conv(3, channels, 2))]
        for expansion, base, repeats, stride in _STAGES:
            outputs = _round(base * width)
            for index in range(repeats):
                features.append(InvertedResidual(channels, outputs, 1 if index else stride, expansion))
                channels = outputs
        last = _round(1280 * max(1.0, width))
        features.append(_conv_bn_relu6(pointwise_conv(channels, last)))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, num_classes))

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits, ``[N, num_classes]``."""
        x = nn.functional.adaptive_avg_pool2d(x, (1, 1))
        logits: Tensor = self.classifier(torch.flatten(x, 1))  # [N, C, 1, 1] -> [N, C]
        return logits


def _round(channels: float) -> int:
    """Return the nearest multiple of 8 that is not more than a tenth below, as the authors' code does."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def build(*, width: float, num_classes: int) -> MobileNetV2:
    """Return a network of the width given."""
    return MobileNetV2(width, num_classes)
