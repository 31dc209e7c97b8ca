"""MobileNetV1 (Howard et al., arXiv:1704.04861), the baseline of the ShuffleNet V1 paper's table 5.

Names: ``conv1``, ``blocks.N`` with ``depthwise`` and ``pointwise``, ``fc``.
"""

import torch
from torch import Tensor, nn

from shufflectl.models.layers import depthwise_conv, pointwise_conv, spatial_conv
from shufflectl.models.staged import Staged

__all__ = ["MobileNetV1", "SeparableConv", "build"]

_BLOCKS = (
    *((64, 1), (128, 2), (128, 1), (256, 2), (256, 1)),
    *((512, 2), *(((512, 1),) * 5), (1024, 2), (1024, 1)),
)  # table 1: output channels, stride; the last is printed with stride 2, which its 7x7 output excludes


class SeparableConv(nn.Module):
    """The depthwise separable convolution (figure 3, right).

    ``[N, inputs, H, W] -> [N, outputs, H / stride, W / stride]``.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        stride: Stride of the depthwise convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.depthwise = nn.Sequential(
            depthwise_conv(inputs, stride), nn.BatchNorm2d(inputs), nn.ReLU(inplace=True)
        )
        self.pointwise = nn.Sequential(
            pointwise_conv(inputs, outputs), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        out: Tensor = self.pointwise(self.depthwise(x))
        return out


class MobileNetV1(Staged):
    """The network of table 1, ``[N, 3, H, W] -> [N, num_classes]``, or feature maps: see `Staged`.

    Args:
        width: Width multiplier (section 3.3).
        num_classes: Width of the classifier.
    """

    chain = ("conv1", *(f"blocks.{index}" for index in range(len(_BLOCKS))))
    stages = ("blocks.0", "blocks.2", "blocks.4", "blocks.10", "blocks.12")

    def __init__(self, width: float, num_classes: int) -> None:
        super().__init__()
        channels = int(32 * width)
        self.conv1 = nn.Sequential(
            spatial_conv(3, channels, 2), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
        )
        blocks: list[nn.Module] = []
        for base, stride in _BLOCKS:
            outputs = int(base * width)
            blocks.append(SeparableConv(channels, outputs, stride))
            channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)

    def classify(self, x: Tensor) -> Tensor:
        """Return the logits, ``[N, num_classes]``."""
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))  # [N, C, 1, 1] -> [N, C]
        return logits


def build(*, width: float, num_classes: int) -> MobileNetV1:
    """Return a network of the paper's table 6."""
    return MobileNetV1(width, num_classes)
